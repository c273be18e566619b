"""Adds authors, labels, external ids and replies, with their indexes and the table of labels."""

import sqlalchemy as sa
from alembic import op

from store_service.database.own_objects import EXTERNAL_ID_INDEXES, LABEL_FUNCTION, LABEL_TRIGGERS

revision = "0008"
down_revision = "0007"

_TABLES = ("posts", "comments")


def upgrade() -> None:
    """Adds columns with defaults, which rewrites no rows, and creates indexes, which reads all rows."""
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    for table in _TABLES:
        for name in ("author", "labels", "external_id"):
            op.add_column(table, _text(name))
    op.add_column(
        "comments", sa.Column("reply_to_id", sa.BigInteger, nullable=False, server_default=sa.text("0"))
    )
    op.add_column("comments", _text("path"))
    op.add_column("changes", sa.Column("before", sa.Text))
    op.create_table(
        "labels",
        sa.Column("kind", sa.SmallInteger, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("resource_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    for table in _TABLES:
        op.execute(f"CREATE INDEX {table}_author_id_idx ON {table} (author, id) WHERE author <> ''")
        op.execute(EXTERNAL_ID_INDEXES[f"{table}_external_id_idx"])
        op.execute(f"CREATE INDEX {table}_create_time_idx ON {table} (coalesce(create_time, 0), id)")
    op.execute("CREATE INDEX comments_reply_to_id_id_idx ON comments (reply_to_id, id) WHERE reply_to_id > 0")
    op.execute(
        "CREATE INDEX comments_post_id_create_time_idx ON comments (post_id, coalesce(create_time, 0), id)"
    )
    key = (
        "((path || lpad(to_hex(id), 16, '0')) COLLATE \"C\")"
        if on_postgresql
        else "(path || printf('%016x', id))"
    )
    op.execute(f"CREATE INDEX comments_thread_idx ON comments (post_id, {key})")
    if on_postgresql:
        op.execute(LABEL_FUNCTION)
    for name, statement in LABEL_TRIGGERS["postgresql" if on_postgresql else "sqlite"].items():
        if name.startswith(_TABLES):
            op.execute(statement)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")
