"""The values of arguments and results."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Literal, TypeAlias, TypeVar

Item = TypeVar("Item")

Action: TypeAlias = Literal["snapshot", "create", "update", "delete", "undelete", "unknown"]
"""The action of a change. "snapshot" is a resource of the initial state; "unknown" is an action of a newer
service that this version does not know."""

Kind: TypeAlias = Literal["post", "comment", "unknown"]
"""The resource type of a change."""

Start: TypeAlias = Literal["now", "earliest", "initial_state"]
"""Where a watch without a token begins: at the current position, at the oldest change that is still kept, or
with all existing resources, followed by all changes."""


class Labels(Mapping[str, str]):
    """The labels of a resource in a response: a mapping that cannot be changed, equal to a dict."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        """Copies the labels."""
        self._values = dict(values)

    def __getitem__(self, key: str) -> str:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def _no_labels() -> Mapping[str, str]:
    return Labels({})


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
    author: str = ""
    """The author, in the words of the caller that created the resource; empty if it has none."""
    # A mapping has no hash. Equal resources have equal hashes without it.
    labels: Mapping[str, str] = field(default_factory=_no_labels, hash=False)
    """The labels. In results they cannot be changed; `update` changes those of the stored resource."""
    external_id: str = ""
    """The key of the resource in the system of the caller, unique among the posts or comments; never changes.
    Empty if it has none."""
    delete_time: datetime | None = None
    """When the resource was deleted, in UTC, to the microsecond; None if it is not deleted."""
    purge_time: datetime | None = None
    """Until when the deleted resource can be restored with `undelete`; None if it is not deleted or cannot be
    restored."""

    @property
    def is_deleted(self) -> bool:
        """Whether the resource is deleted: it can be restored, or it is a tombstone."""
        return self.delete_time is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Post(Resource):
    """A post, as it was when the service responded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comment(Resource):
    """A comment on a post, as it was when the service responded."""

    post_id: int
    """The post that is commented on; never changes."""
    reply_to_id: int = 0
    """The comment that this one replies to, which may have been deleted; 0 at the top level; never
    changes."""
    depth: int = 0
    """The number of comments above this one in its thread: 0 at the top level, 1 for a reply to such a
    comment."""

    @property
    def is_tombstone(self) -> bool:
        """Whether only the place of a deleted comment is left, because it has replies: it has ids and times,
        but no body, author, labels and external id."""
        return self.is_deleted and not self.body


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceDraft:
    """What drafts of posts and of comments have in common."""

    body: str
    """The text."""
    author: str = ""
    """The author: at most 256 bytes of UTF-8 without control characters; empty for none."""
    labels: Mapping[str, str] = field(default_factory=_no_labels, hash=False)
    """At most 64. A key has 1 to 63 characters (lower-case letters, digits, ".", "/" and "-", beginning with
    a letter), a value at most 256 bytes of UTF-8 without control characters."""
    external_id: str = ""
    """The key in the system of the caller, at most 256 bytes of UTF-8 without control characters; empty for
    none."""
    return_existing: bool = False
    """If a resource with this external id exists, return it unchanged instead of raising ExternalIdTaken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PostDraft(ResourceDraft):
    """A post to create with `posts.create_many`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommentDraft(ResourceDraft):
    """A comment to create with `comments.create_many`."""

    post_id: int
    """The post to comment on."""
    reply_to_id: int = 0
    """The comment of the same post to reply to; 0 for a comment at the top level."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceUpdate:
    """What updates of posts and of comments have in common: a field that is None does not change."""

    id: int
    """The resource to update."""
    body: str | None = None
    """The new text."""
    author: str | None = None
    """The new author; empty for none."""
    labels: Mapping[str, str] | None = field(default=None, hash=False)
    """Replaces all labels; excludes `set_labels` and `remove_labels`."""
    set_labels: Mapping[str, str] | None = field(default=None, hash=False)
    """Labels to add or to change; the others stay."""
    remove_labels: Iterable[str] | None = field(default=None, hash=False)
    """The keys of labels to remove; the others stay."""
    etag: str = ""
    """Fail unless this is the current etag; empty to update any version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PostUpdate(ResourceUpdate):
    """An update of a post with `posts.update_many`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommentUpdate(ResourceUpdate):
    """An update of a comment with `comments.update_many`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceFilter:
    """The conditions that filters of posts and of comments have in common."""

    author: str = ""
    """Only resources of this author; empty for any."""
    labels: Mapping[str, str] = field(default_factory=_no_labels, hash=False)
    """Only resources that have all these labels with these values; at most 8."""
    create_time_from: datetime | None = None
    """Only resources that were created at this time or later; must have a time zone."""
    create_time_before: datetime | None = None
    """Only resources that were created before this time; must have a time zone and be later than
    `create_time_from`."""
    show_deleted: bool = False
    """Also resources that are deleted and can be restored, with their content. Of a watch, only the initial
    state has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PostFilter(ResourceFilter):
    """Selects the posts that meet all conditions; without conditions, all posts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommentFilter(ResourceFilter):
    """Selects the comments that meet all conditions; without conditions, all comments."""

    reply_to_id: int | None = None
    """Only direct replies to this comment; 0: only comments at the top level; None: all."""


class Found(tuple[Item, ...]):
    """The resources that `get_many` returns: a tuple that also knows what does not exist."""

    missing_ids: tuple[int, ...] = ()
    """With `allow_missing`, the ids that do not exist, in the order of the call."""
    missing_external_ids: tuple[str, ...] = ()
    """With `allow_missing`, the external ids that do not exist, in the order of the call."""


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
class SnippetPart:
    """A part of a snippet."""

    text: str
    """The text, which is not escaped."""
    is_match: bool = False
    """Whether it matches a word or phrase of the query."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult(Generic[Item]):
    """A post or comment that matches a search."""

    resource: Item
    """The post or comment."""
    snippet: tuple[SnippetPart, ...]
    """The part of the body around the first match: about 240 characters, with "…" where the body is cut."""

    def marked(self, before: str = "**", after: str = "**") -> str:
        """Returns the snippet as text, with each match between `before` and `after`."""
        return "".join(f"{before}{it.text}{after}" if it.is_match else it.text for it in self.snippet)


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
    """The resource after the change. After a "delete" its last version, with `delete_time` and `purge_time`
    if it can be restored. None only if `kind` is "unknown"."""
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
