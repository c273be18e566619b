"""The statements of the search index use its indexes."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from store_service.database.search_entries import BLOCK_IDS, GROUP_IDS, Entry, match_of
from store_service.database.search_sql import PLANNER, SEARCH
from store_service.database.statements import as_json
from store_service.model import EMPTY_FILTER, ResourceKind
from store_service.search import parse

COMMENTS = SEARCH[ResourceKind.COMMENT]
ROWS = 3000


def test_rows_are_found_by_the_index_of_fts5(database_file: Path) -> None:
    """In the order of ids, without a sort, and only in a range of ids."""
    match = match_of(parse("a b*"), EMPTY_FILTER, 0).on_sqlite(0, 9)
    text, arguments = COMMENTS.find.on("sqlite", {"match": match, "first": 0, "before": 10, "limit": 5})
    with closing(sqlite3.connect(database_file)) as connection:
        plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", arguments)]

    # FTS5 takes the query (M), both ends of the range (< and >), and the order.
    assert len(plan) == 1
    assert re.fullmatch(r"SCAN comment_search VIRTUAL TABLE INDEX \d+:M1[<>]+", plan[0]), plan


@pytest.mark.parametrize("query", ["a", "a b", '"a b"', "a*", "a -b", "a -b*"])
def test_rows_are_found_by_the_gin_index(postgres_database: str, query: str) -> None:
    """Never by a scan of the table, also for a word of every row. Only the groups of the query are read."""
    entries = [Entry(id, ["a", "b" if id % 2 else "c"], []) for id in range(ROWS)]
    values = as_json([(it.id, it.on_postgresql()) for it in entries])
    match = match_of(parse(query), EMPTY_FILTER, 0).on_postgresql(GROUP_IDS, 2 * GROUP_IDS - 1)
    with psycopg.connect(postgres_database) as connection, connection.transaction(force_rollback=True):
        run(connection, *COMMENTS.put.on("postgresql", {"entries": values}))
        connection.execute("ANALYZE comment_search")
        run(connection, *PLANNER.on("postgresql", {}))
        text, arguments = COMMENTS.find.on("postgresql", {"match": match, "limit": ROWS})
        plan = "\n".join(row[0] for row in run(connection, f"EXPLAIN {text}", arguments))
        found = {row[0] for row in run(connection, text, arguments)}

    assert "Bitmap Index Scan on comment_search_tokens_idx" in plan
    assert "Seq Scan" not in plan
    assert found
    assert found <= set(range(GROUP_IDS, ROWS))


def test_last_id_is_found_by_the_primary_key(postgres_database: str) -> None:
    """Also with the settings that the search itself needs."""
    with psycopg.connect(postgres_database) as connection, connection.transaction(force_rollback=True):
        connection.execute(
            "INSERT INTO posts (id, body) OVERRIDING SYSTEM VALUE VALUES (1, 'a') ON CONFLICT DO NOTHING"
        )
        connection.execute(
            f"INSERT INTO comments (body, post_id) SELECT 'a', 1 FROM generate_series(1, {ROWS})"
        )
        connection.execute("ANALYZE comments")
        run(connection, *PLANNER.on("postgresql", {}))
        text, arguments = COMMENTS.last_id.on("postgresql", {"before": ROWS})
        plan = "\n".join(str(row[0]) for row in run(connection, f"EXPLAIN {text}", arguments))

    assert re.search(r"Limit.*\n.*Index (Only )?Scan Backward using comments_pkey", plan), plan


def run(connection: "psycopg.Connection", text: str, arguments: list[object]) -> list[tuple[object, ...]]:
    """Runs a statement with the parameters $1, $2 and so on."""
    for number in range(len(arguments), 0, -1):
        text = text.replace(f"${number}", f"%(p{number})s")
    cursor = connection.execute(text, {f"p{n}": it for n, it in enumerate(arguments, 1)})
    return cursor.fetchall() if cursor.description else []


def test_tokens_of_two_blocks_differ() -> None:
    """So a query of one block reads nothing of another one."""
    first, second = Entry(1, ["a"], []).on_sqlite(), Entry(BLOCK_IDS + 1, ["a"], []).on_sqlite()

    assert first != second
    assert (first[1:], second[1:]) == ("a", "a")
