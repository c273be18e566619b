"""Statements that only comments have, with the index that serves each. See `resource_sql` for the others."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Table,
    Text,
    case,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    update,
)

from store_service.database.change_writes import delete_with_changes
from store_service.database.deletions import (
    WITH_POST,
    bytes_with_versions,
    comments_after,
    first_reply,
    in_order,
)
from store_service.database.resource_sql import ResourceSql
from store_service.database.statements import (
    AFTER_DIGITS,
    Statement,
    after_in,
    before_in,
    one_of,
    parameter,
    thread_key,
)
from store_service.database.tables import comment_table as comment
from store_service.database.tables import deleted_comment_table as deleted_comment
from store_service.database.tables import deleted_post_table as deleted_post
from store_service.database.tables import post_table as post
from store_service.database.tables import restoration_table as restoration
from store_service.model import CONTENT_TEXTS, DELETION_FIELDS, Comment, ResourceKind

COMMENTS = ResourceSql(Comment, comment, deleted_comment, ResourceKind.COMMENT, post_id=comment.c.post_id)

_post_id, _after = parameter("post_id", BigInteger), parameter("after", BigInteger)
_limit = parameter("limit", Integer)

COMMENTED_POSTS = Statement(
    select(post.c.id).where(
        one_of(post.c.id, "post_ids"),
        in_order(select(comment.c.id).where(comments_after(post.c.id, 0)))
        .limit(1)
        .scalar_subquery()
        .is_not(None),
    )
)
"""Those of these posts that have comments. Served by comments_post_id_id_idx alone, one row for each post."""

_reply = comment.alias("reply")
_deleted_reply = deleted_comment.alias("deleted_reply")


def _has_reply(table: Table, reply: FromClause, *more: ColumnElement[bool]) -> ColumnElement[bool]:
    """Returns the condition that a comment has a reply in another table."""
    return first_reply(table.c.id, reply, *more).correlate(table).scalar_subquery().is_not(None)


# Not `IS NOT NULL`, for which PostgreSQL may read all tombstones instead of those with these ids.
_is_tombstone = func.coalesce(comment.c.delete_time, literal_column("0")) != literal_column("0")

WITH_REPLIES = Statement(
    select(comment.c.id).where(
        one_of(comment.c.id, "ids"), _has_reply(comment, _reply, ~one_of(_reply.c.id, "except_ids"))
    )
)
"""Those of these comments that have a reply other than `except_ids`. Served by the primary key and
comments_reply_to_id_id_idx."""

CHILDLESS_TOMBSTONES = Statement(
    select(comment.c.id, comment.c.reply_to_id).where(
        one_of(comment.c.id, "ids"), _is_tombstone, ~_has_reply(comment, _reply)
    )
)
"""Those of these comments that are tombstones without replies, and the comments that they reply to.

