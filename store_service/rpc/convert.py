"""Converts values of `store_service.model` to protobuf messages."""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from storeapi.v1 import comments_pb2, posts_pb2

from store_service.compiled import compiled
from store_service.model import (
    TOMBSTONE_ETAG,
    Comment,
    Post,
    ResourceFields,
    SearchPage,
    format_etag,
    labels_from_text,
)

M = TypeVar("M", bound=Message)


def set_time(message: Timestamp, microseconds: int) -> None:
    """Sets a Timestamp to a time in microseconds since 1970."""
    message.seconds, rest = divmod(microseconds, 1_000_000)
    message.nanos = rest * 1000


def microseconds_from_timestamp(message: Timestamp) -> int:
    """Returns a Timestamp in microseconds since 1970; -1 if it has a fraction of a microsecond.

    The database stores microseconds, so a Timestamp with such a fraction equals no stored time.
    """
    microseconds, rest = divmod(message.nanos, 1000)
    return -1 if rest else message.seconds * 1_000_000 + microseconds


def _converter(model: type[Post] | type[Comment], message: type[M]) -> Callable[..., M]:
    """Generates the function that converts a resource to its message.

    Its second argument creates the message, and can be the `add` of a repeated field.

    Fields have the same names in the message and in the dataclass, which can also have properties for them.
    Times are Timestamps, and labels are a map. Only `version` has another name in the message: `etag`.
    """
    types = {it.name: it.message_type for it in message.DESCRIPTOR.fields if it.name != "etag"}
    fields = ResourceFields(model)
    in_message = set(fields.names) - {"version", *fields.derived}
    assert in_message <= types.keys(), "each field of the dataclass is a field of the message"
    assert all(hasattr(model, name) for name in types), "and each field of the message one of the dataclass"
    # The other fields are mostly empty, and setting an empty field takes longer than checking it here.
    always_set = {*fields.required, *fields.output_only}
    scalars = "".join(
        [f"{name}=it.{name}, " for name, type_ in types.items() if not type_ and name in always_set]
    )
    lines = [f'message = new({scalars}etag=format_etag(it.version) if it.version else "")']
    for name, type_ in types.items():
        if name == "labels":
            lines += ["if it.labels:", "    message.labels.update(labels_from_text(it.labels))"]
        elif type_:
            lines += [
                f"if it.{name} is not None:",
                f"    time = message.{name}",
                f"    time.seconds, rest = divmod(it.{name}, 1_000_000)",
                "    time.nanos = rest * 1000",
            ]
            if name == "delete_time":
                lines += ["    if not it.body:", "        message.etag += TOMBSTONE_ETAG"]
        elif name not in always_set:
            lines += [f"if it.{name}:", f"    message.{name} = it.{name}"]
    lines.append("return message")
    function: Callable[..., M] = compiled(
        ["it", "new=Message"],
        lines,
        Message=message,
        TOMBSTONE_ETAG=TOMBSTONE_ETAG,
        format_etag=format_etag,
        labels_from_text=labels_from_text,
    )
    return function


def response_converter(message: type[M], to_message: Callable[..., Message]) -> Callable[[Any], M]:
    """Generates the function that converts a `Page` or a `BatchResult` to a response.

    The response has one field of resources, which `to_message` converts. Its other fields have the same names
    as in the result.
    """
    is_resources = {it.name: it.message_type is not None for it in message.DESCRIPTOR.fields}
    (resources,) = [name for name, is_field in is_resources.items() if is_field]
    others = ", ".join([f"{name}=it.{name}" for name in is_resources if name != resources])
    function: Callable[[Any], M] = compiled(
        ["it"],
        [
            f"response = Message({others})",
            # Messages that are created elsewhere would be copied.
            f"add = response.{resources}.add",
            "for item in it.items:",
            "    to_message(item, add)",
            "return response",
        ],
        Message=message,
        to_message=to_message,
    )
    return function


def search_converter(
    message: type[M], to_message: Callable[[Any], Message]
) -> Callable[[SearchPage[Any]], M]:
    """Returns the function that converts a page of a search to a response with `results`.

    `to_message` converts a resource, whose field in a result has the name of its type.
    """
    result_type = message.DESCRIPTOR.fields_by_name["results"].message_type
    assert result_type is not None
    name = result_type.fields[0].name

    def convert(page: SearchPage[Any]) -> M:
        response: Any = message(next_page_token=page.next_page_token)
        for result in page.results:
            found = response.results.add(**{name: to_message(result.resource)})
            for part in result.snippet:
                found.snippet.add(text=part.text, is_match=part.is_match)
        found_response: M = response
        return found_response

    return convert


post_to_message: Callable[..., posts_pb2.Post] = _converter(Post, posts_pb2.Post)
"""Converts a post. Empty values (id 0, times None, version 0) stay unset."""

comment_to_message: Callable[..., comments_pb2.Comment] = _converter(Comment, comments_pb2.Comment)
"""Converts a comment. Empty values (id 0, times None, version 0) stay unset."""
