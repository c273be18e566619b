"""Restarts under load, which nobody notices who retries as the shipped service config says."""

import asyncio
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path

import grpc
import pytest
from sqlalchemy import text
from storeapi.v1 import posts_pb2

from tests.postgres import empty
from tests.process.test_start_and_stop import told_of_the_stop, watched
from tests.process.test_workers import end, workers_of
from tests.rpc.helpers import become, connected
from tests.support import IS_LONG, ServerProcess, Stubs, failure, free_port

RESTARTS = 50 if IS_LONG else 2
"""How often the server is restarted."""

CALLERS = 12
ANSWERS_BETWEEN = 15
"""So many calls of each caller are answered between two restarts, at least: gRPC makes the pauses between its
tries to connect longer and longer until one succeeds, so who is restarted all the time is not found again."""

_OPTIONS = [
    ("grpc.service_config", (files("storeapi") / "service_config.json").read_text()),
    ("grpc.use_local_subchannel_pool", 1),
]


@pytest.fixture
def server_process(tmp_path: Path, database_url: str) -> Iterator[ServerProcess]:
    """A server on a port of its own, which it keeps; not started yet."""
    settings = {"DATABASE_URL": database_url, "STORE_LISTEN": f"127.0.0.1:{free_port()}"}
    process = ServerProcess(tmp_path, settings)
    yield process
    process.kill()


@dataclass
class Load:
    """Callers, each of which calls again as soon as it has an answer."""

    told: dict[str, int] = field(default_factory=dict)
    """The posts that were created, by their bodies."""
    answers: Counter[int] = field(default_factory=Counter)
    """How many each caller has got, by its number."""
    failures: list[str] = field(default_factory=list)
    is_over: bool = False

    async def call(self, stubs: Stubs, number: int) -> None:
        """Writes and reads until it is over."""
        while not self.is_over:
            id = str(uuid.uuid4())
            request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=id), request_id=id)
            try:
                post = await stubs.posts.CreatePost(request)
                self.told[id] = post.id
                await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=post.id))
                self.answers[number] += 1
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")

    async def goes_on(self) -> None:
        """Waits until everybody has had some more answers, or a call has failed."""
        wanted = {number: self.answers[number] + ANSWERS_BETWEEN for number in range(CALLERS)}
        await become(lambda: bool(self.failures) or all(self.answers[it] >= wanted[it] for it in wanted))


