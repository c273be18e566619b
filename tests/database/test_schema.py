"""The schema on SQLite, upgrades of legacy files, and the public names of the legacy application.

Upgrades on each engine are in test_upgrade.py.
"""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.script import ScriptDirectory

from store_service.database import engines, schema, tables
from store_service.errors import DatabaseBusy
from tests.support import legacy_database
from tests.support.database import query
from tests.support.legacy_database import dump
from tests.support.polling import wait_until
from tests.support.timeouts import scaled_timeout

# SQLAlchemy ends each line with a space.
DDL_OF_POSTS = "CREATE TABLE posts (\n\tid INTEGER NOT NULL, \n\tbody VARCHAR, \n\tPRIMARY KEY (id)\n)"
DDL_OF_COMMENTS = (
    "CREATE TABLE comments (\n\tid INTEGER NOT NULL, \n\tbody VARCHAR, \n\tpost_id INTEGER NOT NULL, "
    "\n\tPRIMARY KEY (id), \n\tFOREIGN KEY(post_id) REFERENCES posts (id)\n)"
)


def alembic_config(connection: Any = None) -> AlembicConfig:
    """The configuration for commands of alembic."""
    config = AlembicConfig(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    return config


def ddl(path: Path) -> dict[str, str]:
    """Returns the rows of sqlite_master for all tables and indexes, except those of alembic."""
    rows = query(path, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {str(name): str(sql) for name, sql in rows if name not in ("alembic_version", "sqlite_sequence")}


# The revisions


def test_first_revision_equals_the_legacy_schema(tmp_path: Path) -> None:
    """The schema is as created by `metadata.create_all` of the legacy application."""
    legacy_database.create_file(tmp_path / "old.db")
    engine = engines.sync_engine(f"sqlite:///{tmp_path / 'new.db'}")
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), schema.BEFORE)
    engine.dispose()

    assert ddl(tmp_path / "new.db") == ddl(tmp_path / "old.db")
    assert ddl(tmp_path / "new.db") == {"posts": DDL_OF_POSTS, "comments": DDL_OF_COMMENTS}


@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
def test_upgraded_tables_equal_the_metadata(tmp_path: Path, is_old: bool) -> None:
    """Including AUTOINCREMENT and constraint names, which alembic does not compare."""
    url = f"sqlite:///{tmp_path / 'upgraded.db'}"
    if is_old:
        legacy_database.create_file(tmp_path / "upgraded.db")
    schema.upgrade(url)
    engine = engines.sync_engine(f"sqlite:///{tmp_path / 'made.db'}")
    tables.metadata.create_all(engine)
    engine.dispose()

    def unquoted(path: Path) -> dict[str, str]:
        """Without triggers, and without the spaces in which ALTER TABLE and CREATE TABLE differ."""
        return {
            name: re.sub(r"\s*([(),])\s*", r"\1", re.sub(r'[\s"]+', " ", sql))
            for name, sql in ddl(path).items()
            if not sql.startswith("CREATE TRIGGER")
        }

    assert unquoted(tmp_path / "upgraded.db") == unquoted(tmp_path / "made.db")


def test_head_is_the_last_revision() -> None:
    """HEAD is the last revision of alembic."""
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [schema.HEAD]
    assert ScriptDirectory.from_config(alembic_config()).get_bases() == [schema.BEFORE]


# Legacy files


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A legacy file with all the irregularities that its schema allowed."""
    path = tmp_path / "old.db"
    legacy_database.create_file(path)
    return path


def test_upgraded_database_has_no_foreign_key_violation(old_file: Path) -> None:
    """SQLite finds no violated foreign key and no damage."""
    schema.upgrade(f"sqlite:///{old_file}")

    assert query(old_file, "PRAGMA foreign_key_check") == []
    assert query(old_file, "PRAGMA integrity_check") == [("ok",)]


def test_bodies_that_are_not_text_become_text(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    url = legacy_database.create_file(path, post_rows=[], comment_rows=[])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO posts VALUES (1, 12), (2, x'616263')")
        connection.execute("INSERT INTO comments VALUES (1, 1.5, 1)")
    schema.upgrade(url)

    assert query(path, "SELECT body, typeof(body) FROM posts") == [("12", "text"), ("abc", "text")]
    assert query(path, "SELECT body, typeof(body) FROM comments") == [("1.5", "text")]


def test_other_legacy_tables_are_unchanged(old_file: Path) -> None:
    with closing(sqlite3.connect(old_file)) as connection, connection:
        connection.executescript("""
            CREATE TABLE users (id INTEGER PRIMARY KEY AUTOINCREMENT, email TEXT UNIQUE, password BLOB);
            INSERT INTO users (id, email, password) VALUES (3, 'a@example.org', x'00ff'), (8, NULL, NULL);
            CREATE INDEX users_by_password ON users (password);
            CREATE VIEW emails AS SELECT email FROM users;
        """)
    before = {name: sql for name, sql in ddl(old_file).items() if name not in ("posts", "comments")}
    schema.upgrade(f"sqlite:///{old_file}")

    assert {name: sql for name, sql in ddl(old_file).items() if name in before} == before
    assert query(old_file, "SELECT * FROM users") == [(3, "a@example.org", b"\0\xff"), (8, None, None)]
    assert query(old_file, "SELECT seq FROM sqlite_sequence WHERE name = 'users'") == [(8,)]


# All or nothing


@pytest.mark.parametrize("part", [0.0, 0.4, 0.8])
def test_killed_upgrade_of_a_file_loses_nothing(tmp_path: Path, big_old_file: Path, part: float) -> None:
    """The next upgrade succeeds."""
    path = Path(shutil.copy(big_old_file, tmp_path / "store.db"))
    size = path.stat().st_size
    journal = Path(f"{path}-journal")
    upgrade = f"from store_service.database import schema; schema.upgrade('sqlite:///{path}')"
    process = subprocess.Popen([sys.executable, "-c", upgrade], stdout=subprocess.DEVNULL)

    # The upgrade copies all rows, so the file grows to about twice its size.
    wait_until(
        lambda: process.poll() is not None or (journal.exists() and path.stat().st_size >= size * (1 + part)),
    )
    process.send_signal(signal.SIGKILL)
    process.wait()

    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert journal.exists(), "it was not in the middle"
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert dump(path) == dump(big_old_file)
    assert schema.upgrade(f"sqlite:///{path}") == schema.BEFORE
    counted = "SELECT count(*), sum(length(body)) FROM posts"
    assert query(path, counted) == query(big_old_file, counted)


@pytest.fixture(scope="module")
def big_old_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A legacy database that takes some time to upgrade."""
    path = tmp_path_factory.mktemp("big") / "old.db"
    legacy_database.create_file(
        path, post_rows=((n, f"{n} " * 60) for n in range(1, 40_001)), comment_rows=[]
    )
    return path


