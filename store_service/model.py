"""What the service stores, and what callers ask for, without a word of gRPC or SQL.

Times are microseconds since 1970-01-01 UTC. A time is None on rows that were stored before times
were kept.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Resource = TypeVar("Resource")

Order = Literal["id", "id desc"]
"""How a list is sorted: oldest first, or newest first."""

ORDERS: tuple[Order, ...] = ("id", "id desc")


def etag_of(version: int) -> str:
    """The opaque string that callers see instead of a row's version."""
    return f"v{version:x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """A stored post."""

    id: int
    body: str
    create_time: int | None
    update_time: int | None
    version: int
    """Counts the changes of this row, from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """A stored comment."""

    id: int
    body: str
    post_id: int
    create_time: int | None
    update_time: int | None
    version: int
    """Counts the changes of this row, from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostDraft:
    """A post to be stored."""

    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommentDraft:
    """A comment to be stored."""

    body: str
    post_id: int
    field: str = "comment.post_id"
    """Where the request names the post, for the error when there is no such post."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A change of one post or comment, and what must be so for it to happen."""

    id: int
    body: str | None
    """The new body; None leaves it as it is."""
    etag: str
    """Empty, or what the stored etag must be."""
    unchangeable: tuple[tuple[str, int], ...] = ()
    """Columns that the request also sets and that never change, with the value that they must have."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Resource]):
    """Some of a query's resources, and where the next page starts."""

    items: tuple[Resource, ...]
    next_page_token: str
    """Empty on the last page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Generic[Resource]):
    """The answer to a batch of ids, in the order asked for."""

    items: tuple[Resource, ...]
    missing_ids: tuple[int, ...] = ()
