"""Makes the reply of a method out of the client's values."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from storeapi.model import Change, ChangeBatch, Comment, Page, Post
from storeapi.v1 import changes_pb2, comments_pb2, posts_pb2


def reply_message(method: MethodDescriptor, reply: object) -> Message:
    """The message that a method answers with.

    Args:
        method: What is called.
        reply: The message itself, or the value that the client's method returns.

    Raises:
        TypeError: The method does not answer with such a thing.
    """
    kind = GetMessageClass(method.output_type)
    if isinstance(reply, kind):
        return reply
    make = _MAKERS.get(method.output_type.name)
    message = None if make is None else make(kind, reply)
    if message is None and make is _page:
        raise TypeError(
            f'{method.name} answers with a storeapi.Page, such as Page(items=(...,), next_page_token=""), '
            f"not with {reply!r}"
        )
    if message is None:
        raise TypeError(
            f"{method.name} answers with a {method.output_type.name} or what the client makes of it, "
            f"not with {reply!r}"
        )
    return message


def _post(post: Post) -> posts_pb2.Post:
    return posts_pb2.Post(
        id=post.id,
        body=post.body,
        create_time=_timestamp(post.create_time),
        update_time=_timestamp(post.update_time),
        etag=post.etag,
    )


def _comment(comment: Comment) -> comments_pb2.Comment:
    return comments_pb2.Comment(
        id=comment.id,
        body=comment.body,
        post_id=comment.post_id,
        create_time=_timestamp(comment.create_time),
        update_time=_timestamp(comment.update_time),
        etag=comment.etag,
    )


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def _one(kind: type[Any], reply: object) -> Message | None:
    """A post or a comment."""
    if isinstance(reply, Post) and kind is posts_pb2.Post:
        return _post(reply)
    if isinstance(reply, Comment) and kind is comments_pb2.Comment:
        return _comment(reply)
    return None


def _many(kind: type[Any], reply: object) -> Message | None:
    """The answer to a batch."""
    return _filled(kind, reply) if isinstance(reply, Sequence) else None


def _page(kind: type[Any], reply: object) -> Message | None:
    """The answer to a list."""
    if not isinstance(reply, Page):
        return None
    message: Any = _filled(kind, reply.items)
    if message is not None:
        message.next_page_token = reply.next_page_token
        message.resume_token = reply.resume_token
    return message  # type: ignore[no-any-return]  # the generated kinds have no common type


def _filled(kind: type[Any], items: Sequence[object]) -> Message | None:
    message = kind()
    for item in items:
        if isinstance(item, Post) and hasattr(message, "posts"):
            message.posts.append(_post(item))
        elif isinstance(item, Comment) and hasattr(message, "comments"):
            message.comments.append(_comment(item))
        else:
            return None
    return message  # type: ignore[no-any-return]  # the generated kinds have no common type


def _counts(kind: type[Any], reply: object) -> Message | None:
    """The answer to a count."""
    return kind(counts=reply) if isinstance(reply, Mapping) else None


def _batch(kind: type[Any], reply: object) -> Message | None:
    """One response of a watch."""
    if not isinstance(reply, ChangeBatch):
        return None
    return kind(  # type: ignore[no-any-return]  # the generated kinds have no common type
        changes=[_change(change) for change in reply.changes],
        resume_token=reply.resume_token,
        initial_state_complete=reply.initial_state_complete,
        heartbeat=reply.heartbeat,
        partial=reply.partial,
    )


def _change(change: Change) -> changes_pb2.Change:
    # What the client has no word for is 0 here, which no server sends.
    action, kind = (
        "UNSPECIFIED" if word == "unknown" else word.upper() for word in (change.action, change.kind)
    )
    message = changes_pb2.Change(
        action=changes_pb2.Action.Value(f"ACTION_{action}"),
        kind=changes_pb2.ResourceKind.Value(f"RESOURCE_KIND_{kind}"),
        id=change.id,
        post_id=change.post_id,
        commit_time=_timestamp(change.commit_time),
        request_id=change.request_id,
    )
    if isinstance(change.resource, Post):
        message.post.CopyFrom(_post(change.resource))
    elif isinstance(change.resource, Comment):
        message.comment.CopyFrom(_comment(change.resource))
    return message


_MAKERS: Final[Mapping[str, Callable[[type[Any], object], Message | None]]] = {
    "Post": _one,
    "Comment": _one,
    "ListPostsResponse": _page,
    "ListCommentsResponse": _page,
    "BatchGetPostsResponse": _many,
    "BatchGetCommentsResponse": _many,
    "BatchCreatePostsResponse": _many,
    "BatchCreateCommentsResponse": _many,
    "BatchDeletePostsResponse": _many,
    "BatchDeleteCommentsResponse": _many,
    "CountCommentsResponse": _counts,
    "WatchResponse": _batch,
}
"""How the client's values become each kind of reply."""
