"""Adds the stores that a store was copied from to the table `feed`."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Adds the column. NULL means that the store is no copy."""
    op.add_column("feed", sa.Column("former_stores", sa.Text))
