"""One open connection, held by one worker for as long as it lives."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from store_service.database.changes import WriteWithChanges
from store_service.database.driver_errors import DRIVER_ERRORS, StatementCancelled, named
from store_service.database.statements import Statement
from store_service.observability.metrics import Histogram

Rows = Sequence[tuple[Any, ...]]

T = TypeVar("T")


class Connection(ABC):
    """Runs statements on the driver's connection that `databases` opened.

    `databases` would compile every statement anew and, on SQLite, begin transactions that fail at their
    first write instead of waiting, so neither its queries nor its transactions are used.
    """

    BEGIN: str
    """Begins a transaction that writes."""

    BEGIN_INSERT_ONLY: str
    """Begins a transaction that only adds."""

    SINGLE_STATEMENT_WRITES: bool
    """Whether `write` is a transaction by itself."""

    commits: Histogram | None = None
    """Counts how long commits take, if anybody looks."""

    is_wanted = True
    """Whether somebody still waits for what this connection does; `abandon` says no."""

    def __init__(self, raw: Any, *, inside_transaction: bool = False) -> None:
        """Takes an open connection, and whether somebody else began a transaction that all happens in."""
        self._raw = raw
        self._inside_transaction = inside_transaction

    @property
    def is_lost(self) -> bool:
        """Whether it has ended, as far as is known without asking the database, and another can be opened."""
        return False

    @property
    def is_doubtful(self) -> bool:
        """Whether `confirm` is to be called before anything is read, for the database may be another one."""
        return False

    async def confirm(self) -> None:
        """Makes sure that what is read here is what was written.

        Raises:
            DatabaseUnavailable: It is not so.
        """
        return

    async def fetch(self, statement: Statement, **values: Any) -> Rows:
        """Runs a statement with its parameters and returns its rows.

        Outside `transaction` it is on disk when this returns.

        Raises:
            ServiceError: The database is busy, full or unavailable.
            StatementCancelled: `abandon` was called; a transaction is to be undone.
        """
        if not self.is_wanted:
            raise StatementCancelled
        try:
            return await self._fetch(statement, values)
        except DRIVER_ERRORS as error:
            raise named(error) from error

    async def fetch_inline(self, statement: Statement, **values: Any) -> Rows:
        """The same for a handful of rows found by their key: the way there costs more than they do."""
        return await self.fetch(statement, **values)

    async def write(self, write: WriteWithChanges, **values: Any) -> Rows:
        """Runs a write that leaves its changes in the feed, and returns its rows.

        Raises:
            ServiceError: The database is busy, full or unavailable.
        """
        return await self.fetch(write.in_one, **values)

    @abstractmethod
    async def probe(self) -> None:
        """Changes nothing, inside a transaction whose end writes to the disk all the same.

        Raises:
            ServiceError: The database is busy, full or unavailable.
        """

    async def run_in_connection_thread(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs work that waits for nothing but this connection, in as few trips to it as there can be."""
        return await work

    def abandon(self) -> None:
        """Ends the statement that runs, and those that would follow until `is_wanted` is set again.

        COMMIT and ROLLBACK are not ended, so that the connection can be used afterwards.
        """
        if self.is_wanted:
            self.is_wanted = False
            self._interrupt()

    @asynccontextmanager
    async def transaction(self, *, dry_run: bool = False, insert_only: bool = False) -> AsyncIterator[None]:
        """What runs inside is on disk, whole, when this ends; after an error nothing of it is.

        Args:
            dry_run: Roll back also if the block succeeds.
            insert_only: It changes and deletes nothing that is there, and begins with its first `write`.
        """
        begin = self.BEGIN_INSERT_ONLY if insert_only else self.BEGIN
        try:
            await self._run("SAVEPOINT batch" if self._inside_transaction else begin)
        except BaseException:
            # It may have begun, and then waited for something in vain.
            if not self._inside_transaction:
                await self._undo()
            raise
        try:
            yield
            if not dry_run:
                await self._commit()
            else:
                await self._undo()
        except BaseException:
            await self._undo()
            raise

    async def _commit(self) -> None:
        began = time.perf_counter()
        await self._run("RELEASE SAVEPOINT batch" if self._inside_transaction else "COMMIT")
        if self.commits is not None:
            self.commits.observe(time.perf_counter() - began)

    async def _undo(self) -> None:
        if self._inside_transaction:
            await self._run("ROLLBACK TO SAVEPOINT batch")
            await self._run("RELEASE SAVEPOINT batch")
        elif self._in_transaction():
            await self._run("ROLLBACK")

    async def _run(self, text: str) -> None:
        try:
            await self._execute(text)
        except DRIVER_ERRORS as error:
            raise named(error) from error

    @abstractmethod
    async def _fetch(self, statement: Statement, values: dict[str, Any]) -> Rows:
        """Runs a statement on the driver."""

    @abstractmethod
    def _interrupt(self) -> None:
        """Ends the statement that `_fetch` runs, if it runs one, with StatementCancelled."""

    @abstractmethod
    async def _execute(self, text: str) -> None:
        """Runs a text without parameters and rows on the driver."""

    @abstractmethod
    def _in_transaction(self) -> bool:
        """Whether there is a transaction to roll back; databases end some by themselves."""
