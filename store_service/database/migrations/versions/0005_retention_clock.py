"""Adds the state of the retention clock to the table `feed`."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds the column. NULL means that there is no state yet."""
    op.add_column("feed", sa.Column("clock", sa.Text))
