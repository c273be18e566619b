"""Replaces the columns of posts and comments in `changes` by one JSON payload."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

_MOVED = ("body", "create_time", "update_time", "version")
_PAIRS = ", ".join(f"'{name}', {name}" for name in _MOVED)


def upgrade() -> None:
    """Rewrites the table once. Positions of changes are kept, so resume tokens stay valid."""
    if op.get_bind().dialect.name == "postgresql":
        # One rewrite, which keeps the sequence, the trigger, the index and the privileges of the table.
        op.execute(
            f"ALTER TABLE changes ALTER COLUMN body TYPE TEXT USING CAST(json_build_object({_PAIRS}) AS TEXT)"
        )
        op.alter_column("changes", "body", new_column_name="payload")
        for name in _MOVED[1:]:
            op.drop_column("changes", name)
        return
    op.create_table(
        "new_changes",
        sa.Column("seq", Id, primary_key=True),
        sa.Column("xid", sa.BigInteger, nullable=False),
        sa.Column("action", sa.SmallInteger, nullable=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("resource_id", sa.BigInteger, nullable=False),
        sa.Column("post_id", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("commit_time", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.Text),
        sqlite_autoincrement=True,
    )
    kept = "seq, xid, action, kind, resource_id, post_id, size, commit_time, request_id"
    op.execute(
        f"INSERT INTO new_changes ({kept}, payload)"  # noqa: S608  # names of ours
        f" SELECT {kept}, json_object({_PAIRS}) FROM changes ORDER BY seq"
    )
    # The highest number ever given, even if its row is deleted.
    op.execute("DELETE FROM sqlite_sequence WHERE name = 'new_changes'")
    op.execute("UPDATE sqlite_sequence SET name = 'new_changes' WHERE name = 'changes'")
    op.drop_table("changes")
    # Without this SQLite checks all views and triggers of the file, and fails at broken ones.
    op.execute("PRAGMA legacy_alter_table = ON")
    op.rename_table("new_changes", "changes")
    op.execute("PRAGMA legacy_alter_table = OFF")
