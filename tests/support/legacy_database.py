"""Databases as the legacy application creates them: SQLAlchemy with Integer and String columns."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table

from store_service.database.connect import is_sqlite
from tests.support.database import database_connection

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
"""Comments. Three of them refer to posts that do not exist: 5, 50 and 90."""

ORPHANS = tuple(it for it in COMMENTS if it[0] in (6, 9, 31))


def create_file(
    path: Path,
    *,
    post_rows: Iterable[tuple[int, str | None]] = POSTS,
    comment_rows: Iterable[tuple[int, str | None, int]] = COMMENTS,
) -> str:
    """Creates a legacy SQLite file and returns its URL."""
    url = f"sqlite:///{path}"
    fill(url, post_rows=post_rows, comment_rows=comment_rows)
    return url


def fill(
    database_url: str,
    *,
    post_rows: Iterable[tuple[int, str | None]] | None = None,
    comment_rows: Iterable[tuple[int, str | None, int]] = COMMENTS,
) -> None:
    """Creates and fills the tables on either engine. New ids continue after the largest."""
    post_rows = posts_for(database_url) if post_rows is None else tuple(post_rows)
    comment_rows = tuple(comment_rows)
    with database_connection(database_url) as connection:
        metadata.create_all(connection)
        # SQLite does not enforce foreign keys by default.
        enforces_keys = connection.dialect.name == "postgresql"
        if enforces_keys:
            connection.exec_driver_sql("ALTER TABLE comments DROP CONSTRAINT comments_post_id_fkey")
        if post_rows:
            connection.execute(posts.insert(), [{"id": id, "body": body} for id, body in post_rows])
        if comment_rows:
            connection.execute(
                comments.insert(),
                [{"id": id, "body": body, "post_id": post_id} for id, body, post_id in comment_rows],
            )
        if enforces_keys:
            # The state after a foreign key was dropped and added again: existing rows are not checked.
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
    """The posts that an engine can store: PostgreSQL does not allow NUL in text."""
    if is_sqlite(database_url):
        return POSTS
    return tuple((id, body) for id, body in POSTS if "\0" not in (body or ""))


def dump(path: Path) -> str:
    """Returns the contents of a file as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return "\n".join(connection.iterdump())


def damage(path: Path, table: str) -> None:
    """Overwrites the first page of a table. Only a read of that page detects it."""
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [table]).fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\x5a" * page_bytes)
