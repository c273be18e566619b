"""Restarts under load: callers that retry as the service config says see no error."""

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
import storeapi
from sqlalchemy import text
from storeapi.v1 import posts_pb2

from store_service.database.connect import is_sqlite
from tests.support.database import database_connection
from tests.support.errors import expect_error
from tests.support.health import health_stream, wait_for_not_serving
from tests.support.polling import eventually
from tests.support.ports import free_port
from tests.support.server_process import ServerProcess
from tests.support.stubs import NO_READ_AHEAD, Stubs
from tests.support.timeouts import IS_LONG_RUN
from tests.support.worker_processes import kill_processes, worker_pids, writer_pids

RESTARTS = 50 if IS_LONG_RUN else 2
"""How often the server is restarted."""

CALLERS = 12
RESPONSES_BETWEEN = 15
"""Minimum number of responses to each caller between two restarts. gRPC lengthens its pauses between attempts
to connect until one succeeds, so it would not find a server that restarts all the time."""

_OPTIONS = [
    ("grpc.service_config", (files("storeapi") / "service_config.json").read_text()),
    ("grpc.use_local_subchannel_pool", 1),
]


@pytest.fixture
def server_process(tmp_path: Path, database_url: str) -> Iterator[ServerProcess]:
    """A server with a fixed port, not started yet."""
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
        """Waits until every caller has more responses, or a call has failed."""
        wanted = {number: self.answers[number] + RESPONSES_BETWEEN for number in range(CALLERS)}
        await eventually(lambda: bool(self.failures) or all(self.answers[it] >= wanted[it] for it in wanted))


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
    """Checks that exactly the acknowledged posts are stored."""
    with database_connection(database_url) as connection:
        stored = [tuple(row) for row in connection.execute(text("SELECT body, id FROM posts"))]
    assert Counter(body for body, _ in stored).most_common(1)[0][1] == 1
    assert dict(stored) == load.told


@pytest.mark.timeout(60 + 15 * RESTARTS)
async def test_restart_of_the_server_fails_no_call(server_process: ServerProcess, database_url: str) -> None:
    """SIGTERM, and a new process on the same address: callers that retry wait; nothing is done twice."""
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


@pytest.mark.timeout(240)
@pytest.mark.parametrize("workers", [1, 2])
async def test_export_and_import_continue_after_a_restart(
    tmp_path: Path, database_url: str, workers: int
) -> None:
    """SIGTERM of the only process and a new one, or SIGHUP of two workers, in the middle of each."""
    settings = {
        "DATABASE_URL": database_url,
        "STORE_LISTEN": f"127.0.0.1:{free_port()}",
        "STORE_WORKERS": str(workers),
        # A stop that waits for a stream lasts longer than the test.
        "STORE_SHUTDOWN_GRACE_SECONDS": "3600",
    }
    server = ServerProcess(tmp_path, settings)
    posts = [storeapi.Post(id=n, body=f"{n}" * 4000, etag="v1") for n in range(1, 801)]
    records = [storeapi.Record(resource=it) for it in posts]
    restarts = 0

    async def restart() -> None:
        nonlocal restarts
        restarts += 1
        if workers == 1:
            assert await asyncio.to_thread(server.stop) == 0
            await asyncio.to_thread(server.start)
        else:
            server.signal(signal.SIGHUP)
            await eventually(partial(told, server, "restarted workers", restarts))

    await asyncio.to_thread(server.start)
    try:
        async with storeapi.connect_async(server.address, channel_options=NO_READ_AHEAD) as client:
            async with client.transfer.import_records(records, batch_size=50) as progress:
                await anext(progress)
                await restart()
                *_, done = [it async for it in progress]
            async with client.transfer.export() as export:
                exported = [record for _ in range(2) for record in await anext(export)]
                assert len(exported) < len(records)
                await restart()
                exported += [record async for batch in export for record in batch]
    finally:
        code = await asyncio.to_thread(server.stop)

    assert code == 0
    assert done.created + done.unchanged == len(records)
    assert [it.resource.id for it in exported] == [it.id for it in posts]
    assert [it.resource.body for it in exported] == [it.body for it in posts]
    assert "calls are still running" not in server.stderr()
    interrupted = [it for it in server.stderr().splitlines() if "SHUTTING_DOWN" in it]
    for method in ("TransferService/Import", "TransferService/Export"):
        assert any(method in it for it in interrupted)


