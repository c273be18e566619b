"""The tables. `post_table` and `comment_table` have the same names as in the storeapi application.

Ids are never given twice: AUTOINCREMENT on SQLite, identity columns on PostgreSQL. On SQLite a `BigInteger`
would not be generated, and on PostgreSQL an `Integer` would have 32 bits.
"""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)

metadata = MetaData()

Id = BigInteger().with_variant(Integer, "sqlite")


def _where(condition: str) -> dict[str, Any]:
    """Returns the arguments of an index of the rows that meet a condition."""
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}


def _generated_id() -> Column[Any]:
    return Column("id", Id, Identity(), primary_key=True)


def _copied_id() -> Column[Any]:
    return Column("id", Id, primary_key=True, autoincrement=False)


def _resource_columns(id: Column[Any], post_id: Column[Any] | None = None) -> Iterator[Column[Any]]:
    """Yields the columns of posts; with `post_id` those of comments."""
    yield id
    yield Column("body", Text, nullable=False)
    if post_id is not None:
        yield post_id
    # Microseconds since 1970 in UTC; NULL in rows of a legacy database.
    yield Column("create_time", BigInteger)
    yield Column("update_time", BigInteger)
    # Counts the changes of the row. Callers see it as the etag.
    yield Column("version", BigInteger, nullable=False, server_default=text("1"))
    yield Column("author", Text, nullable=False, server_default=text("''"))
    # A JSON object with sorted keys; an empty text without labels.
    yield Column("labels", Text, nullable=False, server_default=text("''"))
    yield Column("external_id", Text, nullable=False, server_default=text("''"))
    if post_id is not None:
        # 0: a top-level comment. Not a foreign key: databases of earlier versions have replies to comments
        # that were deleted.
        yield Column("reply_to_id", BigInteger, nullable=False, server_default=text("0"))
        # The ids of the comments above this one, 16 hexadecimal digits each.
        yield Column("path", Text, nullable=False, server_default=text("''"))


def _content_indexes(table: str) -> Iterator[Index]:
    yield Index(f"{table}_author_id_idx", "author", "id", **_where("author <> ''"))
    yield Index(f"{table}_create_time_idx", text("coalesce(create_time, 0)"), "id")


def _comment_indexes(table: str) -> Iterator[Index]:
    # A page of comments of one post reads only its rows. Counting reads only the index.
    yield Index(f"{table}_post_id_id_idx", "post_id", "id")
    yield Index(f"{table}_reply_to_id_id_idx", "reply_to_id", "id", **_where("reply_to_id > 0"))
    yield Index(f"{table}_post_id_create_time_idx", "post_id", text("coalesce(create_time, 0)"), "id")
    yield from _thread_indexes(f"{table}_thread_idx", "post_id")


def _thread_indexes(name: str, *columns: str) -> Iterator[Index]:
    """Yields the index of the thread order of each engine; see `thread_key`."""
    for dialect, key in THREAD_KEYS.items():
        yield Index(name, *columns, text(key)).ddl_if(dialect=dialect)


def _external_id_index(table: str) -> Index:
    return Index(f"{table}_external_id_idx", "external_id", unique=True, **_where("external_id <> ''"))


def _deletion_columns() -> Iterator[Column[Any]]:
    # The time of the deletion.
    yield Column("delete_time", BigInteger)
    # The time until which the resource can be restored. NULL: it cannot be restored.
    yield Column("purge_time", BigInteger)


def _deletion_indexes(table: str) -> Iterator[Index]:
    yield Index(f"{table}_purge_time_idx", "purge_time", "id", **_where("purge_time IS NOT NULL"))
    yield Index(f"{table}_external_id_id_idx", "external_id", "id", **_where("external_id <> ''"))


THREAD_KEYS = {
    "sqlite": "(path || printf('%016x', id))",
    "postgresql": "((path || lpad(to_hex(id), 16, '0')) COLLATE \"C\")",
}
"""The position of a comment in thread order, by dialect: `Comment.thread_key`, compared byte by byte."""

post_table = Table(
    "posts",
    metadata,
    *_resource_columns(_generated_id()),
    *_content_indexes("posts"),
    _external_id_index("posts"),
    sqlite_autoincrement=True,
)

comment_table = Table(
    "comments",
    metadata,
    *_resource_columns(
        _generated_id(),
        Column("post_id", ForeignKey("posts.id", name="comments_post_id_fkey"), nullable=False),
    ),
    # Set in tombstones: deleted comments that have replies, and whose content is removed.
    *_deletion_columns(),
    Index("comments_tombstones_idx", "post_id", "id", **_where("delete_time IS NOT NULL")),
    *_comment_indexes("comments"),
    *_content_indexes("comments"),
    _external_id_index("comments"),
    sqlite_autoincrement=True,
)

# Deleted posts that can be restored (docs/decisions/0047).
deleted_post_table = Table(
    "deleted_posts",
    metadata,
    *_resource_columns(_copied_id()),
    *_deletion_columns(),
    *_content_indexes("deleted_posts"),
    *_deletion_indexes("deleted_posts"),
)

# Deleted comments that can be restored. Also, without purge_time and content, deleted comments that have
# replies in this table: if such a reply is restored, the comments above it become tombstones.
deleted_comment_table = Table(
    "deleted_comments",
    metadata,
    *_resource_columns(_copied_id(), Column("post_id", BigInteger, nullable=False)),
    *_deletion_columns(),
    # 0: deleted by itself. -1: deleted with its post. Otherwise the comment above it, with which it was
    # deleted.
    Column("deleted_with", BigInteger, nullable=False, server_default=text("0")),
    *_comment_indexes("deleted_comments"),
    *_thread_indexes("deleted_comments_deleted_with_idx", "post_id", "deleted_with"),
    *_content_indexes("deleted_comments"),
    *_deletion_indexes("deleted_comments"),
)

