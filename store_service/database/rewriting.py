"""Rewrites a SQLite file, because parts of deleted texts can remain in its free space.

`secure_delete` overwrites most of them, but not those in the gaps of pages that were rearranged before
(docs/decisions/0048).
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection
from store_service.errors import StorageFull

ROOM = 1.1
"""Free space that a rewrite needs, as a multiple of the size of the file: once beside the file, for the log,
and once in the folder of temporary files."""

JOB_BYTES = 512 * 1024
"""The size of the jobs, so that each has a batch of its own."""


class NotEnoughRoom(Exception):
    """A rewrite would fill the disk. The text is one line."""


def check_room(path: Path) -> None:
    """Checks that the disk has room for a rewrite.

    Raises:
        StorageFull: It does not.
    """
    needed = int(path.stat().st_size * ROOM)
    by_device: dict[int, tuple[Path, int]] = {}
    for folder in (path.resolve().parent, _temporary_folder()):
        device = folder.stat().st_dev
        by_device[device] = (folder, by_device.get(device, (folder, 0))[1] + needed)
    for folder, bytes in by_device.values():
        if shutil.disk_usage(folder).free < bytes:
            raise StorageFull from NotEnoughRoom(
                f"the rewrite of {path} needs {bytes} free bytes in {folder}"
            )


def _temporary_folder() -> Path:
    """Returns the folder of SQLite's temporary files (https://www.sqlite.org/tempfiles.html)."""
    given = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp", "/usr/tmp", "/tmp")  # noqa: S108
    for name in given:
        if name and Path(name).is_dir() and os.access(name, os.W_OK | os.X_OK):
            return Path(name)
    return Path()


async def _rewrite(connection: Connection, jobs: Sequence[None]) -> list[None]:
    await connection.rewrite()
    return [None] * len(jobs)


async def _empty_log(connection: Connection, jobs: Sequence[None]) -> list[bool]:
    return [await connection.empty_log()] * len(jobs)


REWRITE: BatchOperation[None, None] = BatchOperation(_rewrite, in_transaction=False, name="rewrite")
"""Rewrites the file. Other writes wait meanwhile."""

EMPTY_LOG: BatchOperation[None, bool] = BatchOperation(_empty_log, in_transaction=False, name="empty log")
"""Empties the log. Returns False if a reader prevents it."""
