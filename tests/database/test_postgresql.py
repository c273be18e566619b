"""PostgreSQL only: settings of sessions, and sessions that the server ends."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
import sqlalchemy
import structlog
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from store_service.database import batch_queue, connect, postgresql
from store_service.database.batch_operation import BatchOperation
from store_service.database.change_writes import ORDER_LOCK
from store_service.database.connect import Database
from store_service.database.connection import Connection, Rows
from store_service.database.idempotency import ANSWERS_BY_ID
from store_service.database.postgresql_connection import PostgresqlConnection
from store_service.database.sessions import CurrentServer, Server
from store_service.database.statements import Statement
from store_service.errors import DatabaseBusy, DatabaseUnavailable, ResumeTokenForeign
from store_service.model import CommentDraft, Deletion, IdempotencyKey, PostDraft, Update
from store_service.service import resume_tokens
from store_service.service.changes import Changes
from store_service.service.comments import Comments
from store_service.service.posts import Posts
from tests.support.database import execute, query
from tests.support.polling import eventually, wait_until
from tests.support.timeouts import scaled_timeout
from tests.support.unreliable_proxy import UnreliableProxy

READERS = 3

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Database]:
    """An open database with non-default timeouts."""
    async with connect.open_database(
        database_url, readers=READERS, lock_timeout_seconds=1.5, statement_timeout_seconds=2.5
    ) as store:
        yield store


async def on_every_connection(
    store: Database, statement: str, look: Callable[[Connection], object] = lambda _: None
) -> list[Any]:
    """Runs a statement on each connection, the writer first. Calls `look` with each. Returns the results."""
    asked = Statement(sqlalchemy.text(statement))
    arrived, everybody_is_here = asyncio.Semaphore(0), asyncio.Event()

    async def run(connection: Connection, askers: Sequence[None]) -> list[Any]:
        arrived.release()
        await everybody_is_here.wait()
        look(connection)
        ((answer,),) = await connection.fetch(asked)
        return [answer for _ in askers]

    answers = []
    for ask in (store.write, *[store.read] * READERS):
        answers.append(asyncio.create_task(ask(BatchOperation(run), None)))
        # A connection runs this job before the next one is queued.
        await arrived.acquire()
    everybody_is_here.set()
    return list(await asyncio.gather(*answers))


SETTINGS = {
    "synchronous_commit": "on",
    "lock_timeout": "1500ms",
    "statement_timeout": "2500ms",
    "application_name": "store-service",
}


@pytest.mark.parametrize(("name", "value"), SETTINGS.items())
async def test_every_connection_is_configured(store: Database, name: str, value: str) -> None:
    """synchronous_commit, timeouts and application_name."""
    assert await on_every_connection(store, f"SHOW {name}") == [value] * (READERS + 1)


async def test_shortest_timeout_is_not_zero(database_url: str) -> None:
    """PostgreSQL uses milliseconds, and 0 means no timeout."""
    async with connect.open_database(database_url, readers=READERS, lock_timeout_seconds=0.0004) as store:
        assert await on_every_connection(store, "SHOW lock_timeout") == ["1ms"] * (READERS + 1)


@pytest.mark.parametrize(("force_roll_back", "value"), [(False, "10s"), (True, "0")])
async def test_idle_transaction_is_ended(database_url: str, force_roll_back: bool, value: str) -> None:
    """It would hold locks and block the feed. The outer transaction of a forced rollback is exempt."""
    show = Statement(sqlalchemy.text("SHOW idle_in_transaction_session_timeout"))

    async def run(connection: Connection, _: Sequence[None]) -> Sequence[Any]:
        return await connection.fetch(show)

    async with connect.open_database(database_url, force_roll_back=force_roll_back) as store:
        assert tuple(await store.write(BatchOperation(run), None)) == (value,)


async def test_closed_database_has_no_connection_left(database_url: str) -> None:
    """Also after an error."""
    name = make_url(database_url).database
    sessions = f"FROM pg_stat_activity WHERE datname = '{name}' AND application_name = 'store-service'"

    async def leave_with_an_error() -> None:
        async with connect.open_database(database_url, readers=READERS) as store:
            await Posts(store).create([PostDraft(body="a")])
            assert query(database_url, f"SELECT count(*) {sessions}") == [(READERS + 1,)]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await leave_with_an_error()

    # A session ends shortly after its client has disconnected.
    wait_until(lambda: query(database_url, f"SELECT count(*) {sessions}") == [(0,)])


@pytest.mark.parametrize("force_roll_back", [False, True])
async def test_missing_database_is_unavailable(database_url: str, force_roll_back: bool) -> None:
    """Opening fails with DatabaseUnavailable and does not hang."""
    url = make_url(database_url).set(database="not_there").render_as_string(hide_password=False)

    with pytest.raises(DatabaseUnavailable):
        async with connect.open_database(url, readers=READERS, force_roll_back=force_roll_back):
            pass


async def test_transactions_are_read_committed(database_url: str) -> None:
    """Other isolation levels take the snapshot before the order lock."""
    name = make_url(database_url).database
    execute(database_url, f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    show = Statement(sqlalchemy.text("SHOW transaction_isolation"))

    async def run(connection: Connection, asked: Sequence[None]) -> Sequence[Any]:
        ((level,),) = await connection.fetch(show)
        return [level] * len(asked)

    try:
        async with connect.open_database(database_url, readers=1) as store:
            assert await store.write(BatchOperation(run), None) == "read committed"
    finally:
        execute(database_url, f"ALTER DATABASE {name} RESET default_transaction_isolation")


async def test_terminated_session_loses_its_work_and_is_replaced(
    store: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an operator or a restart does. Nothing is committed partially, and the next job succeeds."""
    monkeypatch.setattr(batch_queue, "RECONNECT_SECONDS", 0.01)
    insert = Statement(sqlalchemy.text("INSERT INTO posts (body) VALUES ('lost')"))
    end = Statement(sqlalchemy.text("SELECT pg_terminate_backend(pg_backend_pid())"))

    async def be_ended(connection: Connection, asked: Sequence[None]) -> list[None]:
        await connection.fetch(insert)
        await connection.fetch(end)
        return [None for _ in asked]

    posts = Posts(store)
    with pytest.raises(DatabaseUnavailable):
        await store.write(BatchOperation(be_ended), None)
    async with asyncio.timeout(scaled_timeout()):
        while query(database_url, "SELECT body FROM posts") != [("kept",)]:
            try:
                await posts.create([PostDraft(body="kept")])
            except DatabaseUnavailable:
                await asyncio.sleep(0)


