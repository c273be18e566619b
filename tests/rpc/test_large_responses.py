"""Large responses: encoded once per batch, after the limits are checked, one at a time."""

import asyncio
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from storeapi.v1 import changes_pb2, comments_pb2
from storeapi.v1 import posts_pb2 as pb

from store_service.config import Config
from store_service.database import batch_runner
from store_service.model import Change, Page, Post
from store_service.rpc import changes as rpc_changes
from store_service.rpc import connection_limits, method, pending
from store_service.rpc import posts as rpc_posts
from store_service.rpc.connections import Connections
from store_service.rpc.convert import post_to_message, response_converter
from store_service.service.operations import Selection
from tests.support.errors import received_error, result_or_error
from tests.support.http2 import INITIAL_WINDOW_SIZE, PREFACE, SETTINGS, WINDOW_UPDATE, frame, raw_client
from tests.support.polling import eventually
from tests.support.resource_api import ResourceApi
from tests.support.running_server import server_with
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

POSTS = 150
"""More items than a response may have that does not wait for its turn."""


@pytest.fixture
def database_url(database_file: Path) -> str:
    """One engine is enough: all of this happens above it."""
    return f"sqlite:///{database_file}"


class Reading:
    """Holds what reads the database, and counts the batches that read posts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is held yet."""
        self.batches = 0
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()
        outcomes = batch_runner.BatchRunner._outcomes

        async def held(runner: batch_runner.BatchRunner, *arguments: Any, **options: Any) -> list[Any]:
            if runner._writes:
                return await outcomes(runner, *arguments, **options)
            await self._may_go_on.wait()
            found = await outcomes(runner, *arguments, **options)
            # Background tasks read, too.
            self.batches += any(isinstance(it, Page | Selection) for it in found)
            return found

        monkeypatch.setattr(batch_runner.BatchRunner, "_outcomes", held)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Batches that have not begun wait until the end of the block."""
        self._may_go_on.clear()
        self.batches = 0
        yield
        self._may_go_on.set()


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    """The readers of every server of the test."""
    return Reading(monkeypatch)


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of all posts that were made messages."""
    ids: list[int] = []

    def counted(post: Post, new: Callable[..., pb.Post]) -> pb.Post:
        ids.append(post.id)
        return post_to_message(post, new)

    patch_converters(monkeypatch, counted)
    return ids


def patch_converters(monkeypatch: pytest.MonkeyPatch, to_message: Callable[..., pb.Post]) -> None:
    """Makes lists and batch requests convert posts with another function."""
    monkeypatch.setattr(rpc_posts, "_list_response", response_converter(pb.ListPostsResponse, to_message))
    monkeypatch.setattr(
        rpc_posts, "_batch_get_response", response_converter(pb.BatchGetPostsResponse, to_message)
    )


async def everybody_else(happened: list[str], *, until: Callable[[], bool]) -> None:
    """Notes each round of the event loop among what has happened."""
    while not until():
        happened.append("other")
        await asyncio.sleep(0)


def list_posts(stubs: Stubs) -> Any:
    return stubs.posts.ListPosts(pb.ListPostsRequest(page_size=1000))


def get_posts(stubs: Stubs) -> Any:
    return stubs.posts.BatchGetPosts(pb.BatchGetPostsRequest(ids=range(1, POSTS + 1)))


