"""Statements: written once, prepared once, and each served by its index."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import BigInteger, Integer, Text, literal_column, select

from store_service.database import comments, posts, schema, sqlite
from store_service.database.connect import is_sqlite
from store_service.database.statements import Statement, as_json, one_of, parameter, rows
from tests.postgres import new_database
from tests.store.by_hand import execute

STATEMENTS: dict[str, Statement] = {
    f"{module.__name__.rpartition('.')[2]}.{name}{f'[{order}]' if order else ''}": statement
    for module in (posts, comments)
    for name, value in vars(module).items()
    for order, statement in (value.items() if isinstance(value, dict) else [("", value)])
    if isinstance(statement, Statement)
}
"""Every statement of both modules, by its name."""

VALUES = {
    "ids": "[1, 2]",
    "post_ids": "[1, 2]",
    "drafts": '[[0, "a", 1]]',
    "changes": '[[0, 1, "b", 5, 2]]',
    "now": 1,
    "after": 0,
    "limit": 10,
    "post_id": 1,
}

SERVED_BY = {
    "posts.POSTS_BY_ID": "USING INTEGER PRIMARY KEY",
    "posts.POST_IDS": "USING INTEGER PRIMARY KEY",
    "posts.LOCKED_POSTS_BY_ID": "USING INTEGER PRIMARY KEY",
    "posts.KEPT_POST_IDS": "USING INTEGER PRIMARY KEY",
    "comments.LOCKED_COMMENTS_BY_ID": "USING INTEGER PRIMARY KEY",
    "posts.UPDATE_POSTS": "USING INTEGER PRIMARY KEY",
    "posts.DELETE_POSTS": "USING INTEGER PRIMARY KEY",
    "posts.PAGE_OF_POSTS[id]": "USING INTEGER PRIMARY KEY",
    "posts.PAGE_OF_POSTS[id desc]": "USING INTEGER PRIMARY KEY",
    "comments.COMMENTS_BY_ID": "USING INTEGER PRIMARY KEY",
    "comments.UPDATE_COMMENTS": "USING INTEGER PRIMARY KEY",
    "comments.DELETE_COMMENTS": "USING INTEGER PRIMARY KEY",
    "comments.DELETE_COMMENTS_OF_POSTS": "comments_post_id_id_idx (post_id=?)",
    "comments.COMMENT_COUNTS": "USING COVERING INDEX comments_post_id_id_idx (post_id=?)",
    "comments.PAGE_OF_ALL_COMMENTS[id]": "USING INTEGER PRIMARY KEY",
    "comments.PAGE_OF_ALL_COMMENTS[id desc]": "USING INTEGER PRIMARY KEY",
    "comments.PAGE_OF_COMMENTS[id]": "comments_post_id_id_idx (post_id=? AND id>?)",
    "comments.PAGE_OF_COMMENTS[id desc]": "comments_post_id_id_idx (post_id=? AND id<?)",
}
"""The index that SQLite must choose for each statement that looks for rows."""

SERVED_BY_ON_POSTGRESQL = {
    "comments.DELETE_COMMENTS_OF_POSTS": "comments_post_id_id_idx",
    "comments.COMMENT_COUNTS": "comments_post_id_id_idx",
    "comments.PAGE_OF_COMMENTS[id]": "comments_post_id_id_idx",
    "comments.PAGE_OF_COMMENTS[id desc]": "comments_post_id_id_idx",
}
"""The same for PostgreSQL, where it is not the primary key of the table."""

WITHOUT_LOOKING = {"posts.INSERT_POSTS", "comments.INSERT_COMMENTS"}


def run(statement: Statement, **values: object) -> list[tuple[object, ...]]:
    """The rows that a statement has in an empty database without tables."""
    text, arguments = statement.on("sqlite", values)
    with closing(sqlite3.connect(":memory:")) as connection:
        return connection.execute(text, arguments).fetchall()


def test_every_statement_is_in_the_table_of_indexes() -> None:
    """A new statement is given its index here too."""
    assert SERVED_BY.keys() | WITHOUT_LOOKING == STATEMENTS.keys()


@pytest.mark.parametrize("name", SERVED_BY)
def test_a_statement_is_served_by_its_index(database_file: Path, name: str) -> None:
    """No statement reads a whole table, sorts in memory, or chooses another index, wherever it begins."""
    text, arguments = STATEMENTS[name].on("sqlite", VALUES)
    with closing(sqlite3.connect(database_file)) as connection:
        plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", arguments)]

    assert any(SERVED_BY[name] in step for step in plan), plan
    assert not [step for step in plan if step.startswith("SCAN") and "VIRTUAL TABLE" not in step], plan
    assert not [step for step in plan if "FOR ORDER BY" in step], plan


@pytest.fixture(scope="module")
def filled_database(postgres: str) -> Iterator[str]:
    """50,000 posts and 100,000 comments, 200 of them on the first post.

    PostgreSQL reads a smaller table whole, and rightly: its plans go by what a statement costs.
    """
    with new_database(postgres) as url:
        schema.upgrade(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("INSERT INTO posts (body) SELECT 'x' FROM generate_series(1, 50000)")
            connection.execute(
                "INSERT INTO comments (body, post_id)"
                " SELECT 'x', CASE WHEN n % 500 = 0 THEN 1 ELSE 1 + n % 5000 END"
                " FROM generate_series(1, 100000) AS n"
            )
            # The map of visible rows comes with VACUUM, and the statistics with ANALYZE.
            connection.execute("VACUUM ANALYZE posts, comments")
        yield url


@pytest.mark.parametrize("name", SERVED_BY)
def test_a_statement_is_served_by_its_index_on_postgresql_too(filled_database: str, name: str) -> None:
    """No table is read whole or sorted, and the plan names the index."""
    with psycopg.connect(filled_database, autocommit=True) as connection:
        plan = run_on_postgresql(connection, "EXPLAIN (COSTS OFF) ", STATEMENTS[name], after=25_000)

    steps = [str(step) for (step,) in plan]
    index = SERVED_BY_ON_POSTGRESQL.get(name, f"{name.partition('.')[0]}_pkey")
    assert any(f"{index} " in f"{step} " for step in steps), steps
    assert not [step for step in steps if "Seq Scan" in step or "Sort" in step or "Filter" in step], steps


def run_on_postgresql(
    connection: psycopg.Connection[Any], before: str, statement: Statement, **values: object
) -> list[tuple[Any, ...]]:
    """Runs a statement as the service's driver does, with the parameters apart from the text."""
    text, arguments = statement.on("postgresql", VALUES | values)
    with psycopg.RawCursor(connection) as cursor:
        cursor.execute((before + text).encode(), arguments)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_runs_on_the_current_schema(database_url: str, name: str) -> None:
    """Names of tables and columns are those of the last revision."""
    execute(database_url, "INSERT INTO posts (body) VALUES ('a')")
    if is_sqlite(database_url):
        text, arguments = STATEMENTS[name].on("sqlite", VALUES)
        with closing(sqlite3.connect(sqlite.path_of(database_url))) as connection:
            connection.execute(text, arguments).fetchall()
    else:
        with psycopg.connect(database_url) as connection:
            run_on_postgresql(connection, "", STATEMENTS[name])


