"""From the clients' arguments to request messages, and from replies to values; shared by both clients."""

import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from itertools import count
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from storeapi.model import Action, Change, ChangeBatch, Comment, CommentDraft, Item, Kind, Page, Post, Start
from storeapi.v1 import changes_pb2, comments_pb2, posts_pb2

MAX_BATCH: Final = 1000
"""The most that the service takes in one call."""

MAX_BATCH_BYTES: Final = 2 * 1024 * 1024
"""Most text in one call: the service's answer repeats it, and stays below 4 MiB."""

# All writes


def request_id(given: str | None, *, validate_only: bool) -> str:
    """The request id to send: a new one unless the caller gave one, or "" for none."""
    if given is not None:
        return given
    # What stores nothing cannot be stored twice.
    return "" if validate_only else str(uuid.uuid4())


def request_ids(first: str) -> Iterator[str]:
    """The ids of the calls that one batch is split into: always the same ones for the same first."""
    yield first
    for number in count(1):
        yield str(uuid.uuid5(uuid.UUID(first), str(number))) if first else ""


def ids_in_calls(ids: Iterable[int]) -> Iterator[list[int]]:
    """Ids, as many at a time as one call takes; none are one call, whose error says so."""
    all_ids = list(ids)
    for start in range(0, len(all_ids) or 1, MAX_BATCH):
        yield all_ids[start : start + MAX_BATCH]


def _in_calls(items: Iterable[Item], text: Callable[[Item], str]) -> Iterator[list[Item]]:
    """Items, as many at a time as one call takes; none are one call, whose error says so."""
    chunk: list[Item] = []
    bytes_left = MAX_BATCH_BYTES
    is_first = True
    for item in items:
        # The longest that its UTF-8 can be, for counting exactly would encode everything twice.
        size = 4 * len(text(item))
        if chunk and (len(chunk) == MAX_BATCH or size > bytes_left):
            yield chunk
            chunk, bytes_left, is_first = [], MAX_BATCH_BYTES, False
        chunk.append(item)
        bytes_left -= size
    if chunk or is_first:
        yield chunk


# Posts: requests


def create_post_request(*, body: str, request_id: str, validate_only: bool) -> posts_pb2.CreatePostRequest:
    return posts_pb2.CreatePostRequest(
        post=posts_pb2.Post(body=body), request_id=request_id, validate_only=validate_only
    )


def update_post_request(
    id: int, *, body: str, etag: str, request_id: str, validate_only: bool
) -> posts_pb2.UpdatePostRequest:
    return posts_pb2.UpdatePostRequest(
        post=posts_pb2.Post(id=id, body=body, etag=etag),
        update_mask=FieldMask(paths=["body"]),
        request_id=request_id,
        validate_only=validate_only,
    )


def create_posts_requests(
    bodies: Iterable[str], *, first_request_id: str, validate_only: bool
) -> Iterator[posts_pb2.BatchCreatePostsRequest]:
    """One request, or several when one cannot take all bodies."""
    # A text is an iterable of texts too, and would become a post per letter.
    if isinstance(bodies, str):
        raise TypeError("bodies must be several texts, such as a list; it is a single one")
    for chunk, id in zip(_in_calls(bodies, str), request_ids(first_request_id), strict=False):
        yield posts_pb2.BatchCreatePostsRequest(
            requests=[posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body)) for body in chunk],
            request_id=id,
            validate_only=validate_only,
        )


# Posts: replies


def post(message: posts_pb2.Post) -> Post:
    return Post(
        id=message.id,
        body=message.body,
        create_time=_time(message.create_time) if message.HasField("create_time") else None,
        update_time=_time(message.update_time) if message.HasField("update_time") else None,
        etag=message.etag,
    )


def posts(messages: Iterable[posts_pb2.Post]) -> tuple[Post, ...]:
    return tuple(post(message) for message in messages)


def post_page(reply: posts_pb2.ListPostsResponse) -> Page[Post]:
    return Page(
        items=posts(reply.posts), next_page_token=reply.next_page_token, resume_token=reply.resume_token
    )


# Comments: requests


def create_comment_request(
    *, post_id: int, body: str, request_id: str, validate_only: bool
) -> comments_pb2.CreateCommentRequest:
    return comments_pb2.CreateCommentRequest(
        comment=comments_pb2.Comment(post_id=post_id, body=body),
        request_id=request_id,
        validate_only=validate_only,
    )