async def test_large_requests_are_decoded_in_turns(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tasks run in between; a request refused for its size is not decoded."""
    happened: list[str] = []
    parse = pb.BatchCreatePostsRequest.FromString
    batch = pb.BatchCreatePostsRequest(validate_only=True)
    for _ in range(1000):
        batch.requests.add().post.body = "x" * 100

    def decode(data: bytes) -> Any:
        happened.append("decode")
        return parse(data)

    decoder = method.decoder
    monkeypatch.setattr(
        method, "decoder", lambda kind: decode if kind is pb.BatchCreatePostsRequest else decoder(kind)
    )
    async with server_with(config, max_concurrent_bytes=4_200_000) as (_, stubs):
        calls = [result_or_error(stubs.posts.BatchCreatePosts(batch)) for _ in range(60)]
        answered = asyncio.gather(*calls)
        await everybody_else(happened, until=answered.done)
        outcomes = await answered

    refused = [received_error(it).reason for it in outcomes if isinstance(it, grpc.RpcError)]
    assert set(refused) <= {"OVERLOADED"}
    assert happened.count("decode") == len(outcomes) - len(refused)
    assert "decode decode" not in " ".join(happened)


@pytest.mark.parametrize("ask", [list_posts, get_posts])
async def test_equal_reads_are_encoded_once(
    config: Config, reading: Reading, converted: list[int], ask: Callable[[Stubs], Any]
) -> None:
    """Once per batch."""
    async with server_with(config) as (server, stubs):
        await ResourceApi("Post", stubs).create_many(POSTS)
        converted.clear()
        with reading.held():
            calls = [asyncio.ensure_future(ask(stubs)) for _ in range(20)]
            await eventually(lambda: server.pipeline._running == len(calls))
        answers = await asyncio.gather(*calls)

    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0].posts) == POSTS
    # Each of two readers may have taken some of the calls before it was held.
    assert reading.batches <= 3
    assert len(converted) == POSTS * reading.batches


async def test_refused_reads_are_not_encoded(config: Config, converted: list[int]) -> None:
    """The limit of a connection is checked first."""
    async with server_with(
        config, max_pending_response_bytes_per_connection=7_000_000, max_call_seconds=60
    ) as (server, stubs):
        await ResourceApi("Post", stubs).create_many(60, "x" * 50_000)
        converted.clear()
        async with raw_client(server.address) as stuck:
            for size in range(60, 40, -1):
                request = pb.ListPostsRequest(page_size=size)
                stuck.call("/storeapi.v1.PostService/ListPosts", request.SerializeToString())
            await eventually(lambda: server.pipeline._id_count >= 21 and not server.pipeline._limits._running)

    # Two of 3 MB or three of 2 MB fit.
    assert 0 < len(converted) <= 3 * 60


async def test_other_tasks_run_between_large_reads(
    config: Config, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All callers are ready together, and encoding takes turns."""
    happened: list[str] = []

    def noted(post: Post, new: Callable[..., pb.Post]) -> pb.Post:
        if post.id == 1:
            happened.append("encode")
        return post_to_message(post, new)

    async with server_with(config) as (server, stubs):
        await ResourceApi("Post", stubs).create_many(POSTS)
        patch_converters(monkeypatch, noted)
        sizes = range(POSTS - 20, POSTS)
        with reading.held():
            requests = [pb.ListPostsRequest(page_size=size) for size in sizes]
            calls = [asyncio.ensure_future(stubs.posts.ListPosts(request)) for request in requests]
            await eventually(lambda: server.pipeline._running == len(calls))
        answered = asyncio.gather(*calls)
        await everybody_else(happened, until=answered.done)
        answers = await answered

    assert [len(answer.posts) for answer in answers] == list(sizes)
    assert happened.count("encode") == len(sizes)
    assert "encode encode" not in " ".join(happened)


async def test_other_tasks_run_between_change_batches_of_different_filters(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    to_message = rpc_changes._change_to_message

    def noted(change: Change) -> changes_pb2.Change:
        if change.post_id == 1:
            happened.append("encode")
        return to_message(change)

    async with server_with(config) as (_, stubs):
        await ResourceApi("Post", stubs).create_many(POSTS)
        watches = []
        for count in range(POSTS - 20, POSTS):
            request = changes_pb2.WatchRequest(post_ids=range(1, count + 1))
            watches.append(stubs.changes.Watch(request))
            await watches[-1].read()
        monkeypatch.setattr(rpc_changes, "_change_to_message", noted)
        batch = comments_pb2.BatchCreateCommentsRequest()
        for id in range(1, POSTS + 1):
            batch.requests.add().comment.MergeFrom(comments_pb2.Comment(post_id=id, body="a"))
        told = asyncio.gather(*[watch.read() for watch in watches], stubs.comments.BatchCreateComments(batch))
        await everybody_else(happened, until=told.done)
        *answers, _ = await told
        for watch in watches:
            watch.cancel()

    assert [len(answer.changes) for answer in answers] == list(range(POSTS - 20, POSTS))
    assert happened.count("encode") == 20
    assert "encode encode" not in " ".join(happened)


async def test_unread_connections_do_not_exhaust_memory(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share a limit, and are closed when others need the memory."""
    monkeypatch.setattr(pending, "STALLED_SECONDS", 0.3)
    limit = 16_000_000
    request = pb.ListPostsRequest(page_size=1000).SerializeToString()
    async with (
        server_with(config, max_pending_response_bytes=limit, max_call_seconds=60) as (server, stubs),
        AsyncExitStack() as stack,
    ):
        await ResourceApi("Post", stubs).create_many(60, "x" * 50_000)
        most: list[int] = []
        pending_now = server.pipeline._pending
        clients = [await stack.enter_async_context(raw_client(server.address)) for _ in range(10)]
        for stuck in clients:
            for _ in range(5):
                stuck.call("/storeapi.v1.PostService/ListPosts", request)
        await eventually(lambda: noted(most, pending_now) > limit // 2)

        async def is_answered() -> bool:
            noted(most, pending_now)
            outcome = await result_or_error(list_posts(stubs))
            if isinstance(outcome, grpc.RpcError):
                assert received_error(outcome).reason == "OVERLOADED"
            return not isinstance(outcome, grpc.RpcError)

        async with asyncio.timeout(scaled_timeout()):
            for _ in range(10):
                while not await is_answered():  # noqa: ASYNC110  # nothing tells of it
                    await asyncio.sleep(0.05)

    assert max(most) <= limit


async def test_slow_reader_is_not_closed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a part of a response at a time, while those that read nothing fill the memory."""
    monkeypatch.setattr(connection_limits, "INSPECTION_SECONDS", 0.05)
    cut: set[str] = set()
    close = Connections.cut

    def noted_cut(connections: Connections, peers: Collection[str]) -> None:
        cut.update(peers)
        close(connections, peers)

    monkeypatch.setattr(Connections, "cut", noted_cut)
    limit = 32_000_000
    request = pb.ListPostsRequest(page_size=1000).SerializeToString()
    path = "/storeapi.v1.PostService/ListPosts"
    # As much as there is may be sent at once, and the connection takes it when it likes.
    at_once = PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 2**24))
    at_once += frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**28))
    async with (
        server_with(config, max_pending_response_bytes=limit, max_call_seconds=60) as (server, stubs),
        AsyncExitStack() as stack,
    ):
        await ResourceApi("Post", stubs).create_many(60, "x" * 50_000)
        pending_now = server.pipeline._pending
        slow = await stack.enter_async_context(
            raw_client(server.address, greeting=at_once, buffer_bytes=65_536)
        )
        for _ in range(5):
            slow.call(path, request)
        await eventually(lambda: pending_now.size > 8_000_000)
        for _ in range(6):
            stuck = await stack.enter_async_context(raw_client(server.address))
            for _ in range(5):
                stuck.call(path, request)
        slow_peer = "ipv4:{}:{}".format(*slow.writer.get_extra_info("sockname"))
        async with asyncio.timeout(scaled_timeout()):
            while not cut:
                # Nothing comes when it is closed.
                assert await slow.reader.read(65_536)
                # A new call needs room, so the server searches for connections that do not read.
                pending_now.has_room("ipv4:192.0.2.1:1", limit)
                await asyncio.sleep(0.05)

    assert slow_peer not in cut


def noted(most: list[int], unread: pending.Pending) -> int:
    """Returns the pending bytes and records them."""
    most.append(unread.size)
    return most[-1]
