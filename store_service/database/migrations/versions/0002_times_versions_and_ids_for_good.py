"""Times and versions; bodies that are never NULL; ids that are never given twice; no orphans.

Every row is kept: ids stay, NULL bodies become empty strings, and comments whose post is gone move to
`orphaned_comments`.
"""

import sqlalchemy as sa
import structlog
from alembic import op

revision = "0002"
down_revision = "0001"

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Copies both tables into new ones, for SQLite cannot change a column's constraints in place."""
    op.create_table(
        "orphaned_comments",
        sa.Column("id", Id, primary_key=True, autoincrement=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("post_id", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "new_posts",
        sa.Column("id", Id, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger),
        sa.Column("update_time", sa.BigInteger),
        sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "new_comments",
        sa.Column("id", Id, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("post_id", Id, sa.ForeignKey("posts.id", name="comments_post_id_fkey"), nullable=False),
        sa.Column("create_time", sa.BigInteger),
        sa.Column("update_time", sa.BigInteger),
        sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        sqlite_autoincrement=True,
    )

    op.execute("INSERT INTO new_posts (id, body) SELECT id, coalesce(CAST(body AS TEXT), '') FROM posts")
    op.execute(
        "INSERT INTO orphaned_comments (id, body, post_id)"
        " SELECT id, coalesce(CAST(body AS TEXT), ''), post_id FROM comments"
        " WHERE post_id NOT IN (SELECT id FROM posts)"
    )
    op.execute(
        "INSERT INTO new_comments (id, body, post_id)"
        " SELECT id, coalesce(CAST(body AS TEXT), ''), post_id FROM comments"
        " WHERE post_id IN (SELECT id FROM posts)"
    )

    # Ids that only orphans still tell of were given once too.
    op.execute("DELETE FROM sqlite_sequence WHERE name IN ('new_posts', 'new_comments')")
    op.execute(
        "INSERT INTO sqlite_sequence (name, seq) SELECT 'new_posts', max(id) FROM"
        " (SELECT id FROM posts UNION ALL SELECT post_id FROM comments UNION ALL SELECT 0)"
    )
    op.execute(
        "INSERT INTO sqlite_sequence (name, seq) SELECT 'new_comments', max(id) FROM"
        " (SELECT id FROM comments UNION ALL SELECT 0)"
    )

    op.drop_table("comments")
    op.drop_table("posts")
    op.rename_table("new_posts", "posts")
    op.rename_table("new_comments", "comments")
    op.create_index("comments_post_id_id_idx", "comments", ["post_id", "id"])

    count = op.get_bind().scalar(sa.text("SELECT count(*) FROM orphaned_comments"))
    if count:
        structlog.get_logger("store_service.database").warning(
            "comments without a post moved to the table orphaned_comments", count=count
        )
