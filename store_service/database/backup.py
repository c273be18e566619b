"""Backups of a SQLite file: made while a server runs, put back while none does (docs/decisions/0023)."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from store_service.database import copies, schema, sqlite
from store_service.database.copies import Contents, CopyFailed, Progress
from store_service.errors import SchemaMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A backup that is the database now."""

    contents: Contents
    kept: Path | None
    """Where the database before is, if there was one."""


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
    database = sqlite.path_of(database_url)
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
        CopyFailed: The backup is damaged, or there is no space; the database is as it was.
    """
    configured = sqlite.path_of(database_url)
    # SQLite keeps the log beside the file that a link leads to.
    database = configured.resolve()
    if not file.is_file():
        raise CopyFailed(f"there is no file {file}")
    if copies.is_part_of(file, configured):
        raise CopyFailed(f"{file} belongs to the database itself")
    with sqlite.locked(configured):
        new = sqlite.restoring(database)
        contents = copies.copy_database(file, new, progress, in_use=False)
        try:
            _give_away(new, database)
            kept = _set_aside(database)
            new.replace(database)
            copies.sync_folder(database.parent)
        except OSError as error:
            raise CopyFailed(f"cannot replace {database}: {error.strerror}; run restore again") from error
    return Restored(contents=contents, kept=kept)


def _give_away(new: Path, database: Path) -> None:
    """Whoever could use the database before can use the new one, also when root restores it."""
    before = database.stat() if database.exists() else database.parent.stat()
    if database.exists():
        new.chmod(before.st_mode & 0o777)
    if os.geteuid() == 0:
        os.chown(new, before.st_uid, before.st_gid)


def _set_aside(database: Path) -> Path | None:
    """Gives the database and its log another name, so that the log is never found beside another database."""
    kept: Path | None = None
    if database.exists():
        kept = _free_name(database)
        database.rename(kept)
        copies.sync_folder(database.parent)
    elif asides := [it for it in _asides(database) if not it.name.endswith(copies.COMPANIONS)]:
        # A restore was interrupted after the line above; what is left of the database goes where it is.
        kept = asides[-1]
    for end in ("-wal", "-journal"):
        left = Path(f"{database}{end}")
        if left.exists() and kept is not None:
            left.rename(f"{kept}{end}")
        left.unlink(missing_ok=True)
    # It is made of the log whenever that is opened.
    Path(f"{database}-shm").unlink(missing_ok=True)
    copies.sync_folder(database.parent)
    return kept


def _asides(database: Path) -> list[Path]:
    return sorted(database.parent.glob(f"{database.name}.before-restore-*"))


def _free_name(database: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    return database.with_name(f"{database.name}.before-restore-{stamp}")
