"""Connections to PostgreSQL through a pooler in transaction mode."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from store_service.database.connection import Rows
from store_service.database.driver_errors import RetryTransaction, driver_errors, translate_error
from store_service.database.postgresql_connection import PostgresqlConnection, terminate
from store_service.database.sessions import CurrentServer, Server
from store_service.database.statements import Statement
from store_service.errors import DatabaseUnavailable


class PooledConnection(PostgresqlConnection):
    """A connection of asyncpg to a pooler that may give each transaction another session, even of another
    server.

    Every statement runs in a transaction. The statements that begin it apply the settings of sessions, and
    fail on another server than that of the writer (docs/decisions/0051).
    """

    SINGLE_STATEMENT_WRITES = False

    def __init__(
        self,
        raw: Any,
        server: Server,
        current: CurrentServer,
        *,
        response_timeout_seconds: float,
        is_writer: bool,
    ) -> None:
        """Takes the arguments of PostgresqlConnection, and whether the other connections follow this one."""
        super().__init__(raw, server, current, response_timeout_seconds=response_timeout_seconds)
        self._is_writer = is_writer

    async def confirm(self) -> None:
        """Queries the role of the server again, which for the writer may be another one; see Connection."""
        if not self._is_writer:
            await super().confirm()
            return
        try:
            query = self._current.query_role(self._raw, follows_writer=False)
            self._server = await self._with_timeout(query)
        except driver_errors() as error:
            raise translate_error(error) from error
        self._current.check_role(self._server)
        self._current.move_writer(self._server)

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[None]:
        """Runs the statements of a batch in one transaction that only reads, or in several on the same
        server; see Connection."""
        try:
            yield
        finally:
            await self._roll_back()

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        """Lets the statements of the block read the same state; see Connection."""
        # The transaction of earlier reads of the batch has another isolation level.
        await self._roll_back()
        async with super().snapshot():
            yield

    async def _fetch(self, statement: Statement, values: dict[str, Any]) -> Rows:
        if not self._raw.is_in_transaction():
            await self._begin("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
        try:
            return await super()._fetch(statement, values)
        except asyncpg.InvalidCachedStatementError as error:
            # A column has another type. PgBouncer would use the statement of the session again. It closes the
            # session if the connection is lost inside a transaction.
            terminate(self._raw)
            raise DatabaseUnavailable from error

    async def _begin(self, text: str) -> None:
        try:
            await self._execute(self._current.begin(text, self._server))
        except asyncpg.UndefinedObjectError as error:
            await self._roll_back()
            if not self._is_writer:
                # The server of the writer may have been restarted or replaced too.
                await self._current.ask_writer()
            await self.confirm()
            # The whole batch runs again, so that all of it is on one server.
            raise RetryTransaction from error
        except driver_errors() as error:
            raise translate_error(error) from error
