"""Converts the arguments of a watch to a request, and its responses to values; used by both clients."""

import math
from collections.abc import Iterable
from typing import Final

from storeapi import _arguments
from storeapi._resources import COMMENTS, POSTS, RESOURCE_TYPES, shown, time_from_message
from storeapi.model import (
    Action,
    Change,
    ChangeBatch,
    Comment,
    CommentFilter,
    Kind,
    Post,
    PostFilter,
    Start,
)
from storeapi.v1 import changes_pb2


def watch_request(
    *,
    resume_token: str | None,
    start: Start,
    kinds: Iterable[str],
    post_ids: Iterable[int],
    post_filter: PostFilter | None,
    comment_filter: CommentFilter | None,
    heartbeat_seconds: float,
) -> changes_pb2.WatchRequest:
    """A request that starts after the token, or at `start` without a token."""
    if isinstance(kinds, str):
        raise TypeError("kinds must be an iterable of several, such as a list, not a single str")
    # The service checks the range. This refuses values that a message cannot hold.
    is_number = isinstance(heartbeat_seconds, (int, float)) and math.isfinite(heartbeat_seconds)
    if not is_number or abs(heartbeat_seconds) > 1e9:
        raise ValueError(f"heartbeat_seconds must be a number of seconds, 1 to 60, not {heartbeat_seconds!r}")
    request = changes_pb2.WatchRequest(
        kinds=[_kind(name) for name in kinds],
        post_ids=[_arguments.id(it, "each of post_ids") for it in post_ids],
        post_filter=POSTS.filter_message(post_filter, "post_filter"),
        comment_filter=COMMENTS.filter_message(comment_filter, "comment_filter"),
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
    """The arguments of a watch for its repr, with its current token."""
    start = "resume_token" if resume_token else "start"
    arguments: dict[str, object] = {start: resume_token or request.WhichOneof("start") or "now"}
    if request.kinds:
        arguments["kinds"] = [_KIND_NAMES[it] for it in request.kinds]
    if request.post_ids:
        arguments["post_ids"] = list(request.post_ids)
    for name in ("post_filter", "comment_filter"):
        if request.HasField(name):
            arguments[name] = getattr(request, name)
    return ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())


def change_batch(response: changes_pb2.WatchResponse) -> ChangeBatch:
    return ChangeBatch(
        changes=tuple(_change(message) for message in response.changes),
        resume_token=response.resume_token,
        initial_state_complete=response.initial_state_complete,
        heartbeat=response.heartbeat,
        partial=response.partial,
    )


def _change(message: changes_pb2.Change) -> Change:
    # `oneof resource`: post or comment.
    field = message.WhichOneof("resource")
    resource: Post | Comment | None = None
    if field is not None:
        resource = RESOURCE_TYPES[field].from_message(getattr(message, field))
    return Change(
        action=_ACTION_NAMES.get(message.action, "unknown"),
        kind=_KIND_NAMES.get(message.kind, "unknown"),
        id=message.id,
        post_id=message.post_id,
        commit_time=time_from_message(message, "commit_time"),
        resource=resource,
        request_id=message.request_id,
    )


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
    changes_pb2.ACTION_UNDELETE: "undelete",
}
