"""Upgrades of all kinds of databases keep all rows, on each engine."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import alembic.command
import alembic.op
import pytest
import sqlalchemy
import structlog
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event
from sqlalchemy.pool import Pool

from store_service.database import connect, engines, schema, sqlite_file, tables
from store_service.errors import SchemaMismatch
from store_service.model import CommentDraft, Deletion, PostDraft
from store_service.service.comments import Comments
from store_service.service.posts import Posts
from tests.support import legacy_database
from tests.support.database import database_connection, execute, query
from tests.support.legacy_database import COMMENTS, ORPHANS
from tests.support.polling import wait_until
from tests.support.timeouts import scaled_timeout

ENGINES = ["sqlite", "postgresql"]


@pytest.fixture
def old_url(bare_url: str) -> str:
    """A legacy database with all the irregularities that its schema allowed."""
    legacy_database.fill(bare_url)
    return bare_url


on_postgresql = pytest.mark.parametrize("bare_url", ["postgresql"], indirect=True)


def state(database_url: str) -> object:
    """Returns a value that any change alters: bytes of a file; schema and row versions of PostgreSQL."""
    if connect.is_sqlite(database_url):
        path = sqlite_file.database_path(database_url)
        return path.read_bytes() if path.exists() else None
    with database_connection(database_url) as connection:
        names = sorted(sqlalchemy.inspect(connection).get_table_names())
        # xmin is the transaction that wrote the row, ctid its location.
        rows = [f"SELECT xmin::text, ctid::text, it.* FROM {name} AS it" for name in names]
        return [names, [connection.exec_driver_sql(it).all() for it in (*rows, *_CATALOGUE)]]


_CATALOGUE = (
    "SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity"
    " FROM information_schema.columns WHERE table_schema = 'public' ORDER BY table_name, ordinal_position",
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'public'::regnamespace ORDER BY conname",
    "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname",
    "SELECT sequencename, data_type::text, last_value FROM pg_sequences ORDER BY sequencename",
)


# Legacy databases


def test_every_legacy_row_is_kept(old_url: str) -> None:
    """Ids and bodies are kept, NULL becomes empty, orphans are moved, times are NULL, and versions are 1."""
    was = schema.upgrade(old_url)

    assert was == schema.BEFORE
    assert query(old_url, "SELECT id, body, create_time, update_time, version FROM posts ORDER BY id") == [
        (id, body or "", None, None, 1) for id, body in legacy_database.posts_for(old_url)
    ]
    assert query(
        old_url, "SELECT id, body, post_id, create_time, update_time, version FROM comments ORDER BY id"
    ) == [
        (id, body or "", post_id, None, None, 1)
        for id, body, post_id in COMMENTS
        if (id, body, post_id) not in ORPHANS
    ]
    assert query(old_url, "SELECT id, body, post_id FROM orphaned_comments ORDER BY id") == [
        (id, body or "", post_id) for id, body, post_id in ORPHANS
    ]


@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
@pytest.mark.filterwarnings(
    # test_schema.py compares the text of these indexes.
    "ignore:Skipped unsupported reflection of expression-based index",
    "ignore:autogenerate skipping metadata-specified expression-based index",
)
def test_last_revision_equals_the_metadata(bare_url: str, is_old: bool) -> None:
    """Alembic finds no unexpected difference."""
    if is_old:
        legacy_database.fill(bare_url)
    schema.upgrade(bare_url)
    with database_connection(bare_url) as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        differences = compare_metadata(context, tables.metadata)

    # SQLite has no identity columns; the tables name them for PostgreSQL.
    identities = {
        ("modify_default", None, table.name, column.name)
        for table in tables.metadata.sorted_tables
        for column in table.columns
        if column.identity is not None
    }
    each = [it for group in differences for it in (group if isinstance(group, list) else [group])]
    if connect.is_sqlite(bare_url):
        # The tables of FTS5 have no column for the rowid, and tables of their own.
        each = [it for it in each if not _is_of_fts5(it)]
        # SQLite has no transaction numbers, so the index exists only on PostgreSQL.
        elsewhere = {("add_index", "changes_xid_seq_idx")}
        known = identities
    else:
        # The default is a PostgreSQL expression that only the revision defines.
        # PostgreSQL stores the expressions of these indexes in another form.
        names = ("comments_thread_idx", "deleted_comments_thread_idx", "deleted_comments_deleted_with_idx")
        elsewhere = {(action, name) for action in ("add_index", "remove_index") for name in names}
        known = {("modify_default", None, "changes", "xid")}
    assert [it for it in each if it[:4] not in known and (it[0], _name(it[1])) not in elsewhere] == []


def _is_of_fts5(difference: Any) -> bool:
    """Whether a difference is about a virtual table, or about a table that it consists of."""
    table = next((it for it in difference if isinstance(it, str) and "_search" in it), "")
    table = table or getattr(difference[1], "name", "") or getattr(difference[1], "table", "")
    return str(table).startswith(("post_search", "comment_search"))


def _name(changed: object) -> object:
    """Returns the object of a difference, by its name if it has one."""
    return getattr(changed, "name", None)


@on_postgresql
def test_change_has_the_number_of_its_transaction(bare_url: str) -> None:
    """PostgreSQL sets it as a column default."""
    schema.upgrade(bare_url)
    columns = "action, kind, resource_id, post_id, payload, size, commit_time"
    execute(bare_url, f"INSERT INTO changes ({columns}) VALUES (2, 1, 1, 1, '{{}}', 1, 1)")

    assert query(bare_url, "SELECT xid = xmin::text::bigint FROM changes") == [(True,)]


def test_moved_orphans_are_logged_with_their_number(old_url: str) -> None:
    with structlog.testing.capture_logs() as lines:
        schema.upgrade(old_url)

    (warning,) = [line for line in lines if line["log_level"] == "warning"]
    assert "orphaned_comments" in warning["event"]
    assert warning["count"] == len(ORPHANS)


def test_upgrade_without_orphans_logs_no_warning(bare_url: str) -> None:
    legacy_database.fill(bare_url, comment_rows=[(1, "fine", 1)])
    with structlog.testing.capture_logs() as lines:
        schema.upgrade(bare_url)

    assert {line["log_level"] for line in lines} == {"info"}


async def test_new_ids_differ_from_those_of_rows_and_orphans(old_url: str) -> None:
    schema.upgrade(old_url)
    async with connect.open_database(old_url, readers=1) as store:
        (post,) = await Posts(store).create([PostDraft(body="new")])
        (comment,) = await Comments(store).create([CommentDraft(body="new", post_id=post.id)])

    assert post.id == max(post_id for _, _, post_id in COMMENTS) + 1 == 91
    assert comment.id == max(id for id, _, _ in COMMENTS) + 1 == 32


async def test_empty_legacy_database_starts_at_id_one(bare_url: str) -> None:
    """There are no rows to keep and no ids to skip."""
    legacy_database.fill(bare_url, post_rows=[], comment_rows=[])
    schema.upgrade(bare_url)
    async with connect.open_database(bare_url, readers=1) as store:
        (post,) = await Posts(store).create([PostDraft(body="new")])
        (comment,) = await Comments(store).create([CommentDraft(body="new", post_id=post.id)])

    assert (post.id, comment.id) == (1, 1)


async def test_id_of_a_deleted_row_is_not_reused(database_url: str) -> None:
    """This is also true after a restart."""
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        async with connect.open_database(database_url, readers=1) as store:
            for _ in range(2):
                (post,) = await Posts(store).create([PostDraft(body="p")])
                (comment,) = await Comments(store).create([CommentDraft(body="c", post_id=post.id)])
                seen.append((post.id, comment.id))
                await Posts(store).delete(Deletion(ids=(post.id,), force=True))

    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


@on_postgresql
def test_legacy_database_without_the_foreign_key_is_upgraded(old_url: str) -> None:
    execute(old_url, "ALTER TABLE comments DROP CONSTRAINT comments_post_id_fkey")
    schema.upgrade(old_url)

    with database_connection(old_url) as connection:
        (key,) = sqlalchemy.inspect(connection).get_foreign_keys("comments")
    assert key["name"] == "comments_post_id_fkey"
    assert query(old_url, "SELECT count(*) FROM orphaned_comments") == [(len(ORPHANS),)]


@on_postgresql
async def test_ids_continue_after_imported_rows(old_url: str) -> None:
    """Inserts with explicit ids have not advanced the sequences."""
    execute(old_url, *(f"SELECT setval('{table}_id_seq', 1, false)" for table in ("posts", "comments")))
    schema.upgrade(old_url)
    async with connect.open_database(old_url, readers=1) as store:
        (post,) = await Posts(store).create([PostDraft(body="new")])

    assert post.id == 91


# All or nothing

STEPS = {
    "sqlite": (
        "create_table",
        "execute",
        "drop_table",
        "rename_table",
        "create_index",
        "bulk_insert",
        "get_bind",
    ),
    "postgresql": (
        "create_table",
        "execute",
        "create_foreign_key",
        "create_index",
        "alter_column",
        "drop_column",
        "bulk_insert",
        "get_bind",
    ),
}


@pytest.mark.parametrize(
    ("bare_url", "step"),
    [(engine, step) for engine in ENGINES for step in STEPS[engine]],
    indirect=["bare_url"],
)
def test_failed_upgrade_leaves_the_database_unchanged(
    old_url: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """After the last statement of each kind, where an earlier commit would show, and after earlier ones."""
    before, calls, fails_at = contents(old_url), 0, 0
    real: Callable[..., Any] = getattr(alembic.op, step)

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        result = real(*args, **kwargs)
        calls += 1
        if calls == fails_at:
            raise FaultError
        return result

    def failing_at_the_end(*args: Any) -> None:
        upgrade(*args)
        raise FaultError

    upgrade = alembic.command.upgrade
    monkeypatch.setattr(alembic.op, step, failing)
    with monkeypatch.context() as patch:
        patch.setattr(alembic.command, "upgrade", failing_at_the_end)
        with pytest.raises(FaultError):
            schema.upgrade(old_url)
    assert contents(old_url) == before
    last = calls
    assert last

    for fails_at in sorted({last, *(4**n for n in range(4) if 4**n < last)}):  # noqa: B007  # `failing` reads it
        calls = 0
        with pytest.raises(FaultError):
            schema.upgrade(old_url)
        assert contents(old_url) == before

    fails_at = 0
    schema.upgrade(old_url)
    schema.check(old_url)


class FaultError(Exception):
    """The error that tests raise during an upgrade."""


def contents(database_url: str) -> object:
    """Returns schema and rows, independent of their location in a file."""
    if connect.is_sqlite(database_url):
        return legacy_database.dump(sqlite_file.database_path(database_url))
    return state(database_url)


@on_postgresql
def test_killed_upgrade_loses_nothing(old_url: str) -> None:
    """The next upgrade succeeds."""
    before = state(old_url)
    upgrade = f"from store_service.database import schema; schema.upgrade({old_url!r})"
    ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    waits = f"{ours} AND wait_event_type = 'Lock'"
    others = f"{ours} AND backend_type = 'client backend' AND pid <> pg_backend_pid()"

    # The upgrade changes rows, and then waits for transactions that have read a table.
    with database_connection(old_url) as reader:
        reader.exec_driver_sql("SELECT 1 FROM comments LIMIT 1")
        process = subprocess.Popen([sys.executable, "-c", upgrade], stdout=subprocess.DEVNULL)
        wait_until(lambda: query(old_url, waits) == [(1,)])
        process.send_signal(signal.SIGKILL)
        process.wait()
    # The server notices the lost client when it sends something.
    wait_until(lambda: query(old_url, others) == [(0,)])

    assert process.returncode == -signal.SIGKILL
    assert state(old_url) == before
    assert schema.upgrade(old_url) == schema.BEFORE


# Other databases


def test_newer_schema_is_refused(database_url: str) -> None:
    execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
    before = state(database_url)

    for attempt in (schema.upgrade, schema.check):
        with pytest.raises(SchemaMismatch, match=f"schema 9999, this program needs {schema.HEAD}") as caught:
            attempt(database_url)
        assert (caught.value.expected, caught.value.actual) == (schema.HEAD, "9999")
    assert state(database_url) == before


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (
            ["CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT)"],
            "table posts has the columns id, title",
        ),
        (
            [
                "CREATE TABLE posts (id INTEGER, body TEXT)",
                "CREATE TABLE comments (id INTEGER, body TEXT, author TEXT)",
            ],
            "table comments has the columns author, body, id, where body, id, post_id were expected",
        ),
        (["CREATE TABLE posts (id INTEGER, body TEXT)"], "table comments is missing"),
        (["CREATE TABLE comments (id INTEGER, body TEXT, post_id INTEGER)"], "table posts is missing"),
    ],
)
def test_foreign_tables_with_our_names_are_refused(
    bare_url: str, statements: list[str], message: str
) -> None:
    """The error names the columns."""
    execute(bare_url, *statements)
    before = state(bare_url)

    for attempt in (schema.upgrade, schema.check):
        with pytest.raises(schema.ForeignSchema, match=re.escape(message)):
            attempt(bare_url)
    assert state(bare_url) == before


@pytest.mark.parametrize("actual", [schema.EMPTY, schema.BEFORE])
def test_check_reports_an_older_schema_and_changes_nothing(bare_url: str, actual: str) -> None:
    if actual == schema.BEFORE:
        legacy_database.fill(bare_url)
    before = state(bare_url)

    with pytest.raises(SchemaMismatch) as caught:
        schema.check(bare_url)
    assert caught.value.actual == actual
    assert state(bare_url) == before


# Earlier versions of this program


def test_request_ids_of_the_previous_version_are_kept(bare_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They get the size of their responses. The previous version can still write."""
    row = "INSERT INTO requests (id, fingerprint, answer, create_time) VALUES ('{}', 'f', '{}', {})"
    with monkeypatch.context() as before:
        before.setattr(schema, "HEAD", "0003")
        schema.upgrade(bare_url)
    execute(bare_url, row.format("b", "x" * 5000, 1), row.format("a", "", 2))

    assert schema.upgrade(bare_url) == "0003"
    execute(bare_url, row.format("c", "later", 3))

    found = query(bare_url, "SELECT id, fingerprint, create_time, size, answer FROM requests ORDER BY id")
    assert found == [("a", "f", 2, 0, ""), ("b", "f", 1, 5000, "x" * 5000), ("c", "f", 3, 0, "later")]
    schema.check(bare_url)


