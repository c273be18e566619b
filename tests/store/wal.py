"""Counts commits in SQLite's write-ahead log. With synchronous=FULL each of them is one fsync."""

import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24


class Commits:
    """How many transactions were committed since the beginning of the block."""

    def __init__(self, path: Path) -> None:
        self._path = Path(f"{path}-wal")
        self._salt, self._before = self._read()

    def count(self) -> int:
        """The commits so far."""
        salt, commits = self._read()
        return commits - self._before if salt == self._salt else commits

    def _read(self) -> tuple[bytes, int]:
        # https://www.sqlite.org/fileformat2.html#the_write_ahead_log
        data = self._path.read_bytes() if self._path.exists() else b""
        if len(data) < _HEADER_BYTES:
            return b"", 0
        (page_bytes,) = struct.unpack_from(">I", data, 8)
        salt = data[16:24]
        commits = 0
        for start in range(_HEADER_BYTES, len(data), _FRAME_HEADER_BYTES + page_bytes):
            frame = data[start : start + _FRAME_HEADER_BYTES]
            # Frames with another salt are left from before the log was started anew.
            if len(frame) < _FRAME_HEADER_BYTES or frame[8:16] != salt:
                break
            # The last frame of a transaction, and only that one, says how large the database is now.
            commits += struct.unpack_from(">I", frame, 4)[0] > 0
        return salt, commits


@contextmanager
def counted_commits(path: Path) -> Iterator[Commits]:
    """Counts the commits of whoever writes to a database in WAL mode."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as reader:
        # While somebody reads, the log is not started anew, so that no commit is overwritten.
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield Commits(path)