async def test_sessions_terminated_while_idle_fail_no_call(store: Database, database_url: str) -> None:
    """As after a restart of the database. Jobs that have not started run on new connections."""
    ended = asyncio.Semaphore(0)
    posts = Posts(store)
    (post,) = await posts.create([PostDraft(body="a")])

    def on_each(connection: Connection) -> None:
        connection._raw.add_termination_listener(lambda _: ended.release())

    sessions = await on_every_connection(store, "SELECT pg_backend_pid()", on_each)
    with structlog.testing.capture_logs() as lines:
        for session in sessions:
            query(database_url, f"SELECT pg_terminate_backend({session}, 10000)")
        for _ in sessions:
            await ended.acquire()
        assert await asyncio.gather(*(posts.get(post.id) for _ in range(READERS))) == [post] * READERS
        assert await on_every_connection(store, "SELECT 1") == [1] * (READERS + 1)
    lost = [line["error"] for line in lines if line["event"] == "connection lost"]
    assert lost == ["IdleConnectionLost"] * (READERS + 1)
    assert [line["event"] for line in lines].count("connection restored") == READERS + 1


async def test_sessions_terminated_while_idle_are_replaced_without_a_call(
    store: Database, database_url: str
) -> None:
    """Readers follow the writer to a restarted server, so they read again when the writer has reconnected."""
    sessions = await on_every_connection(store, "SELECT pg_backend_pid()")
    with structlog.testing.capture_logs() as lines:
        for session in sessions:
            query(database_url, f"SELECT pg_terminate_backend({session}, 10000)")
        await eventually(
            lambda: [line["event"] for line in lines].count("connection restored") == READERS + 1
        )
    new_sessions = await on_every_connection(store, "SELECT pg_backend_pid()")
    assert not set(sessions) & set(new_sessions)


