"""The values that the clients take and give."""

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class Post:
    """A post, as it was when the service answered."""

    id: int
    """Chosen by the service, positive, never given twice; 0 after a create with validate_only."""
    body: str
    """The text."""
    create_time: datetime | None = None
    """When the post was stored, in UTC, to the microsecond; None on posts older than the keeping of times."""
    update_time: datetime | None = None
    """When the post was last changed, in UTC, to the microsecond; None if that was before times were kept."""
    etag: str = ""
    """Changes whenever the post changes. Give it to an update or a delete to be refused, instead of
    overwriting, when somebody else changed the post in between."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comment:
    """A comment on a post, as it was when the service answered."""

    id: int
    """Chosen by the service, positive, never given twice; 0 after a create with validate_only."""
    body: str
    """The text."""
    post_id: int
    """The post that is commented on; never changes."""
    create_time: datetime | None = None
    """When the comment was stored, in UTC, to the microsecond; None on comments older than the keeping of
    times."""
    update_time: datetime | None = None
    """When the comment was last changed, in UTC, to the microsecond; None if that was before times were
    kept."""
    etag: str = ""
    """Changes whenever the comment changes. Give it to an update or a delete to be refused, instead of
    overwriting, when somebody else changed the comment in between."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommentDraft:
    """A comment that is still to be added, for `comments.create_many`."""

    post_id: int
    """The post to comment on."""
    body: str
    """The text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[Item]):
    """A part of a list, with the way to the next part."""

    items: tuple[Item, ...]
    """The posts or comments; a page may hold fewer than asked for, even none, and not be the last."""
    next_page_token: str
    """Where the next page starts, for `page_token`; empty on the last page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldViolation:
    """One thing that is wrong with a request."""

    field: str
    """Path of the field from the root of the request, such as `post.body` or `requests[3].post.body`."""
    description: str
    """What is wrong with it, in words."""
