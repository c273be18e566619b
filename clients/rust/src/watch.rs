//! A watch that resumes.

use std::time::Duration;

use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::attempts::Attempts;
use crate::proto::change_service_client::ChangeServiceClient;
use crate::proto::watch_request::Start;
use crate::proto::{WatchRequest, WatchResponse};
use crate::{Client, Error};

/// The interval of heartbeats that the service uses for a request without one.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A stream of changes. After the first response it is opened again without a limit of attempts or time.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    request: WatchRequest,
    silence: Duration,
    attempts: Attempts,
    stream: Option<Streaming<WatchResponse>>,
}

impl Watch {
    pub(crate) fn new(client: Client, request: WatchRequest) -> Self {
        let heartbeat = request.heartbeat_interval.and_then(|it| it.try_into().ok()).unwrap_or(HEARTBEAT);
        let silence = 2 * heartbeat + Duration::from_secs(1);
        let attempts = Attempts::within(client.timeout);
        Self { client, request, silence, attempts, stream: None }
    }

    /// The next response. After a broken connection, the watch continues after the previous response.
    ///
    /// Store `resume_token` together with the effects of the response, to continue from it after a restart of this program.
    ///
    /// The reasons `ResumeTokenExpired` and `ResumeTokenForeign` mean that changes were lost: start again with `InitialState`, and
    /// delete what it does not contain.
    pub async fn next(&mut self) -> Result<WatchResponse, Error> {
        loop {
            match self.receive().await {
                Ok(response) => {
                    self.attempts = Attempts::endless();
                    self.request.start = Some(Start::ResumeToken(response.resume_token.clone()));
                    return Ok(response);
                }
                Err(error) => {
                    self.stream = None;
                    self.attempts.pause(error).await?;
                }
            }
        }
    }

    async fn receive(&mut self) -> Result<WatchResponse, Error> {
        let (stream, client, request) = (&mut self.stream, &self.client, &self.request);
        let response = async {
            if stream.is_none() {
                let request = client.request(request.clone());
                *stream = Some(ChangeServiceClient::new(client.channel.clone()).watch(request).await?.into_inner());
            }
            let message = stream.as_mut().expect("the stream is open").message().await?;
            message.ok_or_else(|| Status::unavailable("the stream has ended"))
        };
        // The server sends heartbeats. If nothing arrives, the connection is dead.
        let silent = |_| Err(Status::unavailable("no response and no heartbeat"));
        self.attempts.limit(async { timeout(self.silence, response).await.unwrap_or_else(silent) }).await
    }
}
