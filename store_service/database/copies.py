"""Copies SQLite databases. A copy is consistent, checked, and on disk before it gets its final name.

The source is read through a connection that can neither write nor checkpoint, so copying needs no lock and
does not affect a running server (docs/decisions/0023).
"""

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from sqlalchemy.pool import NullPool

from store_service import disk
from store_service.database import legacy_preflight, schema
from store_service.database.files import COMPANIONS
from store_service.database.sqlite_file import lacks_its_log, read_only_connection
from store_service.errors import OperatorError

STEP_PAGES = 2048
"""Pages copied between two progress reports; 8 MiB with SQLite's default page size."""

Progress = Callable[[str, int, int], None]
"""Called with the current step, the number of bytes done, and the total; 0 if unknown."""

_CANNOT_WRITE = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_FSYNC)


class CopyFailed(OperatorError):
    """No copy was made. Existing files are unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The contents of a copy, as found by the check."""

    revision: str
    """The schema revision."""
    posts: int
    comments: int
    size_bytes: int


def copy_database(
    source: Path,
    target: Path,
    progress: Progress,
    *,
    in_use: bool,
    only_ours: bool = False,
    when_whole: Callable[[], None] | None = None,
) -> Contents:
    """Makes a consistent copy of a database, checks it, and then renames it to its final name.

    Until then its name is that of `target` with the suffix `.partial`. It is removed after an error. One that
    a killed process has left is overwritten. The caller checks that `target` may be replaced.

    Args:
        source: The database to copy. It is not changed.
        target: The copy: one file without companions that only its owner may read.
        progress: Called with the progress.
        in_use: A server may write to the source meanwhile.
        only_ours: Refuse a source with triggers or constraints that affect writes of the service.
        when_whole: Called when the copy is checked and on disk, before it is renamed.

    Raises:
        CopyFailed: The disk is full, the source or the copy is damaged, or it is not a database of the
            service.
    """
    partial = Path(f"{target}.partial")
    with _held(partial) as descriptor:
        try:
            _copy_pages(source, partial, progress, in_use)
            contents = check(partial, named=source, progress=progress, only_ours=only_ours)
            progress("writing to disk", 0, 0)
            os.fsync(descriptor)
        except BaseException as error:
            remove(partial)
            if isinstance(error, sqlite3.Error):
                raise _copy_error(error, source, partial) from error
            if isinstance(error, OSError):
                raise CopyFailed(f"cannot write {partial}: {error.strerror}") from error
            raise
        try:
            if when_whole is not None:
                when_whole()
            partial.replace(target)
            disk.sync(target.parent)
        except OSError as error:
            raise CopyFailed(f"cannot write {target}: {error.strerror}") from error
    return contents


def check(copy: Path, *, named: Path, progress: Progress, only_ours: bool = False) -> Contents:
    """Checks that an unused file is an undamaged database with a schema that this program knows.

    Args:
        copy: The file. It must have no log.
        named: The name of the file in errors.
        progress: Called when the check starts.
        only_ours: Refuse triggers and constraints that affect writes of the service.

    Raises:
        CopyFailed: The file is damaged, empty, or was created by a newer program or another application.
    """
    progress("checking", 0, 0)
    # Immutable, because no other process uses it and no companion files must be created.
    engine = sqlalchemy.create_engine(
        "sqlite://", creator=lambda: read_only_connection(copy, "immutable=1"), poolclass=NullPool
    )
    try:
        with engine.connect() as connection:
            first = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
            if first != "ok":
                raise CopyFailed(f"{named} is damaged: {' '.join(str(first).split())}")
            revision = schema.current(connection)
            if revision == schema.EMPTY:
                raise CopyFailed(f"{named} is empty: it has no tables of posts and comments")
            if revision not in schema.KNOWN:
                raise CopyFailed(
                    f"{named} has schema {revision}, but this program has {schema.HEAD}; {schema.OF_OTHERS}"
                )
            unexpected = legacy_preflight.restore_obstacles(connection, revision) if only_ours else []
            if unexpected:
                # A name may contain a line break.
                found = " ".join("; ".join(unexpected).split())
                raise CopyFailed(f"{named} cannot be restored as it is: {found}")
            # Legacy databases may have comments without a post. The upgrade moves them.
            if revision != schema.BEFORE:
                orphan = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
                if orphan is not None:
                    raise CopyFailed(
                        f"{named} is damaged: a row of {orphan[0]} refers to a missing row of {orphan[2]}"
                    )
            posts, comments = connection.exec_driver_sql(
                "SELECT (SELECT count(*) FROM posts), (SELECT count(*) FROM comments)"
            ).one()
    except sqlalchemy.exc.DBAPIError as error:
        raise CopyFailed(f"{named} is damaged: {error.orig}") from error
    except schema.ForeignSchema as error:
        raise CopyFailed(f"{named} is not a database of this service: {error}") from error
    finally:
        engine.dispose()
    return Contents(revision=revision, posts=posts, comments=comments, size_bytes=copy.stat().st_size)


