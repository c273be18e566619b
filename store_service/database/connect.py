"""Opens the database, whichever engine it is."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy
import structlog
from sqlalchemy.pool import NullPool

from store_service.database import files, sqlite
from store_service.database.batch_queue import Argument, Backend, BatchOperation, Result
from store_service.database_url import PostgresqlUrl, parse
from store_service.errors import DatabaseUnavailable
from store_service.observability.batches import ObserverFactory, without_observer
from store_service.repeated_failure import RepeatedFailure

CHECK_SECONDS = 1.0
"""How often it is looked whether the open file is still there."""

log = structlog.get_logger("store_service.database")


def is_sqlite(database_url: str) -> bool:
    """Whether the database is a file."""
    return database_url.startswith("sqlite:")


def is_missing(database_url: str) -> bool:
    """Whether the database is a file that is not there."""
    return is_sqlite(database_url) and not sqlite.database_path(database_url).exists()


def database_name(database_url: str) -> str:
    """The database as an operator knows it, without its password."""
    if is_sqlite(database_url):
        return str(sqlite.database_path(database_url))
    return str(parse(database_url))


ACQUIRE_SECONDS = 5.0
"""How long opening a connection to PostgreSQL may take, where nobody says otherwise."""


def sync_engine(database_url: str, *, connect_timeout_seconds: float = ACQUIRE_SECONDS) -> sqlalchemy.Engine:
    """A blocking engine for migrations and scripts; RPCs never use it.

    Args:
        database_url: SQLite or PostgreSQL.
        connect_timeout_seconds: Maximum time to connect to one address of a PostgreSQL host,
            in whole seconds, at least 2, as libpq counts.
    """
    if is_sqlite(database_url):
        return sqlalchemy.create_engine(database_url, connect_args={"check_same_thread": False})
    return sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=partial(_connected, parse(database_url), connect_timeout_seconds)
    )


def _connected(url: PostgresqlUrl, connect_timeout_seconds: float) -> Any:
    """A connection of psycopg: of several hosts to one that takes writes, if there is one."""
    # psycopg is an extra: it is needed only here.
    import psycopg

    given: dict[str, Any] = {
        "host": ",".join(host for host, _ in url.hosts),
        "port": ",".join(str(port) for _, port in url.hosts),
        "user": url.user,
        "password": url.password,
        "dbname": url.database,
        # A host that takes the connection and then says nothing would keep us for minutes.
        "connect_timeout": max(2, math.ceil(connect_timeout_seconds)),
        # Of a database in SQL_ASCII psycopg would otherwise give even names as bytes.
        "client_encoding": "UTF8",
        # A pooler may give the next transaction to another session, which knows of nothing prepared.
        "prepare_threshold": None,
        # libpq would try TLS by default, and then the service would fail where the migration did not.
        "sslmode": "disable",
        **url.options,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if len(url.hosts) > 1 and "target_session_attrs" not in url.options:
        try:
            return psycopg.connect(**given, target_session_attrs="read-write")
        except psycopg.OperationalError:
            # Standbys will do for a service that only reads.
            pass
    return psycopg.connect(**given)


def engine_to_look(
    database_url: str, *, connect_timeout_seconds: float = ACQUIRE_SECONDS
) -> sqlalchemy.Engine:
    """A blocking engine that changes no file, also not one that a server uses or has left behind.

    `connect_timeout_seconds` is as for `sync_engine`.

    SQLite's last connection to a file writes the log into it and removes it, unless it cannot write: and a
    second connection that checkpoints while a server runs is what the lock is there to prevent.
    """
    if not is_sqlite(database_url):
        return sync_engine(database_url, connect_timeout_seconds=connect_timeout_seconds)
    path = sqlite.database_path(database_url)
    return sqlalchemy.create_engine(
        "sqlite://", creator=lambda: sqlite.connected_to_look(path, _how_to_look(path)), poolclass=NullPool
    )


def _how_to_look(path: Path) -> str:
    try:
        # A server that runs has a log; and for want of one SQLite would make it, or fail where it may not.
        return "immutable=1" if sqlite.lacks_its_log(path) else "mode=ro"
    except OSError:
        return "mode=ro"  # SQLite says what is wrong


def check_files(database_url: str, *, needs_room: bool = True) -> None:
    """Checks that a file can be served, as far as file system and permissions show; see `files.check`."""
    if is_sqlite(database_url):
        files.check(sqlite.database_path(database_url), needs_room=needs_room)


def is_in_use(database_url: str) -> bool | None:
    """Whether another service holds a file; None for PostgreSQL, which serves many."""
    return sqlite.is_in_use(sqlite.database_path(database_url)) if is_sqlite(database_url) else None


@contextmanager
def sole_use(database_url: str) -> Iterator[None]:
    """Keeps every other service off a file until the end of the block; PostgreSQL serves many.

    Raises:
        sqlite.DatabaseInUse: Another process holds the file.
    """
    if is_sqlite(database_url):
        with sqlite.sole_use(database_url):
            yield
    else:
        yield


class Database:
    """The open database: a lane to write and a lane to read."""

    def __init__(self, lanes: Backend, *, read_only: bool = False) -> None:
        """Takes the lanes, which may be one and the same, how to hear of what other processes write, and
        whether callers may write."""
        self.read_only = read_only
        self._writer = lanes.writer
        self._reader = lanes.reader
        self._listen = lanes.listen
        self._check = lanes.check
        self._lost: DatabaseUnavailable | None = None

    async def write(
        self,
        operation: BatchOperation[Argument, Result],
        argument: Argument,
        *,
        dry_run: bool = False,
        size: int = 0,
    ) -> Result:
        """Does the work in a transaction and returns when it is on disk; see `BatchQueue.execute`.

        Raises:
            DatabaseUnavailable: The last `check` has found that it would be lost.
        """
        if self._lost is not None:
            raise DatabaseUnavailable from self._lost.__cause__
        return await self._writer.execute(operation, argument, dry_run=dry_run, size=size)

    async def read(self, operation: BatchOperation[Argument, Result], argument: Argument) -> Result:
        """Does the work on a reading connection; it sees everything that was answered before."""
        return await self._reader.execute(operation, argument)

    def check(self) -> None:
        """Makes sure that what is written can be found again; until it is so, writes are refused.

        Raises:
            DatabaseUnavailable: The file was deleted or replaced.
        """
        try:
            self._check()
        except DatabaseUnavailable as error:
            self._lost = error
            raise
        self._lost = None

    async def keep_checking(self) -> None:
        """Checks every CHECK_SECONDS, until it is cancelled, and tells what it finds."""
        refusal = RepeatedFailure(
            log, "writes are refused", end_event="writes are accepted again", level="error"
        )
        while True:
            try:
                self.check()
            except DatabaseUnavailable as error:
                refusal.failed(cause=str(error.__cause__))
            else:
                refusal.ended()
            await asyncio.sleep(CHECK_SECONDS)

    def after_write(self, told: Callable[[], None]) -> None:
        """Calls `told` whenever this process has committed."""
        self._writer.after_write = told

    def after_failed_write(self, told: Callable[[], None]) -> None:
        """Calls `told` when the storage has failed or refused a write, or cannot be opened for writing."""
        self._writer.after_failure = told

    async def listen(self, heard: Callable[[], None]) -> None:
        """Calls `heard` whenever any process has committed changes; returns when it is to be called again.

        Raises:
            ServiceError: The database cannot be reached any more.
            NotificationsUnavailable: The database server sends no notifications; the caller has to poll.
        """
        await self._listen(heard)


@asynccontextmanager
async def open_database(
    database_url: str,
    *,
    readers: int = 2,
    lock_timeout_seconds: float = 5.0,
    statement_timeout_seconds: float = 10.0,
    connect_timeout_seconds: float = ACQUIRE_SECONDS,
    force_roll_back: bool = False,
    observe: ObserverFactory = without_observer,
    read_only: bool = False,
) -> AsyncIterator[Database]:
    """Opens a database whose schema is up to date; closes it at the end of the block, after what waits.

    Args:
        database_url: SQLite or PostgreSQL.
        readers: How many connections read.
        lock_timeout_seconds: How long a write waits for locks of others before DatabaseBusy.
        statement_timeout_seconds: How long a statement may run on PostgreSQL before DatabaseBusy.
        connect_timeout_seconds: How long opening a connection to PostgreSQL may take.
        force_roll_back: One connection does everything, and undoes it at the end.
        observe: Who looks at each lane.
        read_only: The rules are to refuse writes of callers, so that a standby will do.

    Raises:
        ServiceError: The database cannot be opened.
    """
    if is_sqlite(database_url):
        opening = sqlite.open_backend(
            database_url,
            readers=readers,
            lock_timeout_seconds=lock_timeout_seconds,
            force_roll_back=force_roll_back,
            observe=observe,
        )
    else:
        # asyncpg is an extra: it is needed only here.
        from store_service.database import postgresql

        opening = postgresql.open_backend(
            database_url,
            readers=readers,
            lock_timeout_seconds=lock_timeout_seconds,
            statement_timeout_seconds=statement_timeout_seconds,
            connect_timeout_seconds=connect_timeout_seconds,
            force_roll_back=force_roll_back,
            read_only=read_only,
            observe=observe,
        )
    async with opening as lanes:
        yield Database(lanes, read_only=read_only)