async def test_session_without_its_prepared_statements_is_replaced(store: Database) -> None:
    """As behind a pooler in transaction mode."""
    prepared = Statement(sqlalchemy.text("SELECT 1"))
    forget = Statement(sqlalchemy.text("DEALLOCATE ALL"))

    async def run(connection: Connection, _: Sequence[None]) -> Sequence[Any]:
        await connection.fetch(prepared)
        await connection.fetch(forget)
        return await connection.fetch(prepared)

    with pytest.raises(DatabaseUnavailable):
        await store.write(BatchOperation(run), None)

    async with asyncio.timeout(scaled_timeout()):
        while True:
            try:
                await Posts(store).create([PostDraft(body="after")])
                break
            except DatabaseUnavailable:
                await asyncio.sleep(0)


async def test_statement_whose_type_has_changed_is_prepared_again(store: Database, database_url: str) -> None:
    """Also inside a transaction, where asyncpg reports an error."""
    statement = Statement(sqlalchemy.text("SELECT max(version) FROM posts"))

    async def run(connection: Connection, calls: Sequence[None]) -> Sequence[Any]:
        return [tuple(row) for row in await connection.fetch(statement)]

    operation = BatchOperation(run)
    assert await store.write(operation, None) == (None,)
    execute(database_url, "ALTER TABLE posts ALTER COLUMN version TYPE numeric")
    try:
        assert await store.write(operation, None) == (None,)
    finally:
        execute(database_url, "ALTER TABLE posts ALTER COLUMN version TYPE bigint")


WRITES: dict[str, Callable[[Database], Awaitable[object]]] = {
    "create_posts": lambda store: Posts(store).create([PostDraft(body="b")]),
    "create_posts_once": lambda store: Posts(store).create([PostDraft(body="b")], key=REQUEST),
    "create_comments": lambda store: Comments(store).create([CommentDraft(body="c", post_id=1)]),
    "update_post": lambda store: Posts(store).update(
        [Update(id=1, values={"body": "b"}, etag="", request_field="post")]
    ),
    "delete_posts": lambda store: Posts(store).delete(Deletion(ids=(1,))),
}
REQUEST = IdempotencyKey(id="3f2b8c1e-7a5d-4e6f-9b0a-1c2d3e4f5a6b", fingerprint="f")


@pytest.mark.parametrize("write", WRITES)
async def test_transaction_gets_its_number_after_its_locks(
    store: Database, database_url: str, write: str
) -> None:
    await Posts(store).create([PostDraft(body="a")])
    waiting = (
        "SELECT backend_xid IS NULL FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'store-service' AND wait_event_type = 'Lock' AND wait_event = 'advisory'"
    )
    with psycopg.connect(database_url) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({ORDER_LOCK})")
        call = asyncio.ensure_future(WRITES[write](store))
        await asyncio.to_thread(wait_until, lambda: query(database_url, waiting) == [(True,)])
        assert not call.done()
    await call


async def test_request_started_by_two_processes_is_done_once(store: Database, database_url: str) -> None:
    (post,) = await Posts(store).create([PostDraft(body="a")])
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'store-service' AND wait_event_type = 'Lock' AND wait_event = 'advisory'"
    )
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(
                connect.open_database(
                    database_url, readers=1, lock_timeout_seconds=60, statement_timeout_seconds=60
                )
            )
            for _ in range(2)
        ]
        with psycopg.connect(database_url) as other:
            other.execute(f"SELECT pg_advisory_xact_lock({ORDER_LOCK})")
            calls = [
                asyncio.ensure_future(Posts(it).delete(Deletion(ids=(post.id,)), key=REQUEST))
                for it in stores
            ]
            await asyncio.to_thread(wait_until, lambda: query(database_url, waiting) == [(2,)])
        answers = await asyncio.gather(*calls)

    assert answers[0] == answers[1]
    assert query(database_url, "SELECT count(*) FROM changes") == [(2,)]