def test_a_statement_has_one_text_however_large_the_batch_is() -> None:
    """SQLite prepares it once, and its limit of parameters is never met."""
    few, _ = posts.POSTS_BY_ID.on("sqlite", {"ids": as_json([1])})
    many, arguments = posts.POSTS_BY_ID.on("sqlite", {"ids": as_json(list(range(100_000)))})

    assert few is many
    assert len(arguments) == 1


def test_ids_are_read_as_numbers() -> None:
    """Also the largest and the smallest that there are; none at all is no row."""
    wanted = [1, 2**63 - 1, -(2**63), 0]

    def found(numbers: str) -> list[int]:
        statements = {id: Statement(select(one_of(literal_column(str(id)), "ids"))) for id in wanted}
        return [id for id, statement in statements.items() if run(statement, ids=numbers) == [(1,)]]

    assert found(as_json(wanted)) == wanted
    assert found(as_json([0])) == [0]
    assert found("[]") == []


def test_rows_are_read_with_their_types_and_positions() -> None:
    """Any text survives: quotes, brackets, line ends, every size of character, what looks like a number."""
    bodies = [
        "",
        "'\"",
        '[1,"2"]',
        "\\n\n\r\t",
        "é日😀\u2028\ud7ff\uffff",
        "12",
        "null",
        "1e999",
        "x" * 100_000,
    ]
    table = rows("drafts", body=Text, post_id=BigInteger)
    wanted = [(number, body, 2**63 - 1 - number) for number, body in enumerate(bodies)]

    seen = run(Statement(select(table).order_by(table.c.position)), drafts=as_json(wanted))
    assert seen == wanted


def test_json_is_as_short_as_it_can_be() -> None:
    """No spaces, and characters as they are instead of as escapes."""
    assert as_json([[0, "é"], [1, "b"]]) == '[[0,"é"],[1,"b"]]'
    assert json.loads(as_json([])) == []


def test_a_parameter_that_is_not_given_is_an_error() -> None:
    """It is a bug, and must not become NULL."""
    statement = Statement(select(parameter("one", Integer), parameter("two", Integer)))

    assert run(statement, two=2, one=1) == [(1, 2)]
    with pytest.raises(KeyError, match="two"):
        statement.on("sqlite", {"one": 1})


def test_a_value_of_the_statement_itself_needs_not_be_given() -> None:
    """SQLAlchemy turns constants into parameters; they keep their values."""
    statement = Statement(select(parameter("one", Integer) + 5).limit(1))

    assert run(statement, one=1) == [(6,)]