@asynccontextmanager
async def loaded(address: str) -> AsyncIterator[Load]:
    """Callers until the end of the block, four to a connection."""
    load = Load()
    channels = [grpc.aio.insecure_channel(address, _OPTIONS) for _ in range(CALLERS // 4)]
    callers = [asyncio.create_task(load.call(Stubs(channels[n % len(channels)]), n)) for n in range(CALLERS)]
    try:
        await load.goes_on()
        yield load
        await load.goes_on()
    finally:
        load.is_over = True
        await asyncio.gather(*callers)
        for channel in channels:
            await channel.close()


def assert_each_was_stored_once(load: Load, database_url: str) -> None:
    """What was told is what is stored, no more and no less."""
    with connected(database_url) as connection:
        stored = [tuple(row) for row in connection.execute(text("SELECT body, id FROM posts"))]
    assert Counter(body for body, _ in stored).most_common(1)[0][1] == 1
    assert dict(stored) == load.told


@pytest.mark.timeout(60 + 15 * RESTARTS)
async def test_no_call_fails_while_a_server_is_restarted(
    server_process: ServerProcess, database_url: str
) -> None:
    """SIGTERM, and the next on the same address: callers that retry wait a moment; nothing is done twice."""
    await asyncio.to_thread(server_process.start)
    async with loaded(server_process.address) as load:
        for _ in range(RESTARTS):
            assert await asyncio.to_thread(server_process.stop) == 0
            await asyncio.to_thread(server_process.start)
            await load.goes_on()
    assert server_process.stop() == 0

    assert load.failures == []
    assert_each_was_stored_once(load, database_url)
    assert "calls are still running" not in server_process.stderr()


@pytest.mark.timeout(180)
async def test_no_call_fails_while_workers_are_restarted(tmp_path: Path, postgres_database: str) -> None:
    """SIGHUP replaces every process while calls go on, and settings are read anew."""
    empty(postgres_database)
    settings = {
        "DATABASE_URL": postgres_database,
        "STORE_LISTEN": f"127.0.0.1:{free_port()}",
        "STORE_WORKERS": "2",
    }
    supervisor = ServerProcess(tmp_path, settings)
    await asyncio.to_thread(supervisor.start)
    try:
        before = workers_of(supervisor)
        async with loaded(supervisor.address) as load:
            for number in range(1, 3):
                (tmp_path / ".env").write_text(f"STORE_MAX_BODY_BYTES={number * 1000}")
                supervisor.signal(signal.SIGHUP)
                restarted = partial(told, supervisor, "restarted workers", number)
                await become(lambda is_so=restarted: is_so() or bool(load.failures))
                await load.goes_on()
        after = workers_of(supervisor)
        async with grpc.aio.insecure_channel(supervisor.address) as channel:
            too_long = await failure(Stubs(channel).create_post("x" * 2001))
    finally:
        code = await asyncio.to_thread(supervisor.stop)

    assert load.failures == []
    assert_each_was_stored_once(load, postgres_database)
    assert (len(before), len(after)) == (2, 2)
    assert not set(before) & set(after)
    assert too_long.fields == ["post.body"]
    assert code == 0


def told(server_process: ServerProcess, event: str, count: int) -> bool:
    """Whether the log has told of something so often."""
    return server_process.stderr().count(f'"event": "{event}"') >= count


@pytest.mark.timeout(120)
async def test_a_worker_that_leaves_has_the_time_of_its_own_settings(
    tmp_path: Path, postgres_database: str
) -> None:
    """Not that of the new ones, which may be shorter."""
    empty(postgres_database)
    times = tmp_path / ".env"
    times.write_text("STORE_DRAIN_SECONDS=3\nSTORE_GRACE_SECONDS=3")
    supervisor = ServerProcess(tmp_path, {"DATABASE_URL": postgres_database, "STORE_WORKERS": "2"})
    await asyncio.to_thread(supervisor.start)
    try:
        times.write_text("STORE_DRAIN_SECONDS=0\nSTORE_GRACE_SECONDS=0")
        supervisor.signal(signal.SIGHUP)
        await become(lambda: told(supervisor, "restarted workers", 1))

        assert not told(supervisor, "worker killed, it did not stop", 1)
        assert told(supervisor, "stopped", 2)
    finally:
        await asyncio.to_thread(supervisor.stop)


@pytest.mark.timeout(120)
async def test_a_stop_during_a_restart_tells_all_at_once(tmp_path: Path, postgres_database: str) -> None:
    """Also the process that was just started, which does not wait for the one that it replaces."""
    empty(postgres_database)
    settings = {"DATABASE_URL": postgres_database, "STORE_WORKERS": "2", "STORE_DRAIN_SECONDS": "600"}
    supervisor = ServerProcess(tmp_path, settings)
    await asyncio.to_thread(supervisor.start)
    pids = workers_of(supervisor)
    try:
        supervisor.signal(signal.SIGHUP)
        await become(lambda: told(supervisor, "stopping", 1))
        pids = workers_of(supervisor)
        supervisor.signal()

        await become(lambda: told(supervisor, "stopping", 3))
        assert workers_of(supervisor) == pids
        assert len(pids) == 3
    finally:
        supervisor.kill()
        end(pids)


@pytest.mark.timeout(120)
async def test_a_bad_setting_replaces_no_worker(tmp_path: Path, postgres_database: str) -> None:
    """Those that run go on, and the log names the setting."""
    empty(postgres_database)
    supervisor = ServerProcess(tmp_path, {"DATABASE_URL": postgres_database, "STORE_WORKERS": "2"})
    await asyncio.to_thread(supervisor.start)
    try:
        before = workers_of(supervisor)
        (tmp_path / ".env").write_text("STORE_READERS=none")
        supervisor.signal(signal.SIGHUP)
        await become(lambda: told(supervisor, "not restarted, for a setting is bad", 1))

        assert workers_of(supervisor) == before
        assert "STORE_READERS" in supervisor.stderr()
        async with grpc.aio.insecure_channel(supervisor.address) as channel:
            assert (await Stubs(channel).create_post()).id > 0
    finally:
        await asyncio.to_thread(supervisor.stop)


async def test_calls_go_on_while_balancers_are_told(tmp_path: Path) -> None:
    """For STORE_DRAIN_SECONDS health says NOT_SERVING, and everything else is as it was."""
    server_process = ServerProcess(tmp_path, {"STORE_DRAIN_SECONDS": "4"})
    await asyncio.to_thread(server_process.start)
    try:
        async with (
            grpc.aio.insecure_channel(server_process.address) as channel,
            watched(channel) as statuses,
        ):
            server_process.signal()
            await told_of_the_stop(statuses)
            post = await Stubs(channel).create_post("while draining")
            async with grpc.aio.insecure_channel(
                server_process.address, [("grpc.use_local_subchannel_pool", 1)]
            ) as another:
                read = await Stubs(another).posts.GetPost(posts_pb2.GetPostRequest(id=post.id))
            code = await asyncio.to_thread(server_process.wait)
    finally:
        server_process.kill()

    assert read.body == "while draining"
    assert code == 0


async def test_a_server_that_stops_answers_nothing_but_unavailable(tmp_path: Path) -> None:
    """Also to callers who do not pause: CANCELLED, which gRPC answers while closing, could not be retried."""
    server_process = ServerProcess(tmp_path, {"STORE_LOG_LEVEL": "error"})
    seen: Counter[str] = Counter()
    is_over = asyncio.Event()

    async def call(stubs: Stubs) -> None:
        while not is_over.is_set():
            try:
                await stubs.posts.ListPosts(posts_pb2.ListPostsRequest())
                seen["OK"] += 1
            except grpc.aio.AioRpcError as error:
                seen[error.code().name] += 1
                await asyncio.sleep(0.001)

    await asyncio.to_thread(server_process.start)
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        callers = [asyncio.create_task(call(Stubs(channel))) for _ in range(48)]
        await become(lambda: seen["OK"] > 300)
        code = await asyncio.to_thread(server_process.stop)
        is_over.set()
        await asyncio.gather(*callers)

    assert code == 0
    assert seen.keys() == {"OK", "UNAVAILABLE"}
