"""Filters of posts and comments."""

from collections.abc import Mapping
from dataclasses import dataclass

from store_service.model.resources import Comment, Post, has_label


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceFilter:
    """The conditions that a post or comment must meet, combined with AND.

    `database/list_sql.py` has the same conditions in SQL.
    """

    author: str = ""
    """Empty: of any author."""
    labels: tuple[tuple[str, str], ...] = ()
    """Labels with their values, sorted by key. The resource must have all of them."""
    create_time_from: int | None = None
    """Inclusive, in microseconds. A resource without `create_time` does not match."""
    create_time_before: int | None = None
    """Exclusive, in microseconds. A resource without `create_time` does not match."""
    reply_to_id: int | None = None
    """The comment that is replied to; 0: only comments at the top level; None: all. Only for comments."""
    show_deleted: bool = False
    """Whether lists and counts also have deleted resources that can be restored. Not a condition."""

    def matches(self, resource: Post | Comment, *, before: Mapping[str, str] | None = None) -> bool:
        """Whether a resource meets the conditions.

        Args:
            resource: The resource.
            before: The author and the labels to check in place of those of the resource.
        """
        author, labels = (
            (resource.author, resource.labels) if before is None else (before["author"], before["labels"])
        )
        if self.author and author != self.author:
            return False
        if self.labels and not all(has_label(labels, key, value) for key, value in self.labels):
            return False
        if self.create_time_from is not None and not (
            resource.create_time is not None and resource.create_time >= self.create_time_from
        ):
            return False
        if self.create_time_before is not None and not (
            resource.create_time is not None and resource.create_time < self.create_time_before
        ):
            return False
        return self.reply_to_id is None or (
            isinstance(resource, Comment) and resource.reply_to_id == self.reply_to_id
        )


EMPTY_FILTER = ResourceFilter()
"""The filter that all resources match."""
