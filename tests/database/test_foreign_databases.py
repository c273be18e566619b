"""A database of another application is refused and not changed."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from store_service.database import connect, schema
from tests.support import legacy_database
from tests.support.database import execute, query
from tests.support.server_process import run_command

on_postgresql = pytest.mark.parametrize("bare_url", ["postgresql"], indirect=True)


def everything(database_url: str) -> object:
    """Returns a value that any change alters: bytes and times of all files; names in PostgreSQL."""
    if connect.is_sqlite(database_url):
        folder = connect.sqlite_file.database_path(database_url).parent
        # Readers of a log write their positions to -shm.
        return {
            it.name: it.name.endswith("-shm") or (it.read_bytes(), it.stat().st_mtime_ns)
            for it in folder.iterdir()
        }
    return query(
        database_url, "SELECT relnamespace::regnamespace::text, relname::text FROM pg_class ORDER BY 1, 2"
    )


def assert_refused(database_url: str, folder: Path, *words: str) -> None:
    """Checks that all commands fail with one line and change nothing."""
    before = everything(database_url)
    settings = {"DATABASE_URL": database_url, "STORE_LISTEN": "127.0.0.1:0"}
    for command in ("check", "migrate", "serve"):
        done = run_command(command, folder=folder, settings=settings)
        assert done.returncode == 1
        assert "database: fine" not in done.stdout
        (line,) = done.stderr.splitlines()
        for word in words:
            assert word in line
    assert everything(database_url) == before


def test_database_of_another_application_is_refused(bare_url: str, tmp_path: Path) -> None:
    """The line names some of its tables."""
    execute(
        bare_url,
        *(f"CREATE TABLE table_{number} (id INTEGER)" for number in range(4)),
        "CREATE VIEW recent AS SELECT id FROM table_1",
        'CREATE TABLE "two\nlines" (id INTEGER)',
    )

    assert_refused(
        bare_url,
        tmp_path,
        "the database belongs to another application: it contains table table_0, table table_1,",
        "view recent, 1 more, and nothing of this service",
        "of its own",
    )


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_log_of_another_application_is_unchanged(tmp_path: Path, mode: str) -> None:
    """The database was closed, or its last writes are in a log."""
    folder = tmp_path / "data"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "theirs.db")) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("CREATE TABLE users (id INTEGER)")
        connection.commit()

        assert_refused(f"sqlite:///{folder / 'theirs.db'}", tmp_path, "table users")
    assert_refused(f"sqlite:///{folder / 'theirs.db'}", tmp_path, "table users")


@pytest.mark.parametrize("pragma", ["application_id", "user_version"])
def test_file_with_a_foreign_application_id_is_refused(tmp_path: Path, pragma: str) -> None:
    """The other application has created no tables yet."""
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute(f"PRAGMA {pragma} = 17")

    assert_refused(f"sqlite:///{tmp_path / 'store.db'}", tmp_path, f"it contains {pragma} 17")


@pytest.mark.parametrize("revision", [schema.BEFORE, schema.HEAD])
def test_foreign_version_table_with_our_numbers_is_refused(
    bare_url: str, tmp_path: Path, revision: str
) -> None:
    execute(
        bare_url,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)",
        f"INSERT INTO alembic_version VALUES ('{revision}')",
        "CREATE TABLE users (id INTEGER)",
    )

    found = "it contains table users" if revision == schema.BEFORE else "there is no table posts"
    assert_refused(bare_url, tmp_path, found, "another application")


def test_tables_with_a_missing_column_are_refused(bare_url: str, tmp_path: Path) -> None:
    schema.upgrade(bare_url)
    execute(bare_url, "ALTER TABLE changes DROP COLUMN request_id")

    assert_refused(bare_url, tmp_path, "table changes has no column request_id")


def test_version_table_alone_counts_as_empty(bare_url: str) -> None:
    """Alembic leaves it after a failed first upgrade."""
    execute(bare_url, "CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)")

    assert schema.upgrade(bare_url) == schema.EMPTY


def test_tables_beside_a_legacy_database_stay(bare_url: str) -> None:
    legacy_database.fill(bare_url)
    execute(bare_url, "CREATE TABLE users (id INTEGER)", "INSERT INTO users VALUES (7)")
    schema.upgrade(bare_url)

    schema.check(bare_url)
    assert query(bare_url, "SELECT id FROM users") == [(7,)]


@on_postgresql
def test_separate_schema_allows_a_shared_database(bare_url: str) -> None:
    execute(
        bare_url,
        "CREATE TABLE posts (id INTEGER, title TEXT)",
        "CREATE TABLE users (id INTEGER)",
        "CREATE SCHEMA store",
    )
    shared = sqlalchemy.make_url(bare_url)
    execute(bare_url, f"ALTER DATABASE {shared.database} SET search_path = store")

    assert schema.upgrade(bare_url) == schema.EMPTY
    schema.check(bare_url)
    assert query(
        bare_url,
        "SELECT relname::text, relnamespace::regnamespace::text FROM pg_class"
        " WHERE relname IN ('posts', 'users', 'changes') ORDER BY 1, 2",
    ) == [("changes", "store"), ("posts", "public"), ("posts", "store"), ("users", "public")]


@on_postgresql
def test_objects_of_extensions_are_ignored(bare_url: str) -> None:
    """Such as the views of pg_stat_statements."""
    execute(
        bare_url,
        "CREATE VIEW statistics AS SELECT 1 AS calls",
        "CREATE SEQUENCE numbers",
        # As CREATE EXTENSION records it. A server without contrib has no extension with a view.
        "INSERT INTO pg_depend"
        " SELECT 'pg_class'::regclass, it, 0, 'pg_extension'::regclass, pg_extension.oid, 0, 'e'"
        " FROM pg_extension, unnest(ARRAY['statistics'::regclass, 'numbers'::regclass]) AS it"
        " WHERE extname = 'plpgsql'",
    )

    assert schema.upgrade(bare_url) == schema.EMPTY
