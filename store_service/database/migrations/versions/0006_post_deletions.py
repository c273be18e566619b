"""Adds a table of unfinished post deletions, which are too large for one transaction and run in steps."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Creates an empty table. Reads and changes no rows."""
    op.create_table(
        "post_deletions",
        sa.Column(
            "post_id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("removed_id", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("request_id", sa.Text),
    )
