"""The message of a resource in requests: which fields it has, and which of them a request may set."""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from storeapi.v1 import comments_pb2, posts_pb2

from store_service.compiled import compiled
from store_service.errors import FieldInvalid
from store_service.model import Comment, CommentDraft, Post, PostDraft, labels_to_text
from store_service.rpc.convert import microseconds_from_timestamp
from store_service.rpc.validation.violations import Violations
from store_service.service.comments import COMMENTS
from store_service.service.posts import POSTS
from store_service.service.resource_type import ResourceType


class ResourceMessage:
    """The fields of a resource message, by who sets them."""

    def __init__(
        self,
        type: ResourceType[Post, PostDraft] | ResourceType[Comment, CommentDraft],
        message: type[Message],
    ) -> None:
        """Takes the description of the resource, and its message."""
        self.name = type.name
        self.mutable = type.fields.mutable
        self.immutable = type.fields.immutable
        self.content = type.fields.content
        self.required = type.fields.required
        self.has_optional = type.fields.has_optional
        self.is_submessage = {
            it.name: it.message_type is not None and it.name != "labels" for it in message.DESCRIPTOR.fields
        }
        """All fields, and whether each is a message itself."""
        others = [name for name in self.is_submessage if name not in self.content]
        self.output_only = tuple(sorted(others, key=self.is_submessage.__getitem__))
        self.unchangeable = (
            *self.immutable,
            *(name for name in self.output_only if name not in ("id", "etag")),
        )
        """Fields that an update may set, but only to the stored value."""
        content = [
            "labels=labels_to_text(message.labels)" if name == "labels" else f"{name}=message.{name}"
            for name in self.content
        ]
        self.draft: Callable[[Any, str, bool], Any] = compiled(
            ["message", "path", "return_existing"],
            [f"return Draft({', '.join(content)}, field=path, return_existing=return_existing)"],
            Draft=type.draft,
            labels_to_text=labels_to_text,
        )
        """Returns the draft in the message of a create request, which has a path."""
        checks = [
            f'message.HasField("{name}")' if self.is_submessage[name] else f"message.{name}"
            for name in self.output_only
        ]
        self.has_output_only: Callable[[Any], bool] = compiled(
            ["message"], [f"return bool({' or '.join(checks)})"]
        )
        """Returns whether any output-only field of a message is set."""

    def is_set(self, message: Any, field: str) -> bool:
        """Whether a message has a field."""
        return bool(message.HasField(field) if self.is_submessage[field] else getattr(message, field))

    def refuse_output_only(self, message: Any, path: str, violations: Violations) -> None:
        """Adds a violation for each output-only field that is set in a message of a create request."""
        for field in self.output_only:
            if self.is_set(message, field):
                violations.add(FieldInvalid, f"{path}.{field}", "is set by the server; leave it unset")


def stored_value(message: Any, field: str) -> int | str:
    """Returns the value of a field as the database stores it."""
    value = getattr(message, field)
    if field == "labels":
        return labels_to_text(value)
    return value if isinstance(value, (int, str)) else microseconds_from_timestamp(value)


POST = ResourceMessage(POSTS, posts_pb2.Post)
COMMENT = ResourceMessage(COMMENTS, comments_pb2.Comment)
