"""One open connection, held by one worker for as long as it lives."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from store_service.database.failures import DRIVER_ERRORS, named
from store_service.database.statements import Statement

Rows = Sequence[tuple[Any, ...]]


class Connection(ABC):
    """Runs statements on the driver's connection that `databases` opened.

    `databases` would compile every statement anew and, on SQLite, begin transactions that fail at their
    first write instead of waiting, so neither its queries nor its transactions are used.
    """

    BEGIN: str
    """Begins a transaction that writes."""

    def __init__(self, raw: Any, *, inside_transaction: bool = False) -> None:
        """Takes an open connection, and whether somebody else began a transaction that all happens in."""
        self._raw = raw
        self._inside_transaction = inside_transaction

    async def fetch(self, statement: Statement, **values: Any) -> Rows:
        """Runs a statement with its parameters and returns its rows.

        Outside `transaction` it is on disk when this returns.

        Raises:
            StoreError: The database is busy, full or gone.
        """
        try:
            return await self._fetch(statement, values)
        except DRIVER_ERRORS as error:
            raise named(error) from error

    async def fetch_few(self, statement: Statement, **values: Any) -> Rows:
        """The same for a handful of rows found by their key: the way there costs more than they do."""
        return await self.fetch(statement, **values)

    @asynccontextmanager
    async def transaction(self, *, keep: bool = True) -> AsyncIterator[None]:
        """What runs inside is on disk, whole, when this ends; after an error nothing of it is.

        With `keep=False` nothing of it is kept either way.
        """
        await self._run("SAVEPOINT batch" if self._inside_transaction else self.BEGIN)
        try:
            yield
            if keep:
                await self._run("RELEASE SAVEPOINT batch" if self._inside_transaction else "COMMIT")
            else:
                await self._undo()
        except BaseException:
            await self._undo()
            raise

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
    async def _execute(self, text: str) -> None:
        """Runs a text without parameters and rows on the driver."""

    @abstractmethod
    def _in_transaction(self) -> bool:
        """Whether there is a transaction to roll back; databases end some by themselves."""
