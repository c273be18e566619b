"""Statements for posts whose deletion is not finished, and conditions that hide these posts in other
statements.

Such a post is marked: its row and the rows of its comments still exist, but are not visible to callers.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    LargeBinary,
    Select,
    Text,
    cast,
    delete,
    func,
    literal,
    literal_column,
    select,
    update,
)

from store_service.database.statements import Statement, after_in, one_of, parameter
from store_service.database.tables import comment_table as comment
from store_service.database.tables import post_deletion_table as mark

MARKED = select(mark.c.post_id)
"""The marked posts, few or none. Runs once per statement."""


def is_visible(post_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Returns the condition that a post is not marked. Only for rows that are found by id: a page would have
    to read all the rows that the condition excludes, which may be a million."""
    return post_id.not_in(MARKED)


def comments_after(post_id: ColumnElement[Any], id: ColumnElement[Any] | int) -> ColumnElement[bool]:
    """Returns the condition for comments of one post after an id. They have to be read `in_order`."""
    id = id if isinstance(id, ColumnElement) else literal(id, BigInteger)
    return after_in(((comment.c.post_id, post_id),), comment.c.id, id)


def in_order(comments: Select[Any]) -> Select[Any]:
    """Orders comments as in comments_post_id_id_idx."""
    return comments.order_by(comment.c.post_id, comment.c.id)


_post_id, _after = parameter("post_id", BigInteger), parameter("after", BigInteger)
_limit = parameter("limit", Integer)

_sizes = select(comment.c.id, comment.c.post_id, func.length(cast(comment.c.body, LargeBinary))).limit(_limit)
_sizes_on_postgresql = select(comment.c.id, comment.c.post_id, func.octet_length(comment.c.body)).limit(
    _limit
)


def _sizes_where(condition: ColumnElement[bool]) -> Statement:
    return Statement(
        in_order(_sizes).where(condition), on_postgresql=in_order(_sizes_on_postgresql).where(condition)
    )


SIZES_OF_COMMENTS = _sizes_where(one_of(comment.c.post_id, "post_ids"))
"""Id, post and bytes of the first `limit` comments of these posts, ordered by post. Served by
comments_post_id_id_idx."""

SIZES_OF_COMMENTS_AFTER = _sizes_where(comments_after(_post_id, _after))
"""Same as SIZES_OF_COMMENTS for one post, after the id `after`."""

MARKS = Statement(
    select(mark.c.post_id, mark.c.removed_id, mark.c.request_id)
    .order_by(mark.c.post_id != _post_id, mark.c.post_id)
    .limit(_limit)
)
"""Up to `limit` marked posts, and the progress of their removal. `post_id` is first if it is marked."""

SET_REMOVED = Statement(
    update(mark).values(removed_id=parameter("removed_id", BigInteger)).where(mark.c.post_id == _post_id)
)
"""Stores the id up to which the comments of a marked post are removed. Served by the primary key."""

UNMARK_POSTS = Statement(delete(mark).where(one_of(mark.c.post_id, "ids")))
"""Deletes the marks of posts that are removed. Served by the primary key."""

HIDDEN_COMMENTS = Statement(
    select(comment.c.id, comment.c.post_id, mark.c.request_id)
    .join(mark, mark.c.post_id == comment.c.post_id)
    .where(
        one_of(comment.c.external_id, "external_ids", type_=Text),
        # The condition of the index, without which neither engine uses it.
        comment.c.external_id != literal_column("''"),
    )
)
"""Id, post and request id of the comments of marked posts that have these external ids. Served by
comments_external_id_idx."""
