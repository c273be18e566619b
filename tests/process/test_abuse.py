"""Overload and abuse: excess is refused or cut off, and other callers are served."""

import asyncio
import gc
import gzip
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from storeapi.v1 import posts_pb2

from tests.support.errors import expect_error, received_error, result_or_error
from tests.support.http2 import raw_client
from tests.support.polling import eventually
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout

LOAD_SECONDS = 10 if IS_LONG_RUN else 2
"""How long the server is overloaded."""

LIMIT = 16
REFUSED_WITHIN_SECONDS = 0.05
HEALTHY_WITHIN_SECONDS = 0.1
FLAT_BYTES = 32 * 1024 * 1024

CALLS = 400
CALLS_BYTES = 300 * 1024 * 1024
"""Maximum growth of memory during the calls: a tenth of the size of their responses."""

ALONE = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]


@pytest.fixture
def server(database_file: Path) -> Iterator[ServerProcess]:
    """A server as a child process, not started yet."""
    process = ServerProcess(database_file.parent, {"STORE_LOG_LEVEL": "warning"})
    yield process
    process.kill()


@asynccontextmanager
async def connected_to(server: ServerProcess) -> AsyncIterator[grpc.aio.Channel]:
    """A channel with its own connection."""
    async with grpc.aio.insecure_channel(server.address, ALONE) as channel:
        yield channel


@dataclass
class Overload:
    """Callers at four times the limit, each of which retries at once."""

    answered: int = 0
    refused_seconds: list[float] = field(default_factory=list)
    is_over: bool = False

    async def call(self, stubs: Stubs) -> None:
        """Calls until it is over; after a refusal it waits as long as it is asked to."""
        while not self.is_over:
            start = time.perf_counter()
            outcome = await result_or_error(stubs.create_post("x" * 1000))
            if not isinstance(outcome, grpc.RpcError):
                self.answered += 1
                continue
            seconds = time.perf_counter() - start
            error = received_error(outcome)
            assert error.reason == "OVERLOADED"
            self.refused_seconds.append(seconds)
            await asyncio.sleep(error.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() / 1000)


@pytest.fixture
def no_pauses() -> Iterator[None]:
    """What this process has loaded is not searched for garbage, 70 ms at a time, while times are taken."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.timeout(60 + 2 * LOAD_SECONDS)
async def test_overloaded_server_refuses_quickly_and_stays_healthy(server: ServerProcess) -> None:
    """At four times the limit the excess gets OVERLOADED, health responds, and memory stays flat."""
    server.settings["STORE_MAX_CONCURRENT_CALLS"] = str(LIMIT)
    server.start()
    load = Overload()
    healthy_seconds: list[float] = []
    async with connected_to(server) as channel, connected_to(server) as another:
        health = health_pb2_grpc.HealthStub(another)
        await channel.channel_ready()
        async with asyncio.TaskGroup() as group:
            for _ in range(4 * LIMIT):
                group.create_task(load.call(Stubs(channel)))
            await eventually(lambda: load.answered >= 2 * LIMIT)
            memory = server.rss_bytes
            end = time.perf_counter() + LOAD_SECONDS
            while time.perf_counter() < end:
                start = time.perf_counter()
                answer = await health.Check(health_pb2.HealthCheckRequest())
                healthy_seconds.append(time.perf_counter() - start)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
                # So often a balancer asks, or more.
                await asyncio.sleep(0.05)
            grown = server.rss_bytes - memory
            load.is_over = True
    assert server.stop() == 0

    assert load.answered > 2 * LIMIT
    assert len(load.refused_seconds) > LIMIT
    if IS_LONG_RUN:
        # In the suite other tests share the machine, which then says more of them than of the server.
        assert max(load.refused_seconds) < REFUSED_WITHIN_SECONDS
        assert max(healthy_seconds) < HEALTHY_WITHIN_SECONDS
    assert grown < FLAT_BYTES
    assert server.stderr() == ""


async def get_the_same(channel: grpc.aio.Channel, ids: Sequence[int]) -> list[Any]:
    """Gets of all posts, over and over."""
    request = posts_pb2.BatchGetPostsRequest(ids=ids)
    return [Stubs(channel).posts.BatchGetPosts(request) for _ in range(CALLS)]


async def list_the_same(channel: grpc.aio.Channel, _: Sequence[int]) -> list[Any]:
    """A list's first page, over and over."""
    request = posts_pb2.ListPostsRequest(page_size=1000)
    return [Stubs(channel).posts.ListPosts(request) for _ in range(CALLS)]


async def list_others(channel: grpc.aio.Channel, _: Sequence[int]) -> list[Any]:
    """Pages of as many sizes, which end before they pass 3 MiB."""
    requests = [posts_pb2.ListPostsRequest(page_size=100 + n) for n in range(CALLS)]
    return [Stubs(channel).posts.ListPosts(request) for request in requests]


async def repeat_a_delete(channel: grpc.aio.Channel, ids: Sequence[int]) -> list[Any]:
    """A request that was done before, over and over; one post stays."""
    request = posts_pb2.BatchDeletePostsRequest(ids=ids[1:], request_id=str(uuid.uuid4()))
    await Stubs(channel).posts.BatchDeletePosts(request)
    return [Stubs(channel).posts.BatchDeletePosts(request) for _ in range(CALLS)]