def test_stepwise_deletion_is_added_to_the_previous_version(
    bare_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upgrade creates an empty table. The previous version can still write."""
    with monkeypatch.context() as before:
        before.setattr(schema, "HEAD", "0005")
        schema.upgrade(bare_url)
    execute(bare_url, "INSERT INTO posts (body) VALUES ('p')")
    execute(bare_url, "INSERT INTO comments (body, post_id) VALUES ('c', 1)")
    names = ("posts", "comments", "changes", "requests", "feed")
    rows = [query(bare_url, f"SELECT * FROM {name}") for name in names]

    engine = engines.sync_engine(bare_url)
    with engine.connect() as open_for_long:
        if not connect.is_sqlite(bare_url):
            # On PostgreSQL a transaction that has written to posts and comments does not block the upgrade.
            open_for_long.exec_driver_sql("UPDATE comments SET body = body")
            open_for_long.exec_driver_sql("UPDATE posts SET body = body")
        monkeypatch.setattr(schema, "HEAD", "0006")
        assert schema.upgrade(bare_url) == "0005"
        open_for_long.rollback()
    engine.dispose()

    assert [query(bare_url, f"SELECT * FROM {name}") for name in names] == rows
    assert query(bare_url, "SELECT * FROM post_deletions") == []
    schema.check(bare_url)


# Repeated and concurrent upgrades


@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
def test_repeated_upgrade_does_nothing(bare_url: str, is_old: bool) -> None:
    """The second upgrade returns HEAD and changes nothing."""
    if is_old:
        legacy_database.fill(bare_url)
    assert schema.upgrade(bare_url) == (schema.BEFORE if is_old else schema.EMPTY)
    before = state(bare_url)

    assert schema.upgrade(bare_url) == schema.HEAD
    assert state(bare_url) == before
    schema.check(bare_url)


@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
def test_concurrent_upgrades_all_succeed(bare_url: str, is_old: bool) -> None:
    if is_old:
        legacy_database.fill(bare_url)

    with all_looking_first(4), ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(schema.upgrade, bare_url) for _ in range(4)]
        found = [future.result() for future in futures]

    before = schema.BEFORE if is_old else schema.EMPTY
    assert set(found) <= {before, schema.HEAD}
    assert found.count(before) == 1, "an upgrade says what it upgraded from, and only one did"
    schema.check(bare_url)


@contextmanager
def all_looking_first(number: int) -> Iterator[None]:
    """Makes `number` threads wait for each other after they have closed their first connection."""
    barrier, thread = threading.Barrier(number), threading.local()

    def wait_for_the_others(*_: object) -> None:
        if not getattr(thread, "has_looked", False):
            thread.has_looked = True
            barrier.wait(scaled_timeout())

    event.listen(Pool, "checkin", wait_for_the_others)
    try:
        yield
    finally:
        event.remove(Pool, "checkin", wait_for_the_others)
