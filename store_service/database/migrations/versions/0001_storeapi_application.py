"""The schema of a legacy database, exactly as storeapi creates it."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates the two tables."""
    op.create_table(
        "posts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("body", sa.String),
    )
    op.create_table(
        "comments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("body", sa.String),
        sa.Column("post_id", sa.Integer, sa.ForeignKey("posts.id"), nullable=False),
    )