@pytest.mark.parametrize("ask", [get_the_same, list_the_same, list_others, repeat_a_delete])
async def test_many_small_requests_for_large_responses_do_not_exhaust_memory(
    server: ServerProcess, ask: Callable[[grpc.aio.Channel, Sequence[int]], Awaitable[list[Any]]]
) -> None:
    """From one caller on one connection: some succeed, the others are refused."""
    # However long a busy machine takes for more than a GiB of lists.
    server.settings["STORE_MAX_CALL_SECONDS"] = "300"
    server.start()
    async with connected_to(server) as channel:
        ids = [(await Stubs(channel).create_post("x" * 65_000)).id for _ in range(60)]
        memory = server.rss_bytes
        calls = await ask(channel, ids)
        reasons = Counter(await asyncio.gather(*map(reason_of, calls)))
        grown = server.peak_rss_bytes - memory
        after = await Stubs(channel).posts.GetPost(posts_pb2.GetPostRequest(id=ids[0]))
    assert server.stop() == 0

    assert set(reasons) <= {"", "OVERLOADED"}
    assert reasons[""]
    assert after.body
    assert grown < CALLS_BYTES


async def reason_of(call: Awaitable[Any]) -> str:
    """Why a call was refused; its answer, if it has one, is not kept."""
    outcome = await result_or_error(call)
    return received_error(outcome).reason if isinstance(outcome, grpc.RpcError) else ""


async def test_message_that_is_small_until_decompressed_is_refused(server: ServerProcess) -> None:
    """64 MiB of zeros, compressed, never occupy memory of the server."""
    server.start()
    async with connected_to(server) as channel, connected_to(server) as another:
        await Stubs(another).create_post()
        memory = server.rss_bytes
        bomb = channel.unary_unary("/storeapi.v1.PostService/CreatePost")
        for _ in range(5):
            refused = await expect_error(bomb(bytes(64 * 1024 * 1024), compression=grpc.Compression.Gzip))
            assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            await Stubs(another).create_post()
        grown = server.rss_bytes - memory
    assert server.stop() == 0

    assert grown < FLAT_BYTES


async def test_many_compressed_requests_do_not_exhaust_memory(
    server: ServerProcess,
) -> None:
    """180 requests of 4 KiB, each 4 MiB decompressed, are decompressed one at a time."""
    server.settings["STORE_LOG_LEVEL"] = "info"
    server.start()
    request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="x" * 4_190_000)).SerializeToString()
    packed = gzip.compress(request)
    async with connected_to(server) as channel, AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        await Stubs(channel).create_post()
        memory = server.rss_bytes
        clients = [await stack.enter_async_context(raw_client(server.address)) for _ in range(12)]
        # As many on each as there may be bytes on their way before the server asks for more.
        for client in clients:
            for _ in range(15):
                client.call("/storeapi.v1.PostService/CreatePost", packed, encoding="gzip")
        # The server asks whether they are there.
        answering = [group.create_task(client.closed()) for client in clients]
        await eventually(lambda: server.stderr().count('"FIELD_INVALID"') == 180)
        grown = server.peak_rss_bytes - memory
        for task in answering:
            task.cancel()
    assert server.stop() == 0

    assert grown < 4 * FLAT_BYTES


async def test_immediately_cancelled_calls_cost_nothing(server: ServerProcess) -> None:
    """2,000 on one connection, each reset at once; other callers are served."""
    server.start()
    request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="reset")).SerializeToString()
    async with connected_to(server) as channel, raw_client(server.address) as rude:
        await Stubs(channel).create_post()
        memory = server.rss_bytes
        for number in range(2000):
            rude.reset(rude.call("/storeapi.v1.PostService/CreatePost", request))
            if not number % 200:
                await Stubs(channel).create_post()
        await Stubs(channel).create_post()
        grown = server.rss_bytes - memory
    assert server.stop() == 0

    assert grown < FLAT_BYTES
    assert '"unhandled exception"' not in server.stderr()


CLIENT = """
import sys, threading, grpc
from storeapi.v1 import posts_pb2, posts_pb2_grpc

channel = grpc.insecure_channel(sys.argv[1])
stub = posts_pb2_grpc.PostServiceStub(channel)
stub.ListPosts(posts_pb2.ListPostsRequest())
print("connected", flush=True)
threading.Event().wait()
"""


async def test_connection_of_a_frozen_client_is_closed(server: ServerProcess) -> None:
    """It does not answer pings. Until then other callers have their share."""
    server.settings |= {
        "STORE_MAX_CONNECTIONS": "2",
        "STORE_KEEPALIVE_SECONDS": "1",
        "STORE_KEEPALIVE_TIMEOUT_SECONDS": "1",
    }
    server.start()
    client = subprocess.Popen(  # noqa: ASYNC220  # a test has its event loop to itself
        [sys.executable, "-c", CLIENT, server.address], stdout=subprocess.PIPE
    )
    try:
        assert client.stdout is not None
        assert client.stdout.readline()
        client.send_signal(signal.SIGSTOP)
        async with connected_to(server) as channel, connected_to(server) as another:
            await Stubs(channel).create_post()
            refused = await expect_error(Stubs(another).create_post())
            async with asyncio.timeout(scaled_timeout()):
                while isinstance(  # noqa: ASYNC110  # nothing tells of it
                    await result_or_error(Stubs(another).create_post()), grpc.RpcError
                ):
                    await asyncio.sleep(0.05)
    finally:
        client.kill()
        client.communicate()

    assert refused.code == grpc.StatusCode.UNAVAILABLE
