"""Whether a store accepts writes while it is copied to another database, and which rows they change.

Triggers record the key of each row that is written, and refuse all writes if the row of `copy_source` says
so. They exist only while a store is copied, and after it has moved. All processes obey them, also after a
restart, and a store that is not copied pays nothing for them (docs/decisions/0056).
"""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from sqlalchemy import Table, text

from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection
from store_service.database.driver_errors import REFUSED_STATE, REFUSED_TEXT
from store_service.database.statements import Statement
from store_service.database.tables import feed_table, label_table, metadata
from store_service.model import WriteMode

NOT_RECORDED = (feed_table.name, label_table.name, "search_index", "post_search", "comment_search")
"""Tables of which no keys are recorded: the one row of the feed is read at the end of a copy, and the others
are derived from the recorded tables."""

_EVENTS = {"insert": "NEW", "update": "NEW", "delete": "OLD"}


def recorded_tables() -> list[Table]:
    """Returns the tables whose rows are copied; a table comes after those that it refers to."""
    return [it for it in metadata.sorted_tables if it.name not in NOT_RECORDED]


def key_names(table: Table) -> list[str]:
    """Returns the columns of the primary key."""
    return [it.name for it in table.primary_key]


KEY_COLUMNS = ("key1", "key2", "key3")
"""The columns of a key in `copy_log` on SQLite. They have no type, so a value keeps its own. Triggers cannot
use JSON functions, because of trusted_schema=OFF."""


def _sqlite_objects() -> Iterator[str]:
    yield "CREATE TABLE copy_source (id TEXT NOT NULL, refuses INTEGER NOT NULL)"
    yield f"CREATE TABLE copy_log (id INTEGER PRIMARY KEY, name TEXT NOT NULL, {', '.join(KEY_COLUMNS)})"
    for table in recorded_tables():
        names = key_names(table)
        columns = ", ".join(["name", *KEY_COLUMNS[: len(names)]])
        for event, row in _EVENTS.items():
            key = ", ".join([f"{row}.{it}" for it in names])
            yield (
                f"CREATE TRIGGER copy_{table.name}_{event} AFTER {event} ON {table.name} BEGIN"  # noqa: S608
                f" SELECT RAISE(ABORT, '{REFUSED_TEXT}') FROM copy_source WHERE refuses;"
                f" INSERT INTO copy_log ({columns}) VALUES ('{table.name}', {key}); END"
            )


# The role of a service that writes may differ from the role that owns the tables.
# AFTER: a statement takes the order lock while it runs, and the mode is set under this lock.
_POSTGRESQL_FUNCTION = f"""
CREATE FUNCTION copy_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM written) THEN
    RETURN NULL;
  END IF;
  IF (SELECT refuses FROM copy_source) THEN
    RAISE EXCEPTION '{REFUSED_TEXT}' USING ERRCODE = '{REFUSED_STATE}';
  END IF;
  EXECUTE 'INSERT INTO copy_log (name, key) SELECT $1, json_build_array(' || TG_ARGV[0] || ')::text'
    ' FROM written' USING TG_TABLE_NAME::text;
  RETURN NULL;
END
$$
"""  # noqa: S608  # our own state


def _postgresql_objects() -> Iterator[str]:
    yield "CREATE TABLE copy_source (id text NOT NULL, refuses boolean NOT NULL)"
    yield (
        "CREATE TABLE copy_log"
        " (xid xid8 NOT NULL DEFAULT pg_current_xact_id(), name text NOT NULL, key text NOT NULL)"
    )
    yield "CREATE INDEX copy_log_xid_idx ON copy_log (xid)"
    yield _POSTGRESQL_FUNCTION
    for table in recorded_tables():
        for event, row in _EVENTS.items():
            yield (
                f"CREATE TRIGGER copy_{table.name}_{event} AFTER {event} ON {table.name}"
                f" REFERENCING {row} TABLE AS written FOR EACH STATEMENT"
                f" EXECUTE FUNCTION copy_write('{', '.join(key_names(table))}')"
            )


def _removals(on: str) -> Iterator[str]:
    for table in recorded_tables():
        for event in _EVENTS:
            yield f"DROP TRIGGER copy_{table.name}_{event}{on and f' ON {table.name}'}"
    if on:
        yield "DROP FUNCTION copy_write()"
    yield "DROP TABLE copy_log"
    yield "DROP TABLE copy_source"


def _statements(on_sqlite: Iterable[str], on_postgresql: Iterable[str]) -> list[Statement]:
    """Returns statements of both engines. The engine that needs fewer has further ones without an effect."""
    return [
        Statement(text(one), on_postgresql=text(other))
        for one, other in zip_longest(on_sqlite, on_postgresql, fillvalue="SELECT 1")
    ]


_CREATE = _statements(_sqlite_objects(), _postgresql_objects())
_REMOVE = _statements(_removals(""), _removals(" ON "))
_EXISTS = Statement(
    text("SELECT count(*) FROM sqlite_master WHERE name = 'copy_source'"),
    on_postgresql=text("SELECT count(to_regclass('copy_source'))"),
)


async def _set(connection: Connection, modes: Sequence[WriteMode]) -> list[None]:
    for mode in modes:
        ((exists,),) = await connection.fetch(_EXISTS)
        if mode is WriteMode.NORMAL:
            for statement in _REMOVE if exists else ():
                await connection.fetch(statement)
            continue
        if not exists:
            for statement in _CREATE:
                await connection.fetch(statement)
            # An id that no other copy has, because a copy continues only with the keys that it has recorded.
            add = f"INSERT INTO copy_source VALUES ('{uuid.uuid4().hex}', false)"  # noqa: S608  # our own id
            await connection.fetch(Statement(text(add)))
        await connection.fetch(_REFUSE if mode is WriteMode.REFUSED else _ACCEPT)
    return [None] * len(modes)


_REFUSE, _ACCEPT = [Statement(text(f"UPDATE copy_source SET refuses = {it}")) for it in (True, False)]  # noqa: S608

SET_WRITE_MODE: BatchOperation[WriteMode, None] = BatchOperation(_set, name="set write mode")
"""Sets the mode. All writes that were accepted before are committed: SQLite has one writer, and on PostgreSQL
the transaction holds the order lock, which excludes all writes."""
