"""PgBouncer between the service and PostgreSQL."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.engine import make_url
from storeapi.v1 import posts_pb2
from structlog.testing import capture_logs

from store_service import config as settings
from store_service.config import Config
from store_service.database import connect, schema
from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection
from store_service.database.statements import Statement
from store_service.errors import DatabaseBusy, DatabaseUnavailable
from store_service.server import serving
from store_service.service import feed
from tests.support.errors import received_error, result_or_error
from tests.support.polling import eventually
from tests.support.poolers import TOPOLOGIES, WITH_STATEMENTS, WITHOUT_STATEMENTS, Pooler, pooler
from tests.support.postgresql import (
    PostgresServer,
    clear_database,
    new_database,
    postgres_server,
    standby_server,
)
from tests.support.server_process import run_command
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout
from tests.support.unreliable_proxy import UnreliableProxy
from tests.support.watches import watch_from_now

CALLS = 4000 if IS_LONG_RUN else 400
TRANSACTION = ["transaction", "transaction-newer"]


@pytest.fixture
def database_url(postgres_database: str) -> str:
    """PostgreSQL alone."""
    clear_database(postgres_database)
    return postgres_database


@pytest.fixture(params=TRANSACTION)
def transaction_pooler(request: pytest.FixtureRequest, database_url: str) -> Iterator[Pooler]:
    """A pooler in transaction mode with a single session: each transaction gets that of the others."""
    options, _ = TOPOLOGIES[request.param]
    assert options is not None
    with pooler(database_url, **options, default_pool_size=1) as it:
        yield it


def config_of(url: str, **changed: Any) -> Config:
    return settings.load(DATABASE_URL=url, listen="127.0.0.1:0", **changed)


@asynccontextmanager
async def stubs_of(config: Config) -> AsyncIterator[Stubs]:
    """A server in this process."""
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        yield Stubs(channel)


def fetching(text: str) -> BatchOperation[None, Any]:
    """An operation that returns the first row of a statement."""
    statement = Statement(sqlalchemy.text(text))

    async def run(connection: Connection, calls: Sequence[None]) -> list[Any]:
        return [tuple((await connection.fetch(statement))[0])] * len(calls)

    return BatchOperation(run)


@pytest.mark.parametrize("size", [20, 1])
@pytest.mark.parametrize("round_robin", [0, 1])
@pytest.mark.parametrize("topology", TRANSACTION)
def test_check_names_the_mode_of_the_pooler(
    database_url: str, tmp_path: Path, topology: str, round_robin: int, size: int
) -> None:
    """Whichever session the pooler assigns next, and if it has only one."""
    options, expected = TOPOLOGIES[topology]
    assert options is not None
    with pooler(database_url, **options, server_round_robin=round_robin, default_pool_size=size) as it:
        done = run_command("check", folder=tmp_path, settings={"DATABASE_URL": it.url})

    assert (done.returncode, done.stderr) == (0, "")
    assert f"connection: {expected}\n" in done.stdout


def test_pgbouncer_statement_mode_is_refused(database_url: str, tmp_path: Path) -> None:
    """PgBouncer itself reports why."""
    with pooler(database_url, pool_mode="statement") as it:
        done = run_command("check", folder=tmp_path, settings={"DATABASE_URL": it.url})

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "statement pooling" in line


def test_pooler_with_too_few_sessions_is_named(database_url: str, tmp_path: Path) -> None:
    """In session mode each connection holds one."""
    with pooler(database_url, pool_mode="session", default_pool_size=1) as it:
        given = {"DATABASE_URL": it.url, "STORE_CONNECT_TIMEOUT_SECONDS": "2"}
        done = run_command("check", folder=tmp_path, settings=given)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "is a pooler in session mode too small?" in line


def test_statement_cache_needs_a_pooler_that_keeps_statements(database_url: str, tmp_path: Path) -> None:
    """One line at the start, instead of failing calls later."""
    options, expected = TOPOLOGIES["transaction"]
    assert options is not None
    with pooler(database_url, **options) as it:
        given = {"DATABASE_URL": it.url, "STORE_STATEMENT_CACHE_SIZE": "10"}
        done = run_command("check", folder=tmp_path, settings=given)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"STORE_STATEMENT_CACHE_SIZE must be 0: the connection to PostgreSQL is {expected}" in line


async def test_start_logs_the_mode(transaction_pooler: Pooler) -> None:
    """In one line."""
    with capture_logs() as lines:
        async with serving(config_of(transaction_pooler.url)):
            pass

    (line,) = [it for it in lines if it["event"] == "connected to PostgreSQL"]
    assert line["connection"] in (WITH_STATEMENTS, WITHOUT_STATEMENTS)


SETTINGS = {
    "statement_timeout": "2500ms",
    "lock_timeout": "1500ms",
    "idle_in_transaction_session_timeout": "10s",
    "transaction_isolation": "read committed",
    "enable_bitmapscan": "off",
}


async def test_settings_are_those_of_each_transaction_alone(transaction_pooler: Pooler) -> None:
    """Reads and writes have them, other clients of the same session do not."""
    names = list(SETTINGS)
    show = "SELECT " + ", ".join(f"current_setting('{it}')" for it in names)
    with psycopg.connect(transaction_pooler.url, autocommit=True, prepare_threshold=None) as other:
        before = other.execute(show).fetchall()
        async with connect.open_database(
            transaction_pooler.url, statement_timeout_seconds=2.5, lock_timeout_seconds=1.5
        ) as store:
            for run in (store.write, store.read):
                assert dict(zip(names, await run(fetching(show), None), strict=True)) == SETTINGS
                assert other.execute(show).fetchall() == before


async def test_statement_timeout_is_enforced(transaction_pooler: Pooler) -> None:
    """For reads and writes."""
    async with connect.open_database(transaction_pooler.url, statement_timeout_seconds=0.05) as store:
        for run in (store.write, store.read):
            with pytest.raises(DatabaseBusy):
                await run(fetching("SELECT pg_sleep(60)"), None)


async def test_nothing_is_left_in_the_session(transaction_pooler: Pooler) -> None:
    """No prepared statement, lock or LISTEN of the service. Settings of the session, such as those of
    `connect_query`, remain.
    """
    with psycopg.connect(transaction_pooler.url, autocommit=True, prepare_threshold=None) as other:
        other.execute("SET work_mem = '5MB'")
        async with stubs_of(config_of(transaction_pooler.url)) as stubs:
            post = await stubs.create_post()
            await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=post.id))
        found = other.execute(
            "SELECT (SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE 'PGBOUNCER%'),"
            " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),"
            " (SELECT count(*) FROM pg_listening_channels()), current_setting('work_mem')"
        ).fetchone()

    assert found == (0, 0, 0, "5MB")


async def test_operation_without_a_transaction_returns_the_session(
    transaction_pooler: Pooler, database_url: str
) -> None:
    """The one in which its statements ran has ended."""
    open_ones = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
    with psycopg.connect(database_url, autocommit=True) as other:
        async with connect.open_database(transaction_pooler.url) as store:
            answer = fetching("SELECT 1")
            assert await store.write(BatchOperation(answer.run, in_transaction=False), None) == (1,)
            assert other.execute(open_ones).fetchone() == (0,)


async def test_services_share_the_sessions_of_a_pooler(transaction_pooler: Pooler) -> None:
    """Many calls of two services, of which some are cancelled: all others succeed."""
    async with AsyncExitStack() as stack:
        services = [
            await stack.enter_async_context(stubs_of(config_of(transaction_pooler.url))) for _ in range(2)
        ]
        posts = [await services[0].create_post() for _ in range(3)]
        choice = random.Random(1)

        async def call(number: int) -> None:
            stubs = services[number % 2]
            # Others leave before their response.
            leaves = number % 5 == 4
            running: Any
            match number % 3:
                case 0:
                    running = stubs.create_post(str(number))
                case 1:
                    running = stubs.posts.GetPost(posts_pb2.GetPostRequest(id=choice.choice(posts).id))
                case _:
                    running = stubs.posts.ListPosts(posts_pb2.ListPostsRequest(page_size=3))
            if not leaves:
                await running
                return
            task = asyncio.ensure_future(_awaited(running))
            await asyncio.sleep(choice.random() * 0.005)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        for start in range(0, CALLS, 40):
            await asyncio.gather(*(call(number) for number in range(start, start + 40)))


async def _awaited(call: Any) -> Any:
    return await call


async def test_cancel_request_hits_only_its_own_statement(transaction_pooler: Pooler) -> None:
    """The session of a cancelled read is used by another service next."""
    sleep, answer = fetching("SELECT pg_sleep(0.02)"), fetching("SELECT 1")
    async with (
        connect.open_database(transaction_pooler.url, readers=1) as one,
        connect.open_database(transaction_pooler.url, readers=1) as two,
    ):
        for number in range(CALLS // 10):
            cancelled = asyncio.create_task(one.read(sleep, None))
            await asyncio.sleep(number % 10 * 0.003)
            cancelled.cancel()
            assert await asyncio.gather(*(two.read(answer, None) for _ in range(3))) == [(1,)] * 3
            with suppress(asyncio.CancelledError):
                await cancelled
        assert await one.read(answer, None) == (1,)


async def test_changes_are_reported_without_notifications(
    transaction_pooler: Pooler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LISTEN is impossible. The service that watches polls."""
    monkeypatch.setattr(feed, "POLL_SECONDS", 0.05)
    with capture_logs() as lines:
        async with (
            stubs_of(config_of(transaction_pooler.url)) as writing,
            serving(config_of(transaction_pooler.url)) as server,
            grpc.aio.insecure_channel(server.address) as channel,
            watch_from_now(channel) as watch,
        ):
            post = await writing.create_post()
            assert [it.post for it in await watch.changes(1)] == [post]

    assert "polling for changes: the database sends no notifications" in [it["event"] for it in lines]


