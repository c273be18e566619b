"""The values of arguments and results."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Literal, TypeAlias, TypeVar

Item = TypeVar("Item")

Action: TypeAlias = Literal["snapshot", "create", "update", "delete", "unknown"]
"""The action of a change. "snapshot" is a resource of the initial state; "unknown" is an action of a newer
service that this version does not know."""

Kind: TypeAlias = Literal["post", "comment", "unknown"]
"""The resource type of a change."""

Start: TypeAlias = Literal["now", "earliest", "initial_state"]
"""Where a watch without a token begins: at the current position, at the oldest change that is still kept, or
with all existing resources, followed by all changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """A post or a comment, as it was when the service responded."""

    id: int
    """Assigned by the service, positive, never reused; 0 after a create with validate_only."""
    body: str
    """The text."""
    create_time: datetime | None = None
    """When the resource was created, in UTC, to the microsecond; None if it is older than the recording of
    times."""
    update_time: datetime | None = None
    """When the resource was last changed, in UTC, to the microsecond; None if that was before times were
    recorded."""
    etag: str = ""
    """Changes with each change of the resource. An update or delete with this etag fails, instead of
    overwriting, if the resource has changed since."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Post(Resource):
    """A post, as it was when the service responded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comment(Resource):
    """A comment on a post, as it was when the service responded."""

    post_id: int
    """The post that is commented on; never changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PostDraft:
    """A post to create with `posts.create_many`."""

    body: str
    """The text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommentDraft:
    """A comment to create with `comments.create_many`."""

    post_id: int
    """The post to comment on."""
    body: str
    """The text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[Item]):
    """A page of a list."""

    items: tuple[Item, ...]
    """The posts or comments. A page that is not the last may have fewer than requested, even none."""
    next_page_token: str
    """The `page_token` of the next page; empty on the last page."""
    resume_token: str = ""
    """On the first page: the position for `changes.watch(resume_token=...)` that makes "list, then watch"
    complete. Empty on other pages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldViolation:
    """One violation of a request."""

    field: str
    """Path of the field from the root of the request, such as `post.body` or `requests[3].post.body`."""
    description: str
    """The violation, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One change of one post or comment."""

    action: Action
    """The action."""
    kind: Kind
    """The resource type."""
    id: int
    """The id of the post or comment."""
    post_id: int
    """The id of the post, or of the post of the comment."""
    commit_time: datetime | None
    """When it was committed, in UTC; for a "snapshot", the last change of the resource, None if unknown."""
    resource: Post | Comment | None
    """The resource after the change; its last version after a "delete". None only if `kind` is "unknown"."""
    request_id: str = ""
    """The request id of the write; empty if it had none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeBatch:
    """Consecutive changes, and the position after them; iterating over a batch returns its changes."""

    changes: tuple[Change, ...]
    """In the order of commits. The changes of one transaction are in one batch unless they are too large for
    one message; small transactions may share a batch."""
    resume_token: str
    """The position after this batch. A program that stores it in one transaction with the effects of the
    changes processes each change exactly once."""
    initial_state_complete: bool = False
    """Set on the last batch of the initial state."""
    heartbeat: bool = False
    """Set if the batch has only a token."""
    partial: bool = False
    """Set if the next batch has more changes of the same transaction."""

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)
