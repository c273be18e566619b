"""Checks, without changes, that the files of a SQLite database can be served."""

import errno
import os
from pathlib import Path

from store_service.database import sqlite_file
from store_service.errors import OperatorError

COMPANIONS = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite creates for a database."""

ROOM_BYTES = 1024 * 1024
"""Free space that is required in the folder of the database, for the log and its index."""

_NO_SUCH_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
"""Errors of file systems that do not support O_TMPFILE."""


class NotWritable(OperatorError):
    """A service could not write the database or its companions."""


def check(path: Path, *, needs_room: bool = True) -> None:
    """Checks that a service could write the file, if it exists, and create files in its folder.

    Args:
        path: The file.
        needs_room: Also require ROOM_BYTES of free space. Reads and deletions are served without it.

    Raises:
        NotWritable: A file cannot be written, or no file can be created in the folder, or the disk is full.
        sqlite_file.RestoreUnfinished: The database does not exist, because a restore was interrupted.
    """
    # SQLite creates its files in the folder of the file itself, not of a link to it.
    real = path.resolve()
    if not real.parent.is_dir():
        raise NotWritable(f"the folder of the database {path} does not exist: {os.strerror(errno.ENOENT)}")
    sqlite_file.refuse_unfinished_restore(path)
    for end in ("", *COMPANIONS, ".lock"):
        file = Path(f"{real}{end}")
        try:
            # Without O_CREAT and O_TRUNC nothing is changed; O_NONBLOCK avoids blocking on a pipe.
            os.close(os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise NotWritable(f"cannot write {path}{end}: {error.strerror}") from None
    try:
        _make_file(real.parent, ROOM_BYTES if needs_room else 0)
    except OSError as error:
        raise NotWritable(
            f"cannot create files in the folder of the database {path}: {error.strerror}"
        ) from None


def _make_file(folder: Path, size: int) -> None:
    """Creates an unnamed file in the folder, reserves `size` bytes for it, and closes it."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_SUCH_FILES:
            raise
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None
        return
    try:
        if size:
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    finally:
        os.close(descriptor)
