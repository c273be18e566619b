"""What the shared code needs to know about each resource type; used by both clients, the tests and the CLI.

Names of RPCs, messages and fields follow from the name of the resource type, as the contract defines them.
Fields follow from the dataclasses: those of the draft can be set on create, those of the update later, and
the others are output-only.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import datetime, timezone
from functools import cached_property
from operator import attrgetter
from types import ModuleType
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message
from google.protobuf.text_format import MessageToString
from google.protobuf.timestamp_pb2 import Timestamp

from storeapi import _arguments
from storeapi.model import (
    Comment,
    CommentDraft,
    CommentFilter,
    CommentUpdate,
    Found,
    Labels,
    Page,
    Post,
    PostDraft,
    PostFilter,
    PostUpdate,
    Resource,
    SearchResult,
    SnippetPart,
)
from storeapi.v1 import comments_pb2, filters_pb2, posts_pb2

AnyResource = TypeVar("AnyResource", bound=Resource)

TIMES: Final = ("create_time", "update_time", "delete_time", "purge_time")
"""Fields that are timestamps in messages and `datetime` in the model."""

FILTER_TIMES: Final = frozenset({"create_time_from", "create_time_before"})
"""The same for filters."""


@dataclass(frozen=True, kw_only=True)
class ResourceType(Generic[AnyResource]):
    """Posts or comments."""

    model: type[AnyResource]
    draft: type[Any]
    """The fields that callers set on create, and the options of a create."""
    update: type[Any]
    """The fields that can be updated, the changes of single labels, and the etag."""
    filter: type[Any]
    takes_text: bool = False
    """Whether a str is accepted as a draft with this body."""
    messages: ModuleType

    @cached_property
    def name(self) -> str:
        """The name in messages and JSON: "post" or "comment"."""
        return self.model.__name__.lower()

    @cached_property
    def _draft_types(self) -> dict[str, object]:
        return {it.name: it.type for it in fields(self.draft)}

    @cached_property
    def draft_fields(self) -> dict[str, object]:
        """The fields of the resource that a draft sets, with their types."""
        names = {it.name for it in fields(self.model)}
        return {name: type for name, type in self._draft_types.items() if name in names}

    @cached_property
    def required(self) -> frozenset[str]:
        """The fields that every draft has."""
        return frozenset(
            it.name for it in fields(self.draft) if it.default is MISSING and it.default_factory is MISSING
        )

    @cached_property
    def updatable(self) -> tuple[str, ...]:
        """The fields of the resource that an update can change; the others never change."""
        return tuple(it.name for it in fields(self.update) if it.name in self.draft_fields)

    @cached_property
    def _create_options(self) -> tuple[str, ...]:
        return tuple(self._draft_types.keys() - self.draft_fields.keys())

    @cached_property
    def _model_fields(self) -> tuple[str, ...]:
        return tuple(it.name for it in fields(self.model) if it.name not in {*TIMES, "labels"})

    @cached_property
    def _values(self) -> Any:
        return attrgetter(*self._model_fields)

    def request(self, verb: str, **values: Any) -> Any:
        """The request message of the RPC for a verb such as "Get" or "BatchGet"."""
        plural = "s" if verb.startswith(("List", "Batch", "Count")) else ""
        return getattr(self.messages, f"{verb}{self.model.__name__}{plural}Request")(**values)

    def revisions_request(self, **values: Any) -> Any:
        """A request for a page of the former versions of one resource."""
        return getattr(self.messages, f"List{self.model.__name__}RevisionsRequest")(**values)

    def create_request(self, draft: object, **values: Any) -> Any:
        """A request to create one resource."""
        message = self._message(**{name: getattr(draft, name) for name in self.draft_fields})
        values |= {name: getattr(draft, name) for name in self._create_options}
        return self.request("Create", **{self.name: message}, **values)

    def update_request(self, update: Any, **values: Any) -> Any:
        """A request to update the fields whose value is not None, and single labels.

        Raises:
            TypeError: Nothing is to be updated.
            ValueError: A label is to be replaced, set or removed at the same time.
        """
        changes = {name: it for name in self.updatable if (it := getattr(update, name)) is not None}
        set_labels = _arguments.labels(update.set_labels or {}, "set_labels")
        removed = _arguments.texts(update.remove_labels or (), "remove_labels")
        single = [*set_labels, *removed]
        if not changes and not single:
            raise TypeError("update requires at least one field that is not None")
        if "labels" in changes and single:
            raise ValueError("labels replaces all labels, and excludes set_labels and remove_labels")
        if both := set_labels.keys() & set(removed):
            raise ValueError(f"the label {min(both)!r} is in set_labels and in remove_labels")
        message = self._message(**changes, **({"labels": set_labels} if set_labels else {}))
        message.id, message.etag = _arguments.id(update.id), update.etag
        paths = [*changes, *(f"labels.{key}" for key in single)]
        return self.request("Update", **{self.name: message}, update_mask={"paths": paths}, **values)

    def filter_message(self, filter: object, name: str = "filter") -> Any:
        """The message of a filter; None for None."""
        if filter is None:
            return None
        if not isinstance(filter, self.filter):
            raise TypeError(f"{name} must be a {self.filter.__name__} or None, not {filter!r}")
        names = [it.name for it in fields(self.filter)]
        values = {name: value for name in names if (value := getattr(filter, name)) is not None}
        times = {name: _arguments.time(values.pop(name), name) for name in FILTER_TIMES & values.keys()}
        message = getattr(filters_pb2, self.filter.__name__)(**self._checked(values))
        for name, time in times.items():
            set_time(message, name, time)
        return message

    def _message(self, **values: Any) -> Any:
        """The message of a resource with some fields of the draft."""
        return getattr(self.messages, self.model.__name__)(**self._checked(values))

    def _checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of fields of the draft or of conditions, to send."""
        return {name: _arguments.field(name, self.draft_fields.get(name), it) for name, it in values.items()}

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
        if fixed := [name for name in changed if name not in self.updatable]:
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

    def as_update(self, value: object) -> Any:
        """The update that a caller passed in a batch."""
        if not isinstance(value, self.update):
            raise TypeError(f"each of updates must be a {self.update.__name__}, not {value!r}")
        return value

    def from_message(self, message: Any) -> AnyResource:
        """The resource in a response."""
        values: dict[str, Any] = dict(zip(self._model_fields, self._values(message), strict=True))
        for name in TIMES:
            values[name] = time_from_message(message, name)
        return self.model(**values, labels=Labels(message.labels))

    def to_message(self, resource: AnyResource) -> Any:
        """The message of a resource, as the service sends it."""
        message = getattr(self.messages, self.model.__name__)(
            **{name: getattr(resource, name) for name in self._model_fields}, labels=dict(resource.labels)
        )
        for name in TIMES:
            set_time(message, name, getattr(resource, name))
        return message

    def from_response(self, response: Any) -> tuple[AnyResource, ...]:
        """The resources in the response of a list or batch."""
        return tuple(map(self.from_message, getattr(response, f"{self.name}s")))

    def found(self, responses: Sequence[Any]) -> Found[AnyResource]:
        """The resources in the responses of batch gets, and what is missing."""
        found = Found(item for it in responses for item in self.from_response(it))
        found.missing_ids = tuple(id for it in responses for id in it.missing_ids)
        found.missing_external_ids = tuple(id for it in responses for id in it.missing_external_ids)
        return found

    def page(self, response: Any) -> Page[AnyResource]:
        """The page in the response of a list."""
        return Page(
            items=self.from_response(response),
            next_page_token=response.next_page_token,
            # A page of former versions has none.
            resume_token=getattr(response, "resume_token", ""),
        )

    def search_request(self, **values: Any) -> Any:
        """A request for a page of a search."""
        return getattr(self.messages, f"Search{self.model.__name__}sRequest")(**values)

    def search_page(self, response: Any) -> Page[SearchResult[AnyResource]]:
        """The page in the response of a search."""
        return Page(
            items=tuple(
                SearchResult(
                    resource=self.from_message(getattr(it, self.name)),
                    snippet=tuple(SnippetPart(text=part.text, is_match=part.is_match) for part in it.snippet),
                )
                for it in response.results
            ),
            next_page_token=response.next_page_token,
        )


