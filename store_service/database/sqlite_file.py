"""The file of a SQLite database: its lock file, read-only connections to it, and checks of its state."""

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import make_url

from store_service.errors import DatabaseUnavailable, OperatorError

LOCK_RETRY_SECONDS = 0.1
"""Pause before a second attempt to lock; longer than `is_in_use` holds a lock."""


class DatabaseInUse(OperatorError):
    """Another service has the file open. Two writers can damage it."""


class NoPlaceForDatabase(OperatorError):
    """The folder of the file does not exist or is not writable."""


class FileLost(Exception):
    """The open file was deleted or replaced. The text is one line."""


class RestoreUnfinished(OperatorError):
    """A restore was interrupted after the old database was set aside and before the new one was in place."""


def database_path(database_url: str) -> Path:
    """Returns the path of the file of a SQLite URL."""
    database = make_url(database_url).database
    assert database is not None  # the settings refuse URLs without a file
    return Path(database)


@contextmanager
def sole_use(database_url: str, *, wait_seconds: float = LOCK_RETRY_SECONDS) -> Iterator[int]:
    """Excludes all other services from a file until the end of the block or of the process.

    Yields the descriptor that holds the lock. Processes that inherit it hold the lock too.

    SQLite up to 3.51.2 can damage a WAL database when two connections write or checkpoint at the same
    moment (https://www.sqlite.org/wal.html#walresetbug), so one connection of one process writes.

    Raises:
        DatabaseInUse: Another process holds the lock.
        NoPlaceForDatabase: The lock file cannot be created.
        RestoreUnfinished: The database does not exist, because a restore was interrupted.
    """
    path = database_path(database_url)
    with locked(path, wait_seconds=wait_seconds) as descriptor:
        refuse_unfinished_restore(path)
        yield descriptor


def refuse_unfinished_restore(path: Path) -> None:
    """Checks for an interrupted restore, so that no empty database is created in place of the restored one.

    Raises:
        RestoreUnfinished: The database does not exist, because a restore was interrupted.
    """
    if not path.exists() and restoring(path.resolve()).exists():
        raise RestoreUnfinished(f"a restore of {path} was interrupted; run `store-service restore` again")


class OpenFile:
    """The file of an open database. SQLite continues to use it after it was deleted or replaced."""

    def __init__(self, path: Path) -> None:
        """Takes the path of the file that was opened."""
        self._path = path
        self._opened = self._identity()

    def check(self) -> None:
        """Checks that the path still names the opened file. Takes a few microseconds.

        Raises:
            DatabaseUnavailable: The file was deleted or replaced.
        """
        identity = self._identity()
        if identity != self._opened:
            what = "was deleted" if identity is None else "was replaced by another file"
            raise DatabaseUnavailable from FileLost(
                f"{self._path} {what} while it was open; restart the service"
            )

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def restoring(path: Path) -> Path:
    """Returns the name of a complete restored database before it is renamed to `path`."""
    return Path(f"{path}.restoring")


@contextmanager
def locked(path: Path, *, wait_seconds: float = LOCK_RETRY_SECONDS) -> Iterator[int]:
    """Holds the lock file of a database until the end of the block or of the process.

    Waits at most `wait_seconds` for another process. Yields the descriptor of the lock file.

    Raises:
        DatabaseInUse: Another process holds the lock.
        NoPlaceForDatabase: The lock file cannot be created.
    """
    try:
        # A separate file, because closing a second descriptor of the database would release SQLite's locks.
        # It is in the folder of the file itself, not of a link to it.
        descriptor = os.open(f"{path.resolve()}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise NoPlaceForDatabase(
            f"cannot create files in the folder of the database {path}: {error.strerror}"
        ) from error
    try:
        ends_at = time.monotonic() + wait_seconds
        while not _lock(descriptor):
            if time.monotonic() >= ends_at:
                raise DatabaseInUse(f"another store-service is using {path}")
            # `store-service check` holds the lock for a moment.
            time.sleep(LOCK_RETRY_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Locks a file. Returns False if another process holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_in_use(path: Path) -> bool:
    """Whether another process holds the lock file of a database. Creates no file; False if the lock file
    cannot be opened."""
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


def read_only_connection(path: Path, mode: str) -> sqlite3.Connection:
    """Opens a connection that can neither write nor checkpoint, so it needs no lock.

    Args:
        path: The file.
        mode: `mode=ro`, or `immutable=1` for a file that no process writes to meanwhile.
    """
    connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?{mode}", uri=True, isolation_level=None)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def was_interrupted(error: BaseException | None) -> bool:
    """Whether an error means that a write was interrupted and has to be rolled back by a connection that can
    write."""
    # SQLAlchemy wraps the driver's error.
    return getattr(getattr(error, "orig", error), "sqlite_errorname", "") == "SQLITE_READONLY_ROLLBACK"


def lacks_its_log(path: Path) -> bool:
    """Whether a database in WAL mode has no log: it was closed, or copied without its log. To read such a
    file, SQLite creates a log, if it has the permissions.

    Raises:
        OSError: The file cannot be read.
    """
    # https://www.sqlite.org/fileformat2.html#file_format_version_numbers
    with path.open("rb") as file:
        has_wal_mode = file.read(20)[18:20] == b"\2\2"
    return has_wal_mode and not Path(f"{path.resolve()}-wal").exists()
