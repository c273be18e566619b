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


def seed(database_url: str, folder: Path) -> None:
    """Creates the tables and stores SEEDED_POSTS posts."""
    migrate(database_url, folder)
    now = time.time_ns() // 1000
    rows = [{"body": BODY, "create_time": now, "update_time": now}] * SEEDED_POSTS
    engine = sqlalchemy.create_engine(database_url.replace("postgresql:", "postgresql+psycopg:", 1))
    try:
        with engine.begin() as connection:
            connection.execute(post_table.insert(), rows)
        if engine.dialect.name == "postgresql":
            # Otherwise autovacuum would run during a load.
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM ANALYZE")
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