Served like WITH_REPLIES."""

_is_kept = (
    select(literal_column("1"))
    .where(deleted_comment.c.id == comment.c.id)
    .correlate(comment)
    .scalar_subquery()
    .is_not(None)
)
# Not only direct replies: the statement may copy a comment and those above it.
_has_deleted_below = (
    select(literal_column("1"))
    .where(
        _deleted_reply.c.post_id == comment.c.post_id,
        thread_key(_deleted_reply) > thread_key(comment),
        thread_key(_deleted_reply) < thread_key(comment).concat(literal_column(f"'{AFTER_DIGITS}'")),
    )
    .limit(literal_column("1"))
    .correlate(comment)
    .scalar_subquery()
    .is_not(None)
)
_LINK = ("id", "post_id", "create_time", "update_time", "version", "reply_to_id", "path", "delete_time")
"""The columns that keep a thread connected."""

KEEP_LINKS = Statement(
    insert(deleted_comment).from_select(
        [*_LINK, "body"],
        select(
            *[comment.c[name] for name in _LINK if name != "delete_time"],
            func.coalesce(comment.c.delete_time, parameter("delete_time", BigInteger)),
            literal_column("''"),
        ).where(
            one_of(comment.c.id, "ids"),
            ~_is_kept,
            or_(parameter("keep_all", Integer) == literal_column("1"), _has_deleted_below),
        ),
    )
)
"""Copies comments to the deleted ones, without content, if they are not there: all if `keep_all` is 1,
otherwise those with deleted comments below them. `delete_time` is that of comments that are not
tombstones. Served by the primary keys and by deleted_comments_thread_idx."""

_by_ids = one_of(comment.c.id, "ids")
_make_tombstones = (
    update(comment)
    .values(
        **dict.fromkeys(CONTENT_TEXTS, literal_column("''")),
        **{name: parameter(name, BigInteger) for name in DELETION_FIELDS},
    )
    .where(_by_ids)
)

MAKE_TOMBSTONES = delete_with_changes(ResourceKind.COMMENT, _by_ids, _make_tombstones)
"""Deletes comments that have replies: they become tombstones. Served by the primary key."""

REMOVE_TOMBSTONES = Statement(delete(comment).where(_by_ids))
"""Removes tombstones. Served by the primary key."""


def _rows_of_thread(table: Table) -> Statement:
    key = thread_key(table)
    on_sqlite, on_postgresql = [
        select(table.c.id, table.c.path, bytes_with_versions(table, it))
        .where(before_in(((table.c.post_id, _post_id),), key, parameter("key", Text)))
        .order_by(table.c.post_id.desc(), key.desc())
        .limit(_limit)
        for it in ("sqlite", "postgresql")
    ]
    return Statement(on_sqlite, on_postgresql=on_postgresql)


ROWS_OF_THREAD = _rows_of_thread(comment)
"""Id, path and estimated bytes of comments of one post before the position `key` in thread order, the last
ones first. Served by comments_thread_idx."""

ROWS_OF_DELETED_THREAD = _rows_of_thread(deleted_comment)
"""Same as ROWS_OF_THREAD for deleted comments. Served by deleted_comments_thread_idx."""

EXISTING_IDS = Statement(select(comment.c.id).where(_by_ids))
"""Those of these ids that are ids of comments or tombstones. Served by the primary key."""

_by_deleted_ids = one_of(deleted_comment.c.id, "ids")

ADD_TOMBSTONES = Statement(
    insert(comment).from_select(
        [*_LINK, "purge_time", "body"],
        select(
            *[deleted_comment.c[name] for name in _LINK], deleted_comment.c.purge_time, literal_column("''")
        ).where(_by_deleted_ids),
    )
)
"""Adds the tombstones of deleted comments. Served by the primary key."""

REMOVE_LINKS = Statement(
    delete(deleted_comment).where(_by_deleted_ids, deleted_comment.c.purge_time.is_(None))
)
"""Removes those of these deleted comments that cannot be restored. Served by the primary key."""


def _deleted_with(dialect: str) -> Select[Any]:
    key = thread_key(deleted_comment)
    groups = (
        (deleted_comment.c.post_id, _post_id),
        (deleted_comment.c.deleted_with, parameter("deleted_with", BigInteger)),
    )
    return (
        select(deleted_comment.c.id, deleted_comment.c.path, bytes_with_versions(deleted_comment, dialect))
        .where(after_in(groups, key, parameter("key", Text)), deleted_comment.c.purge_time.is_not(None))
        .order_by(deleted_comment.c.post_id, deleted_comment.c.deleted_with, key)
        .limit(_limit)
    )


DELETED_WITH = Statement(_deleted_with("sqlite"), on_postgresql=_deleted_with("postgresql"))
"""Id, path and estimated bytes of comments of one post that were deleted with the same resource, in thread
order after the position `key`. Served by deleted_comments_deleted_with_idx."""

LINKS_OF = Statement(
    select(deleted_comment.c.id, deleted_comment.c.reply_to_id, deleted_comment.c.path).where(_by_deleted_ids)
)
"""The position in the thread of these deleted comments. Served by the primary key."""

WITH_DELETED_REPLIES = Statement(
    select(deleted_comment.c.id).where(
        _by_deleted_ids, _has_reply(deleted_comment, _deleted_reply, ~one_of(_deleted_reply.c.id, "ids"))
    )
)
"""Those of these deleted comments that have another deleted reply. Served by the primary key and
deleted_comments_reply_to_id_id_idx."""

CHILDLESS_LINKS = Statement(
    select(deleted_comment.c.id, deleted_comment.c.reply_to_id).where(
        _by_deleted_ids, deleted_comment.c.purge_time.is_(None), ~_has_reply(deleted_comment, _deleted_reply)
    )
)
"""Those of these deleted comments that cannot be restored and have no deleted replies, and the comments that
they reply to. Served like WITH_DELETED_REPLIES."""

KEEP_ONLY_LINKS = Statement(
    update(deleted_comment)
    .values(**dict.fromkeys(CONTENT_TEXTS, literal_column("''")), purge_time=null())
    .where(_by_deleted_ids)
)
"""Removes the content of deleted comments, which cannot be restored any more. Served by the primary key."""

_root = deleted_comment.alias("root")
_later = func.coalesce(
    case(
        (
            deleted_comment.c.deleted_with == literal_column(str(WITH_POST)),
            select(deleted_post.c.purge_time)
            .where(deleted_post.c.id == deleted_comment.c.post_id)
            .correlate(deleted_comment)
            .scalar_subquery(),
        ),
        else_=select(_root.c.purge_time)
        .where(_root.c.id == deleted_comment.c.deleted_with)
        .correlate(deleted_comment)
        .scalar_subquery(),
    ),
    case(
        (
            exists(
                select(literal_column("1"))
                .where(
                    restoration.c.post_id == deleted_comment.c.post_id,
                    restoration.c.deleted_with == deleted_comment.c.deleted_with,
                )
                .correlate(deleted_comment)
            ),
            parameter("later", BigInteger),
        )
    ),
)

KEEP_LONGER = Statement(
    update(deleted_comment)
    .values(purge_time=_later)
    .where(
        _by_deleted_ids,
        deleted_comment.c.deleted_with != literal_column("0"),
        _later >= parameter("before", BigInteger),
    )
    .returning(deleted_comment.c.id)
)
"""Keeps those of these comments longer whose post or comment was deleted a second time before all of them
were restored: until its purge_time, if that is not before the time `before`. Those that are being restored
are kept until `later`. Returns their ids. Served by primary keys."""

CLOSE_TOMBSTONES = Statement(update(comment).values(purge_time=null()).where(_by_ids, _is_tombstone))
"""Removes the purge_time of tombstones whose content is purged. Served by the primary key."""
