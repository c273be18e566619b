"""Connections to SQLite."""

import json
import sqlite3
import time
from collections.abc import Coroutine
from typing import Any

from sqlalchemy import text

from store_service.database.change_writes import WriteWithChanges
from store_service.database.changes import LAST_XID
from store_service.database.connection import Connection, Rows, T
from store_service.database.driver_errors import translate_error
from store_service.database.statements import Statement, as_json

PROGRESS_STEPS = 50_000
"""Steps of SQLite's virtual machine between two checks for cancellation; they take less than 1 ms."""

SLOW_SECONDS = 0.002
"""A read on the event loop that takes longer has waited for the disk. The next ones run in the connection's
thread."""

SLOW_RATIO = 50.0
"""How long reads run in the thread after a slow one, as a multiple of its duration. So slow reads block the
event loop for at most 2 % of the time, and a single one, while the processor was busy, has little effect."""

_USER_VERSION = Statement(text("PRAGMA user_version"))
"""An unused number in the first page. SQLite writes the page even if the number is unchanged."""


LOG_WAIT_MILLISECONDS = 200
"""How long `empty_log` waits for readers."""

_BUSY_TIMEOUT = Statement(text("PRAGMA busy_timeout"))
_EMPTY_LOG = Statement(text("PRAGMA wal_checkpoint(TRUNCATE)"))


class SqliteConnection(Connection):
    """A connection of aiosqlite."""

    # A deferred transaction fails at its first write instead of waiting, so writers begin an immediate one.
    BEGIN = "BEGIN IMMEDIATE"
    BEGIN_INSERT_ONLY = BEGIN
    BEGIN_SNAPSHOT = "BEGIN"
    SINGLE_STATEMENT_WRITES = False
    SEARCHES_IN_ORDER = True

    _slow_until = 0.0
    """When reads on the event loop may be tried again, as time.perf_counter()."""

    _is_in_thread = False
    """Whether `run_in_connection_thread` is running, so that the current code runs in that thread."""

    async def enable_cancellation(self) -> None:
        """Makes SQLite check `is_cancelled` while it runs a statement."""
        await self._raw.set_progress_handler(lambda: self.is_cancelled, PROGRESS_STEPS)

    async def write(self, write: WriteWithChanges, **values: Any) -> Rows:
        """Runs the steps of a write, one of which adds its changes to the feed, in one transaction."""
        xid = None
        if self.has_written:
            ((xid,),) = await self.fetch(LAST_XID)
        self.has_written = True
        first, *others = write.steps
        if write.new_ids is not None:
            ((last_id,),) = await self.fetch(write.new_ids.last)
            await self.fetch(first, xid=xid, **values)
            ((values["written"],),) = await self.fetch(write.new_ids.above, last_id=last_id)
            rows: Rows = [(id,) for id in json.loads(values["written"])]
        else:
            rows = sorted(await self.fetch(first, xid=xid, **values))
            if rows:
                values |= {"written": as_json([id for (id,) in rows]), "written_id": rows[-1][0]}
        for step in others:
            await self.fetch(step, xid=xid, **values)
        return rows

    async def probe(self) -> None:
        """Writes the first page unchanged; see Connection."""
        ((version,),) = await self.fetch(_USER_VERSION)
        await self._run(f"PRAGMA user_version = {version}")

    async def rewrite(self) -> None:
        """Runs VACUUM; see Connection."""
        await self._run("VACUUM")

    async def empty_log(self) -> bool:
        """Runs a checkpoint; see Connection."""
        ((wait_milliseconds,),) = await self.fetch(_BUSY_TIMEOUT)
        # Writers wait for this job. A reader that stays for longer does not end within a longer wait either.
        await self._run(f"PRAGMA busy_timeout = {LOG_WAIT_MILLISECONDS}")
        try:
            ((is_blocked, _, _),) = await self.fetch(_EMPTY_LOG)
        finally:
            await self._run(f"PRAGMA busy_timeout = {wait_milliseconds}")
        return not is_blocked

    async def run_in_connection_thread(self, job: Coroutine[Any, Any, T]) -> T:
        """Runs the whole coroutine in the connection's thread.

        It needs one thread switch, not one for each statement (docs/decisions/0010).
        """
        outcome: T = await self._raw._execute(self._run_to_completion, job)
        return outcome

    def _run_to_completion(self, job: Coroutine[Any, Any, T]) -> T:
        self._is_in_thread = True
        error = RuntimeError("a job waited for something other than its connection")
        try:
            job.send(None)
            # The coroutine is suspended. The error is raised there, so that it rolls back.
            job.throw(error)
        except StopIteration as ended:
            outcome: T = ended.value
            return outcome
        finally:
            self._is_in_thread = False
        raise error

    async def _fetch(self, statement: Statement, values: dict[str, Any]) -> Rows:
        text, arguments = statement.on("sqlite", values)
        if self._is_in_thread:
            return self._rows(text, arguments)
        rows: Rows = await self._raw.execute_fetchall(text, arguments)
        return rows

    @property
    def reads_inline(self) -> bool:
        """Whether the last reads on the event loop were fast."""
        return time.perf_counter() >= self._slow_until and not self._is_in_thread

    async def fetch_inline(self, statement: Statement, **values: Any) -> Rows:
        """Reads on the event loop, unless the last reads were slow.

        A row in the page cache takes a few microseconds, a switch to the connection's thread 200
        (docs/decisions/0009). Nothing else uses the connection meanwhile: its queue runner waits here.
        """
        if self.reads_inline:
            return self.fetch_now(statement, **values)
        return await self.fetch(statement, **values)

    def fetch_now(self, statement: Statement, **values: Any) -> Rows:
        """Reads on the event loop; see Connection."""
        started = time.perf_counter()
        text, arguments = statement.on("sqlite", values)
        try:
            rows = self._rows(text, arguments)
        except sqlite3.Error as error:
            raise translate_error(error) from error
        seconds = time.perf_counter() - started
        if seconds > SLOW_SECONDS:
            self._slow_until = started + SLOW_RATIO * seconds
        return rows

    async def _execute(self, text: str) -> None:
        if self._is_in_thread:
            self._rows(text, [])
        else:
            await self._raw.execute_fetchall(text)

    def _interrupt(self) -> None:
        """Does nothing: SQLite checks `is_cancelled` itself. sqlite3_interrupt would miss a statement that
        has not reached the thread yet."""

    def _rows(self, text: str, arguments: list[Any]) -> Rows:
        rows: Rows = self._raw._conn.execute(text, arguments).fetchall()
        return rows

    def _in_transaction(self) -> bool:
        in_transaction: bool = self._raw.in_transaction
        return in_transaction
