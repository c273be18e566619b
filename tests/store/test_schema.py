"""The schema: what the old application made, what this program needs, and the way from one to the other."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import alembic.op
import pytest
import structlog
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.pool import Pool

from store_service.database import connect, schema, tables
from store_service.errors import DatabaseBusy, SchemaMismatch
from store_service.model import CommentDraft, Deletion, PostDraft
from store_service.store.comments import Comments
from store_service.store.posts import Posts
from tests.store import old_application
from tests.store.old_application import COMMENTS, ORPHANS, POSTS, dump, query
from tests.support import wait_until

# SQLAlchemy leaves a space at the end of each line.
DDL_OF_POSTS = "CREATE TABLE posts (\n\tid INTEGER NOT NULL, \n\tbody VARCHAR, \n\tPRIMARY KEY (id)\n)"
DDL_OF_COMMENTS = (
    "CREATE TABLE comments (\n\tid INTEGER NOT NULL, \n\tbody VARCHAR, \n\tpost_id INTEGER NOT NULL, "
    "\n\tPRIMARY KEY (id), \n\tFOREIGN KEY(post_id) REFERENCES posts (id)\n)"
)


def alembic_config(connection: Any = None) -> AlembicConfig:
    """The revisions, for alembic's own commands."""
    config = AlembicConfig(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    return config


def ddl(path: Path) -> dict[str, str]:
    """What sqlite_master says of each table and index, but for alembic's own."""
    rows = query(path, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {str(name): str(sql) for name, sql in rows if name not in ("alembic_version", "sqlite_sequence")}


# The revisions


def test_the_first_revision_is_the_schema_of_the_old_application_to_the_letter(tmp_path: Path) -> None:
    """Revision 0001 makes what the old application's `metadata.create_all` made."""
    old_application.make(tmp_path / "old.db")
    engine = connect.sync_engine(f"sqlite:///{tmp_path / 'new.db'}")
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), schema.BEFORE)
    engine.dispose()

    assert ddl(tmp_path / "new.db") == ddl(tmp_path / "old.db")
    assert ddl(tmp_path / "new.db") == {"posts": DDL_OF_POSTS, "comments": DDL_OF_COMMENTS}


def test_the_last_revision_makes_the_tables_that_the_program_uses(tmp_path: Path) -> None:
    """Alembic finds no difference between an upgraded database and `tables.metadata`."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    schema.upgrade(url)
    engine = connect.sync_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        differences = compare_metadata(context, tables.metadata)
    engine.dispose()

    # SQLite has no identity columns; the tables name them for PostgreSQL.
    known = [[("modify_default", None, table, "id")] for table in ("comments", "posts")]
    assert [[each[:4] for each in group] for group in differences if isinstance(group, list)] == known
    assert [each for each in differences if not isinstance(each, list)] == []


@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
def test_an_upgraded_database_has_the_very_tables_that_metadata_would_make(
    tmp_path: Path, is_old: bool
) -> None:
    """Also what alembic does not compare, such as AUTOINCREMENT and names of constraints, is the same."""
    url = f"sqlite:///{tmp_path / 'upgraded.db'}"
    if is_old:
        old_application.make(tmp_path / "upgraded.db")
    schema.upgrade(url)
    engine = connect.sync_engine(f"sqlite:///{tmp_path / 'made.db'}")
    tables.metadata.create_all(engine)
    engine.dispose()

    def unquoted(path: Path) -> dict[str, str]:
        return {name: re.sub(r'[\s"]+', " ", sql) for name, sql in ddl(path).items()}

    assert unquoted(tmp_path / "upgraded.db") == unquoted(tmp_path / "made.db")


def test_head_is_the_last_revision() -> None:
    """The revision that the program asks for is the one that alembic ends at."""
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [schema.HEAD]
    assert ScriptDirectory.from_config(alembic_config()).get_bases() == [schema.BEFORE]


# A file of the old application


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A file of the old application, with everything that its schema let happen."""
    path = tmp_path / "old.db"
    old_application.make(path)
    return path


