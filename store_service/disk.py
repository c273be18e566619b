"""What makes changes of files and folders survive a power cut."""

import os
import secrets
from pathlib import Path


def sync(path: Path) -> None:
    """Returns when a file's content and mode, or the names in a folder, are on disk.

    A name that was made, changed or removed needs the folder to be synced, also if the file itself was.

    Raises:
        OSError: It cannot be opened, or the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Gives a file another content in one step; mode and owner stay, and a power cut undoes nothing.

    Raises:
        OSError: There is no such file, its folder cannot be written, or the disk fails.
    """
    before = path.stat()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # Only root may change the owner of a file; other users replace only files of their own.
            if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, before.st_uid, before.st_gid)
            os.fchmod(descriptor, before.st_mode & 0o7777)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
