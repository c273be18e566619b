"""Opens a database, on SQLite or PostgreSQL."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import structlog

from store_service.database import files, sqlite, sqlite_file
from store_service.database.batch_operation import Argument, BatchOperation, Result
from store_service.database.batch_queue import Backend
from store_service.database.consistency import SeenOperations, current, seen_on_primary, wait_until_seen
from store_service.database.writer_frames import WriterProcess
from store_service.database_url import parse
from store_service.errors import DatabaseUnavailable
from store_service.observability.batches import ObserverFactory, without_observer
from store_service.repeated_failure import RepeatedFailure

if TYPE_CHECKING:
    # asyncpg, which this module needs, is an extra.
    from store_service.database.replicas import Replicas

ACQUIRE_SECONDS = 5.0
"""Default of the maximum time to open a connection to PostgreSQL."""

CHECK_SECONDS = 1.0
"""Time between two checks that the open file still exists."""

log = structlog.get_logger("store_service.database")


def is_sqlite(database_url: str) -> bool:
    """Whether a URL is one of SQLite."""
    return database_url.startswith("sqlite:")


def is_missing(database_url: str) -> bool:
    """Whether the database is a SQLite file that does not exist."""
    return is_sqlite(database_url) and not sqlite_file.database_path(database_url).exists()


def database_name(database_url: str) -> str:
    """Returns the path of the file, or the URL without the password."""
    if is_sqlite(database_url):
        return str(sqlite_file.database_path(database_url))
    return str(parse(database_url))


def check_files(database_url: str, *, needs_room: bool = True) -> None:
    """Checks the files and permissions of a SQLite database; see `files.check`."""
    if is_sqlite(database_url):
        files.check(sqlite_file.database_path(database_url), needs_room=needs_room)


def is_in_use(database_url: str) -> bool | None:
    """Whether another service uses a SQLite file. None for PostgreSQL, which several services may use."""
    return sqlite_file.is_in_use(sqlite_file.database_path(database_url)) if is_sqlite(database_url) else None


@contextmanager
def sole_use(
    database_url: str, *, wait_seconds: float = sqlite_file.LOCK_RETRY_SECONDS
) -> Iterator[int | None]:
    """Excludes all other services from a SQLite file until the end of the block. No effect on PostgreSQL.

    Waits at most `wait_seconds` for another process. Yields the descriptor that holds the lock, and None for
    PostgreSQL.

    Raises:
        sqlite_file.DatabaseInUse: Another process uses the file.
    """
    if is_sqlite(database_url):
        with sqlite_file.sole_use(database_url, wait_seconds=wait_seconds) as descriptor:
            yield descriptor
    else:
        yield None


class Database:
    """An open database: the batch queues of the writer and the readers."""

    def __init__(
        self,
        backend: Backend,
        *,
        read_only: bool = False,
        has_servers: bool = False,
        replicas: "Replicas | None" = None,
    ) -> None:
        """Takes the parts of the database.

        Args:
            backend: The queues and functions of the engine.
            read_only: Writes of callers are refused.
            has_servers: Several servers can have the data, some of them older data than others.
            replicas: The replicas, if there are any.
        """
        self.read_only = read_only
        self.replicas = replicas
        self._has_servers = has_servers
        self._seen = SeenOperations(seen_on_primary)
        # Numbers of transactions that are rolled back are never reached.
        self._dry_runs = SeenOperations(seen_on_primary, looks_before=True)
        self._writer = backend.writer
        self._reader = backend.reader
        self._listen = backend.listen
        self.pooling = backend.pooling
        """What is between the service and PostgreSQL; empty for SQLite."""
        self._check = backend.check
        self._check_room = backend.check_room
        self.can_rewrite: bool = backend.can_rewrite
        """Whether `rewriting.REWRITE` is possible: not if everything runs in one transaction."""
        self._lost: DatabaseUnavailable | None = None

    async def write(
        self,
        operation: BatchOperation[Argument, Result],
        argument: Argument,
        *,
        dry_run: bool = False,
        size: int = 0,
    ) -> Result:
        """Runs an operation in a transaction and returns when it is on disk; see `BatchQueue.execute`.

        Raises:
            DatabaseUnavailable: The last `check` has found that the write would be lost.
        """
        if self._lost is not None:
            raise DatabaseUnavailable from self._lost.__cause__
        call = current()
        if call is None or not self._has_servers:
            return await self._writer.execute(operation, argument, dry_run=dry_run, size=size)
        made = (self._dry_runs if dry_run else self._seen).of(operation)
        return call.result_of(await self._writer.execute(made, argument, dry_run=dry_run, size=size))

    async def read(self, operation: BatchOperation[Argument, Result], argument: Argument) -> Result:
        """Runs an operation on a reader. It sees all writes that have returned before, unless the call
        allows a replica to answer; see `CallConsistency`.

        Raises:
            StandbyBehind: The service reads from a standby that lacks what the call requires.
        """
        call = current()
        if call is None or not self._has_servers:
            return await self._reader.execute(operation, argument)
        if call.may_lag and self.replicas is not None:
            outcome = await self.replicas.read(call, operation, argument)
            if outcome is not None:
                return call.result_of(outcome)
        if self.read_only:  # The server may be a standby.
            await wait_until_seen(call, self._reader.execute)
        if self.replicas is None:
            return await self._reader.execute(operation, argument)
        return call.result_of(await self._reader.execute(self._seen.of(operation), argument))

    def check(self) -> None:
        """Checks that writes are not lost. After a failure, writes are refused until a check succeeds.

        Raises:
            DatabaseUnavailable: The file was deleted or replaced.
        """
        try:
            self._check()
        except DatabaseUnavailable as error:
            self._lost = error
            raise
        self._lost = None

    def check_room_to_rewrite(self) -> None:
        """Checks that the disk has room for a rewrite of the database; see `rewriting.check_room`.

        Raises:
            StorageFull: It does not.
        """
        self._check_room()

    async def keep_checking(self) -> None:
        """Runs `check` every CHECK_SECONDS and logs its results, until it is cancelled."""
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

    def after_write(self, callback: Callable[[], None]) -> None:
        """Calls `callback` after each commit of this process, besides those of earlier calls."""
        self._writer.after_write(callback)

    def after_failed_write(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when the storage has failed or refused a write, or cannot be opened."""
        self._writer.after_failure(callback)

    async def listen(self, callback: Callable[[], None]) -> None:
        """Calls `callback` whenever any process has committed changes. Returns when it must be called again.

        Raises:
            ServiceError: The database cannot be reached.
            NotificationsUnavailable: The database server sends no notifications. The caller has to poll.
        """
        await self._listen(callback)


