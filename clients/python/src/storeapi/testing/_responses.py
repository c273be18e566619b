"""Converts results of the client to response messages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from storeapi._resources import RESOURCE_TYPES, set_time
from storeapi.model import Change, ChangeBatch, Found, Page, SearchResult
from storeapi.v1 import changes_pb2


def response_message(method: MethodDescriptor, response: object) -> Message:
    """The response message of a method.

    Args:
        method: The method.
        response: The message itself, or the result of the method of the client.

    Raises:
        TypeError: The method has another result.
    """
    kind = GetMessageClass(method.output_type)
    if isinstance(response, kind):
        return response
    make = _MAKERS.get(method.output_type.name)
    message = None if make is None else make(kind, response)
    if message is None and make is _page:
        raise TypeError(
            f'{method.name} answers with a storeapi.Page, such as Page(items=(...,), next_page_token=""), '
            f"not with {response!r}"
        )
    if message is None:
        raise TypeError(
            f"{method.name} answers with a {method.output_type.name} or what the client makes of it, "
            f"not with {response!r}"
        )
    return message


def _one(kind: type[Any], response: object) -> Message | None:
    """A post or a comment."""
    resource_type = RESOURCE_TYPES[kind.DESCRIPTOR.name.lower()]
    is_one = isinstance(response, resource_type.model)
    return resource_type.to_message(response) if is_one else None


def _many(kind: type[Any], response: object) -> Message | None:
    """The response to a batch."""
    message: Any = _filled(kind, response) if isinstance(response, Sequence) else None
    if message is not None and isinstance(response, Found):
        message.missing_ids.extend(response.missing_ids)
        message.missing_external_ids.extend(response.missing_external_ids)
    return message  # type: ignore[no-any-return]  # no common type


def _page(kind: type[Any], response: object) -> Message | None:
    """The response to a list."""
    if not isinstance(response, Page):
        return None
    message: Any = _filled(kind, response.items)
    if message is not None:
        message.next_page_token = response.next_page_token
        # A page of former versions has none.
        if "resume_token" in kind.DESCRIPTOR.fields_by_name:
            message.resume_token = response.resume_token
    return message  # type: ignore[no-any-return]  # no common type


def _search_page(kind: type[Any], response: object) -> Message | None:
    """The response to a search."""
    if not isinstance(response, Page) or not all(isinstance(it, SearchResult) for it in response.items):
        return None
    message: Any = kind(next_page_token=response.next_page_token)
    for result in response.items:
        name = type(result.resource).__name__.lower()
        parts = [{"text": it.text, "is_match": it.is_match} for it in result.snippet]
        found = RESOURCE_TYPES[name].to_message(result.resource)
        message.results.add(**{name: found}, snippet=parts)
    return message  # type: ignore[no-any-return]  # no common type


def _filled(kind: type[Any], items: Sequence[object]) -> Message | None:
    resource_type = next(
        it for it in RESOURCE_TYPES.values() if f"{it.name}s" in kind.DESCRIPTOR.fields_by_name
    )
    if not all(isinstance(item, resource_type.model) for item in items):
        return None
    messages = [resource_type.to_message(item) for item in items]
    return kind(**{f"{resource_type.name}s": messages})  # type: ignore[no-any-return]  # no common type


def _counts(kind: type[Any], response: object) -> Message | None:
    """The response to a count: one number, or one for each id."""
    names = ["counts"] if isinstance(response, Mapping) else ["count", "total"]
    fields = kind.DESCRIPTOR.fields_by_name
    name = next((name for name in names if name in fields), "")
    is_count = name and isinstance(response, (int, Mapping))
    return kind(**{name: response}) if is_count else None


def _batch(kind: type[Any], response: object) -> Message | None:
    """One response of a watch."""
    if not isinstance(response, ChangeBatch):
        return None
    return kind(  # type: ignore[no-any-return]  # no common type
        changes=[_change(change) for change in response.changes],
        resume_token=response.resume_token,
        initial_state_complete=response.initial_state_complete,
        heartbeat=response.heartbeat,
        partial=response.partial,
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
    **{
        f"List{it.model.__name__}{what}Response": _page
        for what in ("s", "Revisions")
        for it in RESOURCE_TYPES.values()
    },
    **{
        f"Batch{verb}{it.model.__name__}sResponse": _many
        for verb in ("Get", "Create", "Update", "Delete")
        for it in RESOURCE_TYPES.values()
    },
    **{f"Search{it.model.__name__}sResponse": _search_page for it in RESOURCE_TYPES.values()},
    **dict.fromkeys(("CountPostsResponse", "CountCommentsResponse", "CountRepliesResponse"), _counts),
    "WatchResponse": _batch,
}
"""The conversion for each type of response."""
