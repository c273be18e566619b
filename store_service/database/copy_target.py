"""The database to which a store is copied.

Until the copy is finished, its version table names UNFINISHED, so no service starts on it, and the table
`copy_target` has the state of the copy, which is stored together with the rows.
"""

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import insert, select, text, update

from store_service.database import connect, schema, sqlite_file
from store_service.database.copy_rows import CopiedTable, Key, Row
from store_service.database.copy_source import SEQUENCES, Snapshot
from store_service.database.copy_state import UNFINISHED, CopyState, TargetContents, TargetNotEmpty
from store_service.database.engines import sync_engine
from store_service.database.former_stores import SHIFT, FormerStore, from_text, to_text
from store_service.database.tables import change_table, feed_table, label_table
from store_service.database.upgrade_engine import upgrade_engine
from store_service.database.write_mode import recorded_tables
from store_service.errors import OperatorError

_ERASED = '"erased"'
"""Part of the payload of a change of an erasure."""

_COPY_LOCK = 0x636F7079
"""The advisory lock of PostgreSQL that a copy holds, so that only one writes to a database."""

_DEFERRED = "DEFERRABLE INITIALLY DEFERRED"
"""The end of the statement that creates a foreign key of PostgreSQL during a copy."""


class CopyDiffers(OperatorError):
    """The copy is not equal to its source."""


