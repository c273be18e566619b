"""Atomic replacement of files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Writes a temporary file in the same directory, which replaces `path` at the end.

    On any error `path` is unchanged. A file that is not regular, such as a pipe, is written directly.
    """
    # The target of a symbolic link is replaced, not the link.
    given, path = path, path.resolve()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        # Not `tempfile`, whose files are readable only for the owner.
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o7777)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            # For the message: the caller does not know the temporary name.
            error.filename = str(given)
        raise


def replace_text(path: Path, text: str) -> None:
    """Replaces the content of a file atomically."""
    with whole_file(path) as file:
        file.write(text.encode())
