"""The errors that callers see, and the errors that end a command.

    ServiceError
    ├── InvalidRequest          the request is not valid, regardless of what is stored
    │   ├── RequestMalformed
    │   ├── FieldInvalid
    │   ├── FieldMaskInvalid
    │   ├── FieldImmutable
    │   ├── PageTokenInvalid
    │   ├── PageTokenMismatch
    │   ├── BatchEmpty
    │   ├── BatchTooLarge
    │   ├── BatchDuplicate
    │   ├── RequestIdReused
    │   ├── ResumeTokenInvalid
    │   ├── ResumeTokenForeign
    │   ├── ConsistencyTokenInvalid
    │   └── ConsistencyTokenForeign
    ├── Unauthenticated         the caller is not authenticated
    │   ├── CredentialsMissing
    │   └── CredentialsInvalid
    ├── PermissionDenied
    ├── NotFound
    │   ├── PostNotFound
    │   └── CommentNotFound
    ├── PostHasComments
    ├── ExternalIdTaken
    ├── NotDeleted
    ├── ReplyTooDeep
    ├── ReplyPostMismatch
    ├── EtagMismatch
    ├── ResponseTooLarge
    ├── ResumeTokenExpired
    ├── WatchLimit
    ├── RateLimited
    ├── Unavailable             nothing was done; the same call may succeed later
    │   ├── Overloaded
    │   ├── ShuttingDown
    │   ├── StreamStalled
    │   ├── DatabaseBusy
    │   ├── DatabaseUnavailable
    │   ├── StandbyBehind
    │   ├── StoreMoving
    │   └── SearchIndexNotReady
    ├── SearchDisabled
    ├── ReadOnly
    ├── SchemaMismatch
    └── StorageFull

Only the leaves are raised. `rpc/status.py` maps each leaf to a status. Their text is for callers: it never
contains the text of another error, SQL, a path or an address. Any other exception is an unhandled exception,
and callers get INTERNAL.

An OperatorError and a BadSetting end a command. Callers do not see them.
"""

from store_service.errors.access import (
    CredentialsInvalid,
    CredentialsMissing,
    PermissionDenied,
    Unauthenticated,
)
from store_service.errors.base import BadSetting, OperatorError, ServiceError, Unavailable
from store_service.errors.request import (
    BatchDuplicate,
    BatchEmpty,
    BatchTooLarge,
    ConsistencyTokenForeign,
    ConsistencyTokenInvalid,
    FieldImmutable,
    FieldInvalid,
    FieldMaskInvalid,
    InvalidRequest,
    PageTokenInvalid,
    PageTokenMismatch,
    RequestIdReused,
    RequestMalformed,
    ResumeTokenForeign,
    ResumeTokenInvalid,
    Violation,
)
from store_service.errors.resource import (
    CommentNotFound,
    EtagMismatch,
    ExternalIdTaken,
    NotDeleted,
    NotFound,
    PostHasComments,
    PostNotFound,
    ReplyPostMismatch,
    ReplyTooDeep,
    ResponseTooLarge,
    ResumeTokenExpired,
    comments,
)
from store_service.errors.server import (
    DatabaseBusy,
    DatabaseUnavailable,
    Overloaded,
    RateLimited,
    ReadOnly,
    SchemaMismatch,
    SearchDisabled,
    SearchIndexNotReady,
    ShuttingDown,
    StandbyBehind,
    StorageFull,
    StoreMoving,
    StreamStalled,
    WatchLimit,
)

__all__ = [
    "BadSetting",
    "BatchDuplicate",
    "BatchEmpty",
    "BatchTooLarge",
    "CommentNotFound",
    "ConsistencyTokenForeign",
    "ConsistencyTokenInvalid",
    "CredentialsInvalid",
    "CredentialsMissing",
    "DatabaseBusy",
    "DatabaseUnavailable",
    "EtagMismatch",
    "ExternalIdTaken",
    "FieldImmutable",
    "FieldInvalid",
    "FieldMaskInvalid",
    "InvalidRequest",
    "NotDeleted",
    "NotFound",
    "OperatorError",
    "Overloaded",
    "PageTokenInvalid",
    "PageTokenMismatch",
    "PermissionDenied",
    "PostHasComments",
    "PostNotFound",
    "RateLimited",
    "ReadOnly",
    "RequestIdReused",
    "RequestMalformed",
    "ReplyPostMismatch",
    "ReplyTooDeep",
    "ResponseTooLarge",
    "ResumeTokenExpired",
    "ResumeTokenForeign",
    "ResumeTokenInvalid",
    "SchemaMismatch",
    "SearchDisabled",
    "SearchIndexNotReady",
    "ServiceError",
    "ShuttingDown",
    "StandbyBehind",
    "StorageFull",
    "StoreMoving",
    "StreamStalled",
    "Unauthenticated",
    "Unavailable",
    "Violation",
    "WatchLimit",
    "comments",
]
