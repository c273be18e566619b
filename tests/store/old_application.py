"""Database files as the application before this service made them: plain SQLAlchemy, Integer and String."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import sqlalchemy
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table

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
    engine = sqlalchemy.create_engine(url, connect_args={"check_same_thread": False})
    metadata.create_all(engine)
    engine.dispose()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("INSERT INTO posts (id, body) VALUES (?, ?)", post_rows)
        connection.executemany("INSERT INTO comments (id, body, post_id) VALUES (?, ?, ?)", comment_rows)
    return url


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