# Concurrent use


def test_locked_file_is_busy(old_file: Path) -> None:
    """The upgrade fails after a timeout and changes nothing."""
    before = dump(old_file)
    with closing(sqlite3.connect(old_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseBusy):
            schema.upgrade(f"sqlite:///{old_file}?timeout=0.1")
        other.execute("ROLLBACK")

    assert dump(old_file) == before


def test_upgrade_waits_for_a_writer(old_file: Path) -> None:
    with ThreadPoolExecutor(1) as threads, closing(sqlite3.connect(old_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO posts (id, body) VALUES (200, 'just in time')")
        future = threads.submit(schema.upgrade, f"sqlite:///{old_file}")
        with pytest.raises(TimeoutError):
            future.result(timeout=0.3)
        other.execute("COMMIT")
        future.result()

    assert query(old_file, "SELECT body FROM posts WHERE id = 200") == [("just in time",)]


# Names of the legacy application


def run_python(code: str, folder: Path, **settings: str) -> str:
    """Runs a script in its own directory with environment variables. Returns its output."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STORE_", "DATABASE_", "DB_"))
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env=environment | settings,
        capture_output=True,
        text=True,
        timeout=scaled_timeout(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_old_names_create_the_tables(tmp_path: Path) -> None:
    """For scripts that imported the tables, engine and database of the legacy application."""
    script = """
from store_service.config import config
from store_service.database import comment_table, database, engine, metadata, post_table
import databases, sqlalchemy
from sqlalchemy.engine import Engine

assert config.DATABASE_URL == "sqlite:///old.db" and config.DB_FORCE_ROLL_BACK is False
assert {post_table.name, comment_table.name} == {"posts", "comments"} <= set(metadata.tables)
assert not comment_table.c.post_id.nullable
assert [key.target_fullname for key in comment_table.c.post_id.foreign_keys] == ["posts.id"]
assert {"posts", "comments"} <= set(sqlalchemy.inspect(engine).get_table_names())
assert isinstance(engine, Engine) and str(engine.url) == config.DATABASE_URL
assert isinstance(database, databases.Database) and str(database.url) == config.DATABASE_URL
metadata.create_all(engine)

import threading
with engine.connect() as connection:
    raw = connection.connection.dbapi_connection
    seen = []
    thread = threading.Thread(target=lambda: seen.append(raw.execute("SELECT 1").fetchone()))
    thread.start(); thread.join()
    assert seen == [(1,)], "check_same_thread is not off"
engine.dispose()

import asyncio
async def use():
    async with database:
        id = await database.execute(post_table.insert(), {"body": "kept"})
        await database.execute(comment_table.insert(), {"body": "too", "post_id": id})
asyncio.run(use())
"""
    run_python(script, tmp_path, DATABASE_URL="sqlite:///old.db")

    assert query(tmp_path / "old.db", "SELECT body FROM posts UNION ALL SELECT body FROM comments") == [
        ("kept",),
        ("too",),
    ]


def test_old_database_rolls_back_if_configured(tmp_path: Path) -> None:
    """DB_FORCE_ROLL_BACK reaches `databases.Database`."""
    script = """
import asyncio
from store_service.database import database, post_table
async def use():
    async with database:
        await database.execute(post_table.insert(), {"body": "gone"})
        print(len(await database.fetch_all(post_table.select())))
asyncio.run(use())
"""
    seen = run_python(script, tmp_path, DATABASE_URL="sqlite:///old.db", DB_FORCE_ROLL_BACK="true")

    assert seen.split()[-1] == "1"
    assert query(tmp_path / "old.db", "SELECT count(*) FROM posts") == [(0,)]


def test_importing_the_old_module_opens_nothing(tmp_path: Path) -> None:
    run_python(
        "import store_service.config, store_service.database", tmp_path, DATABASE_URL="sqlite:///old.db"
    )

    assert list(tmp_path.iterdir()) == []
