"""Adds authors, labels, external ids and replies, with their indexes and the table of labels."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_KINDS = {"posts": 1, "comments": 2}


def upgrade() -> None:
    """Adds columns with defaults, which rewrites no rows, and creates indexes, which reads all rows."""
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    for table in _KINDS:
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
    for table in _KINDS:
        op.execute(f"CREATE INDEX {table}_author_id_idx ON {table} (author, id) WHERE author <> ''")
        op.execute(
            f"CREATE UNIQUE INDEX {table}_external_id_idx ON {table} (external_id) WHERE external_id <> ''"
        )
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
        op.execute(_LABELS_OF_ROW)
    for table, kind in _KINDS.items():
        (_triggers_on_postgresql if on_postgresql else _triggers_on_sqlite)(table, kind)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")


def _triggers_on_sqlite(table: str, kind: int) -> None:
    # json_each returns no rows for NULL, and fails for an empty text.
    add = (
        'INSERT INTO labels (kind, "key", value, resource_id)'  # noqa: S608  # names of ours
        f" SELECT {kind}, it.\"key\", it.value, NEW.id FROM json_each(nullif(NEW.labels, '')) AS it;"
    )
    remove = (
        f'DELETE FROM labels WHERE kind = {kind} AND resource_id = OLD.id AND ("key", value) IN'  # noqa: S608
        " (SELECT it.\"key\", it.value FROM json_each(nullif(OLD.labels, '')) AS it);"
    )
    for event, condition, actions in (
        ("INSERT", "NEW.labels <> ''", add),
        ("DELETE", "OLD.labels <> ''", remove),
        ("UPDATE OF labels", "OLD.labels <> NEW.labels", f"{remove} {add}"),
    ):
        op.execute(
            f"CREATE TRIGGER {table}_labels_{event.split()[0].lower()} AFTER {event} ON {table}"
            f" WHEN {condition} BEGIN {actions} END"
        )


_LABELS_OF_ROW = """
CREATE FUNCTION store_labels() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP <> 'INSERT' AND OLD.labels <> '' THEN
    DELETE FROM labels USING json_each_text(OLD.labels::json) AS old_label (key, value)
    WHERE labels.kind = TG_ARGV[0]::smallint AND labels.resource_id = OLD.id
      AND labels.key = old_label.key AND labels.value = old_label.value;
  END IF;
  IF TG_OP <> 'DELETE' AND NEW.labels <> '' THEN
    INSERT INTO labels (kind, key, value, resource_id)
    SELECT TG_ARGV[0]::smallint, key, value, NEW.id FROM json_each_text(NEW.labels::json)
    ON CONFLICT DO NOTHING;
  END IF;
  RETURN NULL;
END
$$
"""


def _triggers_on_postgresql(table: str, kind: int) -> None:
    for event, condition in (
        ("INSERT", "NEW.labels <> ''"),
        ("DELETE", "OLD.labels <> ''"),
        ("UPDATE OF labels", "OLD.labels <> NEW.labels"),
    ):
        op.execute(
            f"CREATE TRIGGER {table}_labels_{event.split()[0].lower()} AFTER {event} ON {table}"
            f" FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION store_labels('{kind}')"
        )
