"""Counts commits, on either engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from store_service.database import sqlite
from store_service.database.connect import is_sqlite
from tests.rpc.helpers import connected
from tests.store import wal
from tests.store.by_hand import query


class Commits(Protocol):
    """How many transactions have changed posts or comments since the beginning of the block."""

    def count(self) -> int:
        """The commits so far."""


@contextmanager
def counted_commits(database_url: str) -> Iterator[Commits]:
    """Counts the commits of whoever writes to a database."""
    if is_sqlite(database_url):
        with wal.counted_commits(sqlite.path_of(database_url)) as in_the_log:
            yield in_the_log
        return
    with connected(database_url) as connection:
        connection.exec_driver_sql(_START)
    try:
        yield PostgresqlCommits(database_url)
    finally:
        with connected(database_url) as connection:
            connection.exec_driver_sql(_STOP)


class PostgresqlCommits:
    """Has every transaction that writes leave its id, which stays only if the transaction is committed.

    The server's own counters come late, and count the commits of autovacuum too.
    """

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url

    def count(self) -> int:
        """The commits so far."""
        ((commits,),) = query(self._database_url, "SELECT count(*) FROM seen_transactions")
        assert isinstance(commits, int)
        return commits


# Before and not after: a statement that fails, or changes no row, belongs to a transaction too.
_START = """
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
_STOP = "DROP FUNCTION see_transaction CASCADE; DROP TABLE seen_transactions"
