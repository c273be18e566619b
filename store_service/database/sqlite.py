"""SQLite: one file, one process, one connection that writes."""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from databases import Database
from sqlalchemy import text
from sqlalchemy.engine import make_url

from store_service.database.batch_queue import Backend, BatchQueue
from store_service.database.changes import LAST_XID, WriteWithChanges
from store_service.database.connection import Connection, Rows, T
from store_service.database.driver_errors import named
from store_service.database.statements import Statement, as_json
from store_service.errors import DatabaseUnavailable, OperatorError
from store_service.observability.batches import ObserverFactory, without_observer

SYNCHRONOUS_EXTRA = 3
"""PRAGMA synchronous, such that no power cut undoes a commit.

In WAL mode it is the same as FULL: the log is synced. Without a log, FULL does not sync the folder after the
journal was removed, so the journal may come back and undo the commit.
"""

# WAL lets readers read while the writer writes. With NORMAL a power cut loses commits that were answered.
# Without mmap an I/O error is an error, not a SIGBUS.
_READER_PRAGMAS: dict[str, int | str] = {"mmap_size": 0, "trusted_schema": 0}

MAX_KEPT_LOG_BYTES = 16 * 1024 * 1024
"""Size of the log that is kept. SQLite begins the log anew when all of it is in the database and nobody reads
from it; the next commit then cuts off what a large transaction, or a long reader, has left beyond this."""

_WRITER_PRAGMAS = {
    **_READER_PRAGMAS,
    "synchronous": SYNCHRONOUS_EXTRA,
    "journal_mode": "wal",
    "journal_size_limit": MAX_KEPT_LOG_BYTES,
    "foreign_keys": 1,
}


_USER_VERSION = Statement(text("PRAGMA user_version"))
"""An unused number in the first page. SQLite writes the page even if the number is unchanged."""

STEPS_BETWEEN_QUESTIONS = 50_000
"""So many steps of its machine, less than a millisecond's, SQLite makes before it asks whether to go on."""

SLOW_SECONDS = 0.002
"""A read on the event loop that takes longer has met the disk, and the next ones go to the thread."""

SLOW_FOR_SECONDS = 1.0
"""How long they do."""


CHECK_SECONDS = 0.1
"""Longer than `is_in_use` holds a lock."""


class DatabaseInUse(OperatorError):
    """Another service has the file open; two writers can damage it."""


class NoPlaceForDatabase(OperatorError):
    """The folder of the file is not there or must not be written to."""


class FileLost(Exception):
    """The open file has no name any more, or somebody gave it to another; the text is one line."""


class RestoreUnfinished(OperatorError):
    """A restore was interrupted between the database before and the new one."""


class SqliteConnection(Connection):
    """A connection of aiosqlite."""

    # A deferred transaction fails at its first write instead of waiting, so writers say so first.
    BEGIN = "BEGIN IMMEDIATE"
    BEGIN_INSERT_ONLY = BEGIN
    SINGLE_STATEMENT_WRITES = False

    _slow_until = 0.0
    """When reads on the event loop may be tried again, by time.perf_counter."""

    _has_written = False
    """Whether this transaction has changes in the feed, whose number it must keep."""

    _is_in_thread = False
    """Whether `run_in_connection_thread` is running, and with it whoever calls us."""

    async def ask_whether_to_go_on(self) -> None:
        """Has SQLite ask, in the midst of statements, whether anybody still waits."""
        await self._raw.set_progress_handler(lambda: not self.is_wanted, STEPS_BETWEEN_QUESTIONS)

    async def write(self, write: WriteWithChanges, **values: Any) -> Rows:
        """Runs a write and then, in the same transaction, what leaves its changes in the feed."""
        xid = None
        if self._has_written:
            ((xid,),) = await self.fetch(LAST_XID)
        self._has_written = True
        first, second = write.steps
        rows = await self.fetch(first, xid=xid, **values)
        await self.fetch(second, xid=xid, written=as_json([id for (id,) in rows]), **values)
        return sorted(rows)

    async def probe(self) -> None:
        """Writes the first page as it is; see Connection."""
        ((version,),) = await self.fetch(_USER_VERSION)
        await self._run(f"PRAGMA user_version = {version}")

    @asynccontextmanager
    async def transaction(self, *, dry_run: bool = False, insert_only: bool = False) -> AsyncIterator[None]:
        """What runs inside is on disk, whole, when this ends; see Connection."""
        self._has_written = False
        async with super().transaction(dry_run=dry_run, insert_only=insert_only):
            yield

    async def run_in_connection_thread(self, job: Coroutine[Any, Any, T]) -> T:
        """Runs the work in the connection's thread, from beginning to end.

        One trip there and back, instead of one for each statement (docs/decisions/0010).
        """
        outcome: T = await self._raw._execute(self._run_to_its_end, job)
        return outcome

    def _run_to_its_end(self, job: Coroutine[Any, Any, T]) -> T:
        self._is_in_thread = True
        mistake = RuntimeError("work of a connection waited for something else")
        try:
            job.send(None)
            # Told where it waits, so that it undoes what it has begun.
            job.throw(mistake)
        except StopIteration as ended:
            outcome: T = ended.value
            return outcome
        finally:
            self._is_in_thread = False
        raise mistake

    async def _fetch(self, statement: Statement, values: dict[str, Any]) -> Rows:
        text, arguments = statement.on("sqlite", values)
        if self._is_in_thread:
            return self._rows(text, arguments)
        rows: Rows = await self._raw.execute_fetchall(text, arguments)
        return rows

    async def fetch_inline(self, statement: Statement, **values: Any) -> Rows:
        """Reads on the event loop itself, unless the file has lately been slow.

        A row in the page cache takes a few microseconds, the trip to the connection's thread two hundred
        (docs/decisions/0009). Nobody else uses the connection meanwhile: its worker waits here.
        """
        started = time.perf_counter()
        if started < self._slow_until or self._is_in_thread:
            return await self.fetch(statement, **values)
        text, arguments = statement.on("sqlite", values)
        try:
            rows = self._rows(text, arguments)
        except sqlite3.Error as error:
            raise named(error) from error
        ended = time.perf_counter()
        if ended - started > SLOW_SECONDS:
            self._slow_until = ended + SLOW_FOR_SECONDS
        return rows

    async def _execute(self, text: str) -> None:
        if self._is_in_thread:
            self._rows(text, [])
        else:
            await self._raw.execute_fetchall(text)

    def _interrupt(self) -> None:
        """Leaves it to the question that SQLite asks; sqlite3_interrupt would miss a statement that is still
        on its way to the thread."""

    def _rows(self, text: str, arguments: list[Any]) -> Rows:
        rows: Rows = self._raw._conn.execute(text, arguments).fetchall()
        return rows

    def _in_transaction(self) -> bool:
        in_transaction: bool = self._raw.in_transaction
        return in_transaction


