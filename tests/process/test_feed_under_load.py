"""The change feed under load: interrupted watches miss nothing."""

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from storeapi.v1 import changes_pb2 as pb
from storeapi.v1 import comments_pb2, posts_pb2

from store_service.database.connect import is_sqlite
from tests.support.engines import SQLITE_ONLY
from tests.support.errors import received_error, result_or_error
from tests.support.polling import eventually
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout
from tests.support.watches import (
    COMMENT,
    CREATE,
    DELETE,
    POST,
    SNAPSHOT,
    UPDATE,
    Key,
    Replica,
    change_key,
    list_everything,
    open_watch,
)

WRITERS = 32
LOAD_SECONDS = 20 if IS_LONG_RUN else 5
"""How long they write."""

EXPECTED_REASONS = {"POST_NOT_FOUND", "COMMENT_NOT_FOUND", "DATABASE_BUSY"}
"""Writers delete what others want to change."""

Channels = list[grpc.aio.Channel]


@pytest.fixture
def start_server(database_url: str, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers on the database, each as a child process with its own directory."""
    servers: list[ServerProcess] = []

    def start(**settings: str) -> ServerProcess:
        folder = tmp_path / f"server-{len(servers)}"
        folder.mkdir()
        quiet = {"DATABASE_URL": database_url, "STORE_LOG_LEVEL": "warning"}
        servers.append(ServerProcess(folder, settings=quiet | settings))
        return servers[-1].start()

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
async def channels(start_server: Callable[..., ServerProcess], database_url: str) -> AsyncIterator[Channels]:
    """A channel to each of two servers on PostgreSQL, or to the one that SQLite has."""
    servers = [start_server() for _ in range(1 if is_sqlite(database_url) else 2)]
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(grpc.aio.insecure_channel(server.address)) for server in servers
        ]
    for server in servers:
        assert server.stop() == 0
        assert server.stderr() == ""


@dataclass
class Load:
    """Writers, and what they were answered."""

    channels: Channels
    answered: set[Key] = field(default_factory=set)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    post_ids: list[int] = field(default_factory=list)
    comment_ids: list[int] = field(default_factory=list)
    last_id: int = 0
    """Of the post that is written when everything else has been answered."""

    async def run(self, seconds: float) -> None:
        """Has them all write for so long, each the next as soon as it has an answer."""
        async with asyncio.TaskGroup() as writers:
            for n in range(WRITERS):
                writers.create_task(self._write(Stubs(self.channels[n % len(self.channels)]), n))
            # How long the load lasts; nothing is awaited by it.
            await asyncio.sleep(seconds)
            self.is_over.set()
        self.last_id = (await Stubs(self.channels[0]).create_post("the last")).id
        self.answered.add((POST, self.last_id, "v1", CREATE))

    async def _write(self, stubs: Stubs, seed: int) -> None:
        chance = random.Random(seed)  # Which write comes next; the same in every run.
        while not self.is_over.is_set():
            action, kind, call = self._next(stubs, chance)
            outcome = await result_or_error(call)
            if isinstance(outcome, grpc.RpcError):
                assert received_error(outcome).reason in EXPECTED_REASONS
                continue
            self.answered.add((kind, outcome.id, outcome.etag, action))
            if action == CREATE:
                (self.post_ids if kind == POST else self.comment_ids).append(outcome.id)

    def _next(self, stubs: Stubs, chance: random.Random) -> tuple[int, int, Any]:
        choice = chance.random()
        body = "x" * chance.randrange(1, 400)
        # Most writes meet others that are about the same few.
        posts, comments = self.post_ids[-40:], self.comment_ids[-40:]
        if choice < 0.3 or not posts:
            return CREATE, POST, stubs.create_post(body)
        post_id = chance.choice(posts)
        if choice < 0.5 or not comments:
            return CREATE, COMMENT, stubs.create_comment(post_id, body)
        if choice < 0.75:
            post = posts_pb2.Post(id=post_id, body=body)
            return UPDATE, POST, stubs.posts.UpdatePost(posts_pb2.UpdatePostRequest(post=post))
        comment_id = chance.choice(comments)
        if choice < 0.9:
            comment = comments_pb2.Comment(id=comment_id, body=body)
            update = comments_pb2.UpdateCommentRequest(comment=comment)
            return UPDATE, COMMENT, stubs.comments.UpdateComment(update)
        if choice < 0.95:
            request = comments_pb2.DeleteCommentRequest(id=comment_id)
            return DELETE, COMMENT, stubs.comments.DeleteComment(request)
        delete = posts_pb2.DeletePostRequest(id=post_id, force=True)
        return DELETE, POST, stubs.posts.DeletePost(delete)


async def watch_with_interruptions(load: Load, seed: int, *, initial_state: bool = False) -> list[pb.Change]:
    """All changes that an interrupted watch receives across several servers."""
    chance = random.Random(seed)
    told: list[pb.Change] = []
    start: dict[str, Any] = {"initial_state": True} if initial_state else {"earliest": True}
    while True:
        async with open_watch(chance.choice(load.channels), **start) as watch:
            for _ in range(chance.randrange(1, 40)):
                response = await watch.read()
                told += response.changes
                start = {"resume_token": response.resume_token}
                if load.last_id and any((it.kind, it.id) == (POST, load.last_id) for it in told[-5000:]):
                    return told


@asynccontextmanager
async def loaded(channels: Channels) -> AsyncIterator[Load]:
    """Writers in the background. All their calls are finished at the end of the block."""
    load = Load(channels)
    running = asyncio.create_task(load.run(LOAD_SECONDS))
    try:
        await eventually(lambda: len(load.answered) >= 200)
        yield load
    finally:
        await running


@pytest.mark.timeout(120 + 10 * LOAD_SECONDS)
async def test_interrupted_watches_miss_nothing_and_agree_on_the_order(channels: Channels) -> None:
    async with loaded(channels) as load, asyncio.TaskGroup() as group:
        watchers = [group.create_task(watch_with_interruptions(load, seed)) for seed in range(3)]
        late = group.create_task(watch_with_interruptions(load, 3, initial_state=True))

    first, second, third = ([change_key(it) for it in watcher.result()] for watcher in watchers)
    assert len(set(first)) == len(first)
    assert load.answered - set(first) == set()
    assert first == second
    assert first == third
    versions: dict[tuple[int, int], int] = {}
    gone: set[tuple[int, int]] = set()
    for kind, id, etag, action in first:
        resource, version = (kind, id), int(etag[1:], 16)
        assert resource not in gone
        # A deletion tells of the resource as it last was.
        assert version == versions.get(resource, 0) + (action != DELETE)
        versions[resource] = version
        if action == DELETE:
            gone.add(resource)
    stored = await list_everything(Stubs(channels[-1]))
    for told in (watchers[0].result(), late.result()):
        replica = Replica()
        replica.apply(told)
        assert replica == stored
    assert late.result()[0].action == SNAPSHOT


CLIENT = """
import sys, grpc
from google.protobuf.duration_pb2 import Duration
from storeapi.v1 import changes_pb2, changes_pb2_grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    request = changes_pb2.WatchRequest(heartbeat_interval=Duration(seconds=60))
    for response in changes_pb2_grpc.ChangeServiceStub(channel).Watch(request):
        print(response.resume_token, flush=True)
"""


@pytest.fixture
def client() -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    """Starts a client process that watches a server, and waits until it watches."""
    clients: list[subprocess.Popen[bytes]] = []

    def start(address: str) -> "subprocess.Popen[bytes]":
        clients.append(subprocess.Popen([sys.executable, "-c", CLIENT, address], stdout=subprocess.PIPE))
        assert clients[-1].stdout is not None
        assert clients[-1].stdout.readline()
        return clients[-1]

    yield start
    for client in clients:
        client.kill()
        client.communicate()


@SQLITE_ONLY
async def test_frozen_client_frees_its_watch(
    start_server: Callable[..., ServerProcess], client: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    """An unresponsive connection is closed after the keepalive timeout, and another watch may start."""
    server = start_server(
        STORE_MAX_WATCHES="1", STORE_KEEPALIVE_SECONDS="1", STORE_KEEPALIVE_TIMEOUT_SECONDS="1"
    )
    (await asyncio.to_thread(client, server.address)).send_signal(signal.SIGSTOP)

    async with grpc.aio.insecure_channel(server.address) as channel:
        # Without keepalive it would last for hours, and with gRPC's own timeout for a minute.
        async with asyncio.timeout(scaled_timeout(20)):
            while not await _is_let_in(channel):  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.05)


async def _is_let_in(channel: grpc.aio.Channel) -> bool:
    async with open_watch(channel) as watch:
        outcome = await result_or_error(watch.read())
    if isinstance(outcome, grpc.RpcError):
        assert received_error(outcome).reason == "WATCH_LIMIT"
        return False
    return True