def test_every_row_of_the_old_application_is_kept(old_file: Path) -> None:
    """Ids and bodies stay, NULL becomes empty, orphans move aside; times are unknown and versions start."""
    was = schema.upgrade(f"sqlite:///{old_file}")

    assert was == schema.BEFORE
    assert query(old_file, "SELECT id, body, create_time, update_time, version FROM posts ORDER BY id") == [
        (id, body or "", None, None, 1) for id, body in POSTS
    ]
    assert query(
        old_file, "SELECT id, body, post_id, create_time, update_time, version FROM comments ORDER BY id"
    ) == [
        (id, body or "", post_id, None, None, 1)
        for id, body, post_id in COMMENTS
        if (id, body, post_id) not in ORPHANS
    ]
    assert query(old_file, "SELECT id, body, post_id FROM orphaned_comments ORDER BY id") == [
        (id, body or "", post_id) for id, body, post_id in ORPHANS
    ]


def test_foreign_keys_hold_after_the_upgrade(old_file: Path) -> None:
    """SQLite itself finds no comment without a post, and nothing damaged."""
    schema.upgrade(f"sqlite:///{old_file}")

    assert query(old_file, "PRAGMA foreign_key_check") == []
    assert query(old_file, "PRAGMA integrity_check") == [("ok",)]


def test_the_log_counts_the_orphans(old_file: Path) -> None:
    """Whoever runs the upgrade is told how many comments were moved, and where to."""
    with structlog.testing.capture_logs() as lines:
        schema.upgrade(f"sqlite:///{old_file}")

    (warning,) = [line for line in lines if line["log_level"] == "warning"]
    assert "orphaned_comments" in warning["event"]
    assert warning["count"] == len(ORPHANS)


def test_without_orphans_the_log_warns_of_nothing(tmp_path: Path) -> None:
    """A warning is for what needs a look."""
    url = old_application.make(tmp_path / "old.db", comment_rows=[(1, "fine", 1)])
    with structlog.testing.capture_logs() as lines:
        schema.upgrade(url)

    assert [line["log_level"] for line in lines] == ["info"]


async def test_new_ids_are_never_those_that_rows_or_orphans_had(old_file: Path) -> None:
    """Ids that only orphans still tell of, as comments or as posts, are not given again."""
    url = f"sqlite:///{old_file}"
    schema.upgrade(url)
    async with connect.open_store(url, readers=1) as store:
        (post,) = await Posts(store).create_posts([PostDraft(body="new")])
        (comment,) = await Comments(store).create_comments([CommentDraft(body="new", post_id=post.id)])

    assert post.id == max(post_id for _, _, post_id in COMMENTS) + 1 == 91
    assert comment.id == max(id for id, _, _ in COMMENTS) + 1 == 32


async def test_the_id_of_a_deleted_row_is_not_given_again(database_file: Path) -> None:
    """Also the last row's id, which SQLite would give again by itself, and also after a restart."""
    url = f"sqlite:///{database_file}"
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        async with connect.open_store(url, readers=1) as store:
            for _ in range(2):
                (post,) = await Posts(store).create_posts([PostDraft(body="p")])
                (comment,) = await Comments(store).create_comments([CommentDraft(body="c", post_id=post.id)])
                seen.append((post.id, comment.id))
                await Posts(store).delete_posts(Deletion(ids=(post.id,), force=True))

    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_an_old_database_without_rows_starts_at_one(tmp_path: Path) -> None:
    """Nothing to keep, nothing to skip."""
    url = old_application.make(tmp_path / "old.db", post_rows=[], comment_rows=[])
    schema.upgrade(url)

    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        assert connection.execute("INSERT INTO posts (body) VALUES ('a') RETURNING id").fetchone() == (1,)
        assert connection.execute(
            "INSERT INTO comments (body, post_id) VALUES ('a', 1) RETURNING id"
        ).fetchone() == (1,)


def test_bodies_that_are_no_text_become_text(tmp_path: Path) -> None:
    """SQLite let numbers and bytes into the old columns; callers get strings."""
    path = tmp_path / "old.db"
    url = old_application.make(path, post_rows=[], comment_rows=[])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO posts VALUES (1, 12), (2, x'616263')")
        connection.execute("INSERT INTO comments VALUES (1, 1.5, 1)")
    schema.upgrade(url)

    assert query(path, "SELECT body, typeof(body) FROM posts") == [("12", "text"), ("abc", "text")]
    assert query(path, "SELECT body, typeof(body) FROM comments") == [("1.5", "text")]


def test_other_tables_of_the_old_application_stay_as_they_are(old_file: Path) -> None:
    """What is not ours is not touched: tables, rows, indexes, views and their sequence."""
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


