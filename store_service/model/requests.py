"""Arguments and results of the operations on posts and comments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from store_service.model.filters import EMPTY_FILTER, ResourceFilter
from store_service.search import SearchQuery, SnippetPart

Resource = TypeVar("Resource")
Argument = TypeVar("Argument")

Order = Literal["id", "id desc", "create_time", "create_time desc", "thread", "thread desc", "relevance"]
"""Order of a list or a search."""

ORDERS: tuple[Order, ...] = ("id", "id desc", "create_time", "create_time desc")
"""Orders of every list."""

THREAD_ORDERS: tuple[Order, ...] = ("thread", "thread desc")
"""Orders of the comments of one post."""

SEARCH_ORDERS: tuple[Order, ...] = ("id desc", "relevance")
"""Orders of every search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """An update of one post or comment, and its preconditions."""

    id: int
    values: Mapping[str, Any]
    """New values of mutable fields. Other fields keep their values."""
    etag: str
    """The etag that the stored resource must have; empty: any."""
    changed_labels: tuple[tuple[str, str | None], ...] = ()
    """Single labels to set, or to remove if the value is None. The other labels keep their values."""
    unchangeable: tuple[tuple[str, int | str], ...] = ()
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
    """Whether the comments of posts, or the replies to comments, are deleted too."""
    allow_missing: bool = False
    """Whether ids of resources that do not exist are ignored. Otherwise they fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionTimes:
    """When resources are deleted, and until when they can be restored."""

    delete_time: int
    purge_time: int | None = None
    """None: they cannot be restored."""

    @property
    def can_be_restored(self) -> bool:
        """Whether the resources are kept."""
        return self.purge_time is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletedResource(Generic[Resource]):
    """A resource that a transaction deletes."""

    resource: Resource
    key: "IdempotencyKey | None"
    """The idempotency key of the deletion."""
    force: bool
    """Whether the comments below it are deleted too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """The collection, order and filter of a list. A page token is bound to one query."""

    resource: Literal["posts", "comments", "post revisions", "comment revisions"]
    order: Order = "id"
    post_id: int = 0
    """Only the comments of this post; 0: of all posts. Of revisions: the id of the resource."""
    filter: ResourceFilter = EMPTY_FILTER
    search: str = ""
    """The query of a search; empty for a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """One page of a query."""

    query: Query
    page_size: int
    page_token: str
    max_bytes: int = 0
    """Maximum size of all bodies of the page; 0: the size that fits into one message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """One page of a search."""

    query: Query
    parsed: SearchQuery
    """The parsed `query.search`."""
    page_size: int
    page_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult(Generic[Resource]):
    """A resource that matches a search."""

    resource: Resource
    snippet: tuple[SnippetPart, ...]
    """The part of the body around the matches."""


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class SearchPage(Generic[Resource]):
    """One page of a search, and where the next page starts."""

    results: tuple[SearchResult[Resource], ...]
    next_page_token: str
    """Empty on the last page."""

    @property
    def items(self) -> tuple[Resource, ...]:
        """The resources."""
        return tuple([it.resource for it in self.results])


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionsRequest:
    """One page of the former versions of a resource."""

    resource: Literal["posts", "comments"]
    id: int
    page_size: int
    page_token: str
    show_deleted: bool = False
    """Whether a deleted resource is found."""

    @property
    def query(self) -> Query:
        """The query to which page tokens are bound."""
        name: Literal["post revisions", "comment revisions"] = (
            "post revisions" if self.resource == "posts" else "comment revisions"
        )
        return Query(resource=name, post_id=self.id)


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Page(Generic[Resource]):
    """One page of a list, and where the next page starts."""

    items: tuple[Resource, ...]
    next_page_token: str
    """Empty on the last page."""
    resume_token: str = ""
    """A watch from this token receives every change that this page and the next pages do not show. Set on
    the first page, empty on other pages."""
    skipped_rows: int = 0
    """Number of rows that were read for this page and did not match."""


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class BatchResult(Generic[Resource]):
    """The resources of a batch request, in the order of the request."""

    items: tuple[Resource, ...]
    missing_ids: tuple[int, ...] = ()
    missing_external_ids: tuple[str, ...] = ()


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
