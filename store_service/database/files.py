"""Whether the files of a SQLite database allow to serve it, found out without changing any."""

import errno
import os
from pathlib import Path

from store_service.database import sqlite
from store_service.errors import OperatorError

COMPANIONS = ("-wal", "-shm", "-journal")
"""What SQLite appends to the name of a database for files that belong to it."""

ROOM_BYTES = 1024 * 1024
"""What must be free beside the database: the log and its index cannot begin with less."""

_NO_SUCH_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
"""How a file system says that it has no files without names."""


class NotWritable(OperatorError):
    """A service could not write the database, or the files beside it."""


def check(path: Path, *, needs_room: bool = True) -> None:
    """Makes sure that a service could write the file, if it is there, and others beside it.

    Args:
        path: The file.
        needs_room: Also that the disk has room. A service serves reads and deletions without it.

    Raises:
        NotWritable: One of them cannot be written, or the folder cannot hold a new file or has no space.
        sqlite.RestoreUnfinished: There is no database, because a restore was interrupted.
    """
    # SQLite has its files beside the one that a link leads to.
    real = path.resolve()
    if not real.parent.is_dir():
        raise NotWritable(f"there is no folder for the database {path}: {os.strerror(errno.ENOENT)}")
    sqlite.refuse_unfinished_restore(path)
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
        raise NotWritable(f"cannot write beside the database {path}: {error.strerror}") from None


def _make_file(folder: Path, size: int) -> None:
    """Creates a file without a name in the folder, reserves `size` bytes for it, and closes it."""
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
