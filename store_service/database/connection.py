"""An open connection, which one queue runner holds until it is closed."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, TypeVar

from store_service.database.change_writes import WriteWithChanges
from store_service.database.driver_errors import StatementCancelled, driver_errors, translate_error
from store_service.database.statements import Statement
from store_service.observability.metrics import Histogram

Rows = Sequence[tuple[Any, ...]]

T = TypeVar("T")

_UNCHANGED = nullcontext()


class Connection(ABC):
    """Runs statements on the driver's connection that `databases` opened.

    `databases` would compile every statement again. On SQLite it would also begin transactions that fail at
    their first write instead of waiting. Therefore neither its queries nor its transactions are used.
    """

    BEGIN: str
    """Begins a transaction that writes."""

    BEGIN_INSERT_ONLY: str
    """Begins a transaction that changes and deletes no existing row."""

    BEGIN_SNAPSHOT: str
    """Begins a transaction whose statements read the same state."""

    SINGLE_STATEMENT_WRITES: bool
    """Whether `write` is a transaction by itself."""

    SEARCHES_IN_ORDER: bool
    """Whether an index for full-text search returns rows in the order of ids."""

    commits: Histogram | None = None
    """Durations of commits; None if metrics are off."""

    xid: int | None = None
    """Number of the transaction of the last `write` on PostgreSQL. `SeenOperations` resets it."""

    timeline: int | None = None
    """The timeline of the server, once `SeenOperations` has read it."""

    has_written = False
    """Whether the current transaction has added changes to the feed. On SQLite, further changes must have the
    same number."""

    is_cancelled = False
    """Whether `cancel` was called for the current batch. The queue runner resets it before each batch."""

    def __init__(self, raw: Any, *, inside_transaction: bool = False) -> None:
        """Takes an open connection, and whether all batches run inside one outer transaction."""
        self._raw = raw
        self._inside_transaction = inside_transaction

    @property
    def is_lost(self) -> bool:
        """Whether the connection is known to be closed, without a query, and may be replaced by a new one."""
        return False

    def on_loss(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when the driver notices that the server has ended the connection. SQLite has no
        server."""
        return

    @property
    def reads_inline(self) -> bool:
        """Whether `fetch_now` may be called."""
        return False

    @property
    def needs_confirmation(self) -> bool:
        """Whether `confirm` has to be called before the next batch, because the server may have changed."""
        return False

    async def confirm(self) -> None:
        """Checks that the connection reads from the server that takes the writes.

        Raises:
            DatabaseUnavailable: It does not.
        """
        return

    async def fetch(self, statement: Statement, **values: Any) -> Rows:
        """Runs a statement with its parameters and returns its rows.

        Outside `transaction`, its changes are on disk when this returns.

        Raises:
            ServiceError: The database is busy, full or unavailable.
            StatementCancelled: `cancel` was called. The transaction must be rolled back.
        """
        if self.is_cancelled:
            raise StatementCancelled
        try:
            return await self._fetch(statement, values)
        except driver_errors() as error:
            raise translate_error(error) from error

    async def fetch_inline(self, statement: Statement, **values: Any) -> Rows:
        """Same as `fetch`, for a few rows that are found by key. On SQLite it avoids the switch to the
        connection's thread, which costs more than the statement."""
        return await self.fetch(statement, **values)

    def fetch_now(self, statement: Statement, **values: Any) -> Rows:
        """Same as `fetch_inline` without waiting, on an idle connection that `reads_inline`.

        Raises:
            ServiceError: The database is unavailable.
        """
        raise RuntimeError("this connection cannot read without waiting")

    async def write(self, write: WriteWithChanges, **values: Any) -> Rows:
        """Runs a write that adds its changes to the change feed, and returns its rows.

        Raises:
            ServiceError: The database is busy, full or unavailable.
        """
        return await self.fetch(write.in_one, **values)

    @abstractmethod
    async def probe(self) -> None:
        """Changes nothing, but makes the end of the current transaction write to the disk.

        Raises:
            ServiceError: The database is busy, full or unavailable.
        """

    async def rewrite(self) -> None:
        """Rewrites the database without what is in its free space. Outside of a transaction. Does nothing on
        PostgreSQL, which does so itself (autovacuum).

        Raises:
            ServiceError: The database is busy, full or unavailable.
        """
        return

    async def empty_log(self) -> bool:
        """Moves the log into the database, and empties it. Outside of a transaction. Does nothing on
        PostgreSQL.

        Returns:
            False if another connection reads from the log, which then still has its content.
        """
        return True

    async def run_in_connection_thread(self, job: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine that waits only for this connection, with as few thread switches as possible."""
        return await job

    def cancel(self) -> None:
        """Cancels the running statement, and all further statements until `is_cancelled` is reset.

        COMMIT and ROLLBACK are not cancelled, so the connection stays usable.
        """
        if not self.is_cancelled:
            self.is_cancelled = True
            self._interrupt()

    async def run_transaction(
        self, run: Callable[[], Awaitable[None]], *, dry_run: bool = False, insert_only: bool = False
    ) -> None:
        """Runs a function in a transaction. It is committed and on disk when this returns, and rolled back
        after an error.

        Args:
            run: The function.
            dry_run: Roll back also if the function succeeds.
            insert_only: It changes and deletes no existing row, and starts with its first `write`.
        """
        self.has_written = False
        try:
            if self._inside_transaction:
                await self._run("SAVEPOINT batch")
            else:
                await self._begin(self.BEGIN_INSERT_ONLY if insert_only else self.BEGIN)
        except BaseException:
            # The transaction may have begun before the wait for the order lock failed.
            if not self._inside_transaction:
                await self._roll_back()
            raise
        try:
            await run()
            if not dry_run:
                await self._commit()
            else:
                await self._roll_back()
        except BaseException:
            await self._roll_back()
            raise

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        """Lets the statements of the block read the same state. Only on a connection that reads."""
        if self._inside_transaction:
            # Nothing else runs on the only connection.
            yield
            return
        await self._begin(self.BEGIN_SNAPSHOT)
        try:
            yield
        finally:
            await self._roll_back()

    def autocommit(self) -> AbstractAsyncContextManager[None]:
        """Surrounds the statements of a batch outside of `transaction`."""
        return _UNCHANGED

    async def _begin(self, text: str) -> None:
        """Runs statements of which the first begins a transaction."""
        await self._run(text)

    async def _commit(self) -> None:
        began = time.perf_counter()
        await self._run("RELEASE SAVEPOINT batch" if self._inside_transaction else "COMMIT")
        if self.commits is not None:
            self.commits.observe(time.perf_counter() - began)

    async def _roll_back(self) -> None:
        if self._inside_transaction:
            await self._run("ROLLBACK TO SAVEPOINT batch")
            await self._run("RELEASE SAVEPOINT batch")
        elif self._in_transaction():
            await self._run("ROLLBACK")

    async def _run(self, text: str) -> None:
        try:
            await self._execute(text)
        except driver_errors() as error:
            raise translate_error(error) from error

    @abstractmethod
    async def _fetch(self, statement: Statement, values: dict[str, Any]) -> Rows:
        """Runs a statement with the driver and returns its rows."""

    @abstractmethod
    def _interrupt(self) -> None:
        """Makes the statement that `_fetch` is running, if any, end with StatementCancelled."""

    @abstractmethod
    async def _execute(self, text: str) -> None:
        """Runs SQL that has no parameters and returns no rows."""

    @abstractmethod
    def _in_transaction(self) -> bool:
        """Whether there is a transaction to roll back. Databases end some transactions themselves."""
