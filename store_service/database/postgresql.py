"""PostgreSQL: any number of processes, a few connections each."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from databases import Database
from sqlalchemy.engine import URL, make_url

from store_service.database.changes import ORDER_LOCK
from store_service.database.connection import Connection, Rows
from store_service.database.failures import DRIVER_ERRORS, NobodyWaits, NotifiesNobody, named
from store_service.database.observing import Observe, unobserved
from store_service.database.statements import Statement
from store_service.database.workers import Lane, Lanes
from store_service.errors import DatabaseUnavailable

TLS_MODES = ("disable", "require", "verify-ca", "verify-full")
"""What `sslmode` may be, as libpq has it; without it connections are not encrypted."""

OPTIONS = ("sslmode", "sslrootcert", "sslcert", "sslkey")
"""What may stand behind the ? of a database URL."""

CHANNEL = "store_changes"
"""Where a trigger tells of every insert into the change feed."""

SLACK_SECONDS = 5.0
"""PostgreSQL ends a statement after its time; an answer that is so much later will never come."""

IDLE_IN_TRANSACTION_SECONDS = 10
"""PostgreSQL ends a transaction of ours that does nothing for so long, and frees its locks."""


T = TypeVar("T")


class PostgresqlConnection(Connection):
    """A connection of asyncpg."""

    # Locked before anything else: PostgreSQL numbers a transaction when it first writes or locks a row, and
    # one that then waits for another would be told of before it.
    BEGIN = f"BEGIN; SELECT pg_advisory_xact_lock({ORDER_LOCK})"
    BEGIN_TO_ADD = f"BEGIN; SELECT pg_advisory_xact_lock_shared({ORDER_LOCK})"
    WRITES_IN_ONE_STATEMENT = True

    _fetching: asyncio.Task[Any] | None = None
    """The task that waits for rows, if one does."""

    def __init__(self, raw: Any, *, longest_seconds: float, inside_transaction: bool = False) -> None:
        """Takes an open connection, after how long it counts as lost, and whether all is one transaction."""
        super().__init__(raw, inside_transaction=inside_transaction)
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

    async def _fetch(self, statement: Statement, values: dict[str, Any]) -> Rows:
        text, arguments = statement.on("postgresql", values)
        self._fetching = asyncio.current_task()
        try:
            rows: Rows = await self._answered(self._raw.fetch(text, *arguments))
        except asyncio.CancelledError:
            if self.is_wanted or self._fetching is None:
                raise
            self._fetching.uncancel()
            raise NobodyWaits from None
        finally:
            self._fetching = None
        return rows

    def _interrupt(self) -> None:
        if self._fetching is not None:
            # asyncpg then asks the server to cancel the statement, and waits until it has before the next.
            self._fetching.cancel()

    async def _execute(self, text: str) -> None:
        await self._answered(self._raw.execute(text))

    async def _answered(self, call: Coroutine[Any, Any, T]) -> T:
        """Waits for the server's answer, but not for that of a host that is gone, which tells nobody."""
        try:
            async with asyncio.timeout(self._longest_seconds):
                return await call
        except TimeoutError:
            # At once: to end it politely would mean to wait for an answer again.
            self._raw.terminate()
            raise

    async def listen(self, heard: Callable[[], None]) -> None:
        """Calls `heard` whenever changes are committed, and returns when the connection is lost.

        Raises:
            NotifiesNobody: The server is a standby.
        """
        if await self._answered(self._raw.fetchval("SELECT pg_is_in_recovery()")):
            raise NotifiesNobody

        def on_notification(*_: object) -> None:
            heard()

        lost = asyncio.Event()
        self._raw.add_termination_listener(lambda _: lost.set())
        await self._raw.add_listener(CHANNEL, on_notification)
        try:
            # Nobody told of what was written before.
            heard()
            await lost.wait()
        finally:
            if not self._raw.is_closed():
                await self._raw.remove_listener(CHANNEL, on_notification)

    def _in_transaction(self) -> bool:
        # A connection that was lost has nothing to roll back, and its loss is what should be reported.
        try:
            return not self._raw.is_closed() and self._raw.is_in_transaction()
        except DRIVER_ERRORS:
            # The pool has already taken it back.
            return False


