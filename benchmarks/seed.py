"""Databases with the service's schema and posts in them."""

import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import sqlalchemy

from benchmarks.processes import environment, python
from benchmarks.workloads import BODY, SEEDED_POSTS
from store_service.database import post_table

MIGRATE_SECONDS = 60


def migrate(database_url: str, folder: Path) -> None:
    """Makes the tables, as the service itself does."""
    subprocess.run(
        python("store_service", "migrate"),
        cwd=folder,
        env=environment(DATABASE_URL=database_url),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=MIGRATE_SECONDS,
    )


def seed(database_url: str, folder: Path) -> None:
    """Makes the tables and stores SEEDED_POSTS posts."""
    migrate(database_url, folder)
    now = time.time_ns() // 1000
    rows = [{"body": BODY, "create_time": now, "update_time": now}] * SEEDED_POSTS
    engine = sqlalchemy.create_engine(database_url.replace("postgresql:", "postgresql+psycopg:", 1))
    try:
        with engine.begin() as connection:
            connection.execute(post_table.insert(), rows)
        if engine.dialect.name == "postgresql":
            # Autovacuum would do it by itself, in the middle of some load.
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM ANALYZE")
    finally:
        engine.dispose()


def sqlite_file(folder: Path) -> Path:
    """A seeded file in WAL mode, closed, to be copied for each contender."""
    path = folder / "seeded.db"
    seed(f"sqlite:///{path}", folder)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = wal")
    connection.close()
    return path


def copied(seeded: Path, folder: Path) -> str:
    """The URL of a copy in a folder, which is made."""
    folder.mkdir()
    return f"sqlite:///{shutil.copy(seeded, folder / 'store.db')}"
