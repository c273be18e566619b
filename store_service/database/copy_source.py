"""Reads a store while it is copied to another database. Writes nothing.

A connection that writes to a SQLite file, or checkpoints it, could damage it beside the service
(docs/decisions/0006).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, select, text

from store_service.database.copy_rows import CopiedTable, Key, chunks
from store_service.database.engines import read_only_engine
from store_service.database.tables import feed_table
from store_service.database.write_mode import KEY_COLUMNS

WRITTEN_KEYS = 2000
"""Number of recorded keys that are handled together."""

SEQUENCES = {"posts": "id", "comments": "id", "changes": "seq"}
"""The tables whose numbers are never given twice, and the column of each."""


class Source:
    """A store that is copied."""

    def __init__(self, database_url: str, *, connect_timeout_seconds: float) -> None:
        """Takes the URL of its database, which has the current schema."""
        self._engine = read_only_engine(database_url, connect_timeout_seconds=connect_timeout_seconds)
        self.is_sqlite: bool = self._engine.dialect.name == "sqlite"

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    @contextmanager
    def snapshot(self) -> Iterator["Snapshot"]:
        """Yields the state of one moment. It keeps the log of SQLite, so the block must be short."""
        if self.is_sqlite:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("BEGIN")
                try:
                    yield Snapshot(connection)
                finally:
                    connection.rollback()
            return
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._engine.connect().execution_options(**options) as connection:
            # The role may have limits for the statements of a service.
            connection.exec_driver_sql("SELECT set_config('statement_timeout', '0', true)")
            yield Snapshot(connection)


class Snapshot:
    """The state of a store at one moment."""

    def __init__(self, connection: Connection) -> None:
        """Takes a connection in a transaction that reads one state."""
        self.connection = connection
        self._is_sqlite = connection.dialect.name == "sqlite"

    def copy_id(self) -> str:
        """Returns the id of the copy for which keys are recorded; empty if none are."""
        exists = (
            "SELECT count(*) FROM sqlite_master WHERE name = 'copy_source'"
            if self._is_sqlite
            else "SELECT count(to_regclass('copy_source'))"
        )
        if not self.connection.exec_driver_sql(exists).scalar_one():
            return ""
        return str(self.connection.exec_driver_sql("SELECT id FROM copy_source").scalar_one())

    def position(self) -> str:
        """Returns the position up to which this state has the recorded keys."""
        if self._is_sqlite:
            return str(self.connection.scalar(text("SELECT coalesce(max(id), 0) FROM copy_log")))
        return str(self.connection.scalar(text("SELECT CAST(pg_current_snapshot() AS text)")))

    def written(self, after: str) -> Iterator[tuple[str, list[Key]]]:
        """Yields the keys that were recorded after a position, by table and in small lists, each key once.

        Args:
            after: The position; empty for all keys.
        """
        columns, condition = "name, key", "true"
        values: dict[str, Any] = {"after": after}
        if self._is_sqlite:
            columns, condition = ", ".join(["name", *KEY_COLUMNS]), "id > :after"
            values = {"after": int(after or 0)}
        elif after:
            # Transactions are not committed in the order of their numbers.
            condition = (
                "xid >= pg_snapshot_xmin(CAST(:after AS pg_snapshot))"
                " AND NOT pg_visible_in_snapshot(xid, CAST(:after AS pg_snapshot))"
            )
        recorded = text(f"SELECT DISTINCT {columns} FROM copy_log WHERE {condition} ORDER BY {columns}")  # noqa: S608
        options = {"yield_per": WRITTEN_KEYS}
        with self.connection.execute(recorded, values, execution_options=options) as result:
            for some in chunks(result, WRITTEN_KEYS):
                by_table: dict[str, list[Key]] = {}
                for name, *key in some:
                    by_table.setdefault(name, []).append(self._key(key))
                yield from by_table.items()

    def _key(self, recorded: list[Any]) -> Key:
        if self._is_sqlite:
            return tuple([it for it in recorded if it is not None])
        return tuple(json.loads(recorded[0]))

    def count(self, table: CopiedTable) -> int:
        """Returns the number of rows of a table."""
        return table.count(self.connection)

    def feed(self) -> dict[str, Any]:
        """Returns the row of the feed."""
        return dict(self.connection.execute(select(feed_table)).mappings().one())

    def last_numbers(self) -> dict[str, int]:
        """Returns the last number that was given in each of SEQUENCES; 0 if none was."""
        if self._is_sqlite:
            rows = self.connection.exec_driver_sql("SELECT name, seq FROM sqlite_sequence")
            found: dict[str, int] = dict(rows.tuples().all())
            return {name: found.get(name, 0) for name in SEQUENCES}
        return {
            name: self.connection.exec_driver_sql(
                f"SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('{name}', '{column}')), 0)"
            ).scalar_one()
            for name, column in SEQUENCES.items()
        }