@pytest.mark.timeout(180)
async def test_restart_of_workers_fails_no_call(tmp_path: Path, database_url: str) -> None:
    """SIGHUP replaces every process while calls continue, and settings are read again."""
    settings = {
        "DATABASE_URL": database_url,
        "STORE_LISTEN": f"127.0.0.1:{free_port()}",
        "STORE_WORKERS": "2",
    }
    supervisor = ServerProcess(tmp_path, settings)
    await asyncio.to_thread(supervisor.start)
    try:
        before = [*worker_pids(supervisor), *writer_pids(supervisor)]
        async with loaded(supervisor.address) as load:
            for number in range(1, 3):
                (tmp_path / ".env").write_text(f"STORE_MAX_BODY_BYTES={number * 1000}")
                supervisor.signal(signal.SIGHUP)
                restarted = partial(told, supervisor, "restarted workers", number)
                await eventually(lambda is_so=restarted: is_so() or bool(load.failures))
                await load.goes_on()
        after = [*worker_pids(supervisor), *writer_pids(supervisor)]
        async with grpc.aio.insecure_channel(supervisor.address) as channel:
            too_long = await expect_error(Stubs(channel).create_post("x" * 2001))
    finally:
        code = await asyncio.to_thread(supervisor.stop)

    assert load.failures == []
    assert_each_was_stored_once(load, database_url)
    assert len(before) == len(after) == (3 if is_sqlite(database_url) else 2)
    assert not set(before) & set(after)
    assert too_long.fields == ["post.body"]
    assert code == 0


def told(server_process: ServerProcess, event: str, count: int) -> bool:
    """Whether the log contains an event `count` times."""
    return server_process.stderr().count(f'"event": "{event}"') >= count


@pytest.mark.timeout(120)
async def test_leaving_worker_uses_its_own_grace_period(tmp_path: Path, database_url: str) -> None:
    """Not that of the new settings, which may be shorter."""
    times = tmp_path / ".env"
    times.write_text("STORE_SHUTDOWN_DELAY_SECONDS=3\nSTORE_GRACE_SECONDS=3")
    supervisor = ServerProcess(tmp_path, {"DATABASE_URL": database_url, "STORE_WORKERS": "2"})
    await asyncio.to_thread(supervisor.start)
    try:
        times.write_text("STORE_SHUTDOWN_DELAY_SECONDS=0\nSTORE_GRACE_SECONDS=0")
        supervisor.signal(signal.SIGHUP)
        await eventually(lambda: told(supervisor, "restarted workers", 1))

        assert not told(supervisor, "worker killed: it did not stop in time", 1)
        assert told(supervisor, "stopped", 2)
    finally:
        await asyncio.to_thread(supervisor.stop)


@pytest.mark.timeout(120)
async def test_stop_during_a_restart_stops_all_workers_at_once(tmp_path: Path, database_url: str) -> None:
    """Including the new process, which does not wait for the one that it replaces."""
    settings = {
        "DATABASE_URL": database_url,
        "STORE_WORKERS": "2",
        "STORE_SHUTDOWN_DELAY_SECONDS": "600",
    }
    supervisor = ServerProcess(tmp_path, settings)
    await asyncio.to_thread(supervisor.start)
    pids = worker_pids(supervisor)
    try:
        supervisor.signal(signal.SIGHUP)
        await eventually(lambda: told(supervisor, "stopping", 1))
        pids = worker_pids(supervisor)
        supervisor.signal()

        await eventually(lambda: told(supervisor, "stopping", 3))
        assert worker_pids(supervisor) == pids
        assert len(pids) == 3
    finally:
        supervisor.kill()
        kill_processes(pids)


@pytest.mark.timeout(120)
async def test_invalid_setting_replaces_no_worker(tmp_path: Path, database_url: str) -> None:
    """Running workers continue, and the log names the setting."""
    supervisor = ServerProcess(tmp_path, {"DATABASE_URL": database_url, "STORE_WORKERS": "2"})
    await asyncio.to_thread(supervisor.start)
    try:
        before = worker_pids(supervisor)
        (tmp_path / ".env").write_text("STORE_READ_CONNECTIONS=none")
        supervisor.signal(signal.SIGHUP)
        await eventually(lambda: told(supervisor, "not restarted: invalid setting", 1))

        assert worker_pids(supervisor) == before
        assert "STORE_READ_CONNECTIONS" in supervisor.stderr()
        async with grpc.aio.insecure_channel(supervisor.address) as channel:
            assert (await Stubs(channel).create_post()).id > 0
    finally:
        await asyncio.to_thread(supervisor.stop)


async def test_calls_succeed_during_the_shutdown_delay(tmp_path: Path) -> None:
    """Health says NOT_SERVING and everything else is unchanged."""
    server_process = ServerProcess(tmp_path, {"STORE_SHUTDOWN_DELAY_SECONDS": "4"})
    await asyncio.to_thread(server_process.start)
    try:
        async with (
            grpc.aio.insecure_channel(server_process.address) as channel,
            health_stream(channel) as statuses,
        ):
            server_process.signal()
            await wait_for_not_serving(statuses)
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


async def test_stopping_server_answers_only_unavailable(tmp_path: Path) -> None:
    """Also to callers that do not pause: CANCELLED, which gRPC sends while closing, could not be
    retried.
    """
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
        await eventually(lambda: seen["OK"] > 300)
        code = await asyncio.to_thread(server_process.stop)
        is_over.set()
        await asyncio.gather(*callers)

    assert code == 0
    assert seen.keys() == {"OK", "UNAVAILABLE"}
