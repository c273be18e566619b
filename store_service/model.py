"""What the service stores, and what callers ask for, without a word of gRPC or SQL.

Times are microseconds since 1970-01-01 UTC. A time is None on rows that were stored before times
were kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar

Resource = TypeVar("Resource")
Argument = TypeVar("Argument")

Order = Literal["id", "id desc"]
"""How a list is sorted: oldest first, or newest first."""

ORDERS: tuple[Order, ...] = ("id", "id desc")


def format_etag(version: int) -> str:
    """The opaque string that callers see instead of a row's version."""
    return f"v{version:x}"


IMMUTABLE: Mapping[str, str] = {"behavior": "immutable"}
"""Metadata of a field that a caller sets on create and that never changes."""

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
    """A post to be stored."""


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
    """A comment to be stored."""

    field: str = "comment.post_id"
    """Where the request names the post, for the error when there is no such post."""


class ResourceFields:
    """The fields of a resource, by who sets them. Derived from its dataclass."""

    def __init__(self, model: type[Post] | type[Comment]) -> None:
        """Reads the metadata of the fields."""
        behavior = {it.name: it.metadata.get("behavior", "mutable") for it in fields(model)}
        self.names = tuple(behavior)
        self.mutable = tuple(name for name, it in behavior.items() if it == "mutable")
        """Set by a caller on create and update."""
        self.immutable = tuple(name for name, it in behavior.items() if it == "immutable")
        """Set by a caller on create."""
        self.content = tuple(name for name, it in behavior.items() if it != "output_only")
        """Set by a caller."""
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
    """All texts of a resource joined, for estimates of its size."""
    return _TEXTS[type(resource)](resource)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A change of one post or comment, and its preconditions."""

    id: int
    values: Mapping[str, Any]
    """New values of mutable fields; fields that are not named keep their value."""
    etag: str
    """Empty, or what the stored etag must be."""
    unchangeable: tuple[tuple[str, int], ...] = ()
    """Fields that the request also sets and that never change, with the value that they must have."""
    request_field: str
    """What the request calls the resource ("post"), for paths in errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """Resources to delete: all of them or none."""

    ids: tuple[int, ...]
    etag: str = ""
    """Empty, or what the stored etag of the only id must be."""
    force: bool = False
    """Delete the comments of posts too."""
    allow_missing: bool = False
    """Leave out ids that name nothing, instead of failing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which posts or comments a list holds; a page token is bound to it."""

    resource: Literal["posts", "comments"]
    order: Order = "id"
    post_id: int = 0
    """Only the comments of this post; 0: of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """One page of a query."""

    query: Query
    page_size: int
    page_token: str
    max_bytes: int = 0
    """The page ends before its bodies pass this; 0: before they are too large for a message."""


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Page(Generic[Resource]):
    """Some of a query's resources, and where the next page starts."""

    items: tuple[Resource, ...]
    next_page_token: str
    """Empty on the last page."""
    resume_token: str = ""
    """From where a watch tells of everything that this page and the next do not show yet; on the first
    page, empty on the others."""


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class BatchResult(Generic[Resource]):
    """The answer to a batch of ids, in the order asked for."""

    items: tuple[Resource, ...]
    missing_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """What makes a request the same as one before."""

    id: str
    """A UUID that the caller chose, in lower case."""
    fingerprint: str
    """A hash of everything else that the request says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteCommand(Generic[Argument]):
    """The argument of a write, with its idempotency key if it has one."""

    argument: Argument
    key: IdempotencyKey | None = None
    dry_run: bool = False
    """Whether the write is rolled back (`validate_only`)."""


class Action(IntEnum):
    """What was done to a resource; the numbers are those of the contract and of the tables."""

    SNAPSHOT = 1
    CREATE = 2
    UPDATE = 3
    DELETE = 4


class ResourceKind(IntEnum):
    """What a resource is; the numbers are those of the contract and of the tables."""

    POST = 1
    COMMENT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that was done to a post or comment."""

    action: Action
    kind: ResourceKind
    post_id: int
    """The post, or the post of the comment."""
    resource: Post | Comment
    """As it is after the change; what is deleted, as it last was."""
    commit_time: int | None
    """When it was done; None where that is not known, in a snapshot."""
    request_id: str = ""
    """Of the request that did it; empty if it had none."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Position:
    """A place in the change feed: behind the change `seq` of the transaction `xid`."""

    xid: int
    seq: int
    time: int = field(default=0, compare=False)
    """The commit_time of that change, by which a store that was set back is told from the one before; 0 if
    the place is behind no change, or that change is gone."""

    def is_same(self, other: "Position") -> bool:
        """Whether both are after the same change of the same history."""
        # Not xid: on SQLite the end of the feed has another one than its change.
        return (self.seq, self.time) == (other.seq, other.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotCursor:
    """How much of the initial state a watch has been sent: everything up to here."""

    kind: ResourceKind
    """Posts come first, then comments."""
    post_id: int = 0
    """Where single posts are watched: the one whose comments were sent last."""
    id: int = 0
    """Of the post or comment that was sent last; 0 before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """Where a watch goes on; callers see it as the resume token."""

    position: Position
    """Behind which changes follow, after the snapshot if there is one."""
    snapshot: SnapshotCursor | None = None
    """What is left of the initial state; None: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchFilter:
    """Which changes a watch is about."""

    kinds: frozenset[ResourceKind] = frozenset(ResourceKind)
    post_ids: frozenset[int] = frozenset()
    """These posts and their comments; empty: all."""

    def matches(self, change: Change) -> bool:
        """Whether the watch is about this change."""
        return change.kind in self.kinds and (not self.post_ids or change.post_id in self.post_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchStart:
    """Where a watch begins: now, unless one of these is set."""

    resume_token: str | None = None
    initial_state: bool = False
    earliest: bool = False