class Target:
    """A database to which a store is being copied."""

    def __init__(self, connection: sqlalchemy.Connection, *, from_sqlite: bool) -> None:
        """Takes an open connection, and whether the source is a SQLite file."""
        self.connection = connection
        self.is_sqlite: bool = connection.dialect.name == "sqlite"
        # The order of the changes of PostgreSQL is not the order of their `seq`, which SQLite needs.
        self.has_changes: bool = from_sqlite or not self.is_sqlite
        self.tables: dict[str, CopiedTable] = {
            it.name: CopiedTable(it) for it in recorded_tables() if self.has_changes or it is not change_table
        }
        self._changes = CopiedTable(change_table)
        self._xid: int = self._changes.columns.index("xid")
        self._payload: int = self._changes.columns.index("payload")
        self.labels = CopiedTable(label_table)
        """Triggers of the target write this table, so it is only compared."""
        self.state: CopyState

    def begin(self, contents: TargetContents, copy_id: str, store_id: str) -> None:
        """Begins a copy, or continues it.

        Removes secondary indexes and foreign keys. The pages are read at different times, so the rows in
        them may contradict each other until the recorded keys are applied.
        """
        if contents.state is not None:
            self.state = contents.state
            return
        self.state = CopyState(copy_id=copy_id, store_id=store_id)
        with self.connection.begin():
            names = [it.name for it in recorded_tables()]
            for create, remove in list(self._objects(names)):
                self.state.objects.append(create)
                self.connection.exec_driver_sql(remove)
            self.connection.exec_driver_sql("CREATE TABLE copy_target (state TEXT NOT NULL)")
            self.connection.execute(text("INSERT INTO copy_target VALUES ('')"))
            self._save()
            self.connection.execute(text("UPDATE alembic_version SET version_num = :it"), {"it": UNFINISHED})

    def _objects(self, names: list[str]) -> Iterator[tuple[str, str]]:
        """Yields the statements that create and remove each secondary index and foreign key."""
        run = self.connection.execute
        if self.is_sqlite:
            found = text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
            for name, create in run(found).all():
                yield create, f"DROP INDEX {name}"
            return
        keys = text(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE contype = 'f' AND conrelid IN (SELECT unnest(CAST(:names AS text[]))::regclass)"
        )
        for table, name, definition in run(keys, {"names": names}).all():
            # Rows are replaced while others refer to them.
            yield (
                f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition} {_DEFERRED}",
                f"ALTER TABLE {table} DROP CONSTRAINT {name}",
            )
        indexes = text(
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
            " WHERE NOT indisprimary AND indrelid IN (SELECT unnest(CAST(:names AS text[]))::regclass)"
        )
        for name, create in run(indexes, {"names": names}).all():
            yield create, f"DROP INDEX {name}"

    def create_objects(self) -> Iterator[int]:
        """Creates the indexes and constraints again, and yields the number that was created after each."""
        if self.state.has_objects:
            return
        with self.connection.begin():
            for number, statement in enumerate(self.state.objects):
                self.connection.exec_driver_sql(statement)
                yield number + 1
            if not self.is_sqlite:
                self.connection.exec_driver_sql("ANALYZE")
            self.state.has_objects = True
            self._save()

    def rewrite(self) -> None:
        """Removes what is in the free space of a SQLite file."""
        if self.is_sqlite and self.state.must_rewrite:
            driver: Any = self.connection.connection.driver_connection
            # The begin of a transaction, which SQLAlchemy would add, is not allowed here.
            driver.execute("VACUUM")

    def rewritten(self) -> None:
        """Stores that the free space has no erased texts."""
        with self.connection.begin():
            self.state.must_rewrite = False
            self._save()

    # Rows

    def add_page(self, table: CopiedTable, rows: list[Row]) -> None:
        """Adds the rows of a page, and stores that the copy continues after them.

        No rows: the table is complete.
        """
        with self.connection.begin():
            if rows:
                table.insert(self.connection, self._converted(table, rows))
                self.state.after[table.name] = list(table.key(rows[-1]))
            else:
                self.state.copied.append(table.name)
            self._save()

    def apply(self, snapshot: Snapshot) -> int:
        """Copies all rows whose keys were recorded again, and compares them. Returns their number.

        Raises:
            CopyDiffers: A row is not equal after it was written.
        """
        with self.connection.begin():
            return self._apply(snapshot)

    def _apply(self, snapshot: Snapshot) -> int:
        count = 0
        # First all that is replaced: an external id can be one of another row by now.
        for name, keys in snapshot.written(self.state.position):
            count += len(keys)
            if name in self.tables:
                self.tables[name].delete(self.connection, keys)
        if not count:
            return 0
        for name, keys in snapshot.written(self.state.position):
            if name == self._changes.name:
                changes = self._changes.rows(snapshot.connection, keys).values()
                self.state.must_rewrite |= any(_ERASED in it[self._payload] for it in changes)
            if name not in self.tables:
                continue
            table = self.tables[name]
            rows = table.rows(snapshot.connection, keys)
            table.insert(self.connection, self._converted(table, rows.values()))
            self._compare(table, keys, rows)
        self.state.position = snapshot.position()
        self._save()
        return count

    def apply_and_compare(self, snapshot: Snapshot, table: CopiedTable, after: Key | None) -> list[Key]:
        """Same as `apply`, and compares the next rows of a table after a key. Returns their keys."""
        with self.connection.begin():
            self._apply(snapshot)
            page = {table.key(row): row for row in table.page(snapshot.connection, after)}
            self._compare(table, page, page)
        return list(page)

    def apply_and_count(self, snapshot: Snapshot, tables: Sequence[CopiedTable]) -> dict[str, int]:
        """Same as `apply`, and returns the number of rows of each table.

        Raises:
            CopyDiffers: The source has other numbers.
        """
        with self.connection.begin():
            self._apply(snapshot)
            counts = {it.name: it.count(self.connection) for it in tables}
        for table in tables:
            expected = snapshot.count(table)
            if counts[table.name] != expected:
                raise CopyDiffers(
                    f"the copy is not equal: {table.name} has {counts[table.name]:,} rows,"
                    f" in SOURCE {expected:,}"
                )
        return counts

    def _compare(self, table: CopiedTable, keys: Iterable[Key], expected: dict[Key, Row]) -> None:
        """Compares the rows with these keys with those of the source.

        Raises:
            CopyDiffers: They are not equal.
        """
        found = table.rows(self.connection, keys)
        for key, row in zip(expected, self._converted(table, expected.values()), strict=True):
            if found.pop(key, None) != row:
                raise CopyDiffers(f"the copy is not equal: {table.name} {_text(key)} differs or is missing")
        if found:
            extra = _text(next(iter(found)))
            raise CopyDiffers(f"the copy is not equal: SOURCE does not have {table.name} {extra}")

    def _converted(self, table: CopiedTable, rows: Iterable[Row]) -> list[Row]:
        """Returns rows as the target stores them."""
        if table.name != self._changes.name:
            return list(rows)
        at = self._xid
        return [(*row[:at], row[at] - SHIFT, *row[at + 1 :]) for row in rows]

    # The end

    def finish(self, snapshot: Snapshot) -> None:
        """Applies the last changes, and makes the target a complete store, in one transaction.

        Raises:
            CopyDiffers: A row is not equal after it was written, or the source is not the same store.
        """
        feed = snapshot.feed()
        if feed["store_id"] != self.state.store_id:
            raise CopyDiffers(
                "the change feed of SOURCE was restarted during the copy; copy to an empty database"
            )
        with self.connection.begin():
            self._apply(snapshot)
            for name, number in snapshot.last_numbers().items():
                if name in self.tables and number:
                    self._set_last_number(name, number)
            self.connection.execute(update(feed_table).values(self._feed(feed)))
            if not self.is_sqlite:
                self.connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
                for statement in self.state.objects:
                    if statement.endswith(_DEFERRED):
                        # ALTER TABLE comments ADD CONSTRAINT comments_post_id_fkey ...
                        _, _, table, _, _, key, *_ = statement.split()
                        self.connection.exec_driver_sql(
                            f"ALTER TABLE {table} ALTER CONSTRAINT {key} NOT DEFERRABLE"
                        )
            self.connection.exec_driver_sql("DROP TABLE copy_target")
            self.connection.execute(text("UPDATE alembic_version SET version_num = :it"), {"it": schema.HEAD})

    def _feed(self, source: dict[str, Any]) -> dict[str, Any]:
        """Returns the values of the feed of the target."""
        values = {"store_id": uuid.uuid4().hex, "clock": source["clock"], "system_id": None}
        if not self.has_changes:
            # No token has this id.
            former = FormerStore(store_id="", copy_id=self.state.copy_id, end_xid=0, end_seq=0)
            return {**values, "former_stores": to_text([former])}
        trimmed = (source["trimmed_xid"] - SHIFT, source["trimmed_seq"])
        last = self.connection.execute(
            select(change_table.c.xid, change_table.c.seq)
            .order_by(change_table.c.xid.desc(), change_table.c.seq.desc())
            .limit(1)
        ).first()
        end_xid, end_seq = last or trimmed
        former = FormerStore(
            store_id=source["store_id"], copy_id=self.state.copy_id, end_xid=end_xid, end_seq=end_seq
        )
        older = [replace(it, end_xid=it.end_xid - SHIFT) for it in from_text(source["former_stores"])]
        return {
            **values,
            "trimmed_xid": trimmed[0],
            "trimmed_seq": trimmed[1],
            "former_stores": to_text([former, *older]),
        }

    def _set_last_number(self, name: str, number: int) -> None:
        if not self.is_sqlite:
            sequence = text("SELECT setval(pg_get_serial_sequence(:name, :column)::regclass, :number)")
            values = {"name": name, "column": SEQUENCES[name], "number": number}
            self.connection.execute(sequence, values)
            return
        sequences = sqlalchemy.table("sqlite_sequence", sqlalchemy.column("name"), sqlalchemy.column("seq"))
        self.connection.execute(sequences.delete().where(sequences.c.name == name))
        self.connection.execute(insert(sequences).values(name=name, seq=number))

    def _save(self) -> None:
        self.connection.execute(
            text("UPDATE copy_target SET state = :state"), {"state": json.dumps(asdict(self.state))}
        )


