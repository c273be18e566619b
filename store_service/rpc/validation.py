"""Requests as our values, after every field has been checked. Reads no database.

All violations of a request are found before any is reported, and the first of them told. What is said of
one field here holds for every request that has it. The length of a list is looked at before what is in it:
millions of numbers fit in a request, and in a few kilobytes when it is compressed.
"""

import json
import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from storeapi.v1 import changes_pb2, comments_pb2, posts_pb2

from store_service.errors import (
    BatchDuplicate,
    BatchEmpty,
    BatchTooLarge,
    FieldInvalid,
    FieldMaskInvalid,
    InvalidRequest,
    Violation,
)
from store_service.model import (
    ORDERS,
    Comment,
    CommentDraft,
    Deletion,
    IdempotencyKey,
    Order,
    PageRequest,
    Post,
    PostDraft,
    Query,
    ResourceKind,
    Update,
    WatchFilter,
    WatchStart,
)
from store_service.rpc.convert import microseconds_from_timestamp
from store_service.rpc.status import MAX_VIOLATIONS
from store_service.service.comments import COMMENTS
from store_service.service.posts import POSTS
from store_service.service.resources import ResourceType

MAX_BATCH = 1000
"""Most ids or requests in one batch."""

MAX_NAMES = 100
"""Most kinds of a watch, and most paths of a mask. There are few to name, but they may be named twice."""

MIN_HEARTBEAT_SECONDS = 1.0
MAX_HEARTBEAT_SECONDS = 60.0
DEFAULT_HEARTBEAT_SECONDS = 10.0

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

_SPACES = re.compile(r"\s+")

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NIL = "00000000-0000-0000-0000-000000000000"
"""What a caller sends who has forgotten to choose one."""

WriteRequest = (
    posts_pb2.CreatePostRequest
    | posts_pb2.UpdatePostRequest
    | posts_pb2.DeletePostRequest
    | posts_pb2.BatchCreatePostsRequest
    | posts_pb2.BatchDeletePostsRequest
    | comments_pb2.CreateCommentRequest
    | comments_pb2.UpdateCommentRequest
    | comments_pb2.DeleteCommentRequest
    | comments_pb2.BatchCreateCommentsRequest
    | comments_pb2.BatchDeleteCommentsRequest
)


CreateRequest = TypeVar("CreateRequest", posts_pb2.CreatePostRequest, comments_pb2.CreateCommentRequest)


class _Resource:
    """A resource as requests have it."""

    def __init__(
        self,
        type: ResourceType[Post, PostDraft] | ResourceType[Comment, CommentDraft],
        message: type[Message],
    ) -> None:
        """Takes the description, whose fields are those of the message; `etag` is the version."""
        self.name = type.name
        self.mutable = type.fields.mutable
        self.immutable = type.fields.immutable
        self.content = type.fields.content
        self.messages = {it.name: it.message_type is not None for it in message.DESCRIPTOR.fields}
        """All fields, and whether each is a message."""
        others = [name for name in self.messages if name not in self.content]
        self.output_only = tuple(sorted(others, key=self.messages.__getitem__))
        self.unchangeable = (*self.immutable, *(name for name in self.output_only if self.messages[name]))
        """What an update may repeat, but not change."""

    def is_set(self, message: Any, field: str) -> bool:
        """Whether a message has a field."""
        return bool(message.HasField(field) if self.messages[field] else getattr(message, field))


_POST = _Resource(POSTS, posts_pb2.Post)
_COMMENT = _Resource(COMMENTS, comments_pb2.Comment)


