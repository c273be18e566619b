"""What makes changes of files and folders survive a power cut."""

import os
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
