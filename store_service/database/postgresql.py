"""Opens a PostgreSQL database: any number of processes, with a few connections each."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

from databases import Database

from store_service.database.batch_operation import BatchOperation
from store_service.database.batch_queue import Backend, BatchQueue
from store_service.database.connection import Connection
from store_service.database.driver_errors import NotificationsUnavailable, driver_errors, translate_error
from store_service.database.move_check import MoveCheck
from store_service.database.pooled_connection import PooledConnection
from store_service.database.postgresql_connection import PostgresqlConnection, terminate
from store_service.database.postgresql_pools import find_connection, pool, translated_errors
from store_service.database.sessions import CurrentServer, Server
from store_service.database_url import parse
from store_service.errors import OperatorError, ServiceError
from store_service.observability.batches import ObserverFactory, without_observer

SLACK_SECONDS = 5.0
"""Time after the statement timeout of PostgreSQL in which a response may still arrive."""

ELSEWHERE_SECONDS = 0.05
"""Pause before a reader that has reached another server than the writer connects again."""

IDLE_IN_TRANSACTION_SECONDS = 10
"""Time after which PostgreSQL ends an idle transaction of the service and releases its locks."""

STATEMENT_CACHE_SIZE = 100
"""Default of the maximum number of prepared statements of a session: the default of asyncpg."""

PLANNER_SETTINGS = {
    "enable_incremental_sort": "off",
    "enable_sort": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
}
"""Every list has an index in its order. If the planner estimates the rows of a post wrongly, it would
otherwise read all of them by another index and sort them for each page. Compiling a statement takes longer
than reading a page."""


class UnsuitablePooler(OperatorError):
    """A pooler does not preserve what a setting requires."""


@asynccontextmanager
async def open_backend(
    database_url: str,
    *,
    direct_url: str = "",
    statement_cache_size: int = -1,
    readers: int,
    lock_timeout_seconds: float,
    statement_timeout_seconds: float,
    connect_timeout_seconds: float,
    force_roll_back: bool,
    read_only: bool = False,
    observe: ObserverFactory = without_observer,
) -> AsyncIterator[Backend]:
    """Opens the batch queues of the writer and the readers. With `force_roll_back` they are the same queue.

    Raises:
        ServiceError: The database cannot be reached, or no server has the required role.
        UnsuitablePooler: A pooler does not preserve what a setting requires.
    """
    current = CurrentServer(
        read_only=read_only,
        settings={
            "statement_timeout": _milliseconds(statement_timeout_seconds),
            "lock_timeout": _milliseconds(lock_timeout_seconds),
            # Other levels take their snapshot before the order lock, and would not see a deletion.
            "default_transaction_isolation": "read committed",
            # The outer transaction of `force_roll_back` is idle without calls; 0 means no limit.
            "idle_in_transaction_session_timeout": 0
            if force_roll_back
            else _milliseconds(IDLE_IN_TRANSACTION_SECONDS),
            **PLANNER_SETTINGS,
        },
    )
    async with AsyncExitStack() as stack:
        found = await find_connection(database_url, current, connect_timeout_seconds)
        pooling = found.pooling
        if statement_cache_size < 0:
            statement_cache_size = STATEMENT_CACHE_SIZE if pooling.keeps_statements else 0
        elif statement_cache_size and not pooling.keeps_statements:
            raise UnsuitablePooler(
                f"STORE_STATEMENT_CACHE_SIZE must be 0: the connection to PostgreSQL is {pooling}"
            )
        # The one transaction of `force_roll_back` keeps its session.
        current.per_transaction = pooling.per_transaction and not force_roll_back
        database = await stack.enter_async_context(
            pool(
                found,
                max_size=readers + 2,
                force_rollback=force_roll_back,
                statement_cache_size=statement_cache_size,
            )
        )
        moves = MoveCheck(parse(database_url), found.options, current)
        stack.push_async_callback(moves.close)
        sessions = _Sessions(
            database,
            current,
            moves,
            connect_timeout_seconds=connect_timeout_seconds,
            response_timeout_seconds=statement_timeout_seconds + lock_timeout_seconds + SLACK_SECONDS,
        )

        if force_roll_back:
            queue = BatchQueue(
                "worker", sessions.shared, connections=1, writes=True, observer=observe("worker")
            )
            await stack.enter_async_context(queue.running())
            yield Backend(queue, queue, pooling=str(pooling))
            return

        listen = _no_notifications if pooling.per_transaction else sessions.listen
        if direct_url:
            direct = await find_connection(direct_url, current, connect_timeout_seconds)
            if direct.pooling.per_transaction:
                raise UnsuitablePooler(f"DATABASE_DIRECT_URL must not lead to {direct.pooling}")
            listen = sessions.on(await stack.enter_async_context(pool(direct, max_size=1))).listen

        writer = BatchQueue("writer", sessions.writer, connections=1, writes=True, observer=observe("writer"))
        await stack.enter_async_context(writer.running())
        current.ask_writer = partial(writer.execute, _NOTHING, None)
        reader = BatchQueue(
            "reader", sessions.reader, connections=readers, writes=False, observer=observe("reader")
        )
        await stack.enter_async_context(reader.running())
        yield Backend(writer, reader, listen, pooling=str(pooling))


async def _do_nothing(connection: Connection, calls: Sequence[None]) -> Sequence[None]:
    return calls


_NOTHING: BatchOperation[None, None] = BatchOperation(_do_nothing, insert_only=True)
"""An empty transaction."""


async def _no_notifications(_: Callable[[], None]) -> None:
    raise NotificationsUnavailable


class _Sessions:
    """Opens the sessions of the queue runners, each on the required server."""

    def __init__(
        self,
        database: Database,
        current: CurrentServer,
        moves: MoveCheck,
        *,
        connect_timeout_seconds: float,
        response_timeout_seconds: float,
    ) -> None:
        self._database = database
        self._current = current
        self._moves = moves
        self._connect_timeout_seconds = connect_timeout_seconds
        self._response_timeout_seconds = response_timeout_seconds

    def on(self, database: Database) -> "_Sessions":
        """Returns the same for connections of another pool."""
        return _Sessions(
            database,
            self._current,
            self._moves,
            connect_timeout_seconds=self._connect_timeout_seconds,
            response_timeout_seconds=self._response_timeout_seconds,
        )

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[PostgresqlConnection]:
        """Opens the session of the writer. Its server becomes the current server."""
        async with self._opened() as (raw, server):
            with self._current.writer_on(server):
                yield self._connection(raw, server, is_writer=True)

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[PostgresqlConnection]:
        """Opens a session on the server of the writer."""
        async with self._opened(follows_writer=True) as (raw, server):
            yield self._connection(raw, server)

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[PostgresqlConnection]:
        """Opens the session of `force_rollback`, which has one outer transaction."""
        async with self._opened(is_shared=True) as (raw, server):
            yield PostgresqlConnection(
                raw,
                server,
                self._current,
                response_timeout_seconds=self._response_timeout_seconds,
                inside_transaction=True,
            )

    async def listen(self, callback: Callable[[], None]) -> None:
        """Calls `callback` whenever any process has committed changes. Returns when it must be called again.

        Raises:
            DatabaseUnavailable: The database cannot be reached.
            NotificationsUnavailable: The server is a standby.
        """
        async with self.reader() as connection:
            try:
                await connection.listen(callback)
            except driver_errors() as error:
                raise translate_error(error) from error

    def _connection(self, raw: Any, server: Server, *, is_writer: bool = False) -> PostgresqlConnection:
        if self._current.per_transaction:
            return PooledConnection(
                raw,
                server,
                self._current,
                response_timeout_seconds=self._response_timeout_seconds,
                is_writer=is_writer,
            )
        return PostgresqlConnection(
            raw,
            server,
            self._current,
            response_timeout_seconds=self._response_timeout_seconds,
            on_wait=self._moves.start,
        )

    @asynccontextmanager
    async def _opened(
        self, *, follows_writer: bool = False, is_shared: bool = False
    ) -> AsyncIterator[tuple[Any, Server]]:
        """Holds one connection of `databases` until the end of the block. Checks the role of its server.

        An error in the block terminates the session, because the pool would return the same session again.
        The session of `force_rollback` is not terminated.
        """
        deadline = asyncio.get_running_loop().time() + self._connect_timeout_seconds
        while True:
            async with AsyncExitStack() as stack:
                raw, server = await self._acquired(stack, follows_writer=follows_writer, is_shared=is_shared)
                if not (follows_writer and self._current.is_other_server(server)):
                    self._current.check_role(server)
                    with self._moves.includes(raw, server):
                        yield raw, server
                    return
                terminate(raw)
            if asyncio.get_running_loop().time() > deadline:
                self._current.check(server)
            # An idle writer does not notice that its server was restarted or replaced.
            with suppress(ServiceError):
                await self._current.ask_writer()
            # If the host name resolves to several servers in turn, the next one may be the right one.
            await asyncio.sleep(ELSEWHERE_SECONDS)

    async def _acquired(
        self, stack: AsyncExitStack, *, follows_writer: bool, is_shared: bool
    ) -> tuple[Any, Server]:
        with translated_errors():
            # The pool of asyncpg has no timeout of its own.
            async with asyncio.timeout(self._connect_timeout_seconds):
                connection = await stack.enter_async_context(self._database.connection())
                raw = connection.raw_connection
                if not is_shared:
                    stack.push(partial(_terminate_after_error, raw))
                return raw, await self._current.query_role(raw, follows_writer=follows_writer)


def _terminate_after_error(raw: Any, error: type[BaseException] | None, *_: object) -> None:
    if error is not None:
        terminate(raw)


def _milliseconds(seconds: float) -> int:
    # At least 1, because 0 means no limit.
    return max(1, round(seconds * 1000))