async def test_direct_url_is_listened_to(
    transaction_pooler: Pooler, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So changes of other services are reported at once."""
    monkeypatch.setattr(feed, "POLL_SECONDS", 3600)
    config = config_of(transaction_pooler.url, DATABASE_DIRECT_URL=database_url)
    async with (
        stubs_of(config_of(transaction_pooler.url)) as writing,
        serving(config) as server,
        grpc.aio.insecure_channel(server.address) as channel,
        watch_from_now(channel) as watch,
    ):
        for _ in range(3):
            post = await writing.create_post()
            assert [it.post for it in await watch.changes(1)] == [post]


async def test_forced_rollback_leaves_nothing(transaction_pooler: Pooler, database_url: str) -> None:
    """Its one transaction keeps the only session of the pooler, and is rolled back."""
    async with stubs_of(config_of(transaction_pooler.url, DB_FORCE_ROLL_BACK=True)) as stubs:
        post = await stubs.create_post()
        assert await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=post.id)) == post

    async with connect.open_database(database_url) as store:
        assert await store.read(fetching("SELECT count(*) FROM posts"), None) == (0,)


@pytest.mark.parametrize("command", ["check", "serve", "migrate"])
def test_direct_url_of_another_database_is_refused(
    database_url: str, postgres: str, tmp_path: Path, command: str
) -> None:
    """Nothing is created there."""
    with new_database(postgres) as other:
        given = {"DATABASE_URL": database_url, "DATABASE_DIRECT_URL": other, "STORE_LISTEN": "127.0.0.1:0"}
        done = run_command(command, folder=tmp_path, settings=given)
        assert schema.find(other) == schema.EMPTY

    assert done.returncode == 1
    assert "DATABASE_DIRECT_URL leads to another" in done.stderr.splitlines()[-1]


def test_direct_url_through_the_pooler_is_refused(transaction_pooler: Pooler, tmp_path: Path) -> None:
    """It would be listened to in vain."""
    given = {"DATABASE_URL": transaction_pooler.url, "DATABASE_DIRECT_URL": transaction_pooler.url}
    done = run_command("check", folder=tmp_path, settings=given)

    assert done.returncode == 1
    assert "DATABASE_DIRECT_URL must not lead to a pooler in transaction mode" in done.stderr


async def test_mode_that_changes_later_runs_no_statement_of_another_client(database_url: str) -> None:
    """The names of prepared statements are unique, so that a session without them reports an error."""
    async with (
        connect.open_database(database_url, readers=1) as one,
        connect.open_database(database_url, readers=1) as two,
    ):
        named = fetching("SELECT name FROM pg_prepared_statements WHERE statement LIKE 'SELECT name%'")
        assert await one.read(named, None) != await two.read(named, None)


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [("session", "transaction", {"DATABASE_UNAVAILABLE"}), ("transaction", "session", set())],
)
async def test_mode_that_changes_later_causes_no_internal_error(
    database_url: str, before: str, after: str, reasons: set[str]
) -> None:
    """Calls fail with DATABASE_UNAVAILABLE, or work as before."""
    with pooler(database_url, pool_mode=before, default_pool_size=40) as it:
        async with stubs_of(config_of(it.url)) as one, stubs_of(config_of(it.url)) as two:
            post = await one.create_post()
            it.change(pool_mode=after)
            found: list[posts_pb2.Post | str] = []
            for _ in range(CALLS // 20):
                calls = [read(stubs, post.id) for stubs in (one, two) for _ in range(4)]
                found += await asyncio.gather(created(one), created(two), *calls)

    assert {it for it in found if isinstance(it, str)} <= reasons


@pytest.fixture(params=TRANSACTION)
def own_server(request: pytest.FixtureRequest) -> Iterator[tuple[PostgresServer, Pooler]]:
    """A server of the test's own, and a pooler in front of it."""
    options, _ = TOPOLOGIES[request.param]
    assert options is not None
    with postgres_server() as server:
        schema.upgrade(server.url)
        with pooler(server.url, **options) as it:
            yield server, it


@pytest.mark.parametrize("first", ["read", "write"])
async def test_restart_of_an_idle_database_fails_no_call(
    own_server: tuple[PostgresServer, Pooler], first: str
) -> None:
    """The pooler keeps the connections of the service. The first transaction finds that its server is another
    one, and a reader lets the writer find it too.
    """
    server, it = own_server
    answer = fetching("SELECT 1")
    async with connect.open_database(it.url) as store:
        for run in (store.write, store.read):
            assert await run(answer, None) == (1,)
        server.stop("fast")
        server.start()

        order = [store.read, store.write] if first == "read" else [store.write, store.read]
        for run in order:
            assert await run(answer, None) == (1,)


async def test_reads_continue_after_a_restart_although_the_writer_is_idle(
    own_server: tuple[PostgresServer, Pooler],
) -> None:
    """A reader that connects again lets the writer find the restarted server."""
    server, it = own_server
    async with connect.open_database(it.url, readers=1) as store:
        assert await store.write(fetching("SELECT 1"), None) == (1,)
        sleeping = asyncio.create_task(store.read(fetching("SELECT pg_sleep(60)"), None))
        running = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        with psycopg.connect(server.url, autocommit=True) as other:
            await eventually(lambda: bool(other.execute(running).fetchall()))
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)

        with pytest.raises(DatabaseUnavailable):
            await sleeping
        async with asyncio.timeout(scaled_timeout()):
            while await result_of(store.read(fetching("SELECT 1"), None)) != (1,):
                pass


