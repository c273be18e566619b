"""Adds the sizes of stored responses. On SQLite, stores the ids in an index without the responses.

The table was WITHOUT ROWID, so to compare an id, SQLite read the whole response, of up to 4 MiB.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the column `size`. On SQLite the rows are copied to a new table."""
    if op.get_bind().dialect.name == "postgresql":
        # The default is for processes of the previous version, which may still run and do not set the size.
        op.add_column("requests", sa.Column("size", sa.Integer, nullable=False, server_default="0"))
        op.execute("UPDATE requests SET size = octet_length(answer)")
        return
    op.create_table(
        "new_requests",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("size", sa.Integer, nullable=False, server_default="0"),
        # The last column, so that SQLite does not read it to find other columns.
        sa.Column("answer", sa.Text, nullable=False),
    )
    op.execute(
        "INSERT INTO new_requests (id, fingerprint, create_time, size, answer)"
        " SELECT id, fingerprint, create_time, length(answer), answer"
        " FROM requests ORDER BY create_time"
    )
    op.drop_table("requests")
    # Without this SQLite checks all views and triggers of the file, and fails at broken ones.
    op.execute("PRAGMA legacy_alter_table = ON")
    op.rename_table("new_requests", "requests")
    op.execute("PRAGMA legacy_alter_table = OFF")
    op.create_index("requests_create_time_idx", "requests", ["create_time"])
