"""The values that the clients take and give."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Literal, TypeAlias, TypeVar

Item = TypeVar("Item")

Action: TypeAlias = Literal["snapshot", "create", "update", "delete", "unknown"]
"""What was done; "snapshot" is nothing, but part of the initial state. "unknown" is what a newer service
does and this version has no word for."""

Kind: TypeAlias = Literal["post", "comment", "unknown"]
"""What it was done to."""

Start: TypeAlias = Literal["now", "earliest", "initial_state"]
"""Where a watch without a token begins: with what changes from now on, with the oldest change that is still
kept, or with everything that is stored, followed by what changes from then on."""


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
    resume_token: str = ""
    """On the first page of a list: `changes.watch(resume_token=...)` goes on from here, so that whoever lists
    everything and then watches misses nothing. Empty on other pages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldViolation:
    """One thing that is wrong with a request."""

    field: str
    """Path of the field from the root of the request, such as `post.body` or `requests[3].post.body`."""
    description: str
    """What is wrong with it, in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One change of one post or comment."""

    action: Action
    """What was done."""
    kind: Kind
    """What it was done to."""
    id: int
    """The id of the post or comment."""
    post_id: int
    """The post itself, or the post of the comment."""
    commit_time: datetime | None
    """When it was done, in UTC; for a "snapshot", when the resource was last changed, None if unknown."""
    resource: Post | Comment | None
    """It, after the change; after a "delete", as it last was. None only if `kind` is "unknown"."""
    request_id: str = ""
    """Of the request that made the change; empty if it had none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeBatch:
    """Some changes, and the token to go on from behind them; iterating over it gives the changes."""

    changes: tuple[Change, ...]
    """In the order in which they were committed. The changes of one transaction come together unless they
    are too large for one message; small transactions may share a batch."""
    resume_token: str
    """Everything up to here has been told. Whoever stores it in one transaction with what was made of the
    changes sees each change exactly once."""
    initial_state_complete: bool = False
    """Set on the last batch of the initial state."""
    heartbeat: bool = False
    """Set when there is nothing to tell but the token."""
    partial: bool = False
    """Set when more of the same transaction follows in the next batch."""

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)