def database_path(database_url: str) -> Path:
    """The file of a SQLite URL."""
    database = make_url(database_url).database
    assert database is not None  # the settings refuse URLs without a file
    return Path(database)


@contextmanager
def sole_use(database_url: str) -> Iterator[None]:
    """Keeps every other service off a file until the end of the block, or of the process.

    SQLite up to 3.51.2 can damage a WAL database when two connections write or checkpoint at the same
    moment (https://www.sqlite.org/wal.html#walresetbug), so there is one writer, in one process.

    Raises:
        DatabaseInUse: Another process holds the file.
        NoPlaceForDatabase: No file can be made beside the database.
        RestoreUnfinished: There is no database, because a restore was interrupted.
    """
    path = database_path(database_url)
    with locked(path):
        refuse_unfinished_restore(path)
        yield


def refuse_unfinished_restore(path: Path) -> None:
    """Prevents that an empty database is created in the place of a restored one.

    Raises:
        RestoreUnfinished: There is no database, because a restore was interrupted.
    """
    if not path.exists() and restoring(path.resolve()).exists():
        raise RestoreUnfinished(f"a restore of {path} was interrupted; run `store-service restore` again")


class OpenFile:
    """The file of an open database, which SQLite goes on using when nobody can find it any more."""

    def __init__(self, path: Path) -> None:
        """Takes where it is, and what is there now."""
        self._path = path
        self._opened = self._there()

    def check(self) -> None:
        """Makes sure that what is there is still what was opened; a matter of microseconds.

        Raises:
            DatabaseUnavailable: It is something else, or nothing.
        """
        there = self._there()
        if there != self._opened:
            what = "was deleted" if there is None else "was replaced by another file"
            raise DatabaseUnavailable from FileLost(f"{self._path} {what} while it was open; start again")

    def _there(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def restoring(path: Path) -> Path:
    """Where a restored database is, whole, until it has its name."""
    return Path(f"{path}.restoring")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file of a database until the end of the block, or of the process.

    Raises:
        DatabaseInUse: Another process holds it.
        NoPlaceForDatabase: It cannot be made.
    """
    try:
        # A file of its own: closing a second descriptor of the database itself would drop SQLite's locks.
        # It is beside the database, wherever a link is that leads there.
        descriptor = os.open(f"{path.resolve()}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise NoPlaceForDatabase(f"cannot write beside the database {path}: {error.strerror}") from error
    try:
        if not _is_locked(descriptor):
            # `check` holds it for a moment.
            time.sleep(CHECK_SECONDS)
            if not _is_locked(descriptor):
                raise DatabaseInUse(f"another store-service is using {path}")
        yield
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Locks a file, unless another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_in_use(path: Path) -> bool:
    """Whether another process holds the lock file of a database, as far as it can be opened; makes none."""
    try:
        descriptor = os.open(f"{path.resolve()}.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, so that two concurrent checks do not see each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def connected_to_look(path: Path, how: str) -> sqlite3.Connection:
    """A connection that can neither write nor checkpoint, so that it needs no lock.

    Args:
        path: The file.
        how: `mode=ro`, or `immutable=1` for a file that nobody writes to meanwhile.
    """
    connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?{how}", uri=True, isolation_level=None)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def was_interrupted(error: BaseException | None) -> bool:
    """Whether an error says that a write was interrupted, which only a connection that writes can undo."""
    # SQLAlchemy wraps the driver's error.
    return getattr(getattr(error, "orig", error), "sqlite_errorname", "") == "SQLITE_READONLY_ROLLBACK"


def lacks_its_log(path: Path) -> bool:
    """Whether SQLite would make files beside it to read it, if it may: it was closed, or copied alone.

    Raises:
        OSError: The file cannot be read.
    """
    # https://www.sqlite.org/fileformat2.html#file_format_version_numbers
    with path.open("rb") as file:
        has_wal_mode = file.read(20)[18:20] == b"\2\2"
    return has_wal_mode and not Path(f"{path.resolve()}-wal").exists()


@asynccontextmanager
async def open_backend(
    database_url: str,
    *,
    readers: int,
    lock_timeout_seconds: float,
    force_roll_back: bool,
    observe: ObserverFactory = without_observer,
) -> AsyncIterator[Backend]:
    """The lane to write and the lane to read; one and the same with `force_roll_back`.

    Raises:
        ServiceError: The file cannot be opened.
    """
    path = database_path(database_url).absolute()
    writer_class, reader_class = _connection_class(_WRITER_PRAGMAS), _connection_class(_READER_PRAGMAS)
    # aiosqlite does not wait for its thread when opening fails, and the thread complains when it outlives
    # the loop; so what cannot be opened is found here.
    try:
        await asyncio.to_thread(lambda: writer_class(path, timeout=lock_timeout_seconds).close())
    except sqlite3.Error as error:
        raise named(error) from error

    # SQLAlchemy and `databases` disagree about # in a path, and the upgrade went by the former.
    writing_url = f"sqlite:///{quote(str(path))}"
    # Quoted twice: `databases` and SQLite each read it as a URL.
    reading_url = f"sqlite:///file:{quote(quote(str(path)))}?mode=ro"
    async with AsyncExitStack() as stack:
        if force_roll_back:
            rolling_back = Database(
                writing_url,
                force_rollback=True,
                timeout=lock_timeout_seconds,
                factory=writer_class,
                check_same_thread=False,  # it reads too; see fetch_inline
            )
            database = await stack.enter_async_context(rolling_back)
            lane = BatchQueue(
                "worker",
                lambda: _opened(database, inside_transaction=True),
                workers=1,
                writes=True,
                observer=observe("worker"),
            )
            await stack.enter_async_context(lane.running())
            yield Backend(lane, lane, check=OpenFile(path).check)
            return

        writing = await stack.enter_async_context(
            Database(writing_url, timeout=lock_timeout_seconds, factory=writer_class)
        )
        reading = await stack.enter_async_context(
            Database(
                reading_url,
                uri=True,
                timeout=lock_timeout_seconds,
                factory=reader_class,
                check_same_thread=False,  # aiosqlite's thread and the event loop take turns; see fetch_inline
            )
        )

        # The writer first: it makes the log that readers need, and may not make themselves.
        writer = BatchQueue(
            "writer", lambda: _opened(writing), workers=1, writes=True, observer=observe("writer")
        )
        await stack.enter_async_context(writer.running())
        reader = BatchQueue(
            "reader", lambda: _opened(reading), workers=readers, writes=False, observer=observe("reader")
        )
        await stack.enter_async_context(reader.running())
        yield Backend(writer, reader, check=OpenFile(path).check)


@asynccontextmanager
async def _opened(database: Database, *, inside_transaction: bool = False) -> AsyncIterator[Connection]:
    """One connection of `databases`, held until the end of the block."""
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(database.connection())
        except sqlite3.Error as error:
            raise named(error) from error
        opened = SqliteConnection(connection.raw_connection, inside_transaction=inside_transaction)
        # SQLite undoes all of a transaction when a statement that writes is ended in its midst, and who is
        # inside another's would take along what was answered.
        if not inside_transaction:
            await opened.ask_whether_to_go_on()
        yield opened


def _connection_class(pragmas: dict[str, int | str]) -> type[sqlite3.Connection]:
    class SetUpConnection(sqlite3.Connection):
        """A connection that is set up, and proved to be so, before anybody uses it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            for name, wanted in pragmas.items():
                self.execute(f"PRAGMA {name} = {wanted}").close()
                actual = self.execute(f"PRAGMA {name}").fetchall()
                # SQLite answers a PRAGMA that it does not honour with silence.
                if actual != [(wanted,)]:
                    raise RuntimeError(f"SQLite keeps PRAGMA {name} at {actual}, not {wanted}")

    return SetUpConnection
