"""Converts results of the client to response messages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from storeapi._resources import RESOURCE_TYPES, set_time
from storeapi.model import Change, ChangeBatch, Page
from storeapi.v1 import changes_pb2


def reply_message(method: MethodDescriptor, reply: object) -> Message:
    """The response message of a method.

    Args:
        method: The method.
        reply: The message itself, or the result of the method of the client.

    Raises:
        TypeError: The method has another result.
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


def _one(kind: type[Any], reply: object) -> Message | None:
    """A post or a comment."""
    resource_type = RESOURCE_TYPES[kind.DESCRIPTOR.name.lower()]
    is_one = isinstance(reply, resource_type.model)
    return resource_type.to_message(reply) if is_one else None


def _many(kind: type[Any], reply: object) -> Message | None:
    """The response to a batch."""
    return _filled(kind, reply) if isinstance(reply, Sequence) else None


def _page(kind: type[Any], reply: object) -> Message | None:
    """The response to a list."""
    if not isinstance(reply, Page):
        return None
    message: Any = _filled(kind, reply.items)
    if message is not None:
        message.next_page_token = reply.next_page_token
        message.resume_token = reply.resume_token
    return message  # type: ignore[no-any-return]  # no common type


def _filled(kind: type[Any], items: Sequence[object]) -> Message | None:
    resource_type = next(
        it for it in RESOURCE_TYPES.values() if f"{it.name}s" in kind.DESCRIPTOR.fields_by_name
    )
    if not all(isinstance(item, resource_type.model) for item in items):
        return None
    messages = [resource_type.to_message(item) for item in items]
    return kind(**{f"{resource_type.name}s": messages})  # type: ignore[no-any-return]  # no common type


def _counts(kind: type[Any], reply: object) -> Message | None:
    """The response to a count."""
    return kind(counts=reply) if isinstance(reply, Mapping) else None


def _batch(kind: type[Any], reply: object) -> Message | None:
    """One response of a watch."""
    if not isinstance(reply, ChangeBatch):
        return None
    return kind(  # type: ignore[no-any-return]  # no common type
        changes=[_change(change) for change in reply.changes],
        resume_token=reply.resume_token,
        initial_state_complete=reply.initial_state_complete,
        heartbeat=reply.heartbeat,
        partial=reply.partial,
    )


def _change(change: Change) -> changes_pb2.Change:
    # "unknown" is 0 here, which no server sends.
    action, kind = (
        "UNSPECIFIED" if word == "unknown" else word.upper() for word in (change.action, change.kind)
    )
    message = changes_pb2.Change(
        action=changes_pb2.Action.Value(f"ACTION_{action}"),
        kind=changes_pb2.ResourceKind.Value(f"RESOURCE_KIND_{kind}"),
        id=change.id,
        post_id=change.post_id,
        request_id=change.request_id,
    )
    set_time(message, "commit_time", change.commit_time)
    if change.resource is not None:
        field = type(change.resource).__name__.lower()
        getattr(message, field).CopyFrom(RESOURCE_TYPES[field].to_message(change.resource))
    return message


_MAKERS: Final[Mapping[str, Callable[[type[Any], object], Message | None]]] = {
    **dict.fromkeys((it.model.__name__ for it in RESOURCE_TYPES.values()), _one),
    **dict.fromkeys((f"List{it.model.__name__}sResponse" for it in RESOURCE_TYPES.values()), _page),
    **{
        f"Batch{verb}{it.model.__name__}sResponse": _many
        for verb in ("Get", "Create", "Delete")
        for it in RESOURCE_TYPES.values()
    },
    "CountCommentsResponse": _counts,
    "WatchResponse": _batch,
}
"""The conversion for each type of response."""
