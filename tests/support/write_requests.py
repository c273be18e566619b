"""A valid request of every write method, and variants of it that differ in one field.

Write methods are those whose descriptor does not declare NO_SIDE_EFFECTS.
"""

import copy
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text
from storeapi.v1 import comments_pb2, posts_pb2

from tests.support.contract import METHODS, method_path, request_class, response_class
from tests.support.database import database_connection
from tests.support.stubs import Stubs

WRITES: list[MethodDescriptor] = [
    method
    for method in METHODS
    if method.GetOptions().idempotency_level != MethodOptions.IdempotencyLevel.NO_SIDE_EFFECTS
    and method.name not in {"EraseAuthor", "RebuildSearchIndex", "SetWriteMode", "Import", "ImportRecords"}
]
"""Every write method, except those for administrators, which are idempotent without a request id."""

BODY = 'an "awkward" \\ body,\nwith\tlines\u2028of\x7f \u00e4\U0001f600 </x> {}'
"""Characters that a lossy encoding of a stored response would change."""

NOT_FINGERPRINTED = {"request_id", "validate_only"}
"""Fields that are not part of the fingerprint of a request."""

SET_BY_SERVER = {"id", "etag", "create_time", "update_time", "depth", "delete_time", "purge_time"}
"""Output-only fields, which a create request must not set."""


@dataclass(frozen=True)
class Dataset:
    """Stored resources that the requests refer to."""

    posts: Sequence[posts_pb2.Post]
    """Three posts. The first has two comments, the second has one."""
    comments: Sequence[comments_pb2.Comment]
    """Three comments."""
    deleted_post: int
    """The id of a deleted post with two comments, which can be restored if the server keeps deleted ones."""
    deleted_comment: int
    """The same of a comment."""

    @property
    def unused_id(self) -> int:
        return 1_000_000


async def create_dataset(stubs: Stubs) -> Dataset:
    """Creates the dataset."""
    bodies = [*(f"post {n} {BODY}" for n in range(3)), f"deleted {BODY}"]
    posts = (
        await stubs.posts.BatchCreatePosts(
            posts_pb2.BatchCreatePostsRequest(requests=[{"post": {"body": body}} for body in bodies])
        )
    ).posts
    # The number of the post, and the body.
    drafts = [
        *((post, f"comment {n} {BODY}") for n, post in enumerate((0, 0, 1))),
        *((3, f"deleted {n} {BODY}") for n in range(2)),
        (2, f"deleted {BODY}"),
    ]
    comments = (
        await stubs.comments.BatchCreateComments(
            comments_pb2.BatchCreateCommentsRequest(
                requests=[{"comment": {"post_id": posts[post].id, "body": body}} for post, body in drafts]
            )
        )
    ).comments
    await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=posts[3].id, force=True))
    await stubs.comments.DeleteComment(comments_pb2.DeleteCommentRequest(id=comments[5].id))
    return Dataset(
        posts=list(posts[:3]),
        comments=list(comments[:3]),
        deleted_post=posts[3].id,
        deleted_comment=comments[5].id,
    )


REQUESTS: dict[str, Callable[[Dataset], Any]] = {
    "CreatePost": lambda world: posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=BODY)),
    "UpdatePost": lambda world: posts_pb2.UpdatePostRequest(
        post=posts_pb2.Post(id=world.posts[0].id, body=f"new {BODY}", etag=world.posts[0].etag),
        update_mask=FieldMask(paths=["body"]),
    ),
    "DeletePost": lambda world: posts_pb2.DeletePostRequest(
        id=world.posts[0].id, etag=world.posts[0].etag, force=True
    ),
    "UndeletePost": lambda world: posts_pb2.UndeletePostRequest(id=world.deleted_post),
    "BatchCreatePosts": lambda world: posts_pb2.BatchCreatePostsRequest(
        requests=[posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=f"{n} {BODY}")) for n in range(3)]
    ),
    "BatchUpdatePosts": lambda world: posts_pb2.BatchUpdatePostsRequest(
        requests=[
            posts_pb2.UpdatePostRequest(
                post=posts_pb2.Post(id=it.id, body=f"new {BODY}", etag=it.etag),
                update_mask=FieldMask(paths=["body"]),
            )
            for it in reversed(world.posts)
        ]
    ),
    "BatchDeletePosts": lambda world: posts_pb2.BatchDeletePostsRequest(
        ids=[world.posts[1].id, world.unused_id, world.posts[0].id], force=True, allow_missing=True
    ),
    "CreateComment": lambda world: comments_pb2.CreateCommentRequest(
        comment=comments_pb2.Comment(body=BODY, post_id=world.posts[0].id)
    ),
    "UpdateComment": lambda world: comments_pb2.UpdateCommentRequest(
        comment=comments_pb2.Comment(
            id=world.comments[0].id, body=f"new {BODY}", etag=world.comments[0].etag
        ),
        update_mask=FieldMask(paths=["body"]),
    ),
    "DeleteComment": lambda world: comments_pb2.DeleteCommentRequest(
        id=world.comments[0].id, etag=world.comments[0].etag
    ),
    "UndeleteComment": lambda world: comments_pb2.UndeleteCommentRequest(id=world.deleted_comment),
    "BatchCreateComments": lambda world: comments_pb2.BatchCreateCommentsRequest(
        requests=[
            comments_pb2.CreateCommentRequest(comment=comments_pb2.Comment(body=BODY, post_id=post.id))
            for post in world.posts
        ]
    ),
    "BatchUpdateComments": lambda world: comments_pb2.BatchUpdateCommentsRequest(
        requests=[
            comments_pb2.UpdateCommentRequest(
                comment=comments_pb2.Comment(id=it.id, body=f"new {BODY}", etag=it.etag),
                update_mask=FieldMask(paths=["body"]),
            )
            for it in reversed(world.comments)
        ]
    ),
    "BatchDeleteComments": lambda world: comments_pb2.BatchDeleteCommentsRequest(
        ids=[world.comments[2].id, world.unused_id, world.comments[0].id], allow_missing=True
    ),
}
"""A request of each write method that changes something, without a request_id."""

