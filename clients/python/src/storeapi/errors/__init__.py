"""The errors of calls.

    StoreError                      every failed call
    ├── InvalidRequest              the request is invalid
    │   ├── RequestMalformed        the server could not decode it
    │   ├── FieldInvalid            the value of a field is not allowed
    │   ├── FieldMaskInvalid        an update names a field that does not exist
    │   ├── FieldImmutable          an update would change a field that never changes
    │   ├── PageTokenInvalid        a page token is damaged
    │   ├── PageTokenMismatch       a page token belongs to another query
    │   ├── BatchEmpty              a batch is empty
    │   ├── BatchTooLarge           a batch has too many elements
    │   ├── BatchDuplicate          a batch contains an id twice
    │   ├── RequestIdReused         a request id belongs to another request
    │   ├── ResumeTokenInvalid      a resume token is damaged
    │   ├── ResumeTokenForeign      a resume token belongs to another store
    │   ├── ConsistencyTokenInvalid a consistency token is damaged
    │   └── ConsistencyTokenForeign a consistency token belongs to another store
    ├── Unauthenticated             the caller is not authenticated
    │   ├── CredentialsMissing      the client has no API key
    │   └── CredentialsInvalid      the key or token is wrong, was deleted, or has expired
    ├── PermissionDenied            the caller lacks a permission
    ├── NotFound                    no resource has this id
    │   ├── PostNotFound
    │   └── CommentNotFound
    ├── AlreadyExists               a resource conflicts with the one to create or restore
    │   └── ExternalIdTaken         create with return_existing returns it
    ├── PreconditionFailed          the state of the service does not allow the call
    │   ├── PostHasComments         delete the comments first, or use force
    │   ├── NotDeleted              only a deleted resource can be restored
    │   ├── ReplyTooDeep            reply to a comment above it
    │   ├── ReplyPostMismatch       the comment that is replied to belongs to another post
    │   ├── ReadOnly                the service is in read-only mode
    │   ├── SearchDisabled          the service has no index for searches
    │   └── SchemaMismatch          the operator must act
    ├── Conflict                    a concurrent change
    │   └── EtagMismatch            read the resource again and retry with its etag
    ├── ResourceExhausted           a limit is reached
    │   ├── ResponseTooLarge        request fewer resources at once
    │   ├── WatchLimit              too many watches are open
    │   ├── RateLimited             too many calls per second
    │   └── StorageFull             the operator must act
    ├── OutOfRange                  a position is out of range
    │   └── ResumeTokenExpired      restart the watch with the initial state
    ├── Unavailable                 retry after retry_after
    │   ├── ConnectionFailed        no connection, for a permanent cause
    │   ├── Overloaded
    │   ├── ShuttingDown
    │   ├── StreamStalled
    │   ├── StandbyBehind           the standby has not received the change of the token yet
    │   ├── StoreMoving             the store moves to another database and accepts no writes here
    │   ├── SearchIndexNotReady     the index is being built
    │   ├── DatabaseBusy
    │   └── DatabaseUnavailable
    ├── DeadlineExceeded            no response before the deadline
    ├── Cancelled                   cancelled by the server or by closing the client
    └── InternalError               an unhandled exception in the service

Each reason of the service has one class. An error with an unknown reason, or without a reason because it is
not from the service, is raised as the branch for its status code, or as StoreError. The gRPC error is in
`__cause__`.
"""

from storeapi.errors.base import InvalidRequest, StoreError
from storeapi.errors.caller import (
    AlreadyExists,
    BatchDuplicate,
    BatchEmpty,
    BatchTooLarge,
    CommentNotFound,
    Conflict,
    ConsistencyTokenForeign,
    ConsistencyTokenInvalid,
    CredentialsInvalid,
    CredentialsMissing,
    EtagMismatch,
    ExternalIdTaken,
    FieldImmutable,
    FieldInvalid,
    FieldMaskInvalid,
    NotDeleted,
    NotFound,
    PageTokenInvalid,
    PageTokenMismatch,
    PermissionDenied,
    PostHasComments,
    PostNotFound,
    PreconditionFailed,
    ReadOnly,
    ReplyPostMismatch,
    ReplyTooDeep,
    RequestIdReused,
    RequestMalformed,
    ResumeTokenForeign,
    ResumeTokenInvalid,
    SchemaMismatch,
    SearchDisabled,
    Unauthenticated,
)
from storeapi.errors.service import (
    Cancelled,
    ConnectionFailed,
    DatabaseBusy,
    DatabaseUnavailable,
    DeadlineExceeded,
    InternalError,
    OutOfRange,
    Overloaded,
    RateLimited,
    ResourceExhausted,
    ResponseTooLarge,
    ResumeTokenExpired,
    SearchIndexNotReady,
    ShuttingDown,
    StandbyBehind,
    StorageFull,
    StoreMoving,
    StreamStalled,
    Unavailable,
    WatchLimit,
)

# In the order of the tree.
__all__ = [
    "StoreError",
    "InvalidRequest",
    "RequestMalformed",
    "FieldInvalid",
    "FieldMaskInvalid",
    "FieldImmutable",
    "PageTokenInvalid",
    "PageTokenMismatch",
    "BatchEmpty",
    "BatchTooLarge",
    "BatchDuplicate",
    "RequestIdReused",
    "ResumeTokenInvalid",
    "ResumeTokenForeign",
    "ConsistencyTokenInvalid",
    "ConsistencyTokenForeign",
    "Unauthenticated",
    "CredentialsMissing",
    "CredentialsInvalid",
    "PermissionDenied",
    "NotFound",
    "PostNotFound",
    "CommentNotFound",
    "AlreadyExists",
    "ExternalIdTaken",
    "PreconditionFailed",
    "PostHasComments",
    "NotDeleted",
    "ReplyTooDeep",
    "ReplyPostMismatch",
    "ReadOnly",
    "SearchDisabled",
    "SchemaMismatch",
    "Conflict",
    "EtagMismatch",
    "ResourceExhausted",
    "ResponseTooLarge",
    "WatchLimit",
    "RateLimited",
    "StorageFull",
    "OutOfRange",
    "ResumeTokenExpired",
    "Unavailable",
    "ConnectionFailed",
    "Overloaded",
    "ShuttingDown",
    "StandbyBehind",
    "StoreMoving",
    "StreamStalled",
    "SearchIndexNotReady",
    "DatabaseBusy",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "Cancelled",
    "InternalError",
]