STEPS = ("create_table", "execute", "drop_table", "rename_table", "create_index", "get_bind")


@pytest.mark.parametrize("step", STEPS)
def test_an_upgrade_that_fails_half_way_leaves_the_file_as_it_was(
    old_file: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Wherever an upgrade breaks off, the old application could go on with the file."""
    before, before_ddl = dump(old_file), ddl(old_file)
    calls = _calls_of(monkeypatch, step, shutil.copy(old_file, old_file.with_name("copy.db")))
    _fail_at_call(monkeypatch, step, calls)
    with pytest.raises(FaultError):
        schema.upgrade(f"sqlite:///{old_file}")

    assert dump(old_file) == before
    assert ddl(old_file) == before_ddl


class FaultError(Exception):
    """What the tests break an upgrade with."""


def _calls_of(monkeypatch: pytest.MonkeyPatch, step: str, path: Path) -> int:
    """How often an upgrade that goes well takes a step."""
    real: Callable[..., Any] = getattr(alembic.op, step)
    calls: list[str] = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(step)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(alembic.op, step, counting)
        schema.upgrade(f"sqlite:///{path}")
    assert calls
    return len(calls)


def _fail_at_call(monkeypatch: pytest.MonkeyPatch, step: str, number: int) -> None:
    """Makes a step of the upgrade fail after it was done, at its call of that number."""
    real: Callable[..., Any] = getattr(alembic.op, step)
    left = [number]

    def failing(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            raise FaultError
        return result

    monkeypatch.setattr(alembic.op, step, failing)


@pytest.mark.parametrize("part", [0.0, 0.4, 0.8])
def test_an_upgrade_that_is_killed_loses_nothing(tmp_path: Path, big_old_file: Path, part: float) -> None:
    """After kill -9 in the middle of it the file is as it was, and the next upgrade goes through."""
    path = Path(shutil.copy(big_old_file, tmp_path / "store.db"))
    size = path.stat().st_size
    journal = Path(f"{path}-journal")
    upgrade = f"from store_service.database import schema; schema.upgrade('sqlite:///{path}')"
    process = subprocess.Popen([sys.executable, "-c", upgrade], stdout=subprocess.DEVNULL)

    # The upgrade copies every row, so the file grows to about twice its size before it is done.
    wait_until(
        lambda: process.poll() is not None or (journal.exists() and path.stat().st_size >= size * (1 + part)),
        seconds=30,
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
    """A file of the old application that takes a while to upgrade."""
    path = tmp_path_factory.mktemp("big") / "old.db"
    old_application.make(path, post_rows=((n, f"{n} " * 60) for n in range(1, 40_001)), comment_rows=[])
    return path


# Databases that are something else


def test_a_newer_schema_is_refused_and_left_alone(database_file: Path) -> None:
    """A program never touches what a newer one has made."""
    with closing(sqlite3.connect(database_file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = database_file.read_bytes()

    for attempt in (schema.upgrade, schema.check):
        with pytest.raises(SchemaMismatch, match="schema 9999, this program needs 0002") as caught:
            attempt(f"sqlite:///{database_file}")
        assert (caught.value.expected, caught.value.actual) == (schema.HEAD, "9999")
    assert database_file.read_bytes() == before


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ("CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT)", "table posts has the columns id, title"),
        (
            "CREATE TABLE posts (id INTEGER, body TEXT);"
            "CREATE TABLE comments (id INTEGER, body TEXT, author TEXT)",
            "table comments has the columns author, body, id, where body, id, post_id were expected",
        ),
        (
            "CREATE TABLE posts (id INTEGER, body TEXT, tags TEXT);"
            "CREATE TABLE comments (id INTEGER, body TEXT, post_id INTEGER)",
            "table posts has the columns body, id, tags, where body, id were expected",
        ),
        ("CREATE TABLE posts (id INTEGER, body TEXT)", "table comments is missing"),
        ("CREATE TABLE comments (id INTEGER, body TEXT, post_id INTEGER)", "table posts is missing"),
    ],
)
def test_tables_of_our_names_that_are_not_ours_are_refused(
    tmp_path: Path, statements: str, message: str
) -> None:
    """Somebody else's posts are not upgraded; the error says by which columns they were recognized."""
    path = tmp_path / "foreign.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)
    before = path.read_bytes()

    for attempt in (schema.upgrade, schema.check):
        with pytest.raises(schema.ForeignSchema, match=re.escape(message)):
            attempt(f"sqlite:///{path}")
    assert path.read_bytes() == before


@pytest.mark.parametrize("actual", [schema.EMPTY, schema.BEFORE])
def test_a_check_finds_an_older_schema_and_changes_nothing(tmp_path: Path, actual: str) -> None:
    """What `serve` does when it must not upgrade by itself."""
    path = tmp_path / "store.db"
    if actual == schema.BEFORE:
        old_application.make(path)
    else:
        path.touch()
    before = path.read_bytes()

    with pytest.raises(SchemaMismatch) as caught:
        schema.check(f"sqlite:///{path}")
    assert caught.value.actual == actual
    assert path.read_bytes() == before


# Again, at once, in the way


@pytest.mark.parametrize("make", [old_application.make, None], ids=["old", "new"])
def test_an_upgrade_of_an_upgraded_database_does_nothing(
    tmp_path: Path, make: Callable[[Path], str] | None
) -> None:
    """The second upgrade says so, and does not touch the file."""
    path = tmp_path / "store.db"
    url = make(path) if make else f"sqlite:///{path}"
    assert schema.upgrade(url) == (schema.BEFORE if make else schema.EMPTY)
    before = path.read_bytes()

    assert schema.upgrade(url) == schema.HEAD
    assert path.read_bytes() == before
    schema.check(url)


@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
def test_upgrades_at_the_same_time_all_succeed(tmp_path: Path, is_old: bool) -> None:
    """Whoever comes second waits, and finds it done."""
    path = tmp_path / "store.db"
    if is_old:
        old_application.make(path)

    with all_looking_first(4), ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(schema.upgrade, f"sqlite:///{path}") for _ in range(4)]
        found = [future.result() for future in futures]

    before = schema.BEFORE if is_old else schema.EMPTY
    assert set(found) <= {before, schema.HEAD}
    assert found.count(before) == 1, "an upgrade says what it upgraded from, and only one did"
    schema.check(f"sqlite:///{path}")


