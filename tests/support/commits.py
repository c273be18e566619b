"""Counts commits on both engines."""

import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from store_service.database import sqlite_file
from store_service.database.connect import is_sqlite
from tests.support.database import database_connection, query


class Commits(Protocol):
    """The number of transactions that changed posts or comments since the start of the block."""

    def count(self) -> int:
        """Returns the commits so far."""


@contextmanager
def count_commits(database_url: str) -> Iterator[Commits]:
    """Counts the commits of all writers of a database."""
    if is_sqlite(database_url):
        with count_wal_commits(sqlite_file.database_path(database_url)) as wal_commits:
            yield wal_commits
        return
    with database_connection(database_url) as connection:
        connection.exec_driver_sql(_START_COUNTING)
    try:
        yield PostgresqlCommits(database_url)
    finally:
        with database_connection(database_url) as connection:
            connection.exec_driver_sql(_STOP_COUNTING)


class PostgresqlCommits:
    """A trigger records the transaction id of every write; only committed transactions leave a row.

    The statistics of PostgreSQL are delayed and include the commits of autovacuum.
    """

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url

    def count(self) -> int:
        """Returns the commits so far."""
        ((commits,),) = query(self._database_url, "SELECT count(*) FROM seen_transactions")
        assert isinstance(commits, int)
        return commits


# BEFORE, not AFTER: a statement that fails or changes no row is part of a transaction too.
_START_COUNTING = """
CREATE TABLE seen_transactions (id XID8 PRIMARY KEY);
CREATE FUNCTION see_transaction() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO seen_transactions VALUES (pg_current_xact_id()) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER see_transaction BEFORE INSERT OR UPDATE OR DELETE ON posts
    EXECUTE FUNCTION see_transaction();
CREATE TRIGGER see_transaction BEFORE INSERT OR UPDATE OR DELETE ON comments
    EXECUTE FUNCTION see_transaction();
"""


_STOP_COUNTING = "DROP FUNCTION see_transaction CASCADE; DROP TABLE seen_transactions"


_HEADER_BYTES = 32


_FRAME_HEADER_BYTES = 24


class WalCommits:
    """The number of commits in the write-ahead log since the start of the block.

    With synchronous=FULL each commit is one fsync.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(f"{path}-wal")
        self._salt, self._before = self._read()

    def count(self) -> int:
        """Returns the commits so far."""
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
            # Frames with another salt date from before the last restart of the log.
            if len(frame) < _FRAME_HEADER_BYTES or frame[8:16] != salt:
                break
            # Only the last frame of a transaction contains the size of the database.
            commits += struct.unpack_from(">I", frame, 4)[0] > 0
        return salt, commits


@contextmanager
def count_wal_commits(path: Path) -> Iterator[WalCommits]:
    """Counts the commits of all writers of a database in WAL mode."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as reader:
        # An open read transaction prevents a restart of the log, so no commit is overwritten.
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield WalCommits(path)
