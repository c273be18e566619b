"""Opens a SQLite database: one file, one connection that writes, and connections that read.

With several workers, the connection that writes is in a process of its own (docs/decisions/0052)."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from databases import Database

from store_service.database import rewriting
from store_service.database.batch_queue import Backend, BatchQueue, listen_for_nothing
from store_service.database.connection import Connection
from store_service.database.driver_errors import translate_error
from store_service.database.remote_writer import RemoteWriter
from store_service.database.sqlite_connection import SqliteConnection
from store_service.database.sqlite_file import OpenFile, database_path
from store_service.database.writer_frames import WriterProcess
from store_service.observability.batches import BatchObserver, ObserverFactory, without_observer

SYNCHRONOUS_EXTRA = 3
"""The value of PRAGMA synchronous with which a commit survives a power cut.

In WAL mode it is the same as FULL: the log is synced. Without a log, FULL does not sync the folder after the
journal was removed, so the journal may reappear and roll the commit back.
"""

# Without mmap an I/O error is an error, not a SIGBUS.
_READER_PRAGMAS: dict[str, int | str] = {"mmap_size": 0, "trusted_schema": 0}

MAX_KEPT_LOG_BYTES = 16 * 1024 * 1024
"""Size to which the log is truncated. A large transaction or a long reader can make it larger. When all of it
is in the database and no connection reads from it, the next commit starts the log again and truncates it."""

# WAL lets readers read while the writer writes. With NORMAL a power cut loses committed transactions.
_WRITER_PRAGMAS = {
    **_READER_PRAGMAS,
    "synchronous": SYNCHRONOUS_EXTRA,
    "journal_mode": "wal",
    "journal_size_limit": MAX_KEPT_LOG_BYTES,
    "foreign_keys": 1,
    # Zeros overwrite what is deleted. It is the default of some builds of SQLite only.
    "secure_delete": 1,
}


@asynccontextmanager
async def open_backend(
    database_url: str,
    *,
    readers: int,
    lock_timeout_seconds: float,
    force_roll_back: bool,
    writer_process: WriterProcess | None = None,
    observe: ObserverFactory = without_observer,
) -> AsyncIterator[Backend]:
    """Opens the batch queues of the writer and the readers. With `force_roll_back` they are the same queue.

    Raises:
        ServiceError: The file cannot be opened.
        WrongWriter: The writer process does not belong to this worker.
    """
    path = database_path(database_url).absolute()
    async with AsyncExitStack() as stack:
        # The writer first: it creates the log. Readers need the log and may not create it.
        writer: BatchQueue | RemoteWriter
        if force_roll_back:
            writing_url = await _writing_url(path, lock_timeout_seconds)
            rolling_back = Database(
                writing_url,
                force_rollback=True,
                timeout=lock_timeout_seconds,
                factory=_WriterConnection,
                check_same_thread=False,  # it reads too; see fetch_inline
            )
            database = await stack.enter_async_context(rolling_back)
            queue = BatchQueue(
                "worker",
                lambda: _opened(database, inside_transaction=True),
                connections=1,
                writes=True,
                observer=observe("worker"),
            )
            await stack.enter_async_context(queue.running())
            yield Backend(queue, queue, check=OpenFile(path).check, can_rewrite=False)
            return

        if writer_process is not None:
            writer = RemoteWriter(writer_process.socket, writer_process.hello(path), observe("writer"))
            await stack.enter_async_context(writer.running())
        else:
            opening = open_writer(
                database_url, lock_timeout_seconds=lock_timeout_seconds, observer=observe("writer")
            )
            writer = await stack.enter_async_context(opening)
        # Quoted twice: `databases` and SQLite each read it as a URL.
        reading_url = f"sqlite:///file:{quote(quote(str(path)))}?mode=ro"
        reading = await stack.enter_async_context(
            Database(
                reading_url,
                uri=True,
                timeout=lock_timeout_seconds,
                factory=_ReaderConnection,
                check_same_thread=False,  # aiosqlite's thread and the event loop take turns; see fetch_inline
            )
        )

        reader = BatchQueue(
            "reader", lambda: _opened(reading), connections=readers, writes=False, observer=observe("reader")
        )
        await stack.enter_async_context(reader.running())
        yield Backend(
            writer,
            reader,
            listen=writer.listen if isinstance(writer, RemoteWriter) else listen_for_nothing,
            check=OpenFile(path).check,
            check_room=partial(rewriting.check_room, path),
        )


@asynccontextmanager
async def open_writer(
    database_url: str,
    *,
    lock_timeout_seconds: float,
    observer: BatchObserver | None = None,
    is_remote: bool = False,
) -> AsyncIterator[BatchQueue]:
    """Opens the batch queue of the writer. `is_remote`: Its callers are in other processes.

    Raises:
        ServiceError: The file cannot be opened.
    """
    url = await _writing_url(database_path(database_url).absolute(), lock_timeout_seconds)
    async with Database(url, timeout=lock_timeout_seconds, factory=_WriterConnection) as database:
        queue = BatchQueue(
            "writer",
            lambda: _opened(database),
            connections=1,
            writes=True,
            observer=observer,
            is_remote=is_remote,
        )
        async with queue.running():
            yield queue


async def _writing_url(path: Path, lock_timeout_seconds: float) -> str:
    """Returns the URL of connections that write, after a first one was opened.

    If opening fails, aiosqlite does not wait for its thread, which logs an error when it outlives the event
    loop. Therefore the first connection is opened without aiosqlite.
    """
    try:
        await asyncio.to_thread(lambda: _WriterConnection(path, timeout=lock_timeout_seconds).close())
    except sqlite3.Error as error:
        raise translate_error(error) from error
    # SQLAlchemy and `databases` read # in a path differently. The schema upgrade uses SQLAlchemy.
    return f"sqlite:///{quote(str(path))}"


@asynccontextmanager
async def _opened(database: Database, *, inside_transaction: bool = False) -> AsyncIterator[Connection]:
    """Holds one connection of `databases` until the end of the block."""
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(database.connection())
        except sqlite3.Error as error:
            raise translate_error(error) from error
        opened = SqliteConnection(connection.raw_connection, inside_transaction=inside_transaction)
        # SQLite rolls the whole transaction back when it cancels a statement that writes. Inside an outer
        # transaction that would include earlier batches.
        if not inside_transaction:
            await opened.enable_cancellation()
        yield opened


def _connection_class(pragmas: dict[str, int | str]) -> type[sqlite3.Connection]:
    class ConfiguredConnection(sqlite3.Connection):
        """A connection that sets its pragmas, and checks them, when it is opened."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            for name, expected in pragmas.items():
                self.execute(f"PRAGMA {name} = {expected}").close()
                actual = self.execute(f"PRAGMA {name}").fetchall()
                # SQLite reports no error for a PRAGMA that it does not apply.
                if actual != [(expected,)]:
                    raise RuntimeError(f"SQLite keeps PRAGMA {name} at {actual}, not {expected}")

    return ConfiguredConnection


_WriterConnection = _connection_class(_WRITER_PRAGMAS)
_ReaderConnection = _connection_class(_READER_PRAGMAS)
