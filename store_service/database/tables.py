"""The tables. `post_table` and `comment_table` have kept their names since the application before.

Ids are never given twice: AUTOINCREMENT on SQLite, identity columns on PostgreSQL. `BigInteger` alone would
not count up on SQLite, and `Integer` alone would be 32 bits on PostgreSQL.
"""

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

post_table = Table(
    "posts",
    metadata,
    Column("id", Id, Identity(), primary_key=True),
    Column("body", Text, nullable=False),
    # Microseconds since 1970 in UTC; NULL on rows from before times were kept.
    Column("create_time", BigInteger),
    Column("update_time", BigInteger),
    # Counts the changes of the row; callers see it as the etag.
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    sqlite_autoincrement=True,
)

comment_table = Table(
    "comments",
    metadata,
    Column("id", Id, Identity(), primary_key=True),
    Column("body", Text, nullable=False),
    Column("post_id", ForeignKey("posts.id", name="comments_post_id_fkey"), nullable=False),
    Column("create_time", BigInteger),
    Column("update_time", BigInteger),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    # The page of one post's comments reads just its rows; counting reads the index alone.
    Index("comments_post_id_id_idx", "post_id", "id"),
    sqlite_autoincrement=True,
)

# What the upgrade from the application before could not leave as it was. Nothing reads or writes these three
# tables but the upgrade that fills them.

# Comments that stayed when their post was gone.
orphaned_comment_table = Table(
    "orphaned_comments",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
    Column("post_id", BigInteger),
)

# The bytes of bodies that were no UTF-8, by the id that the post or comment has now.
undecodable_body_table = Table(
    "undecodable_bodies",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
)

# Posts and comments whose ids no call takes, or left no room for the next one.
renumbered_resource_table = Table(
    "renumbered_resources",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("old_id", BigInteger, primary_key=True, autoincrement=False),
    Column("new_id", BigInteger, nullable=False),
)

# Posts that were deleted with more comments than one transaction removes. Neither they nor their comments
# exist for any caller. The service removes their rows in steps, and then the row here (docs/decisions/0031).
post_deletion_table = Table(
    "post_deletions",
    metadata,
    Column("post_id", Id, primary_key=True, autoincrement=False),
    # Comments of the post with ids up to this one have been removed, and perhaps more.
    Column("removed_id", BigInteger, nullable=False, server_default="0"),
    # Of the request that deleted the post; every change that removes a comment carries it.
    Column("request_id", Text),
)

# What was changed, in the transaction that changed it, for the change feed. A row never changes; rows go
# when they are too old.
change_table = Table(
    "changes",
    metadata,
    Column("seq", Id, Identity(), primary_key=True),
    # The transaction, so that its changes stay together. On PostgreSQL it also tells which transactions have
    # ended: a sequence alone does not count up in the order of commits (docs/decisions/0011).
    Column("xid", BigInteger, nullable=False),
    Column("action", SmallInteger, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("resource_id", BigInteger, nullable=False),
    Column("post_id", BigInteger, nullable=False),
    # The resource without its ids, as a JSON object (docs/decisions/0038).
    Column("payload", Text, nullable=False),
    # Bytes of the texts in it, so that a reader knows what it is about to read.
    Column("size", Integer, nullable=False),
    Column("commit_time", BigInteger, nullable=False),
    Column("request_id", Text),
    Index("changes_xid_seq_idx", "xid", "seq").ddl_if(dialect="postgresql"),
    sqlite_autoincrement=True,
)

# One row: which store this is, and up to where its changes are told no more; of these the last is kept.
feed_table = Table(
    "feed",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("store_id", Text, nullable=False),
    Column("trimmed_xid", BigInteger, nullable=False),
    Column("trimmed_seq", BigInteger, nullable=False),
    # State of the wall clock, by which old rows are deleted; JSON, NULL before the first check.
    Column("clock", Text),
)

# Requests with a request_id that were done, and what was answered.
request_table = Table(
    "requests",
    metadata,
    Column("id", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    # About how long the answer is, so that nobody reads answers to know how large they are.
    Column("size", Integer, nullable=False, server_default="0"),
    Column("answer", Text, nullable=False),
    Index("requests_create_time_idx", "create_time"),
)
