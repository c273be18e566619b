"""From the clients' arguments to request messages, and from replies to values; shared by both clients."""

import inspect
import math
import operator
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Final, Generic, SupportsIndex

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from storeapi.model import Action, Change, ChangeBatch, Comment, CommentDraft, Item, Kind, Page, Post, Start
from storeapi.v1 import changes_pb2, comments_pb2, posts_pb2

MAX_BATCH: Final = 1000
"""The most that the service takes in one call, unless it is set to less."""

FULL_BYTES: Final = 2 * 1024 * 1024
"""A call with so much text takes no more. With the last, of at most 1 MiB, the answer, which repeats it all,
stays below 4 MiB."""

# What callers give, checked where protobuf would complain of a type of its own instead of the argument


def id(value: SupportsIndex, name: str = "id") -> int:
    """An id to send; whether it is positive, the service says."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must be below 2**63, not {number}")
    return number


def post_id_or_all(value: int | None) -> int:
    """The post to list comments of; 0, which the service takes for all, only where nobody was named."""
    if value is None:
        return 0
    number = id(value, "post_id")
    # The id of a post that is not stored yet is 0: its comments are not those of all posts.
    if number < 1:
        raise ValueError(f"post_id must be positive, or None for all posts, not {number}")
    return number


def limit(value: int | None) -> int | None:
    """How many items of a list to give at most; None for all."""
    if value is None:
        return None
    number = id(value, "limit")
    if number < 0:
        raise ValueError(f"limit must not be negative, or None for all, not {number}")
    return number


def text(value: str, name: str = "body") -> str:
    """A text to send."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, not {value!r}")
    return value


def new_body(returned: object) -> str | None:
    """What the caller's function made of a text."""
    if returned is None or isinstance(returned, str):
        return returned
    if inspect.iscoroutine(returned):
        # It will never run, and need not say so too.
        returned.close()
        raise TypeError("change must return the new text or None; a coroutine needs an AsyncStoreClient")
    raise TypeError(f"change must return the new text or None, not {returned!r}")


# All writes


def request_id(given: str | uuid.UUID | None, *, validate_only: bool) -> str:
    """The request id to send: a new one unless the caller gave one, or "" for none."""
    if isinstance(given, uuid.UUID):
        return str(given)
    if given is not None:
        return text(given, "request_id")
    # What stores nothing cannot be stored twice.
    return "" if validate_only else str(uuid.uuid4())


def request_id_of(first: str, number: int) -> str:
    """The id of one of the calls that a batch is split into: always the same one for the same first."""
    return str(uuid.uuid5(uuid.UUID(first), str(number))) if first and number else first


class Pieces(Generic[Item]):
    """What is cut out of the items of a batch, one call's worth after the other.

    A piece that was refused is put back and cut again. Where the cuts are depends on nothing but the items
    and the limit, as if the limit had been known from the start: whoever calls again with the same request
    id sends the same pieces. A piece ends behind the item that fills it, so it is the same, whatever stands
    behind it: a text there that was refused can be put right, and the pieces before it stay done.
    """

    def __init__(self, items: Iterable[Item], text: Callable[[Item], str] | None = None) -> None:
        """Takes the items, and what tells their text if they have one."""
        self._items = iter(items)
        self._waiting: deque[Item] = deque()
        self._text = text

    def next(self, limit: int) -> list[Item]:
        """As many items as one call takes; none at the end."""
        piece: list[Item] = []
        bytes_left = FULL_BYTES
        while len(piece) < limit and bytes_left > 0:
            if not self._waiting:
                # One at a time: what can be read once may be without end.
                for item in self._items:
                    self._waiting.append(item)
                    break
                else:
                    break
            if self._text is not None:
                # The longest that its UTF-8 can be, for counting exactly would encode everything twice.
                bytes_left -= 4 * len(self._text(self._waiting[0]))
            piece.append(self._waiting.popleft())
        return piece

    def put_back(self, piece: list[Item]) -> None:
        """Takes back what `next` has given last."""
        self._waiting.extendleft(reversed(piece))


