"""Changes, positions in the change feed, and what a watch asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from store_service.model.filters import EMPTY_FILTER, ResourceFilter
from store_service.model.resources import Comment, Post, ResourceKind


class Action(IntEnum):
    """The action of a change. The contract and the tables use the same numbers."""

    SNAPSHOT = 1
    CREATE = 2
    UPDATE = 3
    DELETE = 4
    UNDELETE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A create, update, delete or undelete of one resource, or one resource of the initial state."""

    action: Action
    kind: ResourceKind
    post_id: int
    """Id of the post, or of the post of the comment."""
    resource: Post | Comment
    """The resource after the change; of a delete, its last state."""
    before: Mapping[str, str] | None = None
    """The author and the labels before an update that changed one of them."""
    commit_time: int | None
    """Time of the change. In an initial state the update time of the resource, or None if it is not known."""
    request_id: str = ""
    """Request id of the write; empty if it had none."""
    is_erased: bool = False
    """Whether the content of the resource was removed from the change."""


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


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Seen:
    """What a caller has seen of a store on PostgreSQL: the effects of all transactions up to a number. The
    greater of two values includes the other one. Callers see it as the consistency token."""

    timeline: int
    """The timeline of the primary. Each failover begins the next one."""
    xid: int
    """The number of the last transaction that has changes; `Position.xid`."""


NOTHING_SEEN = Seen(timeline=0, xid=0)
"""What every server has."""


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

    post_filter: ResourceFilter = EMPTY_FILTER
    comment_filter: ResourceFilter = EMPTY_FILTER

    def filter_of(self, kind: ResourceKind) -> ResourceFilter:
        """Returns the filter of one type of resource."""
        return self.post_filter if kind is ResourceKind.POST else self.comment_filter

    def matches(self, change: Change) -> bool:
        """Whether the watch receives a change: the resource matches before or after it."""
        if change.kind not in self.kinds or (self.post_ids and change.post_id not in self.post_ids):
            return False
        filter = self.filter_of(change.kind)
        if filter is EMPTY_FILTER or filter.matches(change.resource):
            return True
        if change.is_erased and change.action in (Action.UPDATE, Action.DELETE):
            # The consumer may have the content, which nothing shows any more.
            return replace(filter, author="", labels=()).matches(change.resource)
        return change.before is not None and filter.matches(change.resource, before=change.before)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchStart:
    """Where a watch starts: now, unless one of these is set."""

    resume_token: str | None = None
    initial_state: bool = False
    earliest: bool = False
