"""The triggers and unique indexes that the schema has, as the revisions of the schema create them.

A revision executes these statements, so a change needs another revision. The check of a restore compares them
with the objects of a file: other triggers and unique indexes may change or refuse what the service writes.
"""

from collections.abc import Iterable, Iterator

import sqlalchemy

LABEL_KINDS = {"posts": 1, "comments": 2, "deleted_posts": 3, "deleted_comments": 4}
"""The tables with labels, and the value of `labels.kind` for each."""

_UNIQUE = ("posts", "comments")
"""The tables in which external ids are unique."""

EXTERNAL_ID_INDEXES = {
    f"{table}_external_id_idx": (
        f"CREATE UNIQUE INDEX {table}_external_id_idx ON {table} (external_id) WHERE external_id <> ''"
    )
    for table in _UNIQUE
}
"""The unique indexes by name, on both engines."""


def _label_triggers_on_sqlite(table: str, kind: int) -> Iterator[tuple[str, str]]:
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
        name = f"{table}_labels_{event.split()[0].lower()}"
        yield (
            name,
            f"CREATE TRIGGER {name} AFTER {event} ON {table} WHEN {condition} BEGIN {actions} END",
        )


def _label_triggers_on_postgresql(table: str, kind: int) -> Iterator[tuple[str, str]]:
    for event, condition in (
        ("INSERT", "NEW.labels <> ''"),
        ("DELETE", "OLD.labels <> ''"),
        ("UPDATE OF labels", "OLD.labels <> NEW.labels"),
    ):
        name = f"{table}_labels_{event.split()[0].lower()}"
        yield (
            name,
            f"CREATE TRIGGER {name} AFTER {event} ON {table}"
            f" FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION store_labels('{kind}')",
        )


LABEL_TRIGGERS = {
    dialect: {name: sql for table, kind in LABEL_KINDS.items() for name, sql in triggers(table, kind)}
    for dialect, triggers in (
        ("sqlite", _label_triggers_on_sqlite),
        ("postgresql", _label_triggers_on_postgresql),
    )
}
"""The triggers that maintain the table `labels`, by dialect and name."""

LABEL_FUNCTION = """
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
"""The function of the triggers on PostgreSQL."""

_STATEMENTS = {
    **{("index", name): sql for name, sql in EXTERNAL_ID_INDEXES.items()},
    **{("trigger", name): sql for name, sql in LABEL_TRIGGERS["sqlite"].items()},
}


def on_sqlite(connection: sqlalchemy.Connection) -> set[tuple[str, str]]:
    """Returns the types and names of those objects that a SQLite database has exactly as created."""
    return {
        (kind, name)
        for kind, name, sql in connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master")
        if _STATEMENTS.get((kind, name)) == sql is not None
    }


def missing(connection: sqlalchemy.Connection) -> list[str]:
    """Returns the triggers and unique indexes that a database with the current schema does not have."""
    if connection.dialect.name == "sqlite":
        found = on_sqlite(connection)
    else:
        found = {
            (kind, name)
            for kind, name in connection.exec_driver_sql(
                "SELECT 'trigger', tgname FROM pg_trigger"  # noqa: S608  # names of ours
                f" WHERE tgrelid IN ({_tables(LABEL_KINDS)}) AND tgenabled <> 'D'"
                " UNION ALL SELECT 'index', relname FROM pg_index JOIN pg_class ON oid = indexrelid"
                f" WHERE indrelid IN ({_tables(_UNIQUE)})"
                " AND indisunique AND indisvalid"
            )
        }
    return [
        f"{kind} {name} is missing or differs from the one that the service creates"
        for kind, name in sorted(_STATEMENTS.keys() - found)
    ]


def _tables(names: Iterable[str]) -> str:
    return ", ".join([f"to_regclass('{name}')" for name in names])
