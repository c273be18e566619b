"""The statements of an erasure are served by indexes, on both engines."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from store_service.database import comments, erasure, erasure_scan, schema
from store_service.database.change_writes import WriteWithChanges
from store_service.database.statements import Statement
from tests.support.postgresql import new_database

VALUES = {
    "author": "author 7",
    "after": 0,
    "limit": 200,
    "ids": "[1, 2]",
    "wanted": "[[0, 1], [1, 2]]",
    "requests": "[]",
    "now": 1,
    "xid": 1,
    "delete_time": 1,
    "purge_time": None,
    "kind": 1,
    "resource_id": 1,
    "version": 1,
    "removed": "[[0, 1, 1, 1]]",
    "before_xid": 25_000,
    "before_seq": 50_000,
    "from_xid": 24_900,
    "from_seq": 49_900,
    "seqs": "[1, 2]",
    "changed": '[[0, "request 1", 1, "x"]]',
    "written": "[1]",
    "post_id": 1,
    "key": "g",
}

STATEMENTS: dict[str, Any] = {
    name: value
    for module in (erasure, erasure_scan)
    for name, value in vars(module).items()
    if isinstance(value, Statement | WriteWithChanges) and not name.startswith("_")
}
STATEMENTS |= {f"DELETED_CHANGES[{kind.name}]": it for kind, it in erasure.DELETED_CHANGES.items()}
STATEMENTS |= {
    f"{kind.name} {is_deleted} {name}": value
    for (kind, is_deleted), it in erasure.AUTHORS.items()
    for name, value in vars(it).items()
}
STATEMENTS["ROWS_OF_DELETED_THREAD"] = comments.ROWS_OF_DELETED_THREAD

SMALL = ("feed", "post_deletions", "thread_deletions", "anon_", "wanted", "removed", "changed", "requests")
"""Tables that have few or no rows, and batches."""


@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_scans_no_table_on_sqlite(database_file: Path, name: str) -> None:
    """Nothing is sorted either."""
    statement = STATEMENTS[name]
    steps = statement.steps if isinstance(statement, WriteWithChanges) else (statement,)
    with closing(sqlite3.connect(database_file)) as connection:
        for step in steps:
            text, arguments = step.on("sqlite", VALUES)
            plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", arguments)]
            found = [it for it in plan if it.startswith("SCAN") and not _is_small(it)]
            assert not found, plan


def _is_small(scan: str) -> bool:
    what = scan.split()[1]
    return "VIRTUAL TABLE" in scan or "CONSTANT ROW" in scan or what.startswith((*SMALL, "keyed"))


@pytest.fixture(scope="module")
def filled_database(postgres: str) -> Iterator[str]:
    """50,000 rows in each table, of 1,000 authors."""
    with new_database(postgres) as url:
        schema.upgrade(url)
        texts = "'x', n, n, 1, 'author ' || n % 1000 FROM generate_series(1, 50000) AS n"
        columns = "body, create_time, update_time, version, author"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"INSERT INTO posts ({columns}) SELECT {texts}".encode())
            connection.execute(
                f"INSERT INTO deleted_posts (id, purge_time, {columns}) SELECT n, n, {texts}".encode()
            )
            replies = "CASE n % 3 WHEN 0 THEN n / 3 ELSE 0 END"
            for table, more, numbers in (
                ("comments", "", ""),
                ("deleted_comments", "id, purge_time, ", "n, n, "),
            ):
                statement = (
                    f"INSERT INTO {table} ({more}post_id, reply_to_id, {columns})"
                    f" SELECT {numbers}1 + n % 5000, {replies}, {texts}"
                )
                connection.execute(statement.encode())
            connection.execute(
                f"INSERT INTO revisions (kind, resource_id, {columns.replace('create_time, ', '')})"
                f" SELECT 1, n, {texts.replace('n, n, 1', 'n, 1')}".encode()
            )
            connection.execute(
                "INSERT INTO changes (xid, action, kind, resource_id, post_id, payload, size, commit_time)"
                " SELECT n / 2, 2, 1, n, n, '{}', 1, n FROM generate_series(1, 100000) AS n"
            )
            connection.execute(
                "INSERT INTO requests (id, fingerprint, create_time, answer)"
                " SELECT 'request ' || n, 'x', n, 'x' FROM generate_series(1, 50000) AS n"
            )
            connection.execute("VACUUM ANALYZE")
        yield url


@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_scans_no_table_on_postgresql(filled_database: str, name: str) -> None:
    """Small tables are read whole, once for each statement."""
    statement = STATEMENTS[name]
    one = statement.in_one if isinstance(statement, WriteWithChanges) else statement
    text, arguments = one.on("postgresql", VALUES)
    with (
        psycopg.connect(filled_database, autocommit=True) as connection,
        psycopg.RawCursor(connection) as cursor,
    ):
        cursor.execute(f"EXPLAIN (COSTS OFF) {text}".encode(), arguments)
        plan = [str(row[0]) for row in cursor.fetchall()]
    scans = [it for it in plan if "Seq Scan on " in it]
    assert not [it for it in scans if not it.split("Seq Scan on ")[1].startswith(SMALL[:3])], plan
