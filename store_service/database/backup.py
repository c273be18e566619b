"""Backups of a SQLite file: made while a server runs, put back while none does (docs/decisions/0023)."""

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from store_service import disk
from store_service.database import copies, files, schema, sqlite
from store_service.database.copies import Contents, CopyFailed, Progress
from store_service.errors import SchemaMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A backup that is the database now."""

    contents: Contents
    kept: Path | None
    """Where the database before is, if there was one."""
    logs: tuple[Path, ...]
    """Where logs are that lay there without their database."""


def back_up(database_url: str, file: Path, *, force: bool, progress: Progress) -> Contents:
    """Copies the database into a file, as it is at one moment; a server may run and write meanwhile.

    Args:
        database_url: SQLite.
        file: Is there afterwards, whole and checked, or as it was before.
        force: Replace `file` if it is there.
        progress: Is told how far it is.

    Raises:
        SchemaMismatch: There is no database.
        CopyFailed: `file` may not be written, there is no space, or the database is damaged.
    """
    database = sqlite.database_path(database_url)
    if not database.exists():
        raise SchemaMismatch(expected=schema.HEAD, actual=schema.EMPTY)
    if copies.is_part_of(file, database):
        raise CopyFailed(f"{file} belongs to the database itself")
    if not file.parent.is_dir():
        raise CopyFailed(f"there is no folder {file.parent}")
    if os.path.lexists(file):
        if not file.is_file():
            raise CopyFailed(f"{file} is no file")
        if not force:
            raise CopyFailed(f"{file} is there already; --force replaces it")
    return copies.copy_database(database, file, progress, in_use=True)


def restore(database_url: str, file: Path, *, progress: Progress) -> Restored:
    """Makes a copy of a backup the database, and keeps the database before beside it.

    At every moment there is the database before, or the restored one, or `sqlite.RestoreUnfinished` for
    whoever wants to serve: never an empty one, and never one with the log of another.

    Args:
        database_url: SQLite.
        file: A backup, or any other copy of a database, which stays as it is.
        progress: Is told how far it is.

    Raises:
        DatabaseInUse: A server is running.
        NoPlaceForDatabase: No file can be made beside the database.
        CopyFailed: The backup is damaged or not ours alone, or there is no space; the database is as it was.
    """
    configured = sqlite.database_path(database_url)
    # SQLite keeps the log beside the file that a link leads to.
    database = configured.resolve()
    if not file.is_file():
        raise CopyFailed(f"there is no file {file}")
    if copies.is_part_of(file, configured):
        raise CopyFailed(f"{file} belongs to the database itself")
    with sqlite.locked(configured):
        new = sqlite.restoring(database)
        is_unfinished = new.exists()
        logs: list[Path] = []

        def set_stray_logs_aside() -> None:
            # Before there is `new`: from then on a log without a database counts as an interrupted restore's.
            if not is_unfinished and not database.exists():
                logs.extend(_set_logs_aside(database, None))

        contents = copies.copy_database(
            file, new, progress, in_use=False, only_ours=True, when_whole=set_stray_logs_aside
        )
        try:
            _give_away(new, database)
            kept = _set_database_aside(database, is_unfinished=is_unfinished)
            logs.extend(_set_logs_aside(database, kept))
            new.replace(database)
            disk.sync(database.parent)
        except OSError as error:
            raise CopyFailed(f"cannot replace {database}: {error.strerror}; run restore again") from error
    return Restored(contents=contents, kept=kept, logs=tuple(logs))


def _give_away(new: Path, database: Path) -> None:
    """Whoever could use the database before can use the new one, also when root restores it."""
    before = database.stat() if database.exists() else database.parent.stat()
    if database.exists():
        new.chmod(before.st_mode & 0o777)
    if os.geteuid() == 0:
        os.chown(new, before.st_uid, before.st_gid)
    disk.sync(new)


def _set_database_aside(database: Path, *, is_unfinished: bool) -> Path | None:
    """Gives the database another name; returns it, or that which an interrupted restore has given."""
    if database.exists():
        kept = _free_name(database)
        database.rename(kept)
        disk.sync(database.parent)
        return kept
    asides = _asides(database) if is_unfinished else []
    return asides[-1] if asides else None


def _set_logs_aside(database: Path, kept: Path | None) -> list[Path]:
    """Takes away what is left of a log, so that it is never found beside another database.

    Args:
        database: Is no longer there.
        kept: Where it is now, and its log goes too; None if nobody knows.

    Returns:
        The logs that got names of their own: there was no database, or it has a log already.
    """
    alone: list[Path] = []
    for end in ("-wal", "-journal"):
        left = Path(f"{database}{end}")
        if not left.exists():
            continue
        target = Path(f"{kept}{end}")
        if kept is None or target.exists():
            target = Path(f"{_free_name(database)}{end}")
            alone.append(target)
        left.rename(target)
    # It is made of the log whenever that is opened.
    Path(f"{database}-shm").unlink(missing_ok=True)
    disk.sync(database.parent)
    return alone


def _asides(database: Path) -> list[Path]:
    """The databases before, oldest first, without their logs."""
    found = database.parent.glob(f"{database.name}.before-restore-*")
    return sorted(it for it in found if not it.name.endswith(files.COMPANIONS))


def _free_name(database: Path) -> Path:
    """A name that sorts after those of the databases before, also when the clock was set back since."""
    prefix, stamp_format = f"{database.name}.before-restore-", "%Y%m%dT%H%M%S.%fZ"
    now = datetime.now(UTC)
    for last in _asides(database)[-1:]:
        with suppress(ValueError):  # somebody else has named it
            stamped = datetime.strptime(last.name.removeprefix(prefix), stamp_format).replace(tzinfo=UTC)
            now = max(now, stamped + timedelta(microseconds=1))
    return database.with_name(f"{prefix}{now.strftime(stamp_format)}")
