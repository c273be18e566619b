"""Client of the posts-and-comments service.

    import storeapi

    with storeapi.connect("localhost:50051") as client:
        post = client.posts.create(body="Hello")
        client.comments.create(post_id=post.id, body="Hello yourself")
        print([comment.body for comment in client.comments.list(post_id=post.id)])

`connect` returns a StoreClient for threads, `connect_async` an AsyncStoreClient for asyncio, with the same
methods. `storeapi.errors` has the errors of calls, `storeapi.v1` the generated messages and stubs, and
`storeapi.testing` servers for the tests of programs that use the client.
"""

from typing import TYPE_CHECKING

from storeapi._admin import EraseProgress, RebuildProgress
from storeapi._async.admin import AsyncAdmin, AsyncErasure, AsyncRebuild
from storeapi._async.batches import AsyncBatches
from storeapi._async.changes import AsyncChanges, AsyncWatch
from storeapi._async.client import AsyncRawStubs, AsyncStoreClient
from storeapi._async.collection import AsyncCollection
from storeapi._async.comments import AsyncComments
from storeapi._async.paging import AsyncPager
from storeapi._async.posts import AsyncPosts
from storeapi._async.transfer import AsyncExport, AsyncImport, AsyncTransfer
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._connection import OPTIONS as CHANNEL_OPTIONS
from storeapi._consistency import Consistency
from storeapi._sync.admin import Admin, Erasure, Rebuild
from storeapi._sync.batches import Batches
from storeapi._sync.changes import Changes, Watch
from storeapi._sync.client import RawStubs, StoreClient
from storeapi._sync.collection import Collection
from storeapi._sync.comments import Comments
from storeapi._sync.paging import Pager
from storeapi._sync.posts import Posts
from storeapi._sync.transfer import Export, Import, Transfer
from storeapi._threads import CommentNode, comment_tree
from storeapi._transfer import (
    ConflictPolicy,
    ExportBatch,
    ExportTotals,
    ImportProgress,
    Record,
    RecordFailure,
    RecordState,
)
from storeapi.errors import (
    AlreadyExists,
    BatchDuplicate,
    BatchEmpty,
    BatchTooLarge,
    Cancelled,
    CommentNotFound,
    Conflict,
    ConnectionFailed,
    ConsistencyTokenForeign,
    ConsistencyTokenInvalid,
    CredentialsInvalid,
    CredentialsMissing,
    DatabaseBusy,
    DatabaseUnavailable,
    DeadlineExceeded,
    EtagMismatch,
    ExternalIdTaken,
    FieldImmutable,
    FieldInvalid,
    FieldMaskInvalid,
    InternalError,
    InvalidRequest,
    NotDeleted,
    NotFound,
    OutOfRange,
    Overloaded,
    PageTokenInvalid,
    PageTokenMismatch,
    PermissionDenied,
    PostHasComments,
    PostNotFound,
    PreconditionFailed,
    RateLimited,
    ReadOnly,
    ReplyPostMismatch,
    ReplyTooDeep,
    RequestIdReused,
    RequestMalformed,
    ResourceExhausted,
    ResponseTooLarge,
    ResumeTokenExpired,
    ResumeTokenForeign,
    ResumeTokenInvalid,
    SchemaMismatch,
    SearchDisabled,
    SearchIndexNotReady,
    ShuttingDown,
    StandbyBehind,
    StorageFull,
    StoreError,
    StoreMoving,
    StreamStalled,
    Unauthenticated,
    Unavailable,
    WatchLimit,
)
from storeapi.model import (
    Action,
    Change,
    ChangeBatch,
    Comment,
    CommentDraft,
    CommentFilter,
    CommentUpdate,
    FieldViolation,
    Found,
    Kind,
    Page,
    Post,
    PostDraft,
    PostFilter,
    PostUpdate,
    Resource,
    SearchResult,
    SnippetPart,
    Start,
)

connect = StoreClient
"""Creates a client for threads: `storeapi.connect("localhost:50051")`."""

connect_async = AsyncStoreClient
"""Creates a client for asyncio, inside a coroutine."""


__version__: str
"""The version of the installed distribution."""

# Hidden from type checkers, for which any name would be valid otherwise.
if not TYPE_CHECKING:

    def __getattr__(name):  # noqa: ANN001, ANN202
        if name == "__version__":
            # Only on access: it takes a fifth of the time of the whole import.
            from importlib.metadata import version

            return version("storeapi")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    # Clients.
    "connect",
    "connect_async",
    "StoreClient",
    "AsyncStoreClient",
    "Batches",
    "Collection",
    "Posts",
    "Comments",
    "Changes",
    "Watch",
    "Admin",
    "Erasure",
    "Rebuild",
    "Transfer",
    "Export",
    "Import",
    "Pager",
    "RawStubs",
    "AsyncBatches",
    "AsyncCollection",
    "AsyncPosts",
    "AsyncComments",
    "AsyncChanges",
    "AsyncWatch",
    "AsyncAdmin",
    "AsyncErasure",
    "AsyncRebuild",
    "AsyncTransfer",
    "AsyncExport",
    "AsyncImport",
    "AsyncPager",
    "AsyncRawStubs",
    "CHANNEL_OPTIONS",
    "CLIENT_DEFAULT",
    "Timeout",
    "Consistency",
    # Values.
    "Resource",
    "Post",
    "Comment",
    "PostDraft",
    "CommentDraft",
    "PostUpdate",
    "CommentUpdate",
    "PostFilter",
    "CommentFilter",
    "Found",
    "CommentNode",
    "comment_tree",
    "Page",
    "Change",
    "ChangeBatch",
    "SearchResult",
    "SnippetPart",
    "EraseProgress",
    "RebuildProgress",
    "Record",
    "RecordState",
    "ExportBatch",
    "ExportTotals",
    "ConflictPolicy",
    "ImportProgress",
    "RecordFailure",
    "FieldViolation",
    "Action",
    "Kind",
    "Start",
    # Errors, in the order of their tree.
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
    "__version__",
]