async def test_statement_whose_type_has_changed_is_prepared_again(
    own_server: tuple[PostgresServer, Pooler],
) -> None:
    """PgBouncer keeps it in its sessions, which are closed one by one."""
    server, it = own_server
    with psycopg.connect(server.url, autocommit=True) as other:
        async with connect.open_database(it.url, readers=1) as store:
            for run in (store.write, store.read):
                assert await run(fetching("SELECT max(version) FROM posts"), None) == (None,)
            other.execute("ALTER TABLE posts ALTER COLUMN version TYPE numeric")
            async with asyncio.timeout(scaled_timeout()):
                for run in (store.write, store.read):
                    while await result_of(run(fetching("SELECT max(version) FROM posts"), None)) != (None,):
                        pass


async def result_of(running: Awaitable[Any]) -> Any:
    try:
        return await running
    except DatabaseUnavailable as error:
        return error


@pytest.mark.parametrize("topology", TRANSACTION)
async def test_reads_follow_the_writer_to_another_server(topology: str) -> None:
    """A pooler still has sessions to the former primary, and assigns no others. After a write on the new
    primary no read uses them, and a watch skips nothing.
    """
    options, _ = TOPOLOGIES[topology]
    assert options is not None
    network = UnreliableProxy(random.Random(1))
    async with AsyncExitStack() as stack:
        primary = stack.enter_context(postgres_server())
        schema.upgrade(primary.url)
        standby = stack.enter_context(standby_server(primary.port))
        network.server_address = f"127.0.0.1:{primary.port}"
        await stack.enter_async_context(network.running())
        port = int(network.address.split(":")[1])
        behind = make_url(primary.url).set(port=port).render_as_string(hide_password=False)
        it = stack.enter_context(pooler(behind, **options, default_pool_size=2 * HELD))
        server = await stack.enter_async_context(serving(config_of(it.url)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        stubs = Stubs(channel)
        watch = await stack.enter_async_context(watch_from_now(channel))
        before = await stubs.create_post("before")
        assert [it.post for it in await watch.changes(1)] == [before]

        async with held_sessions(it, primary):
            await promote(standby, primary, before.id)
            network.server_address = f"127.0.0.1:{standby.port}"
            after = await created(stubs)
            async with asyncio.timeout(scaled_timeout()):
                while isinstance(after, str):
                    assert after == "DATABASE_UNAVAILABLE"
                    after = await created(stubs)
            # After this each reader has found the new primary.
            for _ in range(3):
                await asyncio.gather(*(read(stubs, after.id) for _ in range(20)))
            others = await stack.enter_async_context(held_sessions(it, standby))
        found = [await read(stubs, after.id) for _ in range(2 * HELD)]
        await others.aclose()
        async with asyncio.timeout(scaled_timeout()):
            while found[-1] != after:
                found.append(await read(stubs, after.id))
        changes = await watch.until(after.id)

    assert {it if isinstance(it, str) else "found" for it in found} <= {"found", "DATABASE_UNAVAILABLE"}
    assert [it.post for it in changes] == [after]


HELD = 4
"""Number of sessions that a test holds."""


@asynccontextmanager
async def held_sessions(it: Pooler, server: PostgresServer) -> AsyncIterator[AsyncExitStack]:
    """Holds sessions of a pooler, all of one server, in transactions until the end of the block, or until the
    result is closed."""
    async with AsyncExitStack() as stack:
        for _ in range(HELD):
            connection = await psycopg.AsyncConnection.connect(it.url, prepare_threshold=None)
            stack.push_async_callback(connection.close)
            port = await (await connection.execute("SHOW port")).fetchone()
            assert port == (str(server.port),)
            stack.push_async_callback(connection.rollback)
        yield stack


async def promote(standby: PostgresServer, primary: PostgresServer, last_id: int) -> None:
    """Makes the primary read-only, and a standby that has a post the new primary."""
    with psycopg.connect(primary.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
    with psycopg.connect(standby.url, autocommit=True) as connection:
        await eventually(
            lambda: bool(connection.execute("SELECT 1 FROM posts WHERE id = %s", [last_id]).fetchall())
        )
    await asyncio.to_thread(standby.promote)


async def created(stubs: Stubs) -> posts_pb2.Post | str:
    """A new post, or the reason why it cannot be created."""
    return _post_or_reason(await result_or_error(stubs.create_post("after")))


async def read(stubs: Stubs, id: int) -> posts_pb2.Post | str:
    """A post, or the reason why it cannot be read."""
    return _post_or_reason(await result_or_error(stubs.posts.GetPost(posts_pb2.GetPostRequest(id=id))))


def _post_or_reason(outcome: Any) -> posts_pb2.Post | str:
    return received_error(outcome).reason if isinstance(outcome, grpc.RpcError) else outcome
