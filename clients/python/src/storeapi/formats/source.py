"""The file that a format reads."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, cast

from storeapi.formats.records import FormatError

CHUNK: Final = 1 << 16
"""Bytes that are read at once."""


class Source:
    """A file, which can be compressed with gzip."""

    def __init__(self, path: Path, report: Callable[[float], None] = lambda fraction: None) -> None:
        """Takes the path, and a function that is called with the fraction that was read."""
        self.path = path
        self._report = report

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Opens the file, and decompresses it if it begins as gzip.

        Raises:
            FormatError: The compressed file is damaged or incomplete.
        """
        with self.path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            size = self.path.stat().st_size
            content = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if compressed else raw
            try:
                yield cast(
                    IO[bytes], _Reported(content, lambda: self._report(raw.tell() / size if size else 1.0))
                )
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise self.error("", f"the gzip data is damaged or incomplete: {error}") from None

    def error(self, place: str, problem: str) -> FormatError:
        """An error that names the file and the place."""
        return FormatError(f"{self.path}{', ' if place else ''}{place}: {problem}")


class _Reported:
    """The methods of a file that formats use; each read reports the progress."""

    def __init__(self, file: IO[bytes], report: Callable[[], None]) -> None:
        self._file = file
        self._report = report

    def read(self, size: int) -> bytes:
        self._report()
        return self._file.read(size)

    def readline(self, size: int) -> bytes:
        self._report()
        return self._file.readline(size)
