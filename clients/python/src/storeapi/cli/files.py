"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Writes a file under another name beside it, which takes the place of `path` at the end.

    On any error `path` stays as it was. What is no ordinary file, a pipe for example, is written directly.
    """
    # The file behind a symbolic link is replaced, not the link.
    given, path = path, path.resolve()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        # Not `tempfile`, whose files only their owner can read.
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
    """Gives a file another text in one step."""
    with whole_file(path) as file:
        file.write(text.encode())
