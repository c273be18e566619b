"""Copies a store to another database while it is served (docs/decisions/0056).

1. The source records the keys of the rows that are written.
2. All rows are copied in pages, each of which is a short read.
3. The recorded rows are copied again, and the indexes are created.
4. All rows are compared, page by page. Before each page the recorded rows are copied again, as they are in
   the snapshot from which the page is read. So the page must be equal in both databases.
5. When few recorded keys are left, the source refuses writes, the last rows are copied and compared, and the
   target becomes a store.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy

from store_service.database import copy_state, copy_target, schema
from store_service.database.copy_rows import CopiedTable, Key
from store_service.database.copy_source import Source
from store_service.database.copy_target import CopyDiffers, Target
from store_service.database.driver_errors import driver_errors
from store_service.database.write_mode import recorded_tables
from store_service.errors import OperatorError, ServiceError
from store_service.model import WriteMode

SMALL_LAG = 2000
"""Number of recorded keys that the last step may have to copy, in a few tenths of a second."""

Report = Callable[[str, int, int], None]
"""Takes the phase, the amount done, and the total amount; 0 if it is unknown."""


class SameDatabase(OperatorError):
    """The two databases are the same, or both are SQLite files."""


class CopyInterrupted(OperatorError):
    """A database has failed during the copy."""


class CompletionUnknown(OperatorError):
    """The connection to the target failed while the copy was being completed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a copy will do."""

    counts: dict[str, int]
    """The rows of each table of the source that has some."""
    is_continued: bool
    is_finished: bool
    keeps_tokens: bool
    """Whether the target honours resume tokens of the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a copy has done."""

    counts: dict[str, int]
    """The rows of each table that has some."""
    compared: int
    """The number of rows that were compared before writes were refused."""
    refused_seconds: float
    """How long the source refused writes before the target was complete."""


def plan(source_url: str, target_url: str, *, dry_run: bool, connect_timeout_seconds: float) -> Plan:
    """Checks both databases. Changes nothing, but rolls an interrupted write to the target back, unless
    `dry_run` is true.

    Raises:
        OperatorError: The copy is not possible.
        ServiceError: A database cannot be used.
    """
    seconds = connect_timeout_seconds
    schema.check(source_url, connect_timeout_seconds=seconds)
    if not dry_run:
        copy_target.recover(target_url)
    contents = copy_state.look(target_url, connect_timeout_seconds=seconds)
    with closing(Source(source_url, connect_timeout_seconds=seconds)) as source:
        to_sqlite = target_url.startswith("sqlite:")
        if source.is_sqlite and to_sqlite:
            raise SameDatabase("SOURCE and TARGET are SQLite files; use `store-service backup` and `restore`")
        with source.snapshot() as snapshot:
            copy_id = snapshot.copy_id()
            is_finished = contents.is_copy(copy_id)
            if not is_finished:
                contents.check(copy_id)
            counts = {it.name: snapshot.count(CopiedTable(it)) for it in recorded_tables()}
    return Plan(
        counts={name: count for name, count in counts.items() if count},
        is_continued=contents.state is not None,
        is_finished=is_finished,
        keeps_tokens=not to_sqlite,
    )


def copy(
    source_url: str,
    target_url: str,
    *,
    set_mode: Callable[[WriteMode], None],
    report: Report,
    connect_timeout_seconds: float,
) -> Copied:
    """Copies a store that `plan` has accepted. If the copy is not equal, the source accepts writes again.

    Args:
        source_url: The database of the store.
        target_url: The database to which it is copied.
        set_mode: Sets the mode of the source; returns when it has an effect.
        report: Called with the progress.
        connect_timeout_seconds: Maximum time to connect.

    Raises:
        OperatorError: The copy is not possible, or not equal.
        ServiceError: A database cannot be used.
    """
    seconds = connect_timeout_seconds
    set_mode(WriteMode.RECORDED)
    with _one_line_errors(), closing(Source(source_url, connect_timeout_seconds=seconds)) as source:
        contents = copy_state.look(target_url, connect_timeout_seconds=seconds)
        with source.snapshot() as snapshot:
            copy_id, store_id = snapshot.copy_id(), str(snapshot.feed()["store_id"])
        contents.check(copy_id)
        if contents.revision == schema.EMPTY:
            schema.upgrade(target_url, connect_timeout_seconds=seconds)
        with copy_target.opened(
            target_url, from_sqlite=source.is_sqlite, connect_timeout_seconds=seconds
        ) as target:
            target.begin(contents, copy_id, store_id)
            try:
                copying = _Copy(
                    source, target, set_mode, report, partial(_is_unfinished, target_url, seconds)
                )
                return copying.run()
            except CopyDiffers:
                set_mode(WriteMode.NORMAL)
                raise


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Raises CopyInterrupted for errors of the drivers."""
    try:
        yield
    except _errors() as error:
        cause = " ".join(str(getattr(error, "orig", error)).split())
        raise CopyInterrupted(f"the copy was interrupted, and can be continued: {cause}") from error


