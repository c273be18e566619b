//! Streams that resume.

use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::attempts::Attempts;
use crate::proto::change_service_client::ChangeServiceClient;
use crate::proto::transfer_service_client::TransferServiceClient;
use crate::proto::watch_request::Start;
use crate::proto::{ExportRequest, ExportResponse, WatchRequest, WatchResponse};
use crate::{Client, Error};

/// The interval of heartbeats that the service uses for a watch without one.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The maximum time between two responses of an export, which has no heartbeats.
const EXPORT_SILENCE: Duration = Duration::from_secs(120);

/// A request whose stream can continue after any of its responses.
pub trait Resumable: Clone {
    /// The responses.
    type Item;

    /// Starts the stream.
    fn open(
        channel: Channel,
        request: tonic::Request<Self>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Item>>, Status>> + Send;

    /// Lets the request continue after this response.
    fn continue_after(&mut self, response: &Self::Item);

    /// The maximum time between two responses.
    fn silence(&self) -> Duration;
}

impl Resumable for WatchRequest {
    type Item = WatchResponse;

    async fn open(channel: Channel, request: tonic::Request<Self>) -> Result<Response<Streaming<Self::Item>>, Status> {
        ChangeServiceClient::new(channel).watch(request).await
    }

    fn continue_after(&mut self, response: &Self::Item) {
        self.start = Some(Start::ResumeToken(response.resume_token.clone()));
    }

    fn silence(&self) -> Duration {
        2 * self.heartbeat_interval.and_then(|it| it.try_into().ok()).unwrap_or(HEARTBEAT) + Duration::from_secs(1)
    }
}

impl Resumable for ExportRequest {
    type Item = ExportResponse;

    async fn open(channel: Channel, request: tonic::Request<Self>) -> Result<Response<Streaming<Self::Item>>, Status> {
        TransferServiceClient::new(channel).export(request).await
    }

    fn continue_after(&mut self, response: &Self::Item) {
        self.cursor = response.cursor.clone();
    }

    fn silence(&self) -> Duration {
        EXPORT_SILENCE
    }
}

/// A stream of responses. After the first response it is opened again without a limit of attempts or time.
#[derive(Debug)]
pub struct Resumed<Q: Resumable> {
    client: Client,
    request: Q,
    attempts: Attempts,
    stream: Option<Streaming<Q::Item>>,
}

/// A stream of changes.
///
/// Store `resume_token` together with the effects of the response, to continue from it after a restart of this program.
///
/// The reasons `ResumeTokenExpired` and `ResumeTokenForeign` mean that changes were lost: start again with `InitialState`, and
/// delete what it does not contain.
pub type Watch = Resumed<WatchRequest>;

/// A stream of everything that is stored. The last response has a `resume_token`; do not call [`Resumed::next`] after it.
///
/// Earlier records of the `changed_post_ids` and `changed_comment_ids` of a response are obsolete.
pub type Export = Resumed<ExportRequest>;

impl<Q: Resumable> Resumed<Q> {
    pub(crate) fn new(client: Client, request: Q) -> Self {
        let attempts = Attempts::within(client.timeout);
        Self { client, request, attempts, stream: None }
    }

    /// The next response. After a broken connection, the stream continues after the previous response.
    pub async fn next(&mut self) -> Result<Q::Item, Error> {
        loop {
            match self.receive().await {
                Ok(response) => {
                    self.attempts = Attempts::endless();
                    self.request.continue_after(&response);
                    return Ok(response);
                }
                Err(error) => {
                    self.stream = None;
                    self.attempts.pause(error).await?;
                }
            }
        }
    }

    async fn receive(&mut self) -> Result<Q::Item, Error> {
        let (stream, client, request) = (&mut self.stream, &self.client, &self.request);
        let response = async {
            if stream.is_none() {
                let opened = Q::open(client.channel.clone(), client.request(request.clone())).await?;
                *stream = Some(opened.into_inner());
            }
            let message = stream.as_mut().expect("the stream is open").message().await?;
            message.ok_or_else(|| Status::unavailable("the stream has ended"))
        };
        // If nothing arrives, the connection is dead.
        let silent = |_| Err(Status::unavailable("no response"));
        self.attempts.limit(async { timeout(self.request.silence(), response).await.unwrap_or_else(silent) }).await
    }
}