def pieces_of_bodies(bodies: Iterable[str]) -> Pieces[str]:
    """The texts of a batch of posts."""
    # A text is an iterable of texts too, and would become a post per letter.
    if isinstance(bodies, str):
        raise TypeError("bodies must be several texts, such as a list; it is a single one")
    return Pieces(bodies, lambda body: text(body, "each of bodies"))


def pieces_of_drafts(drafts: Iterable[CommentDraft]) -> Pieces[CommentDraft]:
    """The drafts of a batch of comments."""

    def body(draft: CommentDraft) -> str:
        if not isinstance(draft, CommentDraft):
            raise TypeError(f"drafts must be several CommentDraft, such as a list; {draft!r} is none")
        return text(draft.body, "body of a draft")

    return Pieces(drafts, body)


def pieces_of_ids(ids: Iterable[int], name: str = "ids") -> Pieces[int]:
    """The ids of a batch."""
    return Pieces(id(it, f"each of {name}") for it in ids)


# Posts: requests


def create_post_request(*, body: str, request_id: str, validate_only: bool) -> posts_pb2.CreatePostRequest:
    return posts_pb2.CreatePostRequest(
        post=posts_pb2.Post(body=text(body)), request_id=request_id, validate_only=validate_only
    )


def update_post_request(
    post_id: int, *, body: str, etag: str, request_id: str, validate_only: bool
) -> posts_pb2.UpdatePostRequest:
    return posts_pb2.UpdatePostRequest(
        post=posts_pb2.Post(id=id(post_id), body=text(body), etag=etag),
        update_mask=FieldMask(paths=["body"]),
        request_id=request_id,
        validate_only=validate_only,
    )


def create_posts_request(
    bodies: Iterable[str], *, request_id: str, validate_only: bool
) -> posts_pb2.BatchCreatePostsRequest:
    return posts_pb2.BatchCreatePostsRequest(
        requests=[posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body)) for body in bodies],
        request_id=request_id,
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
        comment=comments_pb2.Comment(post_id=id(post_id, "post_id"), body=text(body)),
        request_id=request_id,
        validate_only=validate_only,
    )


def update_comment_request(
    comment_id: int, *, body: str, etag: str, request_id: str, validate_only: bool
) -> comments_pb2.UpdateCommentRequest:
    return comments_pb2.UpdateCommentRequest(
        comment=comments_pb2.Comment(id=id(comment_id), body=text(body), etag=etag),
        update_mask=FieldMask(paths=["body"]),
        request_id=request_id,
        validate_only=validate_only,
    )


def create_comments_request(
    drafts: Iterable[CommentDraft], *, request_id: str, validate_only: bool
) -> comments_pb2.BatchCreateCommentsRequest:
    return comments_pb2.BatchCreateCommentsRequest(
        requests=[
            comments_pb2.CreateCommentRequest(
                comment=comments_pb2.Comment(post_id=id(draft.post_id, "post_id"), body=draft.body)
            )
            for draft in drafts
        ],
        request_id=request_id,
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
    # Whether it is allowed, the service says; here is refused what could not be sent.
    is_number = isinstance(heartbeat_seconds, (int, float)) and math.isfinite(heartbeat_seconds)
    if not is_number or abs(heartbeat_seconds) > 1e9:
        raise ValueError(f"heartbeat_seconds must be a number of seconds, 1 to 60, not {heartbeat_seconds!r}")
    request = changes_pb2.WatchRequest(
        kinds=[_kind(name) for name in kinds], post_ids=[id(it, "each of post_ids") for it in post_ids]
    )
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


def shown_watch(request: changes_pb2.WatchRequest, resume_token: str | None) -> str:
    """The arguments of a watch as its repr shows them, with the token that it has reached."""
    start = "resume_token" if resume_token else "start"
    shown: dict[str, object] = {start: resume_token or request.WhichOneof("start") or "now"}
    if request.kinds:
        shown["kinds"] = [_KIND_NAMES[it] for it in request.kinds]
    if request.post_ids:
        shown["post_ids"] = list(request.post_ids)
    return ", ".join(f"{name}={value!r}" for name, value in shown.items())


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