@asynccontextmanager
async def open_database(
    database_url: str,
    *,
    direct_url: str = "",
    readers: int = 2,
    lock_timeout_seconds: float = 5.0,
    statement_timeout_seconds: float = 10.0,
    connect_timeout_seconds: float = ACQUIRE_SECONDS,
    statement_cache_size: int = -1,
    force_roll_back: bool = False,
    observe: ObserverFactory = without_observer,
    read_only: bool = False,
    replica_urls: Sequence[str] = (),
    max_replica_lag_seconds: float = math.inf,
    writer_process: WriterProcess | None = None,
) -> AsyncIterator[Database]:
    """Opens a database whose schema is up to date. Finishes waiting jobs and closes it after the block.

    Args:
        database_url: SQLite or PostgreSQL.
        direct_url: The same PostgreSQL database without a pooler in transaction mode, for notifications;
            empty if there is none.
        readers: Number of connections that read.
        lock_timeout_seconds: Maximum time that a write waits for a lock before DatabaseBusy.
        statement_timeout_seconds: Maximum time of a statement on PostgreSQL before DatabaseBusy.
        connect_timeout_seconds: Maximum time to open a connection to PostgreSQL.
        statement_cache_size: Maximum number of prepared statements of a session of PostgreSQL. -1: 100, or 0
            behind a pooler that does not keep them.
        force_roll_back: One connection runs everything in one transaction, which is rolled back at the end.
        observe: Returns the observer of a batch queue.
        read_only: Writes of callers are refused, so a standby is accepted.
        replica_urls: Replicas on PostgreSQL, which need not be reachable.
        max_replica_lag_seconds: The lag above which a replica is not used.
        writer_process: The process that writes to a SQLite file; None: this process.

    Raises:
        ServiceError: The database cannot be opened.
        OperatorError: A pooler does not preserve what `direct_url` or `statement_cache_size` requires, or the
            writer process does not belong to this process.
    """
    if is_sqlite(database_url):
        opening = sqlite.open_backend(
            database_url,
            readers=readers,
            lock_timeout_seconds=lock_timeout_seconds,
            force_roll_back=force_roll_back,
            writer_process=writer_process,
            observe=observe,
        )
        async with opening as backend:
            yield Database(backend, read_only=read_only)
        return
    # asyncpg is an extra, so it is imported only when it is used.
    from store_service.database import postgresql

    options: dict[str, Any] = {
        "readers": readers,
        "statement_cache_size": statement_cache_size,
        "lock_timeout_seconds": lock_timeout_seconds,
        "statement_timeout_seconds": statement_timeout_seconds,
        "connect_timeout_seconds": connect_timeout_seconds,
        "observe": observe,
    }
    async with AsyncExitStack() as stack:
        opening = postgresql.open_backend(
            database_url,
            direct_url=direct_url,
            force_roll_back=force_roll_back,
            read_only=read_only,
            **options,
        )
        backend = await stack.enter_async_context(opening)
        replicas = None
        if replica_urls:
            from store_service.database.replicas import Replicas

            replicas = Replicas(
                replica_urls, backend.reader, max_lag_seconds=max_replica_lag_seconds, **options
            )
            await stack.enter_async_context(replicas.following())
        yield Database(backend, read_only=read_only, has_servers=not force_roll_back, replicas=replicas)
