"""Requests know how large their answers are; on SQLite answers lie apart from the ids that are looked for.

WITHOUT ROWID had them in one tree: to compare an id, SQLite read the whole answer beside it, of up to 4 MiB.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the size to each request; on SQLite they get a new table."""
    if op.get_bind().dialect.name == "postgresql":
        # Processes of the version before, which know no sizes, may go on for a while.
        op.add_column("requests", sa.Column("size", sa.Integer, nullable=False, server_default="0"))
        op.execute("UPDATE requests SET size = octet_length(answer)")
        return
    op.create_table(
        "new_requests",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("size", sa.Integer, nullable=False, server_default="0"),
        # Last, so that nobody reads it to come to what is behind it.
        sa.Column("answer", sa.Text, nullable=False),
    )
    op.execute(
        "INSERT INTO new_requests (id, fingerprint, create_time, size, answer)"
        " SELECT id, fingerprint, create_time, length(answer), answer"
        " FROM requests ORDER BY create_time"
    )
    op.drop_table("requests")
    # Without this SQLite looks at every view and trigger of the file, and fails at those that are broken.
    op.execute("PRAGMA legacy_alter_table = ON")
    op.rename_table("new_requests", "requests")
    op.execute("PRAGMA legacy_alter_table = OFF")
    op.create_index("requests_create_time_idx", "requests", ["create_time"])