@asynccontextmanager
async def open_lanes(
    database_url: str,
    *,
    readers: int,
    lock_seconds: float,
    statement_seconds: float,
    acquire_seconds: float,
    force_roll_back: bool,
    observe: Observe = unobserved,
) -> AsyncIterator[Lanes]:
    """The lane to write and the lane to read; one and the same with `force_roll_back`.

    Raises:
        StoreError: The database cannot be reached.
    """
    url = make_url(database_url)
    try:
        tls = _tls(url)
    except OSError as error:  # a file is missing, or holds something else
        raise DatabaseUnavailable from error
    # The one transaction of `force_roll_back` does nothing whenever nobody calls; 0 is no limit.
    idle_milliseconds = "0" if force_roll_back else _milliseconds(IDLE_IN_TRANSACTION_SECONDS)
    options = {
        "min_size": 0,
        "max_size": readers + 2,
        "timeout": acquire_seconds,
        "ssl": tls or False,
        "server_settings": {
            "application_name": "store-service",
            "statement_timeout": _milliseconds(statement_seconds),
            "lock_timeout": _milliseconds(lock_seconds),
            "idle_in_transaction_session_timeout": idle_milliseconds,
        },
    }
    longest_seconds = statement_seconds + lock_seconds + SLACK_SECONDS
    # asyncpg would take what stands behind the ? for settings of the server.
    plain_url = url.set(query={}).render_as_string(hide_password=False)
    async with AsyncExitStack() as stack:
        database = Database(plain_url, force_rollback=force_roll_back, **options)
        try:
            await stack.enter_async_context(database)
        except DRIVER_ERRORS as error:
            raise named(error) from error

        if force_roll_back:
            lane = Lane(
                "worker",
                lambda: _opened(database, acquire_seconds, longest_seconds, inside_transaction=True),
                workers=1,
                writes=True,
                observer=observe("worker"),
            )
            await stack.enter_async_context(lane.running())
            yield Lanes(lane, lane)
            return

        writer = Lane(
            "writer",
            lambda: _opened(database, acquire_seconds, longest_seconds),
            workers=1,
            writes=True,
            observer=observe("writer"),
        )
        await stack.enter_async_context(writer.running())
        reader = Lane(
            "reader",
            lambda: _opened(database, acquire_seconds, longest_seconds),
            workers=readers,
            writes=False,
            observer=observe("reader"),
        )
        await stack.enter_async_context(reader.running())
        yield Lanes(writer, reader, partial(_listen, database, acquire_seconds, longest_seconds))


@asynccontextmanager
async def _opened(
    database: Database, acquire_seconds: float, longest_seconds: float, *, inside_transaction: bool = False
) -> AsyncIterator[PostgresqlConnection]:
    """One connection of `databases`, held until the end of the block."""
    async with AsyncExitStack() as stack:
        try:
            # asyncpg's pool waits for ever by itself.
            async with asyncio.timeout(acquire_seconds):
                connection = await stack.enter_async_context(database.connection())
        # A certificate that is refused counts as a ValueError too, which `named` takes for a bug of ours.
        except (TimeoutError, ssl.SSLCertVerificationError) as error:
            raise DatabaseUnavailable from error
        except DRIVER_ERRORS as error:
            raise named(error) from error
        yield PostgresqlConnection(
            connection.raw_connection, longest_seconds=longest_seconds, inside_transaction=inside_transaction
        )


async def _listen(
    database: Database, acquire_seconds: float, longest_seconds: float, heard: Callable[[], None]
) -> None:
    """Calls `heard` whenever any process has committed changes, until it is cancelled.

    Raises:
        DatabaseUnavailable: The database cannot be reached any more.
        NotifiesNobody: The server is a standby.
    """
    async with _opened(database, acquire_seconds, longest_seconds) as connection:
        try:
            await connection.listen(heard)
        except DRIVER_ERRORS as error:
            raise named(error) from error
    raise DatabaseUnavailable


def _milliseconds(seconds: float) -> str:
    # At least one: 0 would be no limit.
    return str(max(1, round(seconds * 1000)))


def _tls(url: URL) -> ssl.SSLContext | None:
    """What `sslmode` and its companions ask for, as libpq understands them."""
    query = {key: str(value) for key, value in url.query.items()}
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