@contextmanager
def opened(database_url: str, *, from_sqlite: bool, connect_timeout_seconds: float) -> Iterator[Target]:
    """Opens a database with the current schema, or with an unfinished copy, and keeps other copies away.

    Raises:
        OperatorError: Another process uses the database.
    """
    with connect.sole_use(database_url):
        engine = upgrade_engine(database_url, connect_timeout_seconds=connect_timeout_seconds)
        try:
            with engine.connect() as connection:
                target = Target(connection, from_sqlite=from_sqlite)
                if not target.is_sqlite:
                    _lock(connection)
                yield target
        finally:
            engine.dispose()


def recover(database_url: str) -> None:
    """Rolls back what a copy that was killed has begun to write to a SQLite file. Reads cannot do so.

    Raises:
        OperatorError: Another process uses the file.
    """
    if not connect.is_sqlite(database_url) or connect.is_missing(database_url):
        return
    journal = Path(f"{sqlite_file.database_path(database_url)}-journal")
    if journal.exists():
        with (
            connect.sole_use(database_url),
            closing(sync_engine(database_url).raw_connection()) as connection,
        ):
            connection.cursor().execute("SELECT count(*) FROM sqlite_master")


def _lock(connection: sqlalchemy.Connection) -> None:
    with connection.begin():
        # The role may have limits for the statements of a service.
        connection.exec_driver_sql("SELECT set_config('statement_timeout', '0', false)")
        if not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_COPY_LOCK})").scalar_one():
            raise TargetNotEmpty("another copy to TARGET is running")


def _text(key: Key) -> str:
    return " ".join(map(str, key))