def rpc_of(request: Message) -> str:
    """The name of the RPC that takes this request."""
    return type(request).__name__.removesuffix("Request")


def shown(value: object) -> str:
    """A value of a request for a repr, in one line."""
    if isinstance(value, Message):
        return f"({MessageToString(value, as_one_line=True)})"
    return repr(value)


def time_from_message(message: Message, field: str) -> datetime | None:
    """The time in a field of a message; None if it is not set."""
    timestamp: Timestamp = getattr(message, field)
    return timestamp.ToDatetime(tzinfo=timezone.utc) if message.HasField(field) else None


def set_time(message: Message, field: str, time: datetime | None) -> None:
    """Sets a field of a message to a time; None leaves it unset."""
    if time is not None:
        getattr(message, field).FromDatetime(time)


POSTS: Final = ResourceType(
    model=Post,
    draft=PostDraft,
    update=PostUpdate,
    filter=PostFilter,
    takes_text=True,
    messages=posts_pb2,
)
COMMENTS: Final = ResourceType(
    model=Comment, draft=CommentDraft, update=CommentUpdate, filter=CommentFilter, messages=comments_pb2
)
RESOURCE_TYPES: Final[Mapping[str, ResourceType[Any]]] = {it.name: it for it in (POSTS, COMMENTS)}
"""Every resource type by name."""
