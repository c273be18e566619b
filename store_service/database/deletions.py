"""Statements for unfinished deletions and restorations, and conditions that hide rows from callers.

A post or a comment whose deletion is not finished is marked. The rows of the post and of its comments, or of
the comment and of its replies, still exist, but are not visible to callers.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    LargeBinary,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    true,
    update,
)

from store_service.database.statements import Statement, after_in, one_of, parameter, rows, thread_key
from store_service.database.tables import comment_table as comment
from store_service.database.tables import post_deletion_table as mark
from store_service.database.tables import post_table as post
from store_service.database.tables import restoration_table as restoration
from store_service.database.tables import thread_deletion_table as thread
from store_service.model import DELETION_FIELDS

WITH_POST = -1
"""The value of `deleted_with` of comments that are deleted with their post."""

MAX_VERSIONS = 101
"""Maximum number of stored versions of a resource: the current one, and the maximum of STORE_REVISIONS."""

MARKED = select(mark.c.post_id)
"""The marked posts, few or none. Runs once per statement."""


def is_visible(post_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Returns the condition that a post is not marked. Only for rows that are found by id: a page would have
    to read all the rows that the condition excludes, which may be a million."""
    return post_id.not_in(MARKED)


def is_in_visible_thread(table: Table) -> ColumnElement[bool]:
    """Returns the condition that a comment is not in a marked thread. Without marked threads it costs nothing
    for each row."""
    in_marked_thread = (
        select(literal_column("1"))
        .where(
            thread.c.post_id == table.c.post_id,
            func.substr(thread_key(table), literal_column("1"), func.length(thread.c.key)) == thread.c.key,
        )
        .correlate(table)
        .exists()
    )
    return or_(~exists(select(thread.c.comment_id)), ~in_marked_thread)


def is_not_tombstone(table: Table) -> ColumnElement[bool] | None:
    """Returns the condition that a row is not a tombstone; None for a table without tombstones."""
    return table.c.delete_time.is_(None) if "delete_time" in table.c else None


def is_live(table: Table, post_id: ColumnElement[Any]) -> list[ColumnElement[bool]]:
    """Returns the conditions that a row of `posts` or `comments` is a resource that callers find by id."""
    not_tombstone = is_not_tombstone(table)
    if not_tombstone is None:
        return [is_visible(post_id)]
    return [is_visible(post_id), not_tombstone, is_in_visible_thread(table)]


def comments_after(post_id: ColumnElement[Any], id: ColumnElement[Any] | int) -> ColumnElement[bool]:
    """Returns the condition for comments of one post after an id. They have to be read `in_order`."""
    id = id if isinstance(id, ColumnElement) else literal(id, BigInteger)
    return after_in(((comment.c.post_id, post_id),), comment.c.id, id)


def first_reply(id: ColumnElement[Any], reply: FromClause, *more: ColumnElement[bool]) -> Select[Any]:
    """Returns the query of the first reply to a comment, for use as a scalar subquery.

    It is ordered as in the index. PostgreSQL would scan the table for any reply if, according to its
    statistics, most comments reply to the same one. For EXISTS it may read all replies of all comments.
    """
    groups = ((reply.c.reply_to_id, id),)
    return (
        select(reply.c.id)
        .where(
            after_in(groups, reply.c.id, literal_column("0")),
            reply.c.reply_to_id > literal_column("0"),
            *more,
        )
        .order_by(reply.c.reply_to_id, reply.c.id)
        .limit(literal_column("1"))
    )


def in_order(comments: Select[Any]) -> Select[Any]:
    """Orders comments as in comments_post_id_id_idx."""
    return comments.order_by(comment.c.post_id, comment.c.id)


_post_id, _after = parameter("post_id", BigInteger), parameter("after", BigInteger)
_limit = parameter("limit", Integer)
_requests = rows("requests", key=BigInteger, request_id=Text)


def body_bytes(table: Table, dialect: str) -> ColumnElement[int]:
    """Returns the bytes of a body."""
    if dialect == "sqlite":
        return func.length(cast(table.c.body, LargeBinary), type_=Integer)
    return func.octet_length(table.c.body, type_=Integer)


def bytes_with_versions(table: Table, dialect: str) -> ColumnElement[int]:
    """Returns an estimate of the bytes of a resource with its former versions, as if all of them had the
    size of its body. `version` counts the changes, so it limits the number of versions."""
    versions = case(
        (table.c.version > literal_column(str(MAX_VERSIONS)), literal_column(str(MAX_VERSIONS))),
        else_=table.c.version,
    )
    return body_bytes(table, dialect) * versions


def _sizes_where(condition: ColumnElement[bool]) -> Statement:
    on_sqlite, on_postgresql = [
        in_order(select(comment.c.id, comment.c.post_id, bytes_with_versions(comment, it)))
        .where(condition)
        .limit(_limit)
        for it in ("sqlite", "postgresql")
    ]
    return Statement(on_sqlite, on_postgresql=on_postgresql)


SIZES_OF_COMMENTS = _sizes_where(one_of(comment.c.post_id, "post_ids"))
"""Id, post and estimated bytes of the first `limit` comments of these posts, ordered by post. Served by
comments_post_id_id_idx."""

SIZES_OF_COMMENTS_AFTER = _sizes_where(comments_after(_post_id, _after))
"""Same as SIZES_OF_COMMENTS for one post, after the id `after`."""