# The former versions of posts and comments, also of deleted ones.
revision_table = Table(
    "revisions",
    metadata,
    Column("kind", SmallInteger, primary_key=True),
    Column("resource_id", BigInteger, primary_key=True, autoincrement=False),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
    Column("update_time", BigInteger),
    Column("author", Text, nullable=False, server_default=text("''")),
    Column("labels", Text, nullable=False, server_default=text("''")),
    Index("revisions_author_idx", "author", "kind", "resource_id", "version", **_where("author <> ''")),
)

# The labels of all posts and comments, for filters. Triggers of `posts` and `comments` maintain it.
label_table = Table(
    "labels",
    metadata,
    Column("kind", SmallInteger, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("resource_id", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

# Rows and values that the upgrade of a legacy database could not keep unchanged. Only the upgrade uses these
# three tables.

# Comments whose post does not exist.
orphaned_comment_table = Table(
    "orphaned_comments",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
    Column("post_id", BigInteger),
)

# The bytes of bodies that were not UTF-8, by the id that the post or comment has after the upgrade.
undecodable_body_table = Table(
    "undecodable_bodies",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
)

# Posts and comments whose ids were not positive, or too large to give further ids.
renumbered_resource_table = Table(
    "renumbered_resources",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("old_id", BigInteger, primary_key=True, autoincrement=False),
    Column("new_id", BigInteger, nullable=False),
)

# Deleted posts with more comments than one transaction removes. Callers see neither the posts nor their
# comments. The service removes the rows in steps, and then the row in this table (docs/decisions/0031).
post_deletion_table = Table(
    "post_deletions",
    metadata,
    Column("post_id", Id, primary_key=True, autoincrement=False),
    # At least the comments with ids up to this one have been removed.
    Column("removed_id", BigInteger, nullable=False, server_default="0"),
    # The request id of the deletion. All changes that remove comments have it.
    Column("request_id", Text),
    # Those of the comments. NULL in both: the comments cannot be restored.
    *_deletion_columns(),
)

# Deleted comments with more replies than one transaction removes. As for posts, callers do not see the
# replies in the meantime.
thread_deletion_table = Table(
    "thread_deletions",
    metadata,
    Column("comment_id", Id, primary_key=True, autoincrement=False),
    Column("post_id", BigInteger, nullable=False),
    # The position of the comment in thread order, with which the positions of its replies begin.
    Column("key", Text, nullable=False),
    # The position of the last reply that was removed, in descending order; empty at first.
    Column("removed_key", Text, nullable=False, server_default=text("''")),
    Column("request_id", Text),
    *_deletion_columns(),
    Index("thread_deletions_post_id_idx", "post_id"),
)

# Restored posts and comments with more comments than one transaction restores. The service restores the rows
# in steps.
restoration_table = Table(
    "restorations",
    metadata,
    Column("post_id", Id, primary_key=True, autoincrement=False),
    # The value of deleted_with of the comments to restore.
    Column("deleted_with", BigInteger, primary_key=True, autoincrement=False),
    # The number of comments that have been restored.
    Column("restored", BigInteger, nullable=False, server_default=text("0")),
    Column("request_id", Text),
)

# The change feed. Rows are added in the transaction of the change, and are deleted when they are too old.
# Only the erasure of an author updates them: it removes content.
change_table = Table(
    "changes",
    metadata,
    Column("seq", Id, Identity(), primary_key=True),
    # The number of the transaction, which keeps its changes together. On PostgreSQL it also shows which
    # transactions have ended: a sequence alone is not in the order of commits (docs/decisions/0011).
    Column("xid", BigInteger, nullable=False),
    Column("action", SmallInteger, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("resource_id", BigInteger, nullable=False),
    Column("post_id", BigInteger, nullable=False),
    # The resource without its ids, as a JSON object (docs/decisions/0038).
    Column("payload", Text, nullable=False),
    # Bytes of the texts in the payload, so that a reader knows the size of a batch before it reads it.
    Column("size", Integer, nullable=False),
    Column("commit_time", BigInteger, nullable=False),
    Column("request_id", Text),
    # The author and the labels before an update that changed one of them, as a JSON object.
    Column("before", Text),
    Index("changes_xid_seq_idx", "xid", "seq").ddl_if(dialect="postgresql"),
    sqlite_autoincrement=True,
)

# One row: the id of the store, and the position up to which the feed is trimmed. The change at that position
# is kept.
feed_table = Table(
    "feed",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("store_id", Text, nullable=False),
    Column("trimmed_xid", BigInteger, nullable=False),
    Column("trimmed_seq", BigInteger, nullable=False),
    # State of the retention clock as JSON; NULL before the first check.
    Column("clock", Text),
    # System identifier of the PostgreSQL server whose transactions wrote the changes. NULL on SQLite, and
    # before the first start that can read it.
    Column("system_id", Text),
    # The stores from which this one was copied, the last one first, as a JSON array (docs/decisions/0056).
    # NULL: it is no copy.
    Column("former_stores", Text),
)

# Idempotency keys with their stored responses.
request_table = Table(
    "requests",
    metadata,
    Column("id", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    # Approximate size of the response, so that it is known without reading the response.
    Column("size", Integer, nullable=False, server_default="0"),
    Column("answer", Text, nullable=False),
    Index("requests_create_time_idx", "create_time"),
)
