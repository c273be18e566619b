"""Databases as the application before this service made them: plain SQLAlchemy, Integer and String."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table

from store_service.database.connect import is_sqlite
from tests.rpc.helpers import connected

metadata = MetaData()
posts = Table(
    "posts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("body", String),
)
comments = Table(
    "comments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("body", String),
    Column("post_id", ForeignKey("posts.id"), nullable=False),
)

POSTS: tuple[tuple[int, str | None], ...] = (
    (1, "first"),
    (2, None),
    (3, ""),
    (7, "grüße, 日本, 😀 and a 'quote'\nin two lines"),
    (20, "a NUL \0 inside"),
    (40, "x" * 100_000),
)
"""Posts with gaps between their ids, a NULL, an empty body, a NUL, and characters of 1 to 4 bytes."""

COMMENTS: tuple[tuple[int, str | None, int], ...] = (
    (1, "on the first", 1),
    (2, None, 1),
    (5, "😀" * 1000, 7),
    (6, "an orphan", 5),
    (9, None, 50),
    (30, "the last", 40),
    (31, "an orphan of a post beyond the last", 90),
)
"""Comments of which three name a post that is gone: 5, 50 and 90."""

ORPHANS = tuple(it for it in COMMENTS if it[0] in (6, 9, 31))


def make(
    path: Path,
    *,
    post_rows: Iterable[tuple[int, str | None]] = POSTS,
    comment_rows: Iterable[tuple[int, str | None, int]] = COMMENTS,
) -> str:
    """Makes such a file and returns its URL."""
    url = f"sqlite:///{path}"
    fill(url, post_rows=post_rows, comment_rows=comment_rows)
    return url


def fill(
    database_url: str,
    *,
    post_rows: Iterable[tuple[int, str | None]] | None = None,
    comment_rows: Iterable[tuple[int, str | None, int]] = COMMENTS,
) -> None:
    """Makes the tables and fills them, on either engine; the ids count on after the largest."""
    post_rows = posts_for(database_url) if post_rows is None else tuple(post_rows)
    comment_rows = tuple(comment_rows)
    with connected(database_url) as connection:
        metadata.create_all(connection)
        # SQLite does not look at keys unless it is told to.
        looks_at_keys = connection.dialect.name == "postgresql"
        if looks_at_keys:
            connection.exec_driver_sql("ALTER TABLE comments DROP CONSTRAINT comments_post_id_fkey")
        if post_rows:
            connection.execute(posts.insert(), [{"id": id, "body": body} for id, body in post_rows])
        if comment_rows:
            connection.execute(
                comments.insert(),
                [{"id": id, "body": body, "post_id": post_id} for id, body, post_id in comment_rows],
            )
        if looks_at_keys:
            # As it is when somebody has taken a key away for a while: rows that are there are not looked at.
            connection.exec_driver_sql(
                "ALTER TABLE comments ADD CONSTRAINT comments_post_id_fkey"
                " FOREIGN KEY (post_id) REFERENCES posts (id) NOT VALID"
            )
            given = {
                "posts": max([0, *(id for id, _ in post_rows), *(post_id for _, _, post_id in comment_rows)]),
                "comments": max([0, *(id for id, _, _ in comment_rows)]),
            }
            for table, id in given.items():
                if id:
                    connection.exec_driver_sql(f"SELECT setval('{table}_id_seq', {id})")


def posts_for(database_url: str) -> tuple[tuple[int, str | None], ...]:
    """The posts that an engine can hold: a text of PostgreSQL has no NUL."""
    if is_sqlite(database_url):
        return POSTS
    return tuple((id, body) for id, body in POSTS if "\0" not in (body or ""))


def dump(path: Path) -> str:
    """Everything that a file holds, as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return "\n".join(connection.iterdump())


def query(path: Path, statement: str) -> list[tuple[object, ...]]:
    """The rows of one statement, read by a connection of its own."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def damage(path: Path, table: str) -> None:
    """Overwrites the first page of a table, such that only who reads it notices."""
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [table]).fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\x5a" * page_bytes)