MARKS = Statement(
    select(mark.c.post_id, mark.c.removed_id, mark.c.request_id, mark.c.delete_time, mark.c.purge_time)
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

UNMARK_THREADS = Statement(delete(thread).where(one_of(thread.c.comment_id, "ids")))
"""Deletes the marks of comments whose replies are removed. Served by the primary key."""

_comment_id = parameter("comment_id", BigInteger)

MARK_THREADS = Statement(
    insert(thread).from_select(
        ["comment_id", "post_id", "key", "request_id", *DELETION_FIELDS],
        select(
            comment.c.id,
            comment.c.post_id,
            thread_key(comment),
            _requests.c.request_id,
            parameter("delete_time", BigInteger),
            parameter("purge_time", BigInteger),
        )
        .select_from(comment.outerjoin(_requests, _requests.c.key == comment.c.id))
        .where(one_of(comment.c.id, "ids")),
    )
)
"""Marks comments. Served by the primary key."""

MARKED_THREADS = Statement(
    select(
        thread.c.comment_id,
        thread.c.post_id,
        thread.c.key,
        thread.c.removed_key,
        thread.c.request_id,
        thread.c.delete_time,
        thread.c.purge_time,
    )
    .where(thread.c.post_id.not_in(select(restoration.c.post_id)))
    .order_by(thread.c.comment_id != _comment_id, thread.c.comment_id)
    .limit(_limit)
)
"""Up to `limit` marked comments, and the progress of the removal of their replies. `comment_id` is first if
it is marked. A removal waits for the restorations of the post: they restore replies that it has to remove."""

THREADS_ABOVE = Statement(select(thread.c.comment_id).where(one_of(thread.c.comment_id, "ids")))
"""Those of these comments that are marked. Served by the primary key."""

SET_REMOVED_KEY = Statement(
    update(thread).values(removed_key=parameter("key", Text)).where(thread.c.comment_id == _comment_id)
)
"""Stores the position down to which the replies of a marked comment are removed."""

_deleted_with = parameter("deleted_with", BigInteger)

ADD_RESTORATION = Statement(
    insert(restoration).from_select(
        ["post_id", "deleted_with", "request_id"],
        select(_post_id, _deleted_with, parameter("request_id", Text)).where(
            ~exists(
                select(literal_column("1")).where(
                    restoration.c.post_id == _post_id, restoration.c.deleted_with == _deleted_with
                )
            )
        ),
    )
)
"""Stores that comments have to be restored, unless it is stored. Served by the primary key."""

_has_post = and_(
    exists(select(literal_column("1")).where(post.c.id == restoration.c.post_id)),
    is_visible(restoration.c.post_id),
)

RESTORATIONS = Statement(
    select(
        restoration.c.post_id, restoration.c.deleted_with, restoration.c.restored, restoration.c.request_id
    )
    .where(_has_post)
    .order_by(
        or_(restoration.c.post_id != _post_id, restoration.c.deleted_with != _deleted_with),
        restoration.c.post_id,
        restoration.c.deleted_with,
    )
    .limit(1)
)
"""A restoration that is not finished: that of `post_id` and `deleted_with` if it is. If the post is deleted
again, its restorations continue after it is restored again."""

_this_restoration = and_(restoration.c.post_id == _post_id, restoration.c.deleted_with == _deleted_with)

ADVANCE_RESTORATION = Statement(
    update(restoration)
    .values(restored=restoration.c.restored + parameter("count", BigInteger))
    .where(_this_restoration)
)
"""Adds to the number of comments that a restoration has restored. Served by the primary key."""

END_RESTORATION = Statement(delete(restoration).where(_this_restoration))
"""Deletes a restoration. Served by the primary key."""

END_RESTORATIONS_OF_POSTS = Statement(delete(restoration).where(one_of(restoration.c.post_id, "ids")))
"""Deletes the restorations of comments of these posts. Served by the primary key."""

RESTORED_POSTS = Statement(select(restoration.c.post_id).where(one_of(restoration.c.post_id, "ids")))
"""Those of these posts that have restorations which are not finished. Served by the primary key."""

END_RESTORATIONS_OF_THREADS = Statement(delete(restoration).where(one_of(restoration.c.deleted_with, "ids")))
"""Deletes the restorations of replies to these comments. Reads all restorations, which are few or none."""

_has_external_id = and_(
    one_of(comment.c.external_id, "external_ids", type_=Text),
    # The condition of the index, without which neither engine uses it.
    comment.c.external_id != literal_column("''"),
)


def _marked_with_id(
    mark: Table, deleted_with: ColumnElement[int], is_below: ColumnElement[bool]
) -> Statement:
    return Statement(
        select(comment.c.id, deleted_with, mark.c.request_id, *[mark.c[name] for name in DELETION_FIELDS])
        .select_from(comment.join(mark, and_(mark.c.post_id == comment.c.post_id, is_below)))
        .where(_has_external_id, comment.c.delete_time.is_(None))
    )


MARKED_COMMENTS = _marked_with_id(mark, literal_column(str(WITH_POST)), true())
"""The comments of marked posts that have these external ids, with what they are deleted, and the columns of
the mark. Served by comments_external_id_idx."""

_is_below = func.substr(thread_key(comment), literal_column("1"), func.length(thread.c.key)) == thread.c.key

MARKED_REPLIES = _marked_with_id(thread, thread.c.comment_id, _is_below)
"""Same as MARKED_COMMENTS for marked threads."""

IN_MARKED_THREADS = Statement(
    select(
        comment.c.id, thread.c.comment_id, thread.c.request_id, *[thread.c[name] for name in DELETION_FIELDS]
    )
    .select_from(comment.join(thread, and_(thread.c.post_id == comment.c.post_id, _is_below)))
    .where(one_of(comment.c.id, "ids"))
    .order_by(func.length(thread.c.key))
)
"""Those of these comments that are in marked threads, with the columns of each mark; of nested threads the
innermost one last. Served by the primary key."""
