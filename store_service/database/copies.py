"""Copies of a SQLite database: whole, of one moment, checked, and on disk before they have their name.

A copy is read through a connection that can neither write nor checkpoint, so it needs no lock and disturbs no
server (docs/decisions/0023).
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
from store_service.database.sqlite import connected_to_look, lacks_its_log
from store_service.errors import OperatorError

STEP_PAGES = 2048
"""How much is copied between two reports of progress; 8 MiB as SQLite's pages are by default."""

Progress = Callable[[str, int, int], None]
"""Called with the current step, the number of bytes done, and the total; 0 if unknown."""

_CANNOT_WRITE = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_FSYNC)


class CopyFailed(OperatorError):
    """No copy was made, and what was there is as it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a copy holds, as it was found when it was checked."""

    revision: str
    """The schema."""
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
    """Copies a database as it is at one moment, checks the copy, and only then gives it its name.

    Until then it is `target` with `.partial` behind it, which is gone after an error; one that a killed
    process has left is overwritten. The caller makes sure that `target` may be replaced.

    Args:
        source: What is copied, which stays as it is.
        target: One file, without companions, that only its owner may read.
        progress: Is told how far it is.
        in_use: A server may write to the source meanwhile.
        only_ours: Refuse a source in which others have made triggers or rules for what the service writes.
        when_whole: Is called when the copy is checked and on disk, before it has its name.

    Raises:
        CopyFailed: There is no space, the source or the copy is damaged, or it holds something else.
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
                raise _named(error, source, partial) from error
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
    """Makes sure that a file which nobody uses is a whole database that this program knows.

    Args:
        copy: The file, which has no log beside it.
        named: What errors call it.
        progress: Is told that it is being checked.
        only_ours: Refuse it also if others have made triggers or rules for what the service writes.

    Raises:
        CopyFailed: It is damaged, empty, of a newer program, or of another one.
    """
    progress("checking", 0, 0)
    # Immutable: nobody uses it, and no file is made beside it.
    engine = sqlalchemy.create_engine(
        "sqlite://", creator=lambda: connected_to_look(copy, "immutable=1"), poolclass=NullPool
    )
    try:
        with engine.connect() as connection:
            first = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
            if first != "ok":
                raise CopyFailed(f"{named} is damaged: {' '.join(str(first).split())}")
            revision = schema.current(connection)
            if revision == schema.EMPTY:
                raise CopyFailed(f"{named} is empty: it has no posts and comments")
            if revision not in schema.KNOWN:
                raise CopyFailed(
                    f"{named} has schema {revision}, and this program knows {schema.HEAD}; {schema.OF_OTHERS}"
                )
            strange = legacy_preflight.strangers(connection, revision) if only_ours else []
            if strange:
                # A name may have a line break in it.
                found = " ".join("; ".join(strange).split())
                raise CopyFailed(f"{named} cannot be restored as it is: {found}")
            # The application before let comments stay behind; the upgrade moves them.
            if revision != schema.BEFORE:
                stray = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
                if stray is not None:
                    raise CopyFailed(
                        f"{named} is damaged: a row of {stray[0]} belongs to no row of {stray[2]}"
                    )
            posts, comments = connection.exec_driver_sql(
                "SELECT (SELECT count(*) FROM posts), (SELECT count(*) FROM comments)"
            ).one()
    except sqlalchemy.exc.DBAPIError as error:
        raise CopyFailed(f"{named} is damaged: {error.orig}") from error
    except schema.ForeignSchema as error:
        raise CopyFailed(f"{named} is of another program: {error}") from error
    finally:
        engine.dispose()
    return Contents(revision=revision, posts=posts, comments=comments, size_bytes=copy.stat().st_size)


def belong_to(database: Path) -> set[Path]:
    """The files of a database, of its lock, and of an unfinished restore, whether they are there or not."""
    beside = ("", *COMPANIONS, ".lock", ".restoring", ".restoring.partial")
    return {Path(f"{place}{end}") for place in (database.absolute(), database.resolve()) for end in beside}


def is_part_of(file: Path, database: Path) -> bool:
    """Whether a file is the database or one that belongs to it, also under another name."""
    if {file.absolute(), file.resolve()} & belong_to(database):
        return True
    return file.exists() and database.exists() and file.samefile(database)


def remove(file: Path) -> None:
    """Removes a database that nobody uses, and whatever belongs to it."""
    for end in ("", *COMPANIONS):
        Path(f"{file}{end}").unlink(missing_ok=True)


def _copy_pages(source: Path, target: Path, progress: Progress, in_use: bool) -> None:
    # Without a log SQLite creates one, which fails on a read-only file system.
    is_frozen = lacks_its_log(source) and not (in_use and os.access(source.resolve().parent, os.W_OK))
    before = source.stat()
    how = "immutable=1" if is_frozen else "mode=ro"
    with closing(connected_to_look(source, how)) as reader:
        # Everything is read in this one transaction. Without it SQLite would start again from the first page
        # whenever the server has written, and never end.
        reader.execute("BEGIN")
        ((pages, page_bytes),) = reader.execute("SELECT * FROM pragma_page_count, pragma_page_size")
        free = shutil.disk_usage(target.parent).free
        if free < pages * page_bytes:
            raise CopyFailed(
                f"{target.parent} has {free:,} bytes left, and the copy takes {pages * page_bytes:,}"
            )
        with closing(sqlite3.connect(target, isolation_level=None)) as writer:
            # It is worth nothing before it is whole, so it needs no journal, and one fsync at the end.
            for pragma in ("journal_mode = OFF", "synchronous = OFF"):
                writer.execute(f"PRAGMA {pragma}")
            reader.backup(
                writer,
                pages=STEP_PAGES,
                progress=lambda _, left, total: progress(
                    "copying", (total - left) * page_bytes, total * page_bytes
                ),
            )
    # Another user, or another machine, may be able to write what we cannot.
    if is_frozen and (not lacks_its_log(source) or _signature(source.stat()) != _signature(before)):
        raise CopyFailed(f"{source} was written during the copy; try again")
    with closing(sqlite3.connect(target, isolation_level=None)) as writer:
        # The first page says that there is a log beside the file, which a copy does not have.
        writer.execute("PRAGMA synchronous = OFF")
        writer.execute("PRAGMA journal_mode = DELETE")


def _signature(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _held(partial: Path) -> Iterator[int]:
    """A file of ours alone, empty, until the end of the block."""
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
        # Whoever held it may have given it its name meanwhile: then it is no longer to be overwritten.
        if not partial.exists() or not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise busy
        os.ftruncate(descriptor, 0)
        os.fchmod(descriptor, 0o600)
        for end in COMPANIONS:
            Path(f"{partial}{end}").unlink(missing_ok=True)
        yield descriptor
    finally:
        os.close(descriptor)


def _named(error: sqlite3.Error, source: Path, partial: Path) -> CopyFailed:
    code = getattr(error, "sqlite_errorcode", 0)
    if code in _CANNOT_WRITE or code & 0xFF == sqlite3.SQLITE_FULL:
        return CopyFailed(f"cannot write {partial}: there is no space left, or the disk fails")
    return CopyFailed(f"cannot read {source}: {error}")
