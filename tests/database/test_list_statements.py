"""Every list and every count reads the rows of one index in its order, for every filter and order."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import psycopg
import pytest

from store_service.database import comments, postgresql, posts, schema
from store_service.database.list_sql import ListSql
from store_service.database.statements import Statement
from store_service.database.tables import metadata
from store_service.model import ORDERS, THREAD_ORDERS, Order, Query, ResourceFilter
from store_service.service.scans import filter_values, path_of
from tests.support.postgresql import new_database

LISTS: dict[str, ListSql] = {
    "posts": posts.POSTS.list,
    "comments": comments.COMMENTS.list,
    "deleted_posts": posts.POSTS.deleted.list,
    "deleted_comments": comments.COMMENTS.deleted.list,
}

INDEXES = {
    ("all", "id"): "{table}_pkey",
    ("all", "create_time"): "{table}_create_time_idx",
    ("author", "id"): "{table}_author_id_idx",
    ("label", "id"): "labels_pkey",
    ("post", "id"): "{table}_post_id_id_idx",
    ("post", "create_time"): "{table}_post_id_create_time_idx",
    ("post", "thread"): "{table}_thread_idx",
    ("replies", "id"): "{table}_reply_to_id_id_idx",
}
"""The index of each path and order."""

STATEMENTS: dict[str, tuple[str, Statement]] = {
    f"{table} {path} {step}": (INDEXES[path, order].format(table=table), sql.page(path, step))
    for table, sql in LISTS.items()
    for path, steps in sql.steps.items()
    for step in steps
    for order in [step.removeprefix("same ").removesuffix(" desc")]
} | {
    f"{table} {path} count": (INDEXES[path, "id"].format(table=table), sql.count(path))
    for table, sql in LISTS.items()
    for path in sql.steps
}
"""The index and the statement, by name."""

ON_SQLITE = {
    "posts_pkey": "INTEGER PRIMARY KEY",
    "comments_pkey": "INTEGER PRIMARY KEY",
    "deleted_posts_pkey": "INTEGER PRIMARY KEY",
    "deleted_comments_pkey": "INTEGER PRIMARY KEY",
    "labels_pkey": "PRIMARY KEY",
}

SMALL = ("SCAN ids", "SCAN keys", "SCAN thread_deletions")
"""Scans of the rows of a subquery, and of a table that has few or no rows."""

POSITION: dict[str, Any] = {
    "after": 25_000,
    "limit": 50,
    "time": 25_000,
    "key": "00000000000061a8",
}
QUERY = Query(
    resource="comments",
    post_id=7,
    filter=ResourceFilter(
        author="author 7",
        labels=(("status", "new"), ("topic", "3")),
        create_time_from=5,
        create_time_before=40_000,
        reply_to_id=77,
    ),
)
VALUES = POSITION | filter_values(QUERY)


FILTERS = [
    ResourceFilter(author=author, labels=labels, create_time_from=since, reply_to_id=reply_to_id)
    for author, labels, since, reply_to_id in product(("", "a"), ((), (("k", "v"),)), (None, 5), (None, 0, 9))
]


@pytest.mark.parametrize("order", [*ORDERS, *THREAD_ORDERS])
@pytest.mark.parametrize("post_id", [0, 7])
def test_every_query_has_a_statement(order: Order, post_id: int) -> None:
    """For each combination of conditions and order there is a path with statements of that order."""
    for filter in FILTERS:
        if order in THREAD_ORDERS and not post_id:
            continue
        query = Query(resource="comments", order=order, post_id=post_id, filter=filter)
        assert order in LISTS["comments"].steps[path_of(query)]
        if not post_id and filter.reply_to_id is None and order in ORDERS:
            query = Query(resource="posts", order=order, filter=filter)
            assert order in LISTS["posts"].steps[path_of(query)]


@pytest.mark.parametrize("name", STATEMENTS)
def test_list_uses_its_index_on_sqlite(database_file: Path, name: str) -> None:
    """In the order of the index, without a sort and without a scan of a table."""
    index, statement = STATEMENTS[name]
    text, arguments = statement.on("sqlite", VALUES)
    with closing(sqlite3.connect(database_file)) as connection:
        plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", arguments)]

    read = [step for step in plan if step.startswith("SEARCH")]
    assert ON_SQLITE.get(index, index) in read[0], plan
    assert not [step for step in read if step.endswith("(kind=?)")], plan
    scans = [step for step in plan if step.startswith("SCAN")]
    assert all("VIRTUAL TABLE" in it or it.startswith(SMALL) for it in scans), plan
    assert not [step for step in plan if "ORDER BY" in step and name.split()[1] != "label"], plan


@pytest.fixture(scope="module")
def filled_database(postgres: str) -> Iterator[str]:
    """10,000 posts and 50,000 comments, with all fields, and as many deleted ones."""
    with new_database(postgres) as url:
        schema.upgrade(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO posts (body, author, labels, external_id, create_time) SELECT 'x',"
                """ 'author ' || n % 100, '{"status":"new","topic":"' || n % 50 || '"}', 'e' || n, n"""
                " FROM generate_series(1, 10000) AS n"
            )
            connection.execute(
                "INSERT INTO comments (body, post_id, author, labels, reply_to_id, path, create_time)"
                " SELECT 'x', 1 + n % 500, 'author ' || n % 100,"
                """ '{"status":"new","topic":"' || n % 50 || '"}',"""
                " CASE WHEN n > 10000 THEN 1 + n % 10000 ELSE 0 END,"
                " CASE WHEN n > 10000 THEN lpad(to_hex(1 + n % 10000), 16, '0') ELSE '' END, n"
                " FROM generate_series(1, 50000) AS n"
            )
            for table in ("posts", "comments"):
                names = ", ".join(it.name for it in metadata.tables[table].c if "_time" not in it.name)
                connection.execute(
                    f"INSERT INTO deleted_{table} ({names}, create_time, delete_time, purge_time)"
                    f" SELECT {names}, create_time, id, id FROM {table}"
                )
            connection.execute("VACUUM ANALYZE posts, comments, deleted_posts, deleted_comments, labels")
        yield url


@pytest.mark.parametrize("plan_cache_mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", STATEMENTS)
def test_list_uses_its_index_on_postgresql(filled_database: str, name: str, plan_cache_mode: str) -> None:
    """With the plan for these values, and with the plan for any values, to which PostgreSQL changes later."""
    index, statement = STATEMENTS[name]
    text, arguments = statement.on("postgresql", VALUES)
    with psycopg.connect(filled_database, autocommit=True) as connection:
        for name_of_setting, value in postgresql.PLANNER_SETTINGS.items():
            connection.execute(f"SET {name_of_setting} = {value}")
        connection.execute(f"SET plan_cache_mode = {plan_cache_mode}")
        connection.execute(f"PREPARE list AS {text}")
        values = ", ".join("NULL" if it is None else psycopg.sql.quote(it) for it in arguments)
        rows = connection.execute(f"EXPLAIN (COSTS OFF) EXECUTE list({values})").fetchall()
    plan = [str(row[0]).strip() for row in rows]

    # Tables of unfinished deletions have few or no rows.
    scans = [step for step in plan if "Scan" in step and "_deletions" not in step]
    # A list of a label reads the ids of the label first.
    assert any(f"using {index} " in scan for scan in (scans if index == "labels_pkey" else scans[:1])), plan
    assert not [step for step in scans if "Seq Scan" in step], plan
    assert not [step for step in plan if "Sort" in step], plan
    # Each label is looked up by its key. A join would read all labels if they are few.
    assert not [step for step in plan if "Anti Join" in step], plan


@pytest.fixture(scope="module")
def one_large_post(postgres: str) -> Iterator[str]:
    """20,000 comments of one post, with ids and times from 1. The first and the last have other labels."""
    with new_database(postgres) as url:
        schema.upgrade(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("INSERT INTO posts (body) VALUES ('x')")
            connection.execute(
                "INSERT INTO comments (body, post_id, labels, create_time) SELECT 'x', 1,"
                """ '{"k":"' || CASE n WHEN 1 THEN 'a' WHEN 20000 THEN 'z' ELSE 'm' END || '"}', n"""
                " FROM generate_series(1, 20000) AS n"
            )
            connection.execute("VACUUM ANALYZE posts, comments, labels")
        yield url


@pytest.mark.parametrize(
    ("name", "label", "position"),
    [
        ("label id", "a", {"after": 1}),
        ("label id desc", "z", {"after": 20_000}),
        ("label count", "a", {"after": 1}),
        ("post same create_time", "m", {"time": 10_000, "after": 10_000}),
        ("post same create_time desc", "m", {"time": 10_000, "after": 10_000}),
    ],
)
def test_list_ends_with_the_rows_that_it_selects(
    one_large_post: str, name: str, label: str, position: dict[str, Any]
) -> None:
    """PostgreSQL does not read the rest of the index, only to find that no row of it is selected."""
    _, statement = STATEMENTS[f"comments {name}"]
    query = Query(resource="comments", post_id=1, filter=ResourceFilter(labels=(("k", label),)))
    values = filter_values(query) | {"limit": 50} | position
    text, arguments = statement.on("postgresql", values)
    with psycopg.connect(one_large_post, autocommit=True) as connection:
        for name_of_setting, value in postgresql.PLANNER_SETTINGS.items():
            connection.execute(f"SET {name_of_setting} = {value}")
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}"
        ((((plan,),),),) = [psycopg.RawCursor(connection).execute(explain, arguments).fetchall()]

    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 20, plan
