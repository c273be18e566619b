"""The feed stores the state of the clock by which old rows are deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds the column; NULL means that nothing is known."""
    op.add_column("feed", sa.Column("clock", sa.Text))