class Validation:
    """Checks requests against the limits of this server.

    Every method raises the leaf of `InvalidRequest` that the first violation names, with all of them.
    """

    def __init__(
        self, *, max_body_bytes: int, max_batch_size: int = MAX_BATCH, max_page_size: int = MAX_PAGE_SIZE
    ) -> None:
        """Takes how long a body may be, in bytes of UTF-8, and how much a batch and a page may hold."""
        self._max_body_bytes = max_body_bytes
        self._max_batch_size = max_batch_size
        self._max_page_size = max_page_size
        self._rules: dict[str, Callable[[Any, str, _Violations], None]] = {
            "body": self._check_body,
            "post_id": lambda value, path, found: found.check_id(value, path),
        }
        """One rule for each field that a caller sets."""
        assert self._rules.keys() >= {*_POST.content, *_COMMENT.content}, "every field has a rule"

    # Creating

    def post_drafts(
        self, request: posts_pb2.CreatePostRequest | posts_pb2.BatchCreatePostsRequest
    ) -> tuple[PostDraft, ...]:
        """The posts to store; one unless the request is a batch."""
        return tuple([PostDraft(**content) for content, _ in self._contents(_POST, request)])

    def comment_drafts(
        self, request: comments_pb2.CreateCommentRequest | comments_pb2.BatchCreateCommentsRequest
    ) -> tuple[CommentDraft, ...]:
        """The comments to store; one unless the request is a batch."""
        contents = self._contents(_COMMENT, request)
        return tuple([CommentDraft(**content, field=f"{path}.post_id") for content, path in contents])

    def _contents(
        self,
        resource: "_Resource",
        request: posts_pb2.CreatePostRequest
        | posts_pb2.BatchCreatePostsRequest
        | comments_pb2.CreateCommentRequest
        | comments_pb2.BatchCreateCommentsRequest,
    ) -> list[tuple[dict[str, Any], str]]:
        """The content of each resource to create, and its path in the request."""
        found = _Violations(self._max_batch_size)
        each: Sequence[tuple[str, Any]] = [("", request)]
        if isinstance(request, posts_pb2.BatchCreatePostsRequest | comments_pb2.BatchCreateCommentsRequest):
            found.check_batch("requests", request.requests)
            each = found.each("requests", request.requests)
        name, fields = resource.name, resource.content
        contents: list[tuple[dict[str, Any], str]] = []
        for prefix, one in each:
            path = f"{prefix}{name}"
            message = getattr(one, name)
            content = {field: getattr(message, field) for field in fields}
            if not one.HasField(name):
                found.add(FieldInvalid, path, "is required")
            else:
                found.check_output_only(resource, message, path)
                for field, value in content.items():
                    self._rules[field](value, f"{path}.{field}", found)
            contents.append((content, path))
        found.check_request_id(request)
        found.raise_if_any()
        return contents

    def _check_body(self, body: str, field: str, found: "_Violations") -> None:
        if not body:
            found.add(FieldInvalid, field, "must not be empty")
        # No character is longer than 4 bytes, so most bodies need not be encoded to be measured.
        elif 4 * len(body) > self._max_body_bytes and len(body.encode()) > self._max_body_bytes:
            found.add(FieldInvalid, field, f"must not be longer than {self._max_body_bytes} bytes of UTF-8")
        if "\0" in body:
            found.add(FieldInvalid, field, "must not hold a NUL character")

    # Reading

    def id(self, request: posts_pb2.GetPostRequest | comments_pb2.GetCommentRequest) -> int:
        """The one id of a request."""
        if request.id <= 0:
            raise FieldInvalid.at("id", "is required and must be positive")
        return request.id

    def ids(
        self, request: posts_pb2.BatchGetPostsRequest | comments_pb2.BatchGetCommentsRequest
    ) -> Sequence[int]:
        """The ids of a batch to get."""
        return self._batch_of_ids("ids", request.ids)

    def post_ids(self, request: comments_pb2.CountCommentsRequest) -> Sequence[int]:
        """The posts whose comments are counted."""
        return self._batch_of_ids("post_ids", request.post_ids)

    def _batch_of_ids(self, field: str, ids: Sequence[int]) -> Sequence[int]:
        found = _Violations(self._max_batch_size)
        found.check_batch(field, ids)
        found.check_ids(field, ids)
        found.raise_if_any()
        return tuple(ids)

    def page_of_posts(self, request: posts_pb2.ListPostsRequest) -> PageRequest:
        """The page to list."""
        found = _Violations(self._max_batch_size)
        query = Query(resource="posts", order=found.order(request.order_by))
        return self._page(request, query, found)

    def page_of_comments(self, request: comments_pb2.ListCommentsRequest) -> PageRequest:
        """The page to list."""
        found = _Violations(self._max_batch_size)
        if request.post_id < 0:
            found.add(FieldInvalid, "post_id", "must be positive, or 0 for the comments of all posts")
        query = Query(resource="comments", order=found.order(request.order_by), post_id=request.post_id)
        return self._page(request, query, found)

    def _page(
        self,
        request: posts_pb2.ListPostsRequest | comments_pb2.ListCommentsRequest,
        query: Query,
        found: "_Violations",
    ) -> PageRequest:
        if request.page_size < 0:
            found.add(FieldInvalid, "page_size", f"must not be negative; 0 means {DEFAULT_PAGE_SIZE}")
        found.raise_if_any()
        page_size = min(request.page_size or DEFAULT_PAGE_SIZE, self._max_page_size)
        return PageRequest(query=query, page_size=page_size, page_token=request.page_token)

    # Watching

    def watch(self, request: changes_pb2.WatchRequest) -> tuple[WatchStart, WatchFilter, float]:
        """Where to start, which changes, and the longest time between two responses."""
        found = _Violations(self._max_batch_size)
        start = request.WhichOneof("start")
        if start in ("initial_state", "earliest") and not getattr(request, start):
            found.add(FieldInvalid, start, "must be true if it is set; leave out start to begin now")
        if len(request.kinds) > MAX_NAMES:
            found.add(
                FieldInvalid, "kinds", f"must not name more than {MAX_NAMES} kinds; leave it out for both"
            )
        else:
            for index, kind in enumerate(request.kinds):
                if int(kind) not in set(ResourceKind):
                    found.add(
                        FieldInvalid, f"kinds[{index}]", "must be RESOURCE_KIND_POST or RESOURCE_KIND_COMMENT"
                    )
        if len(request.post_ids) > self._max_batch_size:
            found.add(
                FieldInvalid,
                "post_ids",
                f"must not name more than {self._max_batch_size} posts; leave it out for all",
            )
        found.check_ids("post_ids", request.post_ids)
        heartbeat_seconds = DEFAULT_HEARTBEAT_SECONDS
        if request.HasField("heartbeat_interval"):
            interval = request.heartbeat_interval
            heartbeat_seconds = interval.seconds + interval.nanos / 1_000_000_000
            if not MIN_HEARTBEAT_SECONDS <= heartbeat_seconds <= MAX_HEARTBEAT_SECONDS:
                found.add(
                    FieldInvalid,
                    "heartbeat_interval",
                    f"must be between {MIN_HEARTBEAT_SECONDS:g} and {MAX_HEARTBEAT_SECONDS:g} seconds",
                )
        found.raise_if_any()
        return (
            WatchStart(
                resume_token=request.resume_token if start == "resume_token" else None,
                initial_state=request.initial_state,
                earliest=request.earliest,
            ),
            WatchFilter(
                kinds=frozenset(ResourceKind(kind) for kind in request.kinds) or frozenset(ResourceKind),
                post_ids=frozenset(request.post_ids),
            ),
            heartbeat_seconds,
        )

    # Changing

    def post_update(self, request: posts_pb2.UpdatePostRequest) -> Update:
        """The change of a post."""
        return self._update(_POST, request)

    def comment_update(self, request: comments_pb2.UpdateCommentRequest) -> Update:
        """The change of a comment."""
        return self._update(_COMMENT, request)

    def _update(
        self, resource: "_Resource", request: posts_pb2.UpdatePostRequest | comments_pb2.UpdateCommentRequest
    ) -> Update:
        found = _Violations(self._max_batch_size)
        name = resource.name
        message: Any = getattr(request, name)
        mask = _Mask(request.update_mask)
        values = {
            field: value
            for field in resource.mutable
            for value in [getattr(message, field)]
            if mask.names(field, is_set=bool(value))
        }
        if mask.is_too_long:
            found.add(FieldInvalid, "update_mask", f"must not name more than {MAX_NAMES} paths")
        if not request.HasField(name):  # type: ignore[arg-type]  # each request has the field of its name
            found.add(FieldInvalid, name, "is required")
        else:
            found.check_id(message.id, f"{name}.id")
            found.check_paths(resource, mask)
            for field, value in values.items():
                self._rules[field](value, f"{name}.{field}", found)
            if mask.is_unset and not values:
                found.add(
                    FieldInvalid,
                    f"{name}.{resource.mutable[0]}",
                    "must be set when update_mask is unset: nothing to change",
                )
        found.check_request_id(request)
        found.raise_if_any()

        return Update(
            id=message.id,
            values=values,
            etag=message.etag,
            unchangeable=tuple(
                [
                    (field, _value(message, field))
                    for field in resource.unchangeable
                    if mask.names(field, is_set=resource.is_set(message, field), star_means_set=True)
                ]
            ),
            request_field=name,
        )

    # Deleting

    def post_deletion(
        self, request: posts_pb2.DeletePostRequest | posts_pb2.BatchDeletePostsRequest
    ) -> Deletion:
        """The posts to delete; one unless the request is a batch."""
        ids, etag = self._ids_to_delete(request)
        return Deletion(ids=ids, etag=etag, force=request.force, allow_missing=request.allow_missing)

    def comment_deletion(
        self, request: comments_pb2.DeleteCommentRequest | comments_pb2.BatchDeleteCommentsRequest
    ) -> Deletion:
        """The comments to delete; one unless the request is a batch."""
        ids, etag = self._ids_to_delete(request)
        return Deletion(ids=ids, etag=etag, allow_missing=request.allow_missing)

    def _ids_to_delete(
        self,
        request: posts_pb2.DeletePostRequest
        | posts_pb2.BatchDeletePostsRequest
        | comments_pb2.DeleteCommentRequest
        | comments_pb2.BatchDeleteCommentsRequest,
    ) -> tuple[tuple[int, ...], str]:
        found = _Violations(self._max_batch_size)
        if isinstance(request, posts_pb2.DeletePostRequest | comments_pb2.DeleteCommentRequest):
            found.check_id(request.id, "id")
            ids: Sequence[int] = (request.id,)
            etag = request.etag
        else:
            found.check_batch("ids", request.ids)
            found.check_ids("ids", request.ids, unique=True)
            ids, etag = request.ids, ""
        found.check_request_id(request)
        found.raise_if_any()
        return tuple(ids), etag


