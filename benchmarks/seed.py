"""Databases with the service's schema and posts in them."""

import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy

from benchmarks.processes import environment, python
from benchmarks.workloads import BODY, SEEDED_POSTS
from store_service.database import comment_table, post_table

MIGRATE_SECONDS = 60


def migrate(database_url: str, folder: Path) -> None:
    """Creates the tables, as the service does."""
    subprocess.run(
        python("store_service", "migrate"),
        cwd=folder,
        env=environment(DATABASE_URL=database_url),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=MIGRATE_SECONDS,
    )


_INDEXES = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
    "postgresql": "SELECT indexname, indexdef FROM pg_indexes"
    " WHERE schemaname = current_schema AND right(indexname, 4) = '_idx'",
}


@contextmanager
def filling(database_url: str) -> Iterator[sqlalchemy.Connection]:
    """A transaction that stores many rows. The indexes, except primary keys, are created at its end."""
    engine = sqlalchemy.create_engine(database_url.replace("postgresql:", "postgresql+psycopg:", 1))
    on_sqlite = engine.dialect.name == "sqlite"
    try:
        with engine.connect() as connection:
            if on_sqlite:
                # Nothing reads the file before it is complete, so no journal is needed.
                connection.exec_driver_sql("PRAGMA journal_mode = off")
                connection.exec_driver_sql("PRAGMA synchronous = off")
            indexes = connection.exec_driver_sql(_INDEXES[engine.dialect.name]).all()
            for name, _ in indexes:
                connection.exec_driver_sql(f'DROP INDEX "{name}"')
            yield connection
            for _, sql in indexes:
                connection.exec_driver_sql(sql)
            connection.commit()
        if not on_sqlite:
            _vacuum(engine)
    finally:
        engine.dispose()


def _vacuum(engine: sqlalchemy.Engine) -> None:
    # Otherwise autovacuum would run during a load.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


def seed(database_url: str, folder: Path) -> None:
    """Creates the tables and stores SEEDED_POSTS posts, the first of them with a comment."""
    migrate(database_url, folder)
    now = time.time_ns() // 1000
    rows = [{"body": BODY, "create_time": now, "update_time": now}] * SEEDED_POSTS
    engine = sqlalchemy.create_engine(database_url.replace("postgresql:", "postgresql+psycopg:", 1))
    try:
        with engine.begin() as connection:
            connection.execute(post_table.insert(), rows)
            connection.execute(comment_table.insert(), {**rows[0], "post_id": 1})
        if engine.dialect.name == "postgresql":
            _vacuum(engine)
    finally:
        engine.dispose()


def sqlite_file(folder: Path) -> Path:
    """Creates a seeded file in WAL mode, which is copied for each contender. Returns its path."""
    path = folder / "seeded.db"
    seed(f"sqlite:///{path}", folder)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = wal")
    connection.close()
    return path


def copied(seeded: Path, folder: Path) -> str:
    """Copies a file into a new folder. Returns the URL of the copy."""
    folder.mkdir()
    return f"sqlite:///{shutil.copy(seeded, folder / 'store.db')}"
