"""PostgreSQL: any number of processes, a few connections each."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from databases import Database

from store_service.database.batch_queue import Backend, BatchQueue
from store_service.database.changes import LOCKED_FEED, ORDER_LOCK, WriteWithChanges
from store_service.database.connection import Connection, Rows
from store_service.database.driver_errors import (
    DRIVER_ERRORS,
    NotificationsUnavailable,
    StatementCancelled,
    named,
)
from store_service.database.sessions import CurrentServer, Hosts, Server, refuse_transaction_pooling
from store_service.database.statements import Statement
from store_service.database_url import PostgresqlUrl, parse
from store_service.errors import DatabaseUnavailable
from store_service.observability.batches import ObserverFactory, without_observer

CHANNEL = "store_changes"
"""Where a trigger tells of every insert into the change feed."""

SLACK_SECONDS = 5.0
"""PostgreSQL ends a statement after its time; an answer that is so much later will never come."""

ELSEWHERE_SECONDS = 0.05
"""Pause before a session that has reached another server than the one that writes is opened again."""

IDLE_IN_TRANSACTION_SECONDS = 10
"""PostgreSQL ends a transaction of ours that does nothing for so long, and frees its locks."""


T = TypeVar("T")


class PostgresqlConnection(Connection):
    """A connection of asyncpg."""

    # Locked before anything else: PostgreSQL numbers a transaction when it first writes or locks a row, and
    # one that then waits for another would be told of before it.
    BEGIN = f"BEGIN; SELECT pg_advisory_xact_lock({ORDER_LOCK})"
    BEGIN_INSERT_ONLY = f"BEGIN; SELECT pg_advisory_xact_lock_shared({ORDER_LOCK})"
    SINGLE_STATEMENT_WRITES = True

    _fetching: asyncio.Task[Any] | None = None
    """The task that waits for rows, if one does that may be interrupted."""

    _commits_itself = False
    """Whether the running statement is a transaction of its own."""

    def __init__(
        self,
        raw: Any,
        server: Server,
        current: CurrentServer,
        *,
        longest_seconds: float,
        inside_transaction: bool = False,
    ) -> None:
        """Takes an open connection, its server and that of the writer, after how long it counts as lost, and
        whether all is one transaction."""
        super().__init__(raw, inside_transaction=inside_transaction)
        self._server = server
        self._current = current
        self._longest_seconds = longest_seconds

    @property
    def is_lost(self) -> bool:
        """Whether the server has ended the session, as far as we have heard; see Connection."""
        if self._inside_transaction:
            # Another would be inside the same one.
            return False
        try:
            is_closed: bool = self._raw.is_closed()
        except DRIVER_ERRORS:
            # The pool has already taken it back.
            return True
        return is_closed

    @property
    def is_doubtful(self) -> bool:
        """Whether its server may no longer be the right one; see Connection."""
        return self._server.generation != self._current.generation and not self._inside_transaction

    async def confirm(self) -> None:
        """Asks the server for its role again; see Connection."""
        try:
            self._server = await self._answered(self._current.ask(self._raw))
        except DRIVER_ERRORS as error:
            raise named(error) from error
        self._current.check(self._server)

    async def _fetch(self, statement: Statement, values: dict[str, Any]) -> Rows:
        text, arguments = statement.on("postgresql", values)
        self._fetching = None if self._commits_itself else asyncio.current_task()
        try:
            rows: Rows = await self._answered(self._raw.fetch(text, *arguments))
        except asyncio.CancelledError:
            if self.is_wanted or self._fetching is None:
                raise
            self._fetching.uncancel()
            raise StatementCancelled from None
        finally:
            self._fetching = None
        return rows

    def _interrupt(self) -> None:
        if self._fetching is not None:
            # asyncpg then asks the server to cancel the statement, and waits until it has before the next.
            self._fetching.cancel()

    async def _execute(self, text: str) -> None:
        await self._answered(self._raw.execute(text))

    async def write(self, write: WriteWithChanges, **values: Any) -> Rows:
        """Runs a write that leaves its changes in the feed; see Connection.

        Outside of a transaction it is one, and `abandon` does not end it: PostgreSQL would commit it on this
        server alone when it is cancelled while it waits for a synchronous standby.
        """
        self._commits_itself = not self._raw.is_in_transaction()
        try:
            return await super().write(write, **values)
        finally:
            self._commits_itself = False

    async def probe(self) -> None:
        """Locks the one row of the feed, which is written down as a change is; see Connection."""
        await self.fetch(LOCKED_FEED)

    async def _answered(self, call: Coroutine[Any, Any, T]) -> T:
        """Waits for the server's answer, but not for that of a host that is gone, which tells nobody.

        The session is then ended, and nothing cancelled: to end it politely would mean to wait for an answer
        again, and a commit that is cancelled happens all the same (docs/decisions/0018).
        """
        timer = asyncio.get_running_loop().call_later(self._longest_seconds, _end, self._raw)
        try:
            return await call
        finally:
            timer.cancel()

    async def listen(self, heard: Callable[[], None]) -> None:
        """Calls `heard` whenever changes are committed; returns when it should listen on another connection.

        Raises:
            NotificationsUnavailable: The server is a standby.
        """
        if self._server.is_standby:
            raise NotificationsUnavailable
        lost = asyncio.Event()
        self._raw.add_termination_listener(lambda _: lost.set())
        try:
            with self._current.told_of_moves(lost.set):
                await self._raw.add_listener(CHANNEL, lambda *_: heard())
                # No notification was sent for earlier writes.
                heard()
                # The server that takes the writes may have changed before `told_of_moves`.
                if not self.is_doubtful:
                    await lost.wait()
        finally:
            # The pool takes back no session that listens.
            _end(self._raw)

    def _in_transaction(self) -> bool:
        # A connection that was lost has nothing to roll back, and its loss is what should be reported.
        try:
            return not self._raw.is_closed() and self._raw.is_in_transaction()
        except DRIVER_ERRORS:
            # The pool has already taken it back.
            return False


@asynccontextmanager
async def open_backend(
    database_url: str,
    *,
    readers: int,
    lock_timeout_seconds: float,
    statement_timeout_seconds: float,
    connect_timeout_seconds: float,
    force_roll_back: bool,
    read_only: bool = False,
    observe: ObserverFactory = without_observer,
) -> AsyncIterator[Backend]:
    """The lane to write and the lane to read; one and the same with `force_roll_back`.

    Raises:
        ServiceError: The database cannot be reached, or not on a server that may serve us.
    """
    url = parse(database_url)
    try:
        tls = _tls(url)
    except OSError as error:  # a file is missing, or holds something else
        raise DatabaseUnavailable from error
    current = CurrentServer(
        read_only=read_only,
        settings={
            "statement_timeout": _milliseconds(statement_timeout_seconds),
            "lock_timeout": _milliseconds(lock_timeout_seconds),
            # Another level takes its snapshot before the order lock, and would not see a deletion.
            "default_transaction_isolation": "read committed",
            # The one transaction of `force_roll_back` is idle when there are no calls; 0 is no limit.
            "idle_in_transaction_session_timeout": 0
            if force_roll_back
            else _milliseconds(IDLE_IN_TRANSACTION_SECONDS),
        },
    )
    hosts = Hosts(url, current, seconds=connect_timeout_seconds)
    options = {
        **url.login,
        "ssl": tls or False,
        "server_settings": {"application_name": "store-service"},
    }
    async with AsyncExitStack() as stack:
        try:
            await _refuse_transaction_pooling(hosts, options)
            database = Database(
                "postgresql://",
                force_rollback=force_roll_back,
                min_size=0,
                max_size=readers + 2,
                connect=hosts.connect,
                **options,
            )
            await stack.enter_async_context(database)
        # A refused certificate is also a ValueError, which `named` would treat as a bug.
        except (TimeoutError, ssl.SSLCertVerificationError) as error:
            raise DatabaseUnavailable from error
        except DRIVER_ERRORS as error:
            raise named(error) from error
        sessions = _Sessions(
            database,
            current,
            connect_timeout_seconds=connect_timeout_seconds,
            longest_seconds=statement_timeout_seconds + lock_timeout_seconds + SLACK_SECONDS,
        )

        if force_roll_back:
            lane = BatchQueue(
                "worker", sessions.global_one, workers=1, writes=True, observer=observe("worker")
            )
            await stack.enter_async_context(lane.running())
            yield Backend(lane, lane)
            return

        writer = BatchQueue("writer", sessions.leading, workers=1, writes=True, observer=observe("writer"))
        await stack.enter_async_context(writer.running())
        reader = BatchQueue(
            "reader", sessions.following, workers=readers, writes=False, observer=observe("reader")
        )
        await stack.enter_async_context(reader.running())
        yield Backend(writer, reader, sessions.listen)


async def _refuse_transaction_pooling(hosts: Hosts, options: Mapping[str, Any]) -> None:
    first = second = None
    try:
        first = await hosts.connect(**options, statement_cache_size=0)
        second = await hosts.connect(**options, statement_cache_size=0)
        async with asyncio.timeout(hosts.seconds):
            await refuse_transaction_pooling(first, second)
    finally:
        for connection in (first, second):
            if connection is not None:
                connection.terminate()


class _Sessions:
    """Opens sessions for their workers, each on the server where it belongs."""

    def __init__(
        self,
        database: Database,
        current: CurrentServer,
        *,
        connect_timeout_seconds: float,
        longest_seconds: float,
    ) -> None:
        self._database = database
        self._current = current
        self._acquire_seconds = connect_timeout_seconds
        self._longest_seconds = longest_seconds

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[PostgresqlConnection]:
        """A session whose server becomes that of all."""
        async with self._opened() as (raw, server):
            with self._current.led_by(server):
                yield self._connection(raw, server)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[PostgresqlConnection]:
        """A session on the server of the one that writes."""
        async with self._opened(follows=True) as (raw, server):
            yield self._connection(raw, server)

    @asynccontextmanager
    async def global_one(self) -> AsyncIterator[PostgresqlConnection]:
        """The session of `force_rollback`, whose one transaction ends with it."""
        async with self._opened(is_global=True) as (raw, server):
            yield self._connection(raw, server, inside_transaction=True)

    async def listen(self, heard: Callable[[], None]) -> None:
        """Calls `heard` whenever any process has committed changes; returns when it is to be called again.

        Raises:
            DatabaseUnavailable: The database cannot be reached any more.
            NotificationsUnavailable: The server is a standby.
        """
        async with self.following() as connection:
            try:
                await connection.listen(heard)
            except DRIVER_ERRORS as error:
                raise named(error) from error

    def _connection(
        self, raw: Any, server: Server, *, inside_transaction: bool = False
    ) -> PostgresqlConnection:
        return PostgresqlConnection(
            raw,
            server,
            self._current,
            longest_seconds=self._longest_seconds,
            inside_transaction=inside_transaction,
        )

    @asynccontextmanager
    async def _opened(
        self, *, follows: bool = False, is_global: bool = False
    ) -> AsyncIterator[tuple[Any, Server]]:
        """One connection of `databases`, held until the end of the block, and its server, which may serve us.

        An error that leaves the block ends the session, unless it is that of `force_rollback`: the pool would
        give the same one again, whatever is wrong with it.
        """
        last = asyncio.get_running_loop().time() + self._acquire_seconds
        while True:
            async with AsyncExitStack() as stack:
                raw, server = await self._acquired(stack, is_global=is_global)
                if not (follows and self._current.is_elsewhere(server)):
                    self._current.check_role(server)
                    yield raw, server
                    return
                _end(raw)
            if asyncio.get_running_loop().time() > last:
                self._current.check(server)
            # Where a name leads to several servers in turn, the next one may be the right one.
            await asyncio.sleep(ELSEWHERE_SECONDS)

    async def _acquired(self, stack: AsyncExitStack, *, is_global: bool) -> tuple[Any, Server]:
        try:
            # asyncpg's pool waits for ever by itself.
            async with asyncio.timeout(self._acquire_seconds):
                connection = await stack.enter_async_context(self._database.connection())
                raw = connection.raw_connection
                if not is_global:
                    stack.push(partial(_end_after_error, raw))
                return raw, await self._current.ask(raw)
        # A refused certificate is also a ValueError, which `named` would treat as a bug.
        except (TimeoutError, ssl.SSLCertVerificationError) as error:
            raise DatabaseUnavailable from error
        except DRIVER_ERRORS as error:
            raise named(error) from error


def _end_after_error(raw: Any, error: type[BaseException] | None, *_: object) -> None:
    if error is not None:
        _end(raw)


def _end(raw: Any) -> None:
    # The pool may have taken it back already.
    with suppress(*DRIVER_ERRORS):
        raw.terminate()


def _milliseconds(seconds: float) -> int:
    # At least one: 0 would be no limit.
    return max(1, round(seconds * 1000))


def _tls(url: PostgresqlUrl) -> ssl.SSLContext | None:
    """What `sslmode` and its companions ask for, as libpq understands them."""
    query = url.options
    mode = query.get("sslmode", "disable")
    if mode == "disable":
        return None
    files = {option: query.get(option) or _default_file(name) for option, name in _DEFAULT_FILES.items()}
    # Python's default context has rules of its own for certificates, which refuse what libpq accepts.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    if files["sslrootcert"] == "system":
        context.load_default_certs()
    elif files["sslrootcert"] is not None:
        context.load_verify_locations(files["sslrootcert"])
    elif mode == "require":
        # As in libpq, only a root certificate makes "require" verify.
        context.verify_mode = ssl.CERT_NONE
    if files["sslcert"] is not None:
        context.load_cert_chain(files["sslcert"], files["sslkey"])
    return context


_DEFAULT_FILES = {"sslrootcert": "root.crt", "sslcert": "postgresql.crt", "sslkey": "postgresql.key"}
"""Which files in the folder .postgresql of the user's home libpq takes when the URL names none."""


def _default_file(name: str) -> str | None:
    path = Path.home() / ".postgresql" / name
    return str(path) if path.exists() else None