def idempotency_key(request: WriteRequest) -> IdempotencyKey | None:
    """What makes this request the same as one before; None unless it has a request_id."""
    if not request.request_id:
        return None
    rest = type(request)()
    rest.CopyFrom(request)  # type: ignore[arg-type]  # it is of the same type
    # Whether it may be kept does not make it another request.
    rest.request_id = ""
    rest.validate_only = False
    name = request.DESCRIPTOR.full_name.encode()
    content = rest.SerializeToString(deterministic=True)
    fingerprint = blake2b(name + b"\0" + content, digest_size=16).hexdigest()
    return IdempotencyKey(id=request.request_id.lower(), fingerprint=fingerprint)


class _Mask:
    """An update mask, as AIP-134 reads it."""

    def __init__(self, mask: FieldMask) -> None:
        self.is_unset = not mask.paths
        # It is refused then, and not looked into.
        self.is_too_long = len(mask.paths) > MAX_NAMES
        paths: Sequence[str] = () if self.is_too_long else mask.paths
        self.is_star = "*" in paths
        self.paths = set(paths) - {"*"}

    def names(self, field: str, *, is_set: bool, star_means_set: bool = False) -> bool:
        """Whether the update looks at a field; without a mask it looks at what the request sets."""
        if field in self.paths:
            return True
        if self.is_star:
            return is_set if star_means_set else True
        return self.is_unset and is_set