def _errors() -> tuple[type[Exception], ...]:
    # psycopg is an extra, which is imported when it is used. Rows are added without SQLAlchemy.
    psycopg: Any = sys.modules.get("psycopg")
    return (sqlalchemy.exc.DBAPIError, *driver_errors(), *([] if psycopg is None else [psycopg.Error]))


def _is_unfinished(target_url: str, connect_timeout_seconds: float) -> bool:
    return copy_state.look(target_url, connect_timeout_seconds=connect_timeout_seconds).state is not None


class _Copy:
    """A copy in progress."""

    def __init__(
        self,
        source: Source,
        target: Target,
        set_mode: Callable[[WriteMode], None],
        report: Report,
        is_unfinished: Callable[[], bool],
    ) -> None:
        self._source = source
        self._target = target
        self._set_mode = set_mode
        self._report = report
        self._is_unfinished = is_unfinished
        self._compared = 0

    def run(self) -> Copied:
        self._copy_pages()
        self._catch_up()
        total = len(self._target.state.objects)
        for number in self._target.create_objects():
            self._report("creating indexes", number, total)
        self._catch_up()
        self._target.rewrite()
        self._target.rewritten()
        counts = self._compare()
        self._catch_up()
        refused_seconds = self._cut_over()
        # The free space can have what was erased after the first time.
        self._target.rewrite()
        return Copied(
            counts={name: count for name, count in counts.items() if count},
            compared=self._compared,
            refused_seconds=refused_seconds,
        )

    def _copy_pages(self) -> None:
        state = self._target.state
        with self._source.snapshot() as snapshot:
            totals = {it.name: snapshot.count(it) for it in self._target.tables.values()}
        done, total = sum([totals[it] for it in state.copied]), sum(totals.values())
        for table in self._target.tables.values():
            while table.name not in state.copied:
                after = state.after.get(table.name)
                with self._source.snapshot() as snapshot:
                    page = table.page(snapshot.connection, None if after is None else tuple(after))
                self._target.add_page(table, page)
                done += len(page)
                self._report("copying", min(done, total), total)

    def _catch_up(self) -> None:
        while True:
            with self._source.snapshot() as snapshot:
                count = self._target.apply(snapshot)
            self._report("following", count, 0)
            if count <= SMALL_LAG:
                return

    def _compare(self) -> dict[str, int]:
        """Compares all rows, and returns the number of rows of each table."""
        tables = [*self._target.tables.values(), self._target.labels]
        with self._source.snapshot() as snapshot:
            total = sum([snapshot.count(it) for it in tables])
        for table in tables:
            keys: list[Key] = []
            while True:
                with self._source.snapshot() as snapshot:
                    keys = self._target.apply_and_compare(snapshot, table, keys[-1] if keys else None)
                if not keys:
                    break
                self._compared += len(keys)
                self._report("comparing", min(self._compared, total), total)
        with self._source.snapshot() as snapshot:
            return self._target.apply_and_count(snapshot, tables)

    def _cut_over(self) -> float:
        """Refuses writes on the source, and finishes the target. Returns the time in between in seconds."""
        started = time.monotonic()
        try:
            self._set_mode(WriteMode.REFUSED)
            with self._source.snapshot() as snapshot:
                self._target.finish(snapshot)
        except CopyDiffers:
            raise
        except BaseException as error:
            self._accept_again(error)
            raise
        return time.monotonic() - started

    def _accept_again(self, error: BaseException) -> None:
        """Lets the source accept writes if the target is certainly not complete.

        Raises:
            CompletionUnknown: The target cannot be read.
        """
        try:
            is_unfinished = self._is_unfinished()
        except (OperatorError, ServiceError):
            raise CompletionUnknown(
                "SOURCE refuses writes, because TARGET failed in the last step and may be complete; run the"
                " command again when TARGET can be reached"
            ) from error
        if is_unfinished:
            self._set_mode(WriteMode.RECORDED)
