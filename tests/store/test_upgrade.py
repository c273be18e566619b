"""The way from any database to the schema that this program needs: nothing is lost, on either engine."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.op
import pytest
import sqlalchemy
import structlog
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event
from sqlalchemy.pool import Pool

from store_service.database import connect, schema, sqlite, tables
from store_service.errors import SchemaMismatch
from store_service.model import CommentDraft, Deletion, PostDraft
from store_service.store.comments import Comments
from store_service.store.posts import Posts
from tests.patience import patience
from tests.postgres import new_database
from tests.rpc.helpers import connected
from tests.store import old_application
from tests.store.by_hand import execute, query
from tests.store.old_application import COMMENTS, ORPHANS
from tests.support import wait_until

ENGINES = ["sqlite", "postgresql"]


@pytest.fixture(params=ENGINES)
def bare_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables, on each engine in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
        return
    with new_database(request.getfixturevalue("postgres")) as url:
        yield url


@pytest.fixture
def old_url(bare_url: str) -> str:
    """A database of the old application, with everything that its schema let happen."""
    old_application.fill(bare_url)
    return bare_url


on_postgresql = pytest.mark.parametrize("bare_url", ["postgresql"], indirect=True)


def state(database_url: str) -> object:
    """Whatever a change would change: the bytes of a file; of PostgreSQL, the schema, and rows' versions."""
    if connect.is_sqlite(database_url):
        path = sqlite.path_of(database_url)
        return path.read_bytes() if path.exists() else None
    with connected(database_url) as connection:
        names = sorted(sqlalchemy.inspect(connection).get_table_names())
        # xmin is the transaction that wrote the row, ctid the place where it is.
        rows = [
            query(database_url, f"SELECT xmin::text, ctid::text, it.* FROM {name} AS it") for name in names
        ]
    return [names, rows, *(query(database_url, part) for part in _CATALOGUE)]


_CATALOGUE = (
    "SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity"
    " FROM information_schema.columns WHERE table_schema = 'public' ORDER BY table_name, ordinal_position",
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'public'::regnamespace ORDER BY conname",
    "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname",
    "SELECT sequencename, data_type::text, last_value FROM pg_sequences ORDER BY sequencename",
)


# A database of the old application