def update_comment_request(
    id: int, *, body: str, etag: str, request_id: str, validate_only: bool
) -> comments_pb2.UpdateCommentRequest:
    return comments_pb2.UpdateCommentRequest(
        comment=comments_pb2.Comment(id=id, body=body, etag=etag),
        update_mask=FieldMask(paths=["body"]),
        request_id=request_id,
        validate_only=validate_only,
    )


def create_comments_requests(
    drafts: Iterable[CommentDraft], *, first_request_id: str, validate_only: bool
) -> Iterator[comments_pb2.BatchCreateCommentsRequest]:
    """One request, or several when one cannot take all drafts."""
    chunks = _in_calls(drafts, lambda draft: draft.body)
    for chunk, id in zip(chunks, request_ids(first_request_id), strict=False):
        yield comments_pb2.BatchCreateCommentsRequest(
            requests=[
                comments_pb2.CreateCommentRequest(
                    comment=comments_pb2.Comment(post_id=draft.post_id, body=draft.body)
                )
                for draft in chunk
            ],
            request_id=id,
            validate_only=validate_only,
        )


# Comments: replies


def comment(message: comments_pb2.Comment) -> Comment:
    return Comment(
        id=message.id,
        body=message.body,
        post_id=message.post_id,
        create_time=_time(message.create_time) if message.HasField("create_time") else None,
        update_time=_time(message.update_time) if message.HasField("update_time") else None,
        etag=message.etag,
    )


def comments(messages: Iterable[comments_pb2.Comment]) -> tuple[Comment, ...]:
    return tuple(comment(message) for message in messages)


def comment_page(reply: comments_pb2.ListCommentsResponse) -> Page[Comment]:
    return Page(
        items=comments(reply.comments), next_page_token=reply.next_page_token, resume_token=reply.resume_token
    )


# Changes


def watch_request(
    *,
    resume_token: str | None,
    start: Start,
    kinds: Iterable[str],
    post_ids: Iterable[int],
    heartbeat_seconds: float,
) -> changes_pb2.WatchRequest:
    """A request that begins behind the token, or at `start` where there is none."""
    if isinstance(kinds, str):
        raise TypeError("kinds must be several, such as a list; it is a single text")
    request = changes_pb2.WatchRequest(kinds=[_kind(name) for name in kinds], post_ids=post_ids)
    request.heartbeat_interval.FromMicroseconds(int(heartbeat_seconds * 1_000_000))
    if start not in ("now", "earliest", "initial_state"):
        raise ValueError(f'start must be "now", "earliest" or "initial_state", not {start!r}')
    if resume_token:
        request.resume_token = resume_token
    elif start == "earliest":
        request.earliest = True
    elif start == "initial_state":
        request.initial_state = True
    return request


def change_batch(response: changes_pb2.WatchResponse) -> ChangeBatch:
    return ChangeBatch(
        changes=tuple(_change(message) for message in response.changes),
        resume_token=response.resume_token,
        initial_state_complete=response.initial_state_complete,
        heartbeat=response.heartbeat,
        partial=response.partial,
    )


def _change(message: changes_pb2.Change) -> Change:
    resource: Post | Comment | None = None
    if message.HasField("post"):
        resource = post(message.post)
    elif message.HasField("comment"):
        resource = comment(message.comment)
    return Change(
        action=_ACTION_NAMES.get(message.action, "unknown"),
        kind=_KIND_NAMES.get(message.kind, "unknown"),
        id=message.id,
        post_id=message.post_id,
        commit_time=_time(message.commit_time) if message.HasField("commit_time") else None,
        resource=resource,
        request_id=message.request_id,
    )


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=timezone.utc)


def _kind(name: str) -> "changes_pb2.ResourceKind.ValueType":
    try:
        return _KINDS[name]
    except KeyError:
        raise ValueError(f'kinds are "post" and "comment"; {name!r} is neither') from None


_KINDS: Final = {"post": changes_pb2.RESOURCE_KIND_POST, "comment": changes_pb2.RESOURCE_KIND_COMMENT}
_KIND_NAMES: Final[dict["changes_pb2.ResourceKind.ValueType", Kind]] = {
    changes_pb2.RESOURCE_KIND_POST: "post",
    changes_pb2.RESOURCE_KIND_COMMENT: "comment",
}
_ACTION_NAMES: Final[dict["changes_pb2.Action.ValueType", Action]] = {
    changes_pb2.ACTION_SNAPSHOT: "snapshot",
    changes_pb2.ACTION_CREATE: "create",
    changes_pb2.ACTION_UPDATE: "update",
    changes_pb2.ACTION_DELETE: "delete",
}
