"""Access to a database that bypasses the service."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from sqlalchemy import Connection, Engine, text

from store_service.database.connect import is_sqlite
from store_service.database.engines import sync_engine


@dataclass(frozen=True)
class Contents:
    """All rows of the database."""

    posts: tuple[tuple[Any, ...], ...]
    comments: tuple[tuple[Any, ...], ...]
    changes: tuple[tuple[Any, ...], ...]
    """The rows of the change feed."""


def database_contents(database_url: str) -> Contents:
    """Reads all rows without the server."""
    with database_connection(database_url) as connection:
        posts = connection.execute(text("SELECT * FROM posts ORDER BY id"))
        comments = connection.execute(text("SELECT * FROM comments ORDER BY id"))
        changes = connection.execute(text("SELECT * FROM changes ORDER BY seq"))
        return Contents(
            posts=tuple(map(tuple, posts)),
            comments=tuple(map(tuple, comments)),
            changes=tuple(map(tuple, changes)),
        )


_kept_engines: dict[str, Engine] = {}


@contextmanager
def kept_engine(database_url: str) -> Iterator[None]:
    """Until the end of the block, connections to a PostgreSQL database share a session, one after the other.

    A new session takes ten times as long as a statement of a test.
    """
    # The first session that is returned is kept. Tests may terminate it.
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=partial(psycopg.connect, database_url, prepare_threshold=None),
        pool_size=1,
        max_overflow=-1,
        pool_pre_ping=True,
    )
    _kept_engines[database_url] = engine
    try:
        yield
    finally:
        del _kept_engines[database_url]
        engine.dispose()


@contextmanager
def database_connection(database_url: str) -> Iterator[Connection]:
    """A connection that bypasses the server. The transaction is committed at the end of the block."""
    if database_url in _kept_engines:
        with _kept_engines[database_url].begin() as connection:
            yield connection
        return
    engine = sync_engine(database_url)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def write_lock(database_url: str) -> Iterator[None]:
    """Holds the write lock as another process would: the server cannot write, but it can read."""
    lock = "BEGIN IMMEDIATE" if is_sqlite(database_url) else "LOCK TABLE posts, comments IN EXCLUSIVE MODE"
    engine = sync_engine(database_url)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(lock)
            yield
            connection.rollback()
    finally:
        engine.dispose()


def query(database: str | Path, statement: str) -> list[tuple[object, ...]]:
    """The rows of one statement, read by its own connection.

    Args:
        database: A URL, or the path of an SQLite file, which is opened without any setup of the service.
        statement: The SQL text.
    """
    if isinstance(database, Path):
        with closing(sqlite3.connect(database)) as file:
            return file.execute(statement).fetchall()
    with database_connection(database) as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def execute(database_url: str, *statements: str) -> None:
    """Runs statements in one transaction, without parameters."""
    with database_connection(database_url) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
