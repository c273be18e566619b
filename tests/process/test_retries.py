"""Callers that retry with a request_id: bad connections and kill -9 neither lose nor double what they do."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import grpc
import pytest
from sqlalchemy import text
from storeapi.v1 import posts_pb2, posts_pb2_grpc

from tests.rpc.helpers import connected
from tests.support import ServerProcess

ROUNDS = 4
CALLERS = 12
ANSWERS_PER_ROUND = 60

_OPTIONS = [
    # Each caller has a connection of its own, and is back soon after it was cut.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
]


class BadNetwork:
    """A TCP proxy that loses what it should carry, and the connection with it, whenever chance says so."""

    def __init__(self, chance: random.Random) -> None:
        """Takes what decides."""
        self._chance = chance
        self.server_address = ""
        self.address = ""
        self.lost_requests = 0
        self.lost_answers = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["BadNetwork"]:
        """Carries until the end of the block."""
        carrying: set[asyncio.Task[None]] = set()

        def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._carry(reader, writer))
            carrying.add(task)
            task.add_done_callback(carrying.discard)

        proxy = await asyncio.start_server(on_connection, "127.0.0.1", 0)
        self.address = "{}:{}".format(*proxy.sockets[0].getsockname())
        try:
            yield self
        finally:
            proxy.close()
            for task in carrying:
                task.cancel()
            await asyncio.gather(*carrying, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            host, port = self.server_address.split(":")
            with suppress(OSError):
                server_reader, server_writer = await asyncio.open_connection(host, int(port))
                writers.append(server_writer)
                ways = [
                    asyncio.create_task(self._pump(reader, server_writer, answers=False)),
                    asyncio.create_task(self._pump(server_reader, writer, answers=True)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        finally:
            for each in writers:
                each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        """Carries one way until the connection ends, by itself or by chance."""
        while data := await reader.read(65_536):
            # What is short is no request and no answer; an answer in mid-air is lost most usefully.
            if len(data) > 60 and self._chance.random() < 0.08:
                if answers:
                    self.lost_answers += 1
                else:
                    self.lost_requests += 1
                writer.write(data[: self._chance.randrange(len(data))])
                return
            writer.write(data)
            await writer.drain()


@pytest.fixture
def server_process(tmp_path: Path, database_url: str) -> Iterator[ServerProcess]:
    """A server in a process of its own, not started yet, on each engine in turn."""
    process = ServerProcess(tmp_path, settings={"DATABASE_URL": database_url})
    yield process
    process.kill()


@pytest.mark.timeout(300)  # some starts, also on a machine that has other things to do
async def test_what_is_retried_until_it_is_answered_is_done_once(
    server_process: ServerProcess, database_url: str
) -> None:
    """Behind a bad network and a server that dies, every request ends up as one post, the one told of."""
    network = BadNetwork(random.Random(17))
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
    assert min(retries, network.lost_requests, network.lost_answers) > 0
    with connected(database_url) as connection:
        posts = dict(tuple(row) for row in connection.execute(text("SELECT id, body FROM posts")))
        changes = connection.execute(text("SELECT request_id, resource_id FROM changes")).fetchall()
        requests = connection.execute(text("SELECT id FROM requests")).scalars().all()
    assert posts == {post.id: post.body for post in told.values()}
    assert sorted(map(tuple, changes)) == sorted((id, post.id) for id, post in told.items())
    assert sorted(requests) == sorted(told)
    assert "Traceback" not in server_process.stderr()


async def start(server_process: ServerProcess, network: BadNetwork) -> None:
    """Starts the server where the network leads."""
    await asyncio.to_thread(server_process.start)
    network.server_address = server_process.address
