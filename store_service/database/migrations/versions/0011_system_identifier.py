"""Adds the system identifier of the PostgreSQL server to the table `feed`."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Adds the column. NULL means that the next start stores the identifier."""
    op.add_column("feed", sa.Column("system_id", sa.Text))
