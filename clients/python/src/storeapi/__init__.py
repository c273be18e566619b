"""Client of the posts-and-comments service.

    from storeapi import StoreClient

    with StoreClient("localhost:50051") as client:
        post = client.posts.create(body="Hello")
        client.comments.create(post_id=post.id, body="Hello yourself")
        print([comment.body for comment in client.comments.list(post_id=post.id)])

AsyncStoreClient is the same for asyncio. What calls raise is drawn in `storeapi.errors`. The messages and
stubs that both are built on are in `storeapi.v1`.
"""

from importlib.metadata import version as _version

from storeapi._async.client import AsyncRawStubs, AsyncStoreClient
from storeapi._async.comments import AsyncComments
from storeapi._async.posts import AsyncPosts
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._sync.client import RawStubs, StoreClient
from storeapi._sync.comments import Comments
from storeapi._sync.posts import Posts
from storeapi.errors import (
    BatchDuplicate,
    BatchEmpty,
    BatchTooLarge,
    Cancelled,
    CommentNotFound,
    Conflict,
    DatabaseBusy,
    DatabaseUnavailable,
    DeadlineExceeded,
    EtagMismatch,
    FieldImmutable,
    FieldInvalid,
    FieldMaskInvalid,
    InternalError,
    InvalidRequest,
    NotFound,
    OutOfRange,
    PageTokenInvalid,
    PageTokenMismatch,
    PostHasComments,
    PostNotFound,
    PreconditionFailed,
    RequestIdReused,
    RequestMalformed,
    ResourceExhausted,
    ResponseTooLarge,
    ResumeTokenExpired,
    ResumeTokenForeign,
    ResumeTokenInvalid,
    SchemaMismatch,
    ShuttingDown,
    StorageFull,
    StoreError,
    StreamStalled,
    Unavailable,
    WatchLimit,
)
from storeapi.model import Comment, CommentDraft, FieldViolation, Page, Post

__version__ = _version("storeapi")

__all__ = [
    # Clients.
    "StoreClient",
    "AsyncStoreClient",
    "Posts",
    "Comments",
    "RawStubs",
    "AsyncPosts",
    "AsyncComments",
    "AsyncRawStubs",
    "CLIENT_DEFAULT",
    "Timeout",
    # Values.
    "Post",
    "Comment",
    "CommentDraft",
    "Page",
    "FieldViolation",
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
    "NotFound",
    "PostNotFound",
    "CommentNotFound",
    "PreconditionFailed",
    "PostHasComments",
    "SchemaMismatch",
    "Conflict",
    "EtagMismatch",
    "ResourceExhausted",
    "ResponseTooLarge",
    "WatchLimit",
    "StorageFull",
    "OutOfRange",
    "ResumeTokenExpired",
    "Unavailable",
    "ShuttingDown",
    "StreamStalled",
    "DatabaseBusy",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "Cancelled",
    "InternalError",
    "__version__",
]
