"""Values that all layers share: resources, requests and changes, independent of gRPC and SQL.

Times are microseconds since 1970-01-01 UTC. A time is None on rows that were stored by a version without
times.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar

Resource = TypeVar("Resource")
Argument = TypeVar("Argument")

Order = Literal["id", "id desc"]
"""Order of a list: oldest first, or newest first."""

ORDERS: tuple[Order, ...] = ("id", "id desc")


def format_etag(version: int) -> str:
    """Returns the etag of a version."""
    return f"v{version:x}"


IMMUTABLE: Mapping[str, str] = {"behavior": "immutable"}
"""Metadata of a field that a caller sets on create. It never changes."""

OUTPUT_ONLY: Mapping[str, str] = {"behavior": "output_only"}
"""Metadata of a field that the server sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostContent:
    """The fields of a post that a caller sets."""

    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Post(PostContent):
    """A stored post."""

    id: int = field(metadata=OUTPUT_ONLY)
    create_time: int | None = field(metadata=OUTPUT_ONLY)
    update_time: int | None = field(metadata=OUTPUT_ONLY)
    version: int = field(metadata=OUTPUT_ONLY)
    """Counts the changes of this row, from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostDraft(PostContent):
    """A post to create."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommentContent:
    """The fields of a comment that a caller sets."""

    body: str
    post_id: int = field(metadata=IMMUTABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment(CommentContent):
    """A stored comment."""

    id: int = field(metadata=OUTPUT_ONLY)
    create_time: int | None = field(metadata=OUTPUT_ONLY)
    update_time: int | None = field(metadata=OUTPUT_ONLY)
    version: int = field(metadata=OUTPUT_ONLY)
    """Counts the changes of this row, from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommentDraft(CommentContent):
    """A comment to create."""

    field: str = "comment.post_id"
    """Path of the post id in the request, for the error if the post does not exist."""


class ResourceFields:
    """The fields of a resource by behavior: mutable, immutable or output only."""

    def __init__(self, model: type[Post] | type[Comment]) -> None:
        """Takes the dataclass of the resource and reads the metadata of its fields."""
        behavior = {it.name: it.metadata.get("behavior", "mutable") for it in fields(model)}
        self.names = tuple(behavior)
        self.mutable = tuple(name for name, it in behavior.items() if it == "mutable")
        """Set by a caller on create and update."""
        self.immutable = tuple(name for name, it in behavior.items() if it == "immutable")
        """Set by a caller on create."""
        self.content = tuple(name for name, it in behavior.items() if it != "output_only")
        """Set by a caller: mutable and immutable fields."""
        self.output_only = tuple(name for name, it in behavior.items() if it == "output_only")
        """Set by the server."""


def _concatenation(content: type[PostContent] | type[CommentContent]) -> Callable[[Any], str]:
    names = [it.name for it in fields(content) if it.type in (str, "str")]
    get: Callable[[Any], Any] = attrgetter(*names)
    return get if len(names) == 1 else lambda resource: "".join(get(resource))


_TEXTS: dict[type, Callable[[Any], str]] = {
    **dict.fromkeys((Post, PostDraft), _concatenation(PostContent)),
    **dict.fromkeys((Comment, CommentDraft), _concatenation(CommentContent)),
}


def concatenated_texts(resource: Post | Comment | PostDraft | CommentDraft) -> str:
    """Returns all texts of a resource as one string, for estimates of its size."""
    return _TEXTS[type(resource)](resource)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """An update of one post or comment, and its preconditions."""

    id: int
    values: Mapping[str, Any]
    """New values of mutable fields. Other fields keep their values."""
    etag: str
    """The etag that the stored resource must have; empty: any."""
    unchangeable: tuple[tuple[str, int], ...] = ()
    """Fields that the request sets although they never change, with the values that must be stored."""
    request_field: str
    """Name of the resource in the request ("post"), for paths in errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """Resources to delete, all or none."""

    ids: tuple[int, ...]
    etag: str = ""
    """The etag that the stored resource must have if there is only one id; empty: any."""
    force: bool = False
    """Whether the comments of posts are deleted too."""
    allow_missing: bool = False
    """Whether ids of resources that do not exist are ignored. Otherwise they fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """The collection, order and filter of a list. A page token is bound to one query."""

    resource: Literal["posts", "comments"]
    order: Order = "id"
    post_id: int = 0
    """Only the comments of this post; 0: of all posts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """One page of a query."""

    query: Query
    page_size: int
    page_token: str
    max_bytes: int = 0
    """Maximum size of all bodies of the page; 0: the size that fits into one message."""


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Page(Generic[Resource]):
    """One page of a list, and where the next page starts."""

    items: tuple[Resource, ...]
    next_page_token: str
    """Empty on the last page."""
    resume_token: str = ""
    """A watch from this token receives every change that this page and the next pages do not show. Set on
    the first page, empty on other pages."""


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class BatchResult(Generic[Resource]):
    """The resources of a batch request, in the order of the request."""

    items: tuple[Resource, ...]
    missing_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """Identifies a write that a caller may send again."""

    id: str
    """The request id, a UUID in lower case."""
    fingerprint: str
    """A hash of the other fields of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteCommand(Generic[Argument]):
    """The argument of a write, with its idempotency key if it has one."""

    argument: Argument
    key: IdempotencyKey | None = None
    dry_run: bool = False
    """Whether the write is rolled back on purpose (`validate_only`)."""


class Action(IntEnum):
    """The action of a change. The contract and the tables use the same numbers."""

    SNAPSHOT = 1
    CREATE = 2
    UPDATE = 3
    DELETE = 4


class ResourceKind(IntEnum):
    """The type of a resource. The contract and the tables use the same numbers."""

    POST = 1
    COMMENT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A create, update or delete of one resource, or one resource of the initial state."""

    action: Action
    kind: ResourceKind
    post_id: int
    """Id of the post, or of the post of the comment."""
    resource: Post | Comment
    """The resource after the change; of a delete, its last state."""
    commit_time: int | None
    """Time of the change. In an initial state the update time of the resource, or None if it is not known."""
    request_id: str = ""
    """Request id of the write; empty if it had none."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Position:
    """A position in the change feed, after the change `seq` of the transaction `xid`."""

    xid: int
    seq: int
    time: int = field(default=0, compare=False)
    """The commit time of that change; 0 if there is no such change or it has been deleted. After a restore or
    a failover the store can have other changes with the same numbers; they differ in this time."""

    def is_same(self, other: "Position") -> bool:
        """Whether both are after the same change of the same history."""
        # xid is not compared: on SQLite the end of the feed has a different xid than its last change.
        return (self.seq, self.time) == (other.seq, other.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotCursor:
    """The last resource of the initial state that a watch has been sent."""

    kind: ResourceKind
    """Posts come first, then comments."""
    post_id: int = 0
    """If the watch filters by post: the post of the comments that were sent last."""
    id: int = 0
    """Id of the post or comment that was sent last; 0 before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """Where a watch continues. Callers see it as the resume token."""

    position: Position
    """The changes after this position follow, after the rest of the initial state."""
    snapshot: SnapshotCursor | None = None
    """Where the initial state continues; None if it is complete."""
    seen: Position | None = None
    """The position up to which the initial state may contain changes, if it is after `position`: its pages
    were read later. The changes up to it must still exist when the watch continues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchFilter:
    """The changes that a watch receives."""

    kinds: frozenset[ResourceKind] = frozenset(ResourceKind)
    post_ids: frozenset[int] = frozenset()
    """These posts and their comments; empty: all."""

    def matches(self, change: Change) -> bool:
        """Whether the watch receives a change."""
        return change.kind in self.kinds and (not self.post_ids or change.post_id in self.post_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchStart:
    """Where a watch starts: now, unless one of these is set."""

    resume_token: str | None = None
    initial_state: bool = False
    earliest: bool = False
