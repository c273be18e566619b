"""The tables. `post_table` and `comment_table` have kept their names since the application before.

Ids are never given twice: AUTOINCREMENT on SQLite, identity columns on PostgreSQL. `BigInteger` alone would
not count up on SQLite, and `Integer` alone would be 32 bits on PostgreSQL.
"""

from sqlalchemy import BigInteger, Column, ForeignKey, Identity, Index, Integer, MetaData, Table, Text, text

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

# Comments that the application before kept after their post was gone. Nothing reads or writes it
# but the upgrade that fills it.
orphaned_comment_table = Table(
    "orphaned_comments",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
    Column("post_id", BigInteger, nullable=False),
)
