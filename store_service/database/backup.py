"""Backup and restore of a SQLite database (docs/decisions/0023). A backup is made while a server may run, a
restore while none runs."""

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from store_service import disk
from store_service.database import copies, files, schema, sqlite_file
from store_service.database.copies import Contents, CopyFailed, Progress
from store_service.errors import SchemaMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The result of a restore."""

    contents: Contents
    kept: Path | None
    """Path of the replaced database; None if there was none."""
    logs: tuple[Path, ...]
    """Paths of logs that were found without a database."""


def back_up(database_url: str, file: Path, *, force: bool, progress: Progress) -> Contents:
    """Makes a consistent copy of the database. A server may run and write meanwhile.

    Args:
        database_url: SQLite.
        file: The copy. It is complete and checked afterwards, or unchanged after an error.
        force: Replace `file` if it exists.
        progress: Called with the progress.

    Raises:
        SchemaMismatch: The database does not exist.
        CopyFailed: `file` cannot be written, the disk is full, or the database is damaged.
    """
    database = sqlite_file.database_path(database_url)
    if not database.exists():
        raise SchemaMismatch(expected=schema.HEAD, actual=schema.EMPTY)
    if copies.is_part_of(file, database):
        raise CopyFailed(f"{file} belongs to the database itself")
    if not file.parent.is_dir():
        raise CopyFailed(f"folder {file.parent} does not exist")
    if os.path.lexists(file):
        if not file.is_file():
            raise CopyFailed(f"{file} is not a file")
        if not force:
            raise CopyFailed(f"{file} already exists; --force replaces it")
    return copies.copy_database(database, file, progress, in_use=True)


def restore(database_url: str, file: Path, *, progress: Progress) -> Restored:
    """Replaces the database by a copy of a backup, and keeps the replaced database in the same folder.

    If the process is killed, the database is the old one or the restored one, or serving it fails with
    `sqlite_file.RestoreUnfinished`. It is never empty and never has the log of another database.

    Args:
        database_url: SQLite.
        file: A backup, or any other copy of a database. It is not changed.
        progress: Called with the progress.

    Raises:
        DatabaseInUse: A server is running.
        NoPlaceForDatabase: No file can be created in the folder of the database.
        CopyFailed: The backup is damaged or has unexpected objects, or the disk is full. The database is
            unchanged.
    """
    configured = sqlite_file.database_path(database_url)
    # SQLite creates the log in the folder of the file itself, not of a link to it.
    database = configured.resolve()
    if not file.is_file():
        raise CopyFailed(f"file {file} does not exist")
    if copies.is_part_of(file, configured):
        raise CopyFailed(f"{file} belongs to the database itself")
    with sqlite_file.locked(configured):
        new = sqlite_file.restoring(database)
        is_unfinished = new.exists()
        logs: list[Path] = []

        def set_orphaned_logs_aside() -> None:
            # Before `new` exists. Afterwards, a log without a database belongs to an interrupted restore.
            if not is_unfinished and not database.exists():
                logs.extend(_set_logs_aside(database, None))

        contents = copies.copy_database(
            file, new, progress, in_use=False, only_ours=True, when_whole=set_orphaned_logs_aside
        )
        try:
            _copy_permissions(new, database)
            kept = _set_database_aside(database, is_unfinished=is_unfinished)
            logs.extend(_set_logs_aside(database, kept))
            new.replace(database)
            disk.sync(database.parent)
        except OSError as error:
            raise CopyFailed(f"cannot replace {database}: {error.strerror}; run restore again") from error
    return Restored(contents=contents, kept=kept, logs=tuple(logs))


def _copy_permissions(new: Path, database: Path) -> None:
    """Gives the new file the mode of the database. As root, also the owner of the database or its folder."""
    before = database.stat() if database.exists() else database.parent.stat()
    if database.exists():
        new.chmod(before.st_mode & 0o777)
    if os.geteuid() == 0:
        os.chown(new, before.st_uid, before.st_gid)
    disk.sync(new)


def _set_database_aside(database: Path, *, is_unfinished: bool) -> Path | None:
    """Renames the database. Returns the new name, or the name that an interrupted restore has given to it."""
    if database.exists():
        kept = _free_name(database)
        database.rename(kept)
        disk.sync(database.parent)
        return kept
    asides = _asides(database) if is_unfinished else []
    return asides[-1] if asides else None


def _set_logs_aside(database: Path, kept: Path | None) -> list[Path]:
    """Renames the logs of a database that was set aside, so that they never belong to another database.

    Args:
        database: Path at which the database was.
        kept: Path of the database now, whose name the log gets too; None if it is unknown.

    Returns:
        The logs that got another name, because there was no database or it already has a log.
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
    # SQLite creates it from the log when the database is opened.
    Path(f"{database}-shm").unlink(missing_ok=True)
    disk.sync(database.parent)
    return alone


def _asides(database: Path) -> list[Path]:
    """Returns the replaced databases, oldest first, without their logs."""
    found = database.parent.glob(f"{database.name}.before-restore-*")
    return sorted(it for it in found if not it.name.endswith(files.COMPANIONS))


def _free_name(database: Path) -> Path:
    """Returns a name that sorts after those of all replaced databases, even if the clock was set back."""
    prefix, stamp_format = f"{database.name}.before-restore-", "%Y%m%dT%H%M%S.%fZ"
    now = datetime.now(UTC)
    for last in _asides(database)[-1:]:
        with suppress(ValueError):  # not a name of this function
            stamped = datetime.strptime(last.name.removeprefix(prefix), stamp_format).replace(tzinfo=UTC)
            now = max(now, stamped + timedelta(microseconds=1))
    return database.with_name(f"{prefix}{now.strftime(stamp_format)}")
