"""One JSON payload for each change, in place of the columns of posts and comments."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

_MOVED = ("body", "create_time", "update_time", "version")
_PAIRS = ", ".join(f"'{name}', {name}" for name in _MOVED)


def upgrade() -> None:
    """Writes the table once. Numbers of changes stay, so resume tokens stay valid."""
    if op.get_bind().dialect.name == "postgresql":
        # One rewrite; the sequence, the trigger, the index and the rights on the table stay.
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
    # The highest number ever given, also when its row is gone.
    op.execute("DELETE FROM sqlite_sequence WHERE name = 'new_changes'")
    op.execute("UPDATE sqlite_sequence SET name = 'new_changes' WHERE name = 'changes'")
    op.drop_table("changes")
    # Without this SQLite looks at every view and trigger of the file, and fails at those that are broken.
    op.execute("PRAGMA legacy_alter_table = ON")
    op.rename_table("new_changes", "changes")
    op.execute("PRAGMA legacy_alter_table = OFF")