async def test_request_expired_by_another_process_is_done_again(
    store: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key expires between the lookup and the read of its response."""
    posts = Posts(store)
    (first,) = await posts.create([PostDraft(body="a")], key=REQUEST)
    fetch = PostgresqlConnection.fetch

    async def fetch_when_forgotten(self: Connection, statement: Statement, **values: Any) -> Rows:
        if statement is ANSWERS_BY_ID:
            execute(database_url, "DELETE FROM requests")
        return await fetch(self, statement, **values)

    monkeypatch.setattr(PostgresqlConnection, "fetch", fetch_when_forgotten)
    (again,) = await posts.create([PostDraft(body="a")], key=REQUEST)

    assert again.id != first.id
    assert query(database_url, "SELECT id FROM requests") == [(REQUEST.id,)]


async def test_failed_order_lock_leaves_no_transaction(store: Database, database_url: str) -> None:
    """The next write starts normally."""
    with psycopg.connect(database_url) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({ORDER_LOCK})")
        with pytest.raises(DatabaseBusy):
            await Posts(store).create([PostDraft(body="a")], key=REQUEST)

    await Posts(store).create([PostDraft(body="b")], key=REQUEST)
    assert query(database_url, "SELECT body FROM posts") == [("b",)]


async def test_end_of_the_feed_is_the_position_of_its_last_change(store: Database) -> None:
    """Numbers of rolled-back transactions may be reused after a crash."""
    start = (await Changes(store).state()).end
    posts = Posts(store)
    for _ in range(3):
        await posts.create([PostDraft(body="tried")], dry_run=True)
    assert (await Changes(store).state()).end == start

    await posts.create([PostDraft(body="kept")])
    batch = await Changes(store).read_after(start)
    assert batch is not None
    assert (await Changes(store).state()).end == batch.end
    assert batch.end.time > 0


async def test_unresponsive_server_is_abandoned(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without power does not close its connections."""
    monkeypatch.setattr(postgresql, "SLACK_SECONDS", 0.5)
    monkeypatch.setattr(batch_queue, "RECONNECT_SECONDS", 0.01)
    url = make_url(database_url)
    network = UnreliableProxy(random.Random(1))
    network.server_address = f"{url.host}:{url.port}"
    async with network.running():
        host, port = network.address.split(":")
        proxied = url.set(host=host, port=int(port)).render_as_string(hide_password=False)
        async with connect.open_database(
            proxied,
            readers=1,
            lock_timeout_seconds=0.2,
            statement_timeout_seconds=0.3,
            connect_timeout_seconds=2,
        ) as store:
            posts = Posts(store)
            await posts.create([PostDraft(body="before")])
            network.is_silent = True
            lost: list[Awaitable[object]] = [posts.create([PostDraft(body="lost")]), posts.get(1)]
            outcomes = await asyncio.gather(*lost, return_exceptions=True)
            network.is_silent = False
            async with asyncio.timeout(scaled_timeout()):
                while True:
                    try:
                        await posts.create([PostDraft(body="after")])
                        break
                    except DatabaseUnavailable:
                        await asyncio.sleep(0)

    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 2
    assert query(database_url, "SELECT body FROM posts ORDER BY id") == [("before",), ("after",)]


async def test_creates_of_several_processes_run_concurrently(store: Database, database_url: str) -> None:
    """Inserts share the order lock. Updates and deletions need it exclusively."""
    with psycopg.connect(database_url) as other:
        other.execute(f"SELECT pg_advisory_xact_lock_shared({ORDER_LOCK})")
        (post,) = await Posts(store).create([PostDraft(body="a")])
        await Posts(store).create([PostDraft(body="b")], key=REQUEST)
        await Comments(store).create([CommentDraft(body="c", post_id=post.id)])


async def test_changes_from_another_server_are_trimmed(store: Database, database_url: str) -> None:
    """A dump contains transaction numbers that the server has not reached, which would block the feed."""
    changes = Changes(store)
    await Posts(store).create([PostDraft(body="a")])
    await changes.begin()
    before = await changes.state()
    assert query(database_url, "SELECT count(*) FROM changes") == [(1,)]

    with psycopg.connect(database_url) as other:
        other.execute("UPDATE changes SET xid = 2::BIGINT ^ 40")
    await changes.begin()
    after = await changes.state()

    assert query(database_url, "SELECT count(*) FROM changes") == [(0,)]
    with pytest.raises(ResumeTokenForeign):
        resume_tokens.read(before.resume_token(before.end), after.store_id)
    await Posts(store).create([PostDraft(body="b")])
    batch = await changes.read_after(after.trimmed)
    assert batch is not None
    assert [change.resource.body for change in batch.changes] == ["b"]


async def test_changes_of_a_server_with_smaller_numbers_are_trimmed(
    store: Database, database_url: str
) -> None:
    """A dump lacks the changes of transactions that were running, and a token of the former server may follow
    them."""
    changes = Changes(store)
    await Posts(store).create([PostDraft(body="a")])
    await changes.begin()
    before = await changes.state()
    await changes.begin()
    assert (await changes.state()).store_id == before.store_id

    execute(database_url, "UPDATE feed SET system_id = '7000000000000000000'")
    with capture_logs() as lines:
        await changes.begin()
        await changes.begin()
    after = await changes.state()

    assert [line["event"] for line in lines] == [
        "change feed restarted: its changes come from another database server"
    ]
    assert query(database_url, "SELECT count(*) FROM changes") == [(0,)]
    with pytest.raises(ResumeTokenForeign):
        resume_tokens.read(before.resume_token(before.end), after.store_id)


async def test_system_identifier_is_optional(store: Database, database_url: str) -> None:
    """Some providers revoke the function that reads it."""
    with psycopg.connect(database_url, autocommit=True) as superuser:
        superuser.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        superuser.execute("DROP ROLE IF EXISTS without_control")
        superuser.execute("CREATE ROLE without_control LOGIN")
        tables = "ALL TABLES IN SCHEMA public"
        superuser.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {tables} TO without_control")
        superuser.execute("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO without_control")
        try:
            url = make_url(database_url).set(username="without_control")
            async with connect.open_database(url.render_as_string(hide_password=False)) as restricted:
                changes = Changes(restricted)
                await Posts(restricted).create([PostDraft(body="a")])
                before = await changes.state()
                await changes.begin()
                assert await changes.state() == before
        finally:
            superuser.execute("DROP OWNED BY without_control")
            superuser.execute("DROP ROLE without_control")
            superuser.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
    assert query(database_url, "SELECT system_id FROM feed") == [(None,)]


async def test_changes_written_after_a_restore_are_kept(
    store: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed is reset once, although two processes detect the restore."""
    await Posts(store).create([PostDraft(body="of another server")])
    with psycopg.connect(database_url) as other:
        other.execute("UPDATE changes SET xid = 2::BIGINT ^ 40")
    has_looked, may_act = asyncio.Event(), asyncio.Event()

    async with connect.open_database(database_url, readers=1) as slow_store:
        write = slow_store.write

        async def write_late(operation: BatchOperation[Any, Any], argument: Any) -> Any:
            has_looked.set()
            await may_act.wait()
            return await write(operation, argument)

        monkeypatch.setattr(slow_store, "write", write_late)
        slow = asyncio.create_task(Changes(slow_store).begin())
        await has_looked.wait()
        changes = Changes(store)
        with capture_logs() as logged_at_once:
            await changes.begin()
        began = await changes.state()
        await Posts(store).create([PostDraft(body="since")])
        may_act.set()
        with capture_logs() as logged_late:
            await slow

    assert [len(logged_at_once), len(logged_late)] == [1, 0]
    assert (await changes.state()).store_id == began.store_id
    batch = await changes.read_after(began.end)
    assert batch is not None
    assert [change.resource.body for change in batch.changes] == ["since"]


async def test_listening_ends_when_the_writer_moved_first(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes up to now are read anyway."""
    query_role = CurrentServer.query_role

    async def query_role_during_move(current: CurrentServer, raw: Any, **options: Any) -> Server:
        server = await query_role(current, raw, **options)
        current._move()
        return server

    monkeypatch.setattr(CurrentServer, "query_role", query_role_during_move)
    heard: list[None] = []
    async with asyncio.timeout(scaled_timeout()):
        await store.listen(lambda: heard.append(None))

    assert len(heard) == 1
