//! Why a call has failed.

use std::fmt;
use std::time::Duration;

use prost::Message;
use tonic::{Code, Status};

use crate::proto::ErrorReason;
use crate::rpc;

/// The domain of the reasons of the service.
const DOMAIN: &str = "storeapi";

/// The error of a call, with the details that the service has sent.
#[derive(Clone, Debug)]
pub struct Error {
    /// The error as gRPC reports it.
    pub status: Status,
    /// The reason with its metadata; empty if the error is not from the service.
    pub info: rpc::ErrorInfo,
    /// The fields of the request that are not valid.
    pub violations: Vec<rpc::bad_request::FieldViolation>,
    /// The time after which the call can be repeated.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// The reason, for programs; `Unspecified` if the error is not from the service, or its reason is newer than this client.
    pub fn reason(&self) -> ErrorReason {
        ErrorReason::from_str_name(&format!("ERROR_REASON_{}", self.info.reason)).unwrap_or_default()
    }

    /// Whether the same call may succeed later.
    ///
    /// Each error of the service has a reason. An error without one is a broken connection, whichever of these statuses it has,
    /// except where tonic cannot decode a response or a proxy refuses the request.
    pub(crate) fn is_transient(&self) -> bool {
        use Code::{Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unknown};
        let code = self.status.code();
        if self.retry_after.is_some() {
            return true;
        }
        if !self.info.reason.is_empty() {
            return matches!(code, Unavailable | Cancelled);
        }
        matches!(code, Cancelled | Unknown | DeadlineExceeded | ResourceExhausted | Internal | Unavailable)
            && !is_permanent(self.status.message())
    }
}

/// Whether a message of tonic says that a repetition has the same result.
///
/// If a proxy responds without gRPC, messages end with the HTTP status: `... with status: 502 Bad Gateway`, `... code 413`.
fn is_permanent(message: &str) -> bool {
    let http_status = [" status: ", " HTTP status code "].iter().find_map(|it| message.rsplit_once(it)?.1.get(..3)?.parse().ok());
    match http_status {
        Some(408 | 425 | 429 | 500..=599) => false,
        Some(0_u16..) => true,
        None => message.contains("decode") || message.contains("compress"),
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let mut error = Self { info: Default::default(), violations: Vec::new(), retry_after: None, status };
        let details = rpc::Status::decode(error.status.details()).unwrap_or_default().details;
        for it in details {
            match it.type_url.rsplit('/').next() {
                Some("google.rpc.ErrorInfo") => {
                    // Proxies may add their own.
                    let info = rpc::ErrorInfo::decode(&*it.value).ok().filter(|it| it.domain == DOMAIN);
                    error.info = info.unwrap_or(error.info);
                }
                Some("google.rpc.BadRequest") => {
                    error.violations = rpc::BadRequest::decode(&*it.value).unwrap_or_default().field_violations;
                }
                Some("google.rpc.RetryInfo") => {
                    let delay = rpc::RetryInfo::decode(&*it.value).ok().and_then(|it| it.retry_delay);
                    error.retry_after = delay.and_then(|it| it.try_into().ok());
                }
                _ => {}
            }
        }
        error
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = if self.info.reason.is_empty() { "no reason" } else { &self.info.reason };
        write!(f, "{:?} ({reason}): {}", self.status.code(), self.status.message())
    }
}

impl std::error::Error for Error {}