@contextmanager
def all_looking_first(number: int) -> Iterator[None]:
    """Has that many threads wait for each other when they have given back their first connection."""
    barrier, thread = threading.Barrier(number), threading.local()

    def wait_for_the_others(*_: object) -> None:
        if not getattr(thread, "has_looked", False):
            thread.has_looked = True
            barrier.wait(60)

    event.listen(Pool, "checkin", wait_for_the_others)
    try:
        yield
    finally:
        event.remove(Pool, "checkin", wait_for_the_others)


def test_a_file_that_somebody_writes_to_is_busy(old_file: Path) -> None:
    """The upgrade waits for the other's transaction, but not for ever, and changes nothing."""
    before = dump(old_file)
    with closing(sqlite3.connect(old_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseBusy):
            schema.upgrade(f"sqlite:///{old_file}?timeout=0.1")
        other.execute("ROLLBACK")

    assert dump(old_file) == before


def test_an_upgrade_waits_for_somebody_who_writes(old_file: Path) -> None:
    """A transaction of the old application ends, then the upgrade finds what it has written."""
    with ThreadPoolExecutor(1) as threads, closing(sqlite3.connect(old_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO posts (id, body) VALUES (200, 'just in time')")
        future = threads.submit(schema.upgrade, f"sqlite:///{old_file}")
        with pytest.raises(TimeoutError):
            future.result(timeout=0.3)
        other.execute("COMMIT")
        future.result()

    assert query(old_file, "SELECT body FROM posts WHERE id = 200") == [("just in time",)]


# The names that the old application had


def run_python(code: str, folder: Path, **settings: str) -> str:
    """Runs a script in a folder of its own with these environment variables; returns what it prints."""
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
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_old_names_are_there_and_make_the_tables(tmp_path: Path) -> None:
    """Scripts that imported the old application's tables, engine and database go on working."""
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


def test_the_old_database_undoes_everything_when_it_is_told_to(tmp_path: Path) -> None:
    """DB_FORCE_ROLL_BACK reaches `databases.Database`, as it always has."""
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


def test_importing_the_old_names_module_opens_nothing(tmp_path: Path) -> None:
    """Only who asks for `engine` or `database` makes a file."""
    run_python(
        "import store_service.config, store_service.database", tmp_path, DATABASE_URL="sqlite:///old.db"
    )

    assert list(tmp_path.iterdir()) == []
