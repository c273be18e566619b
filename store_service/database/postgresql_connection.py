"""Connections to PostgreSQL."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from store_service.database.change_writes import ORDER_LOCK, WriteWithChanges
from store_service.database.changes import LOCKED_FEED
from store_service.database.connection import Connection, Rows
from store_service.database.driver_errors import (
    NotificationsUnavailable,
    StatementCancelled,
    driver_errors,
    translate_error,
)
from store_service.database.sessions import CurrentServer, Server
from store_service.database.statements import Statement

CHANNEL = "store_changes"
"""The channel that a trigger notifies of each insert into the change feed."""

WAIT_SECONDS = 2.0
"""Interval of the calls of `on_wait` during a wait for a response."""

T = TypeVar("T")


class PostgresqlConnection(Connection):
    """A connection of asyncpg."""

    # The order lock comes first. PostgreSQL numbers a transaction when it first writes or locks a row. If the
    # transaction then waited for another one, its changes would come before those of the other one.
    BEGIN = f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({ORDER_LOCK})"
    BEGIN_INSERT_ONLY = (
        f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock_shared({ORDER_LOCK})"
    )
    BEGIN_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    SINGLE_STATEMENT_WRITES = True
    SEARCHES_IN_ORDER = False

    _fetching: asyncio.Task[Any] | None = None
    """The task that waits for rows; None if there is none or it must not be cancelled."""

    _is_autocommit = False
    """Whether the running statement is a transaction of its own."""

    def __init__(
        self,
        raw: Any,
        server: Server,
        current: CurrentServer,
        *,
        response_timeout_seconds: float,
        on_wait: Callable[[], None] = lambda: None,
        inside_transaction: bool = False,
    ) -> None:
        """Takes an open connection, its server, and the server of the writer.

        Args:
            raw: A connection of asyncpg.
            server: Its server.
            current: The server of the writer.
            response_timeout_seconds: Time without a response after which the connection counts as lost.
            on_wait: A callback that runs every WAIT_SECONDS until the server responds.
            inside_transaction: All batches run inside one outer transaction.
        """
        super().__init__(raw, inside_transaction=inside_transaction)
        self._server = server
        self._current = current
        self._response_timeout_seconds = response_timeout_seconds
        self._on_wait = on_wait
        self._timer: asyncio.TimerHandle

    @property
    def is_lost(self) -> bool:
        """Whether the session is known to have ended; see Connection."""
        if self._inside_transaction:
            # A new connection would be in the same outer transaction.
            return False
        try:
            is_closed: bool = self._raw.is_closed()
        except driver_errors():
            # The pool has already taken the connection back.
            return True
        return is_closed

    def on_loss(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when the session has ended; see Connection."""
        self._raw.add_termination_listener(lambda _: callback())

    @property
    def needs_confirmation(self) -> bool:
        """Whether the writer may be on another server by now; see Connection."""
        return self._server.generation != self._current.generation and not self._inside_transaction

    async def confirm(self) -> None:
        """Queries the role of the server again; see Connection."""
        try:
            self._server = await self._with_timeout(self._current.query_role(self._raw))
        except driver_errors() as error:
            raise translate_error(error) from error
        self._current.check(self._server)

    async def _fetch(self, statement: Statement, values: dict[str, Any]) -> Rows:
        text, arguments = statement.on("postgresql", values)
        self._fetching = None if self._is_autocommit else asyncio.current_task()
        try:
            rows: Rows = await self._with_timeout(self._raw.fetch(text, *arguments))
        except asyncio.CancelledError:
            if not self.is_cancelled or self._fetching is None:
                raise
            self._fetching.uncancel()
            raise StatementCancelled from None
        finally:
            self._fetching = None
        return rows

    def _interrupt(self) -> None:
        if self._fetching is not None:
            # asyncpg then sends a cancel request, and waits for its effect before the next statement.
            self._fetching.cancel()

    async def _execute(self, text: str) -> None:
        await self._with_timeout(self._raw.execute(text))

    async def write(self, write: WriteWithChanges, **values: Any) -> Rows:
        """Runs a write that adds its changes to the change feed; see Connection.

        Outside a transaction the statement is a transaction by itself, and `cancel` does not cancel it: while
        PostgreSQL waits for a synchronous standby, a cancelled commit takes effect on this server alone.
        """
        self._is_autocommit = not self._raw.is_in_transaction()
        try:
            rows = await super().write(write, **values)
            if rows:
                self.xid = rows[-1][-1]
            return rows
        finally:
            self._is_autocommit = False

    async def probe(self) -> None:
        """Locks the one row of the feed, which PostgreSQL writes to its log; see Connection."""
        await self.fetch(LOCKED_FEED)

    async def _with_timeout(self, call: Coroutine[Any, Any, T]) -> T:
        """Waits for a response of the server, and terminates the session if there is none in time.

        A host that has failed sends nothing. The session is not closed gracefully, because that would wait
        for a response again, and a cancelled commit may still take effect (docs/decisions/0018).
        """
        self._wait(self._response_timeout_seconds)
        try:
            return await call
        finally:
            self._timer.cancel()

    def _wait(self, seconds: float) -> None:
        step = min(seconds, WAIT_SECONDS)
        self._timer = asyncio.get_running_loop().call_later(step, self._waited, seconds - step)

    def _waited(self, seconds_left: float) -> None:
        if seconds_left:
            self._on_wait()
            self._wait(seconds_left)
        else:
            terminate(self._raw)

    async def listen(self, callback: Callable[[], None]) -> None:
        """Calls `callback` whenever changes are committed. Returns when another connection has to listen.

        Raises:
            NotificationsUnavailable: The server is a standby.
        """
        if self._server.is_standby:
            raise NotificationsUnavailable
        lost = asyncio.Event()
        self._raw.add_termination_listener(lambda _: lost.set())
        try:
            with self._current.on_move(lost.set):
                await self._raw.add_listener(CHANNEL, lambda *_: callback())
                # Earlier writes have sent no notification to this session.
                callback()
                # The writer may have moved to another server before `on_move` was called.
                if not self.needs_confirmation:
                    await lost.wait()
        finally:
            # The pool does not take back a session that listens.
            terminate(self._raw)

    def _in_transaction(self) -> bool:
        # A lost connection has nothing to roll back, and the error to report is the loss.
        try:
            return not self._raw.is_closed() and self._raw.is_in_transaction()
        except driver_errors():
            # The pool has already taken the connection back.
            return False


def terminate(raw: Any) -> None:
    """Closes a connection of asyncpg without waiting for the server."""
    # The pool may have taken it back already.
    with suppress(*driver_errors()):
        raw.terminate()
