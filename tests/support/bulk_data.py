"""Rows written past the service."""

import sqlite3
from contextlib import closing
from pathlib import Path

LARGE_BODY = "x" * 60_000


def insert_posts(path: Path, posts: int, body: str = LARGE_BODY) -> None:
    """Stores posts by hand; 60 kB each unless said otherwise."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("INSERT INTO posts (body) VALUES (?)", [[body]] * posts)
