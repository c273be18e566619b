"""Our values as messages of the wire."""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from storeapi.v1 import comments_pb2, posts_pb2

from store_service.compiled import compiled
from store_service.model import Comment, Post, ResourceFields, format_etag

M = TypeVar("M", bound=Message)


def set_time(message: Timestamp, microseconds: int) -> None:
    """Writes a time of the database into a Timestamp."""
    message.seconds, rest = divmod(microseconds, 1_000_000)
    message.nanos = rest * 1000


def microseconds_from_timestamp(message: Timestamp) -> int:
    """A Timestamp as the database holds times; what is finer than a microsecond equals no stored time."""
    microseconds, rest = divmod(message.nanos, 1000)
    return -1 if rest else message.seconds * 1_000_000 + microseconds


def _converter(model: type[Post] | type[Comment], message: type[M]) -> Callable[[Any], M]:
    """Fields of the message have the names of ours, and times are Timestamps; `etag` is our version."""
    types = {it.name: it.message_type for it in message.DESCRIPTOR.fields}
    names = [name for name in ResourceFields(model).names if name != "version"]
    assert {*names, "etag"} == types.keys(), "each field of the message is one of ours"
    plain = "".join([f"{name}=it.{name}, " for name in names if not types[name]])
    lines = [f'message = Message({plain}etag=format_etag(it.version) if it.version else "")']
    for name in names:
        if types[name]:
            lines += [f"if it.{name} is not None:", f"    set_time(message.{name}, it.{name})"]
    lines.append("return message")
    function: Callable[[Any], M] = compiled(
        ["it"], lines, Message=message, format_etag=format_etag, set_time=set_time
    )
    return function


post_to_message: Callable[[Post], posts_pb2.Post] = _converter(Post, posts_pb2.Post)
"""A post; what it does not have (id 0, times None, version 0) stays unset."""

comment_to_message: Callable[[Comment], comments_pb2.Comment] = _converter(Comment, comments_pb2.Comment)
"""A comment; what it does not have (id 0, times None, version 0) stays unset."""