def belong_to(database: Path) -> set[Path]:
    """Returns the paths of the database, of its companions and lock, and of an unfinished restore."""
    beside = ("", *COMPANIONS, ".lock", ".restoring", ".restoring.partial")
    return {Path(f"{place}{end}") for place in (database.absolute(), database.resolve()) for end in beside}


def is_part_of(file: Path, database: Path) -> bool:
    """Whether a file is the database or belongs to it. Links are resolved."""
    if {file.absolute(), file.resolve()} & belong_to(database):
        return True
    return file.exists() and database.exists() and file.samefile(database)


def remove(file: Path) -> None:
    """Removes an unused database and its companions."""
    for end in ("", *COMPANIONS):
        Path(f"{file}{end}").unlink(missing_ok=True)


def _copy_pages(source: Path, target: Path, progress: Progress, in_use: bool) -> None:
    # Without a log SQLite creates one, which fails on a read-only file system.
    is_frozen = lacks_its_log(source) and not (in_use and os.access(source.resolve().parent, os.W_OK))
    before = source.stat()
    mode = "immutable=1" if is_frozen else "mode=ro"
    with closing(read_only_connection(source, mode)) as reader:
        # One transaction for all pages. Without it SQLite would restart from the first page after each write
        # of the server, and might never finish.
        reader.execute("BEGIN")
        ((pages, page_bytes),) = reader.execute("SELECT * FROM pragma_page_count, pragma_page_size")
        free = shutil.disk_usage(target.parent).free
        if free < pages * page_bytes:
            raise CopyFailed(
                f"{target.parent} has {free:,} bytes left, and the copy needs {pages * page_bytes:,}"
            )
        with closing(sqlite3.connect(target, isolation_level=None)) as writer:
            # An incomplete copy is discarded, so it needs no journal, and one fsync at the end.
            for pragma in ("journal_mode = OFF", "synchronous = OFF"):
                writer.execute(f"PRAGMA {pragma}")
            reader.backup(
                writer,
                pages=STEP_PAGES,
                progress=lambda _, left, total: progress(
                    "copying", (total - left) * page_bytes, total * page_bytes
                ),
            )
    # Another user, or another machine, may have written although this process cannot.
    if is_frozen and (not lacks_its_log(source) or _signature(source.stat()) != _signature(before)):
        raise CopyFailed(f"{source} was written during the copy; try again")
    with closing(sqlite3.connect(target, isolation_level=None)) as writer:
        # The first page says WAL mode, but the copy has no log.
        writer.execute("PRAGMA synchronous = OFF")
        writer.execute("PRAGMA journal_mode = DELETE")


def _signature(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _held(partial: Path) -> Iterator[int]:
    """Locks and empties a file until the end of the block."""
    busy = CopyFailed(f"another command is writing {partial}")
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CopyFailed(f"cannot write {partial}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        # Another process may have finished the file and renamed it meanwhile. It must not be overwritten.
        if not partial.exists() or not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise busy
        os.ftruncate(descriptor, 0)
        os.fchmod(descriptor, 0o600)
        for end in COMPANIONS:
            Path(f"{partial}{end}").unlink(missing_ok=True)
        yield descriptor
    finally:
        os.close(descriptor)


def _copy_error(error: sqlite3.Error, source: Path, partial: Path) -> CopyFailed:
    code = getattr(error, "sqlite_errorcode", 0)
    if code in _CANNOT_WRITE or code & 0xFF == sqlite3.SQLITE_FULL:
        return CopyFailed(f"cannot write {partial}: the disk is full or failed")
    return CopyFailed(f"cannot read {source}: {error}")