DATASET_CHANGES = 3 + 3 + 4 + 4
"""How many changes the dataset makes: three posts, three comments, four more of which all are deleted."""

CHANGES: dict[str, int] = {
    "CreatePost": 1,
    "UpdatePost": 1,
    "DeletePost": 1 + 2,
    "UndeletePost": 1 + 2,
    "BatchCreatePosts": 3,
    "BatchUpdatePosts": 3,
    "BatchDeletePosts": 2 + 3,
    "CreateComment": 1,
    "UpdateComment": 1,
    "DeleteComment": 1,
    "UndeleteComment": 1,
    "BatchCreateComments": 3,
    "BatchUpdateComments": 3,
    "BatchDeleteComments": 2,
}
"""How many changes each of these requests makes, including the comments deleted with their posts."""


def new_request_id() -> str:
    """Returns a new request_id."""
    return str(uuid.uuid4())


def build_request(method: MethodDescriptor, world: Dataset, request_id: str = "", **options: Any) -> Any:
    """Builds the request of a write method."""
    request = REQUESTS[method.name](world)
    request.request_id = request_id
    for name, value in options.items():
        setattr(request, name, value)
    return request


def send(channel: grpc.aio.Channel, method: MethodDescriptor, request: Message) -> Any:
    """Calls a method with a request."""
    call = channel.unary_unary(
        method_path(method),
        request_serializer=request_class(method).SerializeToString,
        response_deserializer=response_class(method).FromString,
    )
    return call(request)


def altered_requests(request: Any, *, inside: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the request with one field changed, for every field in turn. Each is well-formed."""
    creates = request.DESCRIPTOR.name.startswith(("Create", "BatchCreate"))
    for field in request.DESCRIPTOR.fields:
        if field.name not in NOT_FINGERPRINTED:
            yield from _with_altered_field(request, field, creates, f"{inside}{field.name}")


def _with_altered_field(
    message: Any, field: FieldDescriptor, creates: bool, path: str
) -> Iterator[tuple[str, Any]]:
    for name, value in _altered_values(getattr(message, field.name), field, creates, path):
        other = copy.deepcopy(message)
        if field.name == "labels":
            getattr(other, field.name).update(value)
        elif field.is_repeated:
            del getattr(other, field.name)[:]
            getattr(other, field.name).extend(value)
        elif field.message_type:
            getattr(other, field.name).CopyFrom(value)
        else:
            setattr(other, field.name, value)
        if field.name == "return_existing":
            # It is refused without an external id.
            (other.post if "Post" in other.DESCRIPTOR.name else other.comment).external_id = "x"
        yield name, other


def _altered_values(
    value: Any, field: FieldDescriptor, creates: bool, path: str
) -> Iterator[tuple[str, Any]]:
    if field.name == "labels":
        yield path, {"a": "label"}
    elif field.is_repeated:
        yield f"{path}, without the last", list(value)[:-1]
        yield f"{path}, the last first", list(value)[::-1]
        if field.message_type:
            for name, first in _altered_fields(value[0], creates, f"{path}[0]."):
                yield name, [first, *list(value)[1:]]
    elif isinstance(value, FieldMask):
        yield f"{path}, all", FieldMask(paths=["*"])
        yield f"{path}, unset", FieldMask()
    elif isinstance(value, Timestamp):
        yield path, Timestamp(seconds=value.seconds + 1)
    elif field.message_type:
        yield from _altered_fields(value, creates, f"{path}.")
    elif isinstance(value, bool):
        yield path, not value
    else:
        yield path, value + (1 if isinstance(value, int) else "1")


def _altered_fields(message: Any, creates: bool, path: str) -> Iterator[tuple[str, Any]]:
    for field in message.DESCRIPTOR.fields:
        if field.name not in NOT_FINGERPRINTED | (SET_BY_SERVER if creates else set()):
            yield from _with_altered_field(message, field, creates, f"{path}{field.name}")


Rows = dict[str, list[tuple[Any, ...]]]
"""The rows of each table."""


def all_rows(database_url: str) -> Rows:
    """Reads all rows of resources, changes and idempotency keys without the server."""
    tables = ("posts", "comments", "changes", "requests")
    with database_connection(database_url) as connection:
        return {
            table: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1"))]
            for table in tables
        }


def changes_by_request(database_url: str) -> list[tuple[int, str | None]]:
    """Returns the resource id and the request id of each change."""
    with database_connection(database_url) as connection:
        rows = connection.execute(text("SELECT resource_id, request_id FROM changes ORDER BY seq"))
        return [(id, request_id) for id, request_id in rows]


def stored_request_ids(database_url: str) -> list[str]:
    """Returns the stored request ids."""
    with database_connection(database_url) as connection:
        return [id for (id,) in connection.execute(text("SELECT id FROM requests ORDER BY create_time, id"))]
