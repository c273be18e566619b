"""Callers that retry with a request_id: bad connections and kill -9 neither lose nor double what they do."""

import asyncio
import random
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from sqlalchemy import text
from storeapi.v1 import posts_pb2, posts_pb2_grpc

from tests.support.database import database_connection
from tests.support.server_process import ServerProcess
from tests.support.timeouts import IS_LONG_RUN
from tests.support.unreliable_proxy import UnreliableProxy

ROUNDS = 20 if IS_LONG_RUN else 4
CALLERS = 12
ANSWERS_PER_ROUND = 60

_OPTIONS = [
    # Each caller has a connection of its own, and is back soon after it was cut.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
]


@pytest.fixture
def server_process(tmp_path: Path, database_url: str) -> Iterator[ServerProcess]:
    """A server as a child process, not started yet, on each engine in turn."""
    process = ServerProcess(tmp_path, settings={"DATABASE_URL": database_url})
    yield process
    process.kill()


@pytest.mark.timeout(200 + 25 * ROUNDS)  # some starts, also on a machine that has other things to do
async def test_retried_requests_are_done_once(server_process: ServerProcess, database_url: str) -> None:
    """Behind a bad network and a server that dies, every request ends up as the one acknowledged post."""
    network = UnreliableProxy(random.Random(17), cuts=0.08)
    told: dict[str, posts_pb2.Post] = {}
    enough, stop = asyncio.Condition(), asyncio.Event()

    async def caller(name: int) -> int:
        """Creates posts until it is time to stop; returns how often it had to send one again."""
        retries = 0
        async with grpc.aio.insecure_channel(network.address, options=_OPTIONS) as channel:
            stub = posts_pb2_grpc.PostServiceStub(channel)
            for number in range(1_000_000):
                if stop.is_set():
                    return retries
                # A seeded UUID, so that a run can be looked at again.
                id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name}/{number}"))
                body = f"{id} ".ljust(40 * 4 ** (number % 4), "x")
                request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body), request_id=id)
                while id not in told:
                    try:
                        post = await stub.CreatePost(request, wait_for_ready=True)
                    except grpc.RpcError as error:
                        # Whatever the call met, it was the network or the end of the server.
                        if error.code() != grpc.StatusCode.UNAVAILABLE:
                            raise
                        retries += 1
                        continue
                    assert post.body == body
                    async with enough:
                        told[id] = post
                        enough.notify_all()
        raise AssertionError("nobody said stop")

    def is_told(least: int) -> bool:
        return len(told) >= least

    async with network.running():
        await start(server_process, network)
        # A caller that fails ends the others, and the waiting for them.
        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(caller(name)) for name in range(CALLERS)]
            for number in range(1, ROUNDS + 1):
                async with enough:
                    await enough.wait_for(partial(is_told, number * ANSWERS_PER_ROUND))
                await asyncio.to_thread(server_process.kill)
                await start(server_process, network)
            stop.set()
    assert server_process.stop() == 0

    retries = sum(task.result() for task in callers)
    assert min(retries, network.cut_requests, network.cut_answers) > 0
    with database_connection(database_url) as connection:
        posts = dict(tuple(row) for row in connection.execute(text("SELECT id, body FROM posts")))
        changes = connection.execute(text("SELECT request_id, resource_id FROM changes")).fetchall()
        requests = connection.execute(text("SELECT id FROM requests")).scalars().all()
    assert posts == {post.id: post.body for post in told.values()}
    assert sorted(map(tuple, changes)) == sorted((id, post.id) for id, post in told.items())
    assert sorted(requests) == sorted(told)
    assert "Traceback" not in server_process.stderr()


async def start(server_process: ServerProcess, network: UnreliableProxy) -> None:
    """Starts the server where the network leads."""
    await asyncio.to_thread(server_process.start)
    network.server_address = server_process.address
