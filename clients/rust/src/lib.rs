//! A small client of the service: deadlines, retries that have one effect, errors by reason, and watches that resume.
//!
//! The messages and clients in [`proto`] are generated. Make every call through [`Client::read`] or [`Client::write`].

mod attempts;
mod error;
mod resumed;

use std::time::Duration;

use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Extensions, Response, Status};

use attempts::Attempts;
pub use error::Error;
pub use resumed::{Export, Resumable, Resumed, Watch};

/// The messages and clients of the service.
pub mod proto {
    tonic::include_proto!("storeapi.v1");
}

/// The types of error details.
pub mod rpc {
    tonic::include_proto!("google.rpc");
}

/// The service accepts a ping every 2 seconds. A connection that is dead but not closed is detected within 7 seconds, so a call
/// with a deadline of 10 seconds is repeated on a new one.
const PING_INTERVAL: Duration = Duration::from_secs(4);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// A request that changes resources. The service executes requests with the same request id once.
pub trait Write {
    /// The request id; empty if the caller has not chosen one.
    fn request_id(&mut self) -> &mut String;
}

// For each message with a `request_id`, by `build.rs`.
include!(concat!(env!("OUT_DIR"), "/writes.rs"));

/// A connection to the service, which clones share.
#[derive(Clone, Debug)]
pub struct Client {
    /// Metadata of each call, such as `authorization: Bearer KEY`.
    pub metadata: MetadataMap,
    /// The deadline of each call with all its attempts, and of the first response of a stream. Clones can have others.
    pub timeout: Duration,
    channel: Channel,
}

impl Client {
    /// Connects at the first call. Needs a runtime of tokio.
    ///
    /// `endpoint` has the URL, such as `http://localhost:50051`, and can have a TLS configuration. `timeout` is the deadline of each
    /// call with all its attempts. A call waits that long for a server that cannot be reached.
    pub fn new(endpoint: Endpoint, timeout: Duration) -> Self {
        let endpoint = endpoint
            .connect_timeout(PING_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        Self { metadata: MetadataMap::new(), channel: endpoint.connect_lazy(), timeout }
    }

    /// Makes a call that can be repeated without a request id: one that changes nothing, or `import_records`, which does not store a
    /// record again that is stored already. It is repeated until its deadline while that can help.
    ///
    /// ```no_run
    /// # use storeapi::{Client, Error, proto::{GetPostRequest, Post, post_service_client::PostServiceClient}};
    /// # async fn get(client: Client) -> Result<Post, Error> {
    /// let request = GetPostRequest { id: 1, ..Default::default() };
    /// client.read(request, async |channel, it| PostServiceClient::new(channel).get_post(it).await).await
    /// # }
    /// ```
    pub async fn read<Q: Clone, R>(
        &self,
        request: Q,
        call: impl AsyncFn(Channel, tonic::Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let mut attempts = Attempts::within(self.timeout);
        loop {
            let mut attempt = self.request(request.clone());
            attempt.set_timeout(attempts.remaining());
            match attempts.limit(call(self.channel.clone(), attempt)).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(error) => attempts.pause(error).await?,
            }
        }
    }

    /// Makes a call that changes resources. It gets a new request id if it has none, so its repetitions have one effect.
    pub async fn write<Q: Write + Clone, R>(
        &self,
        mut request: Q,
        call: impl AsyncFn(Channel, tonic::Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        if request.request_id().is_empty() {
            *request.request_id() = uuid::Uuid::new_v4().to_string();
        }
        self.read(request, call).await
    }

    /// Follows the changes of posts and comments. The call starts with the first [`Resumed::next`].
    pub fn watch(&self, request: proto::WatchRequest) -> Watch {
        Watch::new(self.clone(), request)
    }

    /// Exports everything. The call starts with the first [`Resumed::next`].
    pub fn export(&self, request: proto::ExportRequest) -> Export {
        Export::new(self.clone(), request)
    }

    fn request<Q>(&self, message: Q) -> tonic::Request<Q> {
        tonic::Request::from_parts(self.metadata.clone(), Extensions::default(), message)
    }
}
