"""Clients of a service with replicas that lag, are killed, or are left behind by a failover."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from typing import Any

import psycopg
import pytest
import storeapi
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from store_service import config as settings
from store_service.database import replica as replica_module
from store_service.database import replica_state, schema
from store_service.database.replica_state import PrimaryState
from store_service.model import Position
from store_service.server import RunningServer, serving
from tests.support.metrics import scrape_metrics
from tests.support.polling import wait_until
from tests.support.postgresql import PostgresServer, postgres_server, standby_server
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout
from tests.support.unreliable_proxy import forwarder, port_of

CALLERS = 8
ROUNDS = 10_000 if IS_LONG_RUN else 200
"""Number of writes that are read, of all callers together."""


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    """A server of the test's own."""
    with postgres_server() as server:
        schema.upgrade(server.url)
        yield server


def execute(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Runs statements and returns the rows of the last one."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


@asynccontextmanager
async def service_at(database_url: str, *replicas: str, **changed: Any) -> AsyncIterator[RunningServer]:
    """A service with replicas, all of which are used."""
    config = settings.load(
        DATABASE_URL=database_url,
        DATABASE_READ_URL=" ".join(replicas),
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        connect_timeout_seconds=2,
        **changed,
    )
    async with serving(config) as server:
        await asyncio.to_thread(wait_until, lambda: used(server) == len(replicas))
        yield server


def used(server: RunningServer) -> int:
    """How many replicas are used."""
    return int(scrape_metrics(server).total("store_replica_used"))


def jobs(server: RunningServer, queue: str) -> int:
    """How many jobs the readers of a server have executed."""
    values = scrape_metrics(server).values("store_batch_size_sum")
    return sum(int(value) for labels, value in values if labels["queue"].startswith(queue))


@pytest.mark.parametrize("delay_ms", [0, 500])
async def test_client_reads_its_own_writes(
    primary: PostgresServer, delay_ms: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """No caller does anything for it, whether the replica has the write or not."""
    with standby_server(primary.port) as standby:
        if delay_ms:
            setting = f"ALTER SYSTEM SET recovery_min_apply_delay = {delay_ms}"
            execute(standby.url, setting, "SELECT pg_reload_conf()")
        async with (
            service_at(primary.url, standby.url) as server,
            storeapi.connect_async(server.address) as client,
            storeapi.connect_async(server.address, consistency="strong") as strong,
        ):
            seconds: dict[str, list[float]] = {"own_writes": [], "strong": []}
            posts = [await client.posts.create("0") for _ in range(CALLERS)]
            on_replica, on_primary = jobs(server, "replica"), jobs(server, "reader")

            async def call(post: storeapi.Post) -> int:
                stale = 0
                for n in range(ROUNDS // CALLERS):
                    written = await client.posts.update(post.id, str(n))
                    began = time.perf_counter()
                    seen = await client.posts.get(post.id)
                    seconds["own_writes"].append(time.perf_counter() - began)
                    stale += seen != written
                    began = time.perf_counter()
                    await strong.posts.get(post.id)
                    seconds["strong"].append(time.perf_counter() - began)
                return stale

            stale = sum(await asyncio.gather(*map(call, posts)))
            on_replica = jobs(server, "replica") - on_replica
            # The other half of the reads of the primary is of the strong client.
            on_primary = jobs(server, "reader") - on_primary - ROUNDS

    with capsys.disabled():
        print(  # noqa: T201
            f"\nreplay delayed by {delay_ms} ms, {ROUNDS} reads of own writes: {stale} stale,"
            f" about {on_replica / ROUNDS:.0%} answered by the replica, median"
            f" {median(seconds['own_writes']) * 1000:.1f} ms, of the primary"
            f" {median(seconds['strong']) * 1000:.1f} ms"
        )
    assert stale == 0
    assert on_replica > 0 or delay_ms


async def test_killed_replica_causes_no_errors(primary: PostgresServer) -> None:
    """Reads go to the other one and to the primary, and to the killed one after its restart."""
    with standby_server(primary.port) as first, standby_server(primary.port) as second:
        async with (
            service_at(primary.url, first.url, second.url) as server,
            storeapi.connect_async(server.address, consistency="eventual", retries=False) as client,
        ):
            post = await client.posts.create("a")
            await asyncio.to_thread(wait_until, lambda: in_both(post.id, first, second))
            stopped = asyncio.Event()

            async def read() -> int:
                count = 0
                while not stopped.is_set():
                    assert (await client.posts.get(post.id)).body == "a"
                    count += 1
                return count

            readers = [asyncio.create_task(read()) for _ in range(CALLERS)]
            for mode in ("immediate", "fast"):
                await asyncio.to_thread(first.stop, mode)
                await asyncio.to_thread(wait_until, lambda: used(server) == 1)
                await asyncio.to_thread(first.start)
                await asyncio.to_thread(wait_until, lambda: used(server) == 2)
            before = jobs(server, f"replica 127.0.0.1:{first.port}")
            await asyncio.to_thread(
                wait_until,
                lambda: (
                    jobs(server, f"replica 127.0.0.1:{first.port}") > before
                    or any(it.done() for it in readers)
                ),
            )
            stopped.set()
            counts = await asyncio.gather(*readers)

    assert all(counts)


async def test_replica_that_does_not_respond_causes_no_errors(primary: PostgresServer) -> None:
    """The primary then answers the reads that wait for the replica."""
    async with AsyncExitStack() as stack:
        replica = await standby(stack, primary.port)
        network = await stack.enter_async_context(forwarder(replica.port))
        url = make_url(replica.url).set(port=port_of(network)).render_as_string(hide_password=False)
        server = await stack.enter_async_context(service_at(primary.url, url))
        client = await stack.enter_async_context(
            storeapi.connect_async(server.address, consistency="eventual", retries=False)
        )
        post = await client.posts.create("a")
        await asyncio.to_thread(wait_until, lambda: in_both(post.id, replica))
        await client.posts.get(post.id)

        network.is_silent = True
        read = await asyncio.gather(*[client.posts.get(post.id) for _ in range(CALLERS)])
        network.is_silent = False
        network.cut()

        assert read == [post] * CALLERS
        await asyncio.to_thread(wait_until, lambda: used(server) == 1)


def has_received(replica: PostgresServer, log_end: str) -> bool:
    """Whether a standby has received the log up to its end, replayed or not."""
    ((has,),) = execute(replica.url, f"SELECT pg_last_wal_receive_lsn() >= '{log_end}'::pg_lsn")
    return bool(has)


def causes(lines: list[Any]) -> list[str]:
    """Why replicas were not used, according to the log."""
    return [it["cause"] for it in lines if it["event"] == "replica is not used"]


def in_both(id: int, *servers: PostgresServer) -> bool:
    """Whether all servers have a post."""
    return all(execute(it.url, f"SELECT 1 FROM posts WHERE id = {id}") for it in servers)


@pytest.mark.parametrize("replays", ["before the failover", "after a comparison with the new primary"])
async def test_replica_of_a_lost_history_is_left_out(
    primary: PostgresServer, replays: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica has received changes that the new primary lacks. Nobody sees them after the failover."""
    is_late = replays != "before the failover"
    timelines = []

    def check_history(end: Position, state: PrimaryState) -> None:
        timelines.append(state.timeline)
        if is_late and state.timeline == 2:
            monkeypatch.setattr(replica_module, "COMPARE_SECONDS", 5.0)
        replica_state.check_history(end, state)

    monkeypatch.setattr(replica_module, "check_history", check_history)
    async with AsyncExitStack() as stack:
        replication = await stack.enter_async_context(forwarder(primary.port))
        successor = await standby(stack, port_of(replication))
        replica = await standby(stack, primary.port)
        network = await stack.enter_async_context(forwarder(primary.port))
        url = make_url(primary.url).set(port=port_of(network)).render_as_string(hide_password=False)
        server = await stack.enter_async_context(service_at(url, replica.url))
        client = await stack.enter_async_context(storeapi.connect_async(server.address))
        kept = await client.posts.create("kept")
        await asyncio.to_thread(wait_until, lambda: in_both(kept.id, successor, replica))
        if is_late:
            execute(replica.url, "SELECT pg_wal_replay_pause()")

        replication.server_address = "127.0.0.1:1"
        replication.cut()
        lost = [await client.posts.create(f"lost {n}") for n in range(5)]
        written = execute(primary.url, "SELECT pg_current_wal_flush_lsn()")
        await asyncio.to_thread(wait_until, lambda: has_received(replica, written[0][0]))
        if not is_late:
            await asyncio.to_thread(wait_until, lambda: in_both(lost[-1].id, replica))
        with capture_logs() as lines:
            await asyncio.to_thread(primary.stop, "immediate")
            await asyncio.to_thread(successor.promote)
            network.server_address = f"127.0.0.1:{successor.port}"
            network.cut()
            new = await client.posts.create("new", timeout=scaled_timeout())

            if is_late:
                await asyncio.to_thread(wait_until, lambda: 2 in timelines)
                execute(replica.url, "SELECT pg_wal_replay_resume()")
                await asyncio.to_thread(wait_until, lambda: in_both(lost[-1].id, replica))
            # Its numbers can be lower than those of the lost changes, which the replica has.
            for _ in range(50):
                assert await client.posts.get(new.id) == new
            cause = "it has changes that the database of DATABASE_URL does not have"
            await asyncio.to_thread(wait_until, lambda: cause in causes(lines))
        eventual = storeapi.connect_async(server.address, consistency="eventual")
        async with eventual:
            found = await eventual.posts.get_many([it.id for it in lost], allow_missing=True)
            bodies = [it.body for it in found]
        assert not any(body.startswith("lost") for body in bodies)


async def test_promoted_replica_is_left_out(primary: PostgresServer) -> None:
    """What is written on it is not shown."""
    async with AsyncExitStack() as stack:
        replica = await standby(stack, primary.port)
        lines = stack.enter_context(capture_logs())
        server = await stack.enter_async_context(service_at(primary.url, replica.url))
        client = await stack.enter_async_context(
            storeapi.connect_async(server.address, consistency="eventual")
        )
        await asyncio.to_thread(replica.promote)
        execute(replica.url, "INSERT INTO posts (id, body) OVERRIDING SYSTEM VALUE VALUES (99, 'elsewhere')")

        for _ in range(50):
            with pytest.raises(storeapi.PostNotFound):
                await client.posts.get(99)
        await asyncio.to_thread(wait_until, lambda: causes(lines))

        assert used(server) == 0


async def test_read_only_service_on_a_standby_that_lags(primary: PostgresServer) -> None:
    """It has no primary to ask, so the client tries again until the standby has what is required."""
    async with AsyncExitStack() as stack:
        replica = await standby(stack, primary.port)
        writing = await stack.enter_async_context(service_at(primary.url, replica.url))
        reading = await stack.enter_async_context(service_at(replica.url, read_only=True))
        writer = await stack.enter_async_context(storeapi.connect_async(writing.address))
        execute(replica.url, "SELECT pg_wal_replay_pause()")
        post = await writer.posts.create("late")
        impatient = await stack.enter_async_context(
            storeapi.connect_async(reading.address, consistency="eventual", retries=False)
        )
        patient = await stack.enter_async_context(storeapi.connect_async(reading.address))
        impatient.read_at_least(writer.consistency_token)
        patient.read_at_least(writer.consistency_token)

        with pytest.raises(storeapi.StandbyBehind):
            await impatient.posts.get(post.id)
        late = asyncio.create_task(patient.posts.get(post.id, timeout=scaled_timeout()))
        execute(replica.url, "SELECT pg_wal_replay_resume()")

        assert await late == post


async def test_client_reads_what_its_watch_and_other_clients_know(primary: PostgresServer) -> None:
    """The replica lacks all of it."""
    async with AsyncExitStack() as stack:
        replica = await standby(stack, primary.port)
        server = await stack.enter_async_context(service_at(primary.url, replica.url))
        clients = [await stack.enter_async_context(storeapi.connect_async(server.address)) for _ in range(4)]
        writer, watcher, informed, uninformed = clients
        for client in clients:
            assert await client.posts.count() == 0
        watch = await stack.enter_async_context(watcher.changes.watch(start="earliest"))
        execute(replica.url, "SELECT pg_wal_replay_pause()")
        post = await writer.posts.create("new")
        change = await anext(watch)
        informed.read_at_least(writer.consistency_token)

        assert change.resource == post
        assert await watcher.posts.get(post.id) == post
        assert await informed.posts.get(post.id) == post
        with pytest.raises(storeapi.PostNotFound):
            await uninformed.posts.get(post.id)


async def standby(stack: AsyncExitStack, port: int) -> PostgresServer:
    """A standby of the server at a port, which is stopped with the stack."""
    making = standby_server(port)
    server = await asyncio.to_thread(making.__enter__)
    stack.push_async_callback(asyncio.to_thread, making.__exit__, None, None, None)
    return server