def _quoted(text: str) -> str:
    """A caller's text as it may stand in an error: short, and ASCII, for gRPC escapes the rest threefold."""
    return json.dumps(text[:40])


def _value(message: Any, field: str) -> int:
    value = getattr(message, field)
    return value if isinstance(value, int) else microseconds_from_timestamp(value)


class _Violations:
    """Collects what is wrong with one request; beyond what is told it only counts."""

    def __init__(self, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self._found: list[Violation] = []
        self._more_count = 0
        self._batch_count = 0

    def add(self, error: type[InvalidRequest], field: str, description: str) -> None:
        if len(self._found) < MAX_VIOLATIONS:
            self._found.append(Violation(error=error, field=field, description=description))
        else:
            self._more_count += 1

    def raise_if_any(self) -> None:
        if self._found:
            error = self._found[0].error
            if issubclass(error, BatchTooLarge):
                raise error(
                    self._found,
                    more_count=self._more_count,
                    count=self._batch_count,
                    max_count=self._max_batch_size,
                )
            raise error(self._found, more_count=self._more_count)

    def check_id(self, id: int, field: str) -> None:
        if id <= 0:
            self.add(FieldInvalid, field, "is required and must be positive")

    def check_batch(self, field: str, batch: Sequence[object]) -> None:
        self._batch_count = len(batch)
        if not batch:
            self.add(BatchEmpty, field, "must name at least one")
        elif len(batch) > self._max_batch_size:
            self.add(
                BatchTooLarge,
                field,
                f"must not name more than {self._max_batch_size}; these are {len(batch)}",
            )

    def check_ids(self, field: str, ids: Sequence[int], *, unique: bool = False) -> None:
        if len(ids) > self._max_batch_size:
            return
        seen: set[int] = set()
        for index, id in enumerate(ids):
            if id <= 0:
                self.add(FieldInvalid, f"{field}[{index}]", "must be positive")
            elif unique and id in seen:
                self.add(BatchDuplicate, f"{field}[{index}]", f"names {id} again")
            seen.add(id)

    def each(self, field: str, requests: Sequence[CreateRequest]) -> list[tuple[str, CreateRequest]]:
        """The requests of a batch with their paths, after what must not be set inside a batch was checked."""
        if len(requests) > self._max_batch_size:
            return []
        each = [(f"{field}[{index}].", request) for index, request in enumerate(requests)]
        for path, request in each:
            if request.request_id:
                self.add(FieldInvalid, f"{path}request_id", "must be unset inside a batch")
            if request.validate_only:
                self.add(
                    FieldInvalid, f"{path}validate_only", "must be unset inside a batch; set it on the batch"
                )
        return each

    def check_request_id(self, request: WriteRequest) -> None:
        if request.request_id and (not _UUID.fullmatch(request.request_id) or request.request_id == _NIL):
            self.add(
                FieldInvalid,
                "request_id",
                "must be a random UUID such as 3f2b8c1e-7a5d-4e6f-9b0a-1c2d3e4f5a6b, or empty",
            )

    def check_output_only(self, resource: "_Resource", message: Any, path: str) -> None:
        for field in resource.output_only:
            if resource.is_set(message, field):
                chosen = "chosen" if field == "id" else "set"
                self.add(FieldInvalid, f"{path}.{field}", f"is {chosen} by the server; leave it out")

    def check_paths(self, resource: "_Resource", mask: "_Mask") -> None:
        allowed = {*resource.mutable, *resource.immutable}
        for path in sorted(mask.paths - allowed):
            known = "is set by the server" if path in resource.messages else "is no field"
            choices = " and ".join(f'"{it}"' for it in sorted(allowed))
            self.add(FieldMaskInvalid, "update_mask", f'{_quoted(path)} {known}; paths are {choices}, or "*"')

    def order(self, order_by: str) -> Order:
        """The order that a request names; spaces do not matter."""
        words = _SPACES.sub(" ", order_by.strip()) or "id"
        for order in ORDERS:
            if words == order:
                return order
        self.add(FieldInvalid, "order_by", 'must be "id" or "id desc"')
        return "id"
