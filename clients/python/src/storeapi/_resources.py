"""What the shared code needs to know about each resource type; used by both clients, the tests and the CLI.

Names of RPCs, messages and fields follow from the name of the resource type, as the contract defines them.
Fields follow from the dataclasses: those of the draft can be set, the others are output-only.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from functools import cached_property
from operator import attrgetter
from types import ModuleType
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from storeapi import _arguments
from storeapi.model import Comment, CommentDraft, Page, Post, PostDraft, Resource
from storeapi.v1 import comments_pb2, posts_pb2

AnyResource = TypeVar("AnyResource", bound=Resource)

TIMES: Final = frozenset({"create_time", "update_time"})
"""Fields that are timestamps in messages and `datetime` in the model."""


@dataclass(frozen=True, kw_only=True)
class ResourceType(Generic[AnyResource]):
    """Posts or comments."""

    model: type[AnyResource]
    draft: type[Any]
    """The fields that callers set on create. All of them but those in `immutable` can be updated."""
    immutable: frozenset[str] = frozenset()
    takes_text: bool = False
    """Whether a str is accepted as a draft with this body."""
    messages: ModuleType

    @cached_property
    def name(self) -> str:
        """The name in messages and JSON: "post" or "comment"."""
        return self.model.__name__.lower()

    @cached_property
    def draft_fields(self) -> dict[str, type]:
        """The fields of a draft with their types."""
        return {it.name: it.type for it in fields(self.draft) if isinstance(it.type, type)}

    @cached_property
    def _model_fields(self) -> tuple[str, ...]:
        return tuple(it.name for it in fields(self.model) if it.name not in TIMES)

    @cached_property
    def _values(self) -> Any:
        return attrgetter(*self._model_fields)

    def request(self, verb: str, **values: Any) -> Any:
        """The request message of the RPC for a verb such as "Get" or "BatchGet"."""
        plural = "s" if verb.startswith(("List", "Batch")) else ""
        return getattr(self.messages, f"{verb}{self.model.__name__}{plural}Request")(**values)

    def create_request(self, draft: object, **values: Any) -> Any:
        """A request to create one resource."""
        message = self._message(**{name: getattr(draft, name) for name in self.draft_fields})
        return self.request("Create", **{self.name: message}, **values)

    def update_request(self, id: int, changes: Mapping[str, Any], *, etag: str, **values: Any) -> Any:
        """A request to update the fields whose value is not None.

        Raises:
            TypeError: Every value is None.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        if not changes:
            raise TypeError("update requires at least one field that is not None")
        message = self._message(**changes)
        message.id, message.etag = _arguments.id(id), etag
        return self.request("Update", **{self.name: message}, update_mask={"paths": list(changes)}, **values)

    def _message(self, **values: Any) -> Any:
        """The message of a resource with some fields of the draft."""
        checked = {
            name: _arguments.field(name, self.draft_fields[name], value) for name, value in values.items()
        }
        return getattr(self.messages, self.model.__name__)(**checked)

    def changes(self, resource: AnyResource, returned: object) -> dict[str, Any]:
        """The fields to update after the function that a caller passed to `modify` has returned.

        Raises:
            TypeError: It returned a value of another type.
            ValueError: It changed a field that cannot be updated.
        """
        if returned is None:
            return {}
        if isinstance(returned, str):
            return {"body": returned} if returned != resource.body else {}
        if not isinstance(returned, self.model):
            if inspect.iscoroutine(returned):
                # It is never awaited; closing it prevents a second warning.
                returned.close()
                raise TypeError("change is a coroutine function, which only AsyncStoreClient accepts")
            name = self.model.__name__
            raise TypeError(f"change must return a str, a {name} or None, not {returned!r}")
        names = (it.name for it in fields(self.model))
        changed = {it: new for it in names if (new := getattr(returned, it)) != getattr(resource, it)}
        if fixed := [name for name in changed if name not in self.draft_fields or name in self.immutable]:
            raise ValueError(f"change must not change {' or '.join(fixed)}")
        return changed

    def as_draft(self, value: object) -> Any:
        """The draft that a caller passed in a batch."""
        if self.takes_text and isinstance(value, str):
            return self.draft(body=value)
        if not isinstance(value, self.draft):
            expected = f"{self.draft.__name__}{' or str' if self.takes_text else ''}"
            raise TypeError(f"each of drafts must be a {expected}, not {value!r}")
        return value

    def from_message(self, message: Any) -> AnyResource:
        """The resource in a response."""
        return self.model(
            **dict(zip(self._model_fields, self._values(message), strict=True)),
            create_time=time_from_message(message, "create_time"),
            update_time=time_from_message(message, "update_time"),
        )

    def to_message(self, resource: AnyResource) -> Any:
        """The message of a resource, as the service sends it."""
        message = getattr(self.messages, self.model.__name__)(
            **{name: getattr(resource, name) for name in self._model_fields}
        )
        for name in TIMES:
            set_time(message, name, getattr(resource, name))
        return message

    def from_response(self, response: Any) -> tuple[AnyResource, ...]:
        """The resources in the response of a list or batch."""
        return tuple(map(self.from_message, getattr(response, f"{self.name}s")))

    def page(self, response: Any) -> Page[AnyResource]:
        """The page in the response of a list."""
        return Page(
            items=self.from_response(response),
            next_page_token=response.next_page_token,
            resume_token=response.resume_token,
        )


def rpc_of(request: Message) -> str:
    """The name of the RPC that takes this request."""
    return type(request).__name__.removesuffix("Request")


def time_from_message(message: Message, field: str) -> datetime | None:
    """The time in a field of a message; None if it is not set."""
    timestamp: Timestamp = getattr(message, field)
    return timestamp.ToDatetime(tzinfo=timezone.utc) if message.HasField(field) else None


def set_time(message: Message, field: str, time: datetime | None) -> None:
    """Sets a field of a message to a time; None leaves it unset."""
    if time is not None:
        getattr(message, field).FromDatetime(time)


POSTS: Final = ResourceType(model=Post, draft=PostDraft, takes_text=True, messages=posts_pb2)
COMMENTS: Final = ResourceType(
    model=Comment, draft=CommentDraft, immutable=frozenset({"post_id"}), messages=comments_pb2
)
RESOURCE_TYPES: Final[Mapping[str, ResourceType[Any]]] = {it.name: it for it in (POSTS, COMMENTS)}
"""Every resource type by name."""