def test_every_row_of_the_old_application_is_kept(old_url: str) -> None:
    """Ids and bodies stay, NULL becomes empty, orphans move aside; times are unknown and versions start."""
    was = schema.upgrade(old_url)

    assert was == schema.BEFORE
    assert query(old_url, "SELECT id, body, create_time, update_time, version FROM posts ORDER BY id") == [
        (id, body or "", None, None, 1) for id, body in old_application.posts_for(old_url)
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
def test_the_last_revision_makes_the_tables_that_the_program_uses(bare_url: str, is_old: bool) -> None:
    """Alembic finds no difference between an upgraded database and `tables.metadata`."""
    if is_old:
        old_application.fill(bare_url)
    schema.upgrade(bare_url)
    with connected(bare_url) as connection:
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
        # Transactions of SQLite have no numbers that rows could be found by.
        elsewhere = {("add_index", "changes_xid_seq_idx")}
        known = identities
    else:
        # The number of the transaction, which the revision alone can say in the words of PostgreSQL.
        elsewhere = set()
        known = {("modify_default", None, "changes", "xid")}
    assert [it for it in each if it[:4] not in known and (it[0], _name(it[1])) not in elsewhere] == []


def _name(changed: object) -> object:
    """What a difference is about, by its name if it has one."""
    return getattr(changed, "name", None)


@on_postgresql
def test_a_change_has_the_number_of_its_transaction(bare_url: str) -> None:
    """PostgreSQL puts it there itself; the service, which could only guess, leaves it out."""
    schema.upgrade(bare_url)
    columns = "action, kind, resource_id, post_id, payload, size, commit_time"
    execute(bare_url, f"INSERT INTO changes ({columns}) VALUES (2, 1, 1, 1, '{{}}', 1, 1)")

    assert query(bare_url, "SELECT xid = xmin::text::bigint FROM changes") == [(True,)]


def test_the_log_counts_the_orphans(old_url: str) -> None:
    """Whoever runs the upgrade is told how many comments were moved, and where to."""
    with structlog.testing.capture_logs() as lines:
        schema.upgrade(old_url)

    (warning,) = [line for line in lines if line["log_level"] == "warning"]
    assert "orphaned_comments" in warning["event"]
    assert warning["count"] == len(ORPHANS)


def test_without_orphans_the_log_warns_of_nothing(bare_url: str) -> None:
    """A warning is for what needs a look."""
    old_application.fill(bare_url, comment_rows=[(1, "fine", 1)])
    with structlog.testing.capture_logs() as lines:
        schema.upgrade(bare_url)

    assert {line["log_level"] for line in lines} == {"info"}


async def test_new_ids_are_never_those_that_rows_or_orphans_had(old_url: str) -> None:
    """Ids that only orphans still tell of, as comments or as posts, are not given again."""
    schema.upgrade(old_url)
    async with connect.open_store(old_url, readers=1) as store:
        (post,) = await Posts(store).create([PostDraft(body="new")])
        (comment,) = await Comments(store).create([CommentDraft(body="new", post_id=post.id)])

    assert post.id == max(post_id for _, _, post_id in COMMENTS) + 1 == 91
    assert comment.id == max(id for id, _, _ in COMMENTS) + 1 == 32


async def test_an_old_database_without_rows_starts_at_one(bare_url: str) -> None:
    """Nothing to keep, nothing to skip."""
    old_application.fill(bare_url, post_rows=[], comment_rows=[])
    schema.upgrade(bare_url)
    async with connect.open_store(bare_url, readers=1) as store:
        (post,) = await Posts(store).create([PostDraft(body="new")])
        (comment,) = await Comments(store).create([CommentDraft(body="new", post_id=post.id)])

    assert (post.id, comment.id) == (1, 1)


async def test_the_id_of_a_deleted_row_is_not_given_again(database_url: str) -> None:
    """Also the last row's id, which SQLite would give again by itself, and also after a restart."""
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        async with connect.open_store(database_url, readers=1) as store:
            for _ in range(2):
                (post,) = await Posts(store).create([PostDraft(body="p")])
                (comment,) = await Comments(store).create([CommentDraft(body="c", post_id=post.id)])
                seen.append((post.id, comment.id))
                await Posts(store).delete(Deletion(ids=(post.id,), force=True))

    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


@on_postgresql
def test_an_old_database_without_the_foreign_key_is_upgraded(old_url: str) -> None:
    """Whoever imported the tables may have left it out; afterwards it is there."""
    execute(old_url, "ALTER TABLE comments DROP CONSTRAINT comments_post_id_fkey")
    schema.upgrade(old_url)

    with connected(old_url) as connection:
        (key,) = sqlalchemy.inspect(connection).get_foreign_keys("comments")
    assert key["name"] == "comments_post_id_fkey"
    assert query(old_url, "SELECT count(*) FROM orphaned_comments") == [(len(ORPHANS),)]


@on_postgresql
async def test_an_old_database_whose_rows_were_imported_goes_on_after_them(old_url: str) -> None:
    """Rows that brought their ids along have not moved the sequences."""
    execute(old_url, *(f"SELECT setval('{table}_id_seq', 1, false)" for table in ("posts", "comments")))
    schema.upgrade(old_url)
    async with connect.open_store(old_url, readers=1) as store:
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
def test_an_upgrade_that_fails_half_way_leaves_the_database_as_it_was(
    old_url: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Wherever an upgrade breaks off, the old application could go on with the database."""
    before, calls = contents(old_url), 0
    real: Callable[..., Any] = getattr(alembic.op, step)

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        result = real(*args, **kwargs)
        calls += 1
        if calls == fails_at:
            raise FaultError
        return result

    # At each call in turn, after it was done, until there are no more.
    for fails_at in range(1, 100):  # noqa: B007  # `failing` reads it
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(alembic.op, step, failing)
            try:
                schema.upgrade(old_url)
            except FaultError:
                assert contents(old_url) == before
            else:
                break

    assert 0 < calls < fails_at
    schema.check(old_url)


class FaultError(Exception):
    """What the tests break an upgrade with."""


def contents(database_url: str) -> object:
    """Schema and rows, wherever they are in a file."""
    if connect.is_sqlite(database_url):
        return old_application.dump(sqlite.path_of(database_url))
    return state(database_url)


@on_postgresql
def test_an_upgrade_that_is_killed_loses_nothing(old_url: str) -> None:
    """After kill -9 in the middle of it the database is as it was, and the next upgrade goes through."""
    before = state(old_url)
    upgrade = f"from store_service.database import schema; schema.upgrade({old_url!r})"
    ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    waits = f"{ours} AND wait_event_type = 'Lock'"
    others = f"{ours} AND backend_type = 'client backend' AND pid <> pg_backend_pid()"

    # The upgrade changes what is in the tables, and then waits for whoever has read one to finish.
    with connected(old_url) as reader:
        reader.exec_driver_sql("SELECT 1 FROM comments LIMIT 1")
        process = subprocess.Popen([sys.executable, "-c", upgrade], stdout=subprocess.DEVNULL)
        wait_until(lambda: query(old_url, waits) == [(1,)])
        process.send_signal(signal.SIGKILL)
        process.wait()
    # The server notices when it has something to tell the client.
    wait_until(lambda: query(old_url, others) == [(0,)])

    assert process.returncode == -signal.SIGKILL
    assert state(old_url) == before
    assert schema.upgrade(old_url) == schema.BEFORE


# Databases that are something else


def test_a_newer_schema_is_refused_and_left_alone(database_url: str) -> None:
    """A program never touches what a newer one has made."""
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
def test_tables_of_our_names_that_are_not_ours_are_refused(
    bare_url: str, statements: list[str], message: str
) -> None:
    """Somebody else's posts are not upgraded; the error says by which columns they were recognized."""
    execute(bare_url, *statements)
    before = state(bare_url)

    for attempt in (schema.upgrade, schema.check):
        with pytest.raises(schema.ForeignSchema, match=re.escape(message)):
            attempt(bare_url)
    assert state(bare_url) == before


@pytest.mark.parametrize("actual", [schema.EMPTY, schema.BEFORE])
def test_a_check_finds_an_older_schema_and_changes_nothing(bare_url: str, actual: str) -> None:
    """What `serve` does when it must not upgrade by itself."""
    if actual == schema.BEFORE:
        old_application.fill(bare_url)
    before = state(bare_url)

    with pytest.raises(SchemaMismatch) as caught:
        schema.check(bare_url)
    assert caught.value.actual == actual
    assert state(bare_url) == before


# From the versions of this program before


def test_requests_of_a_version_before_are_remembered(bare_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the size of their answers, which they did not have; and that version can go on writing."""
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


def test_deletions_in_steps_are_added_to_a_version_before(
    bare_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upgrade makes an empty table and touches no row; that version can go on writing meanwhile."""
    with monkeypatch.context() as before:
        before.setattr(schema, "HEAD", "0005")
        schema.upgrade(bare_url)
    execute(bare_url, "INSERT INTO posts (body) VALUES ('p')")
    execute(bare_url, "INSERT INTO comments (body, post_id) VALUES ('c', 1)")
    names = ("posts", "comments", "changes", "requests", "feed")
    rows = [query(bare_url, f"SELECT * FROM {name}") for name in names]

    engine = connect.sync_engine(bare_url)
    with engine.connect() as open_for_long:
        if not connect.is_sqlite(bare_url):
            # Of PostgreSQL a transaction that has written to posts and comments keeps no upgrade waiting.
            open_for_long.exec_driver_sql("UPDATE comments SET body = body")
            open_for_long.exec_driver_sql("UPDATE posts SET body = body")
        assert schema.upgrade(bare_url) == "0005"
        open_for_long.rollback()
    engine.dispose()

    assert [query(bare_url, f"SELECT * FROM {name}") for name in names] == rows
    assert query(bare_url, "SELECT * FROM post_deletions") == []
    schema.check(bare_url)


# Again, at once, in the way


@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
def test_an_upgrade_of_an_upgraded_database_does_nothing(bare_url: str, is_old: bool) -> None:
    """The second upgrade says so, and touches nothing."""
    if is_old:
        old_application.fill(bare_url)
    assert schema.upgrade(bare_url) == (schema.BEFORE if is_old else schema.EMPTY)
    before = state(bare_url)

    assert schema.upgrade(bare_url) == schema.HEAD
    assert state(bare_url) == before
    schema.check(bare_url)


@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
def test_upgrades_at_the_same_time_all_succeed(bare_url: str, is_old: bool) -> None:
    """Whoever comes second waits, and finds it done."""
    if is_old:
        old_application.fill(bare_url)

    with all_looking_first(4), ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(schema.upgrade, bare_url) for _ in range(4)]
        found = [future.result() for future in futures]

    before = schema.BEFORE if is_old else schema.EMPTY
    assert set(found) <= {before, schema.HEAD}
    assert found.count(before) == 1, "an upgrade says what it upgraded from, and only one did"
    schema.check(bare_url)


@contextmanager
def all_looking_first(number: int) -> Iterator[None]:
    """Has that many threads wait for each other when they have given back their first connection."""
    barrier, thread = threading.Barrier(number), threading.local()

    def wait_for_the_others(*_: object) -> None:
        if not getattr(thread, "has_looked", False):
            thread.has_looked = True
            barrier.wait(patience())

    event.listen(Pool, "checkin", wait_for_the_others)
    try:
        yield
    finally:
        event.remove(Pool, "checkin", wait_for_the_others)
