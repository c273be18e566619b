"""Opens the database: which connections there are, and how each is set up."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import sqlalchemy
from databases import Database
from sqlalchemy.engine import make_url

from store_service.database.connection import Connection
from store_service.database.failures import named
from store_service.database.workers import Argument, Lane, Operation, Result

BUSY_TIMEOUT_MILLISECONDS = 5000
"""How long a writer waits for another process's lock before DatabaseBusy."""

# WAL lets readers read while the writer writes. FULL syncs the log before a commit returns: with NORMAL
# a power cut loses commits that were answered. Without mmap an I/O error is an error, not a SIGBUS.
_Pragmas = dict[str, int | str]
_READER_PRAGMAS: _Pragmas = {
    "busy_timeout": BUSY_TIMEOUT_MILLISECONDS,
    "mmap_size": 0,
    "trusted_schema": 0,
}
_WRITER_PRAGMAS: _Pragmas = {
    **_READER_PRAGMAS,
    "journal_mode": "wal",
    "synchronous": 2,
    "foreign_keys": 1,
}


class _SetUpConnection(sqlite3.Connection):
    """A connection that is set up, and proved to be so, before anybody uses it."""

    pragmas: ClassVar[_Pragmas]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, wanted in self.pragmas.items():
            self.execute(f"PRAGMA {name} = {wanted}").close()
            actual = self.execute(f"PRAGMA {name}").fetchall()
            # SQLite answers a PRAGMA that it does not honour with silence.
            if actual != [(wanted,)]:
                raise RuntimeError(f"SQLite keeps PRAGMA {name} at {actual}, not {wanted}")


class _WriterConnection(_SetUpConnection):
    pragmas: ClassVar[_Pragmas] = _WRITER_PRAGMAS


class _ReaderConnection(_SetUpConnection):
    pragmas: ClassVar[_Pragmas] = _READER_PRAGMAS


class DatabaseInUse(Exception):
    """Another service has the file open; two writers can damage it."""


class NoPlaceForDatabase(Exception):
    """The folder of the file is not there or must not be written to; the text is one line that says which."""


def path_of(database_url: str) -> Path:
    """The file of a SQLite URL."""
    database = make_url(database_url).database
    assert database is not None  # the settings refuse URLs without a file
    return Path(database)


def sync_engine(database_url: str) -> sqlalchemy.Engine:
    """A blocking engine for migrations and scripts; RPCs never use it."""
    is_sqlite = make_url(database_url).get_backend_name() == "sqlite"
    return sqlalchemy.create_engine(
        database_url, connect_args={"check_same_thread": False} if is_sqlite else {}
    )


@contextmanager
def sole_use(database_url: str) -> Iterator[None]:
    """Keeps every other service off a SQLite file until the end of the block, or of the process.

    SQLite up to 3.51.2 can damage a WAL database when two connections write or checkpoint at the same
    moment (https://www.sqlite.org/wal.html#walresetbug), so there is one writer, in one process.

    Raises:
        DatabaseInUse: Another process holds the file.
        NoPlaceForDatabase: No file can be made beside the database.
    """
    path = path_of(database_url)
    try:
        # A file of its own: closing a second descriptor of the database itself would drop SQLite's locks.
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise NoPlaceForDatabase(f"cannot write beside the database {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatabaseInUse(f"another store-service is using {path}") from None
        yield
    finally:
        os.close(descriptor)


class Store:
    """The open database: a lane to write and a lane to read."""

    def __init__(self, writer: Lane, reader: Lane) -> None:
        """Takes the lanes; they may be one and the same."""
        self._writer = writer
        self._reader = reader

    async def write(
        self, operation: Operation[Argument, Result], argument: Argument, *, keep: bool = True
    ) -> Result:
        """Does the work in a transaction and returns when it is on disk; see `Lane.do`."""
        return await self._writer.do(operation, argument, keep=keep)

    async def read(self, operation: Operation[Argument, Result], argument: Argument) -> Result:
        """Does the work on a reading connection; it sees everything that was answered before."""
        return await self._reader.do(operation, argument)


@asynccontextmanager
async def open_store(
    database_url: str, *, readers: int, force_roll_back: bool = False
) -> AsyncIterator[Store]:
    """Opens the database and closes it at the end of the block, after the work that waits.

    Args:
        database_url: A database whose schema is up to date.
        readers: How many connections read.
        force_roll_back: One connection does everything, and undoes it at the end.

    Raises:
        StoreError: The database cannot be opened.
    """
    path = path_of(database_url).absolute()
    # aiosqlite does not wait for its thread when opening fails, and the thread complains when it outlives
    # the loop; so what cannot be opened is found here.
    try:
        await asyncio.to_thread(lambda: _WriterConnection(path).close())
    except sqlite3.Error as error:
        raise named(error) from error

    # SQLAlchemy and `databases` disagree about # in a path, and the upgrade went by the former.
    url = f"sqlite:///{quote(str(path))}"
    async with AsyncExitStack() as stack:
        if force_roll_back:
            rolling_back = Database(url, force_rollback=True, factory=_WriterConnection)
            database = await stack.enter_async_context(rolling_back)
            lane = Lane("worker", lambda: _opened(database, inside_transaction=True), workers=1, writes=True)
            await stack.enter_async_context(lane.running())
            yield Store(lane, lane)
            return

        writing = await stack.enter_async_context(Database(url, factory=_WriterConnection))
        # Quoted twice: `databases` and SQLite each read it as a URL.
        reading_url = f"sqlite:///file:{quote(quote(str(path)))}?mode=ro"
        reading = await stack.enter_async_context(Database(reading_url, uri=True, factory=_ReaderConnection))

        # The writer first: it makes the log that readers need, and may not make themselves.
        writer = Lane("writer", lambda: _opened(writing), workers=1, writes=True)
        await stack.enter_async_context(writer.running())
        reader = Lane("reader", lambda: _opened(reading), workers=readers, writes=False)
        await stack.enter_async_context(reader.running())
        yield Store(writer, reader)


@asynccontextmanager
async def _opened(database: Database, *, inside_transaction: bool = False) -> AsyncIterator[Connection]:
    """One connection of `databases`, held until the end of the block."""
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(database.connection())
        except sqlite3.Error as error:
            raise named(error) from error
        yield Connection(connection.raw_connection, inside_transaction=inside_transaction)
