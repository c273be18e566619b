"""Writes files so that their changes survive a power cut."""

import os
import secrets
from pathlib import Path


def sync(path: Path) -> None:
    """Syncs the content and mode of a file, or the names in a folder, to disk.

    After a file was created, renamed or removed, its folder has to be synced, even if the file was synced.

    Raises:
        OSError: The path cannot be opened, or the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Replaces the content of a file atomically. Keeps mode and owner. The new content survives a power cut.

    Raises:
        OSError: The file does not exist, its folder cannot be written, or the disk fails.
    """
    before = path.stat()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # Only root can change the owner of a file. Other users can replace only their own files.
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
