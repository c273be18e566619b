"""One open connection, held by one worker for as long as it lives."""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite

from store_service.database.failures import named
from store_service.database.statements import Statement

Rows = Sequence[tuple[Any, ...]]


class Connection:
    """Runs statements on the driver's connection that `databases` opened.

    `databases` would compile every statement anew and begin transactions that fail at their first
    write instead of waiting, so neither its queries nor its transactions are used.
    """

    def __init__(self, raw: aiosqlite.Connection, *, inside_transaction: bool) -> None:
        """Takes an open connection, and whether somebody else began a transaction that all happens in."""
        self._raw = raw
        self._inside_transaction = inside_transaction

    async def fetch(self, statement: Statement, **values: Any) -> Rows:
        """Runs a statement with its parameters and returns its rows.

        Outside `transaction` it is on disk when this returns.

        Raises:
            StoreError: The database is busy, full or gone.
        """
        text, arguments = statement.for_sqlite(values)
        try:
            return await self._raw.execute_fetchall(text, arguments)  # type: ignore[return-value]  # tuples
        except sqlite3.Error as error:
            raise named(error) from error

    @asynccontextmanager
    async def transaction(self, *, keep: bool = True) -> AsyncIterator[None]:
        """What runs inside is on disk, whole, when this ends; after an error nothing of it is.

        With `keep=False` nothing of it is kept either way.
        """
        # A deferred transaction fails at its first write instead of waiting, so writers say so first.
        await self._run("SAVEPOINT batch" if self._inside_transaction else "BEGIN IMMEDIATE")
        try:
            yield
            if keep:
                await self._run("RELEASE batch" if self._inside_transaction else "COMMIT")
            else:
                await self._undo()
        except BaseException:
            await self._undo()
            raise

    async def _undo(self) -> None:
        if self._inside_transaction:
            await self._run("ROLLBACK TO batch")
            await self._run("RELEASE batch")
        elif self._raw.in_transaction:  # SQLite has rolled back by itself after a full disk, say
            await self._run("ROLLBACK")

    async def _run(self, text: str) -> None:
        try:
            await self._raw.execute_fetchall(text)
        except sqlite3.Error as error:
            raise named(error) from error
