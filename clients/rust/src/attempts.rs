//! When a failed call is repeated, and after which pause.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use crate::Error;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The attempts of one call, or of a watch that waits for its next response.
#[derive(Debug)]
pub(crate) struct Attempts {
    deadline: Option<Instant>,
    failures: u32,
}

impl Attempts {
    /// Attempts that end after this time.
    pub(crate) fn within(time: Duration) -> Self {
        Self { deadline: Some(Instant::now() + time), failures: 0 }
    }

    /// Attempts without an end.
    pub(crate) fn endless() -> Self {
        Self { deadline: None, failures: 0 }
    }

    /// The time until the deadline.
    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.map_or(Duration::MAX, |it| it.saturating_duration_since(Instant::now()))
    }

    /// The result of an attempt, which ends at the deadline.
    pub(crate) async fn limit<R>(&self, attempt: impl Future<Output = Result<R, Status>>) -> Result<R, Error> {
        let expired = |_| Err(Status::deadline_exceeded("the deadline of the call has passed"));
        Ok(timeout(self.remaining(), attempt).await.unwrap_or_else(expired)?)
    }

    /// Waits before the next attempt; returns the error if another attempt cannot help, or if no time is left for it.
    pub(crate) async fn pause(&mut self, error: Error) -> Result<(), Error> {
        let longest = LONGEST_PAUSE.min(FIRST_PAUSE * 2_u32.pow(self.failures.min(10)));
        // Callers that failed together must not retry together.
        let pause = longest.mul_f64(0.5 + fastrand::f64() / 2.0).max(error.retry_after.unwrap_or_default());
        if !error.is_transient() || pause >= self.remaining() {
            return Err(error);
        }
        self.failures += 1;
        sleep(pause).await;
        Ok(())
    }
}
