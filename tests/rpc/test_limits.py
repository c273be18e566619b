"""Limits: calls at the limit, calls above it, and other calls meanwhile."""

import asyncio
import secrets
import struct
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from storeapi.v1 import changes_pb2
from storeapi.v1 import posts_pb2 as pb
from structlog.testing import capture_logs

from store_service.config import Config
from store_service.errors import RateLimited
from store_service.rpc import connection_limits, limits, pending
from store_service.rpc.connection_limits import ConnectionLimits
from store_service.rpc.connections import Connections
from store_service.rpc.decoding import Decompressor
from store_service.rpc.health import MAX_WATCHES_PER_CONNECTION
from store_service.rpc.limits import RateLimiter
from store_service.rpc.pending import Pending
from tests.support.database import database_contents, write_lock
from tests.support.errors import expect_error, received_error, result_or_error
from tests.support.http2 import INITIAL_WINDOW_SIZE, PREFACE, SETTINGS, frame, raw_client
from tests.support.polling import eventually
from tests.support.resource_api import ResourceApi
from tests.support.running_server import server_with
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout
from tests.support.write_queue import WriteQueue


@pytest.fixture
def database_url(database_file: Path) -> str:
    """One engine is enough: what is refused here never reaches it."""
    return f"sqlite:///{database_file}"


async def health_of(address: str, *, waits: bool = False) -> int:
    """The health status, read on a new connection; `waits` repeats a refused connection."""
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=scaled_timeout(), wait_for_ready=waits
        )
        return int(answer.status)


# Calls that run at once


async def test_calls_above_the_limit_are_overloaded(config: Config, write_queue: WriteQueue) -> None:
    """Nothing of them is done; health responds, and a free slot is used again."""
    async with server_with(config, max_concurrent_calls=3) as (server, stubs):
        with write_lock(config.DATABASE_URL):
            before = write_queue.arrived
            running = [asyncio.ensure_future(stubs.create_post(f"{n}")) for n in range(3)]
            await write_queue.wait_for_arrivals(3, since=before)
            refused = await expect_error(stubs.create_post("one more"))
            health = await health_of(server.address)
        await asyncio.gather(*running)
        await stubs.create_post("after")

    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
    assert refused.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert health == health_pb2.HealthCheckResponse.SERVING
    assert sorted(row[1] for row in database_contents(config.DATABASE_URL).posts) == ["0", "1", "2", "after"]


async def test_large_requests_share_a_limit(config: Config, write_queue: WriteQueue) -> None:
    """Small requests are accepted beside them."""
    large = [pb.CreatePostRequest(post=pb.Post(body="x" * 60_000)) for _ in range(30)]
    batch = pb.BatchCreatePostsRequest(requests=large)
    size = batch.ByteSize()
    async with server_with(config, max_concurrent_bytes=2 * size) as (_, stubs):
        with write_lock(config.DATABASE_URL):
            before = write_queue.arrived
            running = [
                asyncio.ensure_future(result_or_error(stubs.posts.BatchCreatePosts(batch))) for _ in "12"
            ]
            await write_queue.wait_for_arrivals(2, since=before)
            refused = await expect_error(stubs.posts.BatchCreatePosts(batch))
            running.append(asyncio.ensure_future(stubs.create_post("small")))
            await write_queue.wait_for_arrivals(3, since=before)
        await asyncio.gather(*running)
        for _ in range(3):
            await stubs.posts.BatchCreatePosts(batch)

    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
    assert refused.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert len(database_contents(config.DATABASE_URL).posts) == 5 * 30 + 1


async def test_overload_precedes_validation(config: Config, write_queue: WriteQueue) -> None:
    async with server_with(config, max_concurrent_calls=1) as (_, stubs):
        with write_lock(config.DATABASE_URL):
            before = write_queue.arrived
            running = asyncio.ensure_future(stubs.create_post("running"))
            await write_queue.wait_for_arrivals(1, since=before)
            refused = await expect_error(stubs.create_post(""))
        await running

    assert refused.reason == "OVERLOADED"


async def test_watches_do_not_count_as_calls(config: Config) -> None:
    """They have a limit of their own, and last."""
    async with server_with(config, max_concurrent_calls=2) as (_, stubs):
        watches = [stubs.changes.Watch(changes_pb2.WatchRequest()) for _ in range(5)]
        for watch in watches:
            await watch.read()

        assert (await stubs.create_post()).id == 1
        for watch in watches:
            watch.cancel()


async def test_other_streams_are_limited_separately(config: Config) -> None:
    """As many, counted by themselves."""
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    async with (
        server_with(config, max_concurrent_calls=2) as (server, stubs),
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        streams = []
        for _ in range(2):
            streams.append(reflection.ServerReflectionInfo())
            await streams[-1].write(question)
            await streams[-1].read()
        third = await result_or_error(reflection.ServerReflectionInfo().read())

        assert (await stubs.create_post()).id == 1
    assert received_error(third).reason == "OVERLOADED"


# Health watches


async def healthy(channel: grpc.aio.Channel) -> Any:
    """An accepted health watch."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    return watch


async def test_health_watches_per_connection_are_limited(config: Config) -> None:
    """WATCH_LIMIT; checks still respond, and a free slot is used again."""
    async with server_with(config) as (server, _), grpc.aio.insecure_channel(server.address) as channel:
        watches = [await healthy(channel) for _ in range(MAX_WATCHES_PER_CONNECTION)]
        refused = await expect_error(healthy(channel))
        stub = health_pb2_grpc.HealthStub(channel)
        check = await stub.Check(health_pb2.HealthCheckRequest())
        others = await health_of(server.address)
        watches[0].cancel()
        await eventually(lambda: server.pipeline._running < len(watches))
        await healthy(channel)

    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCH_LIMIT")
    assert refused.message.startswith("20 health watches are open on this connection")
    assert refused.metadata == {"limit": "20"}
    assert refused.detail(error_details_pb2.QuotaFailure).violations
    assert check.status == others == health_pb2.HealthCheckResponse.SERVING


async def test_health_watches_are_limited_except_the_first_of_each_connection(config: Config) -> None:
    alone = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        server_with(config, max_connections=3) as (server, _),
        grpc.aio.insecure_channel(server.address, alone) as channel,
        grpc.aio.insecure_channel(server.address, alone) as another,
    ):
        watches = [await healthy(channel) for _ in range(3)]
        refused = await expect_error(healthy(channel))
        await healthy(another)
        second = await expect_error(healthy(another))
        for watch in watches:
            watch.cancel()
        await eventually(lambda: server.pipeline._running == 1)
        await healthy(another)

    assert refused.reason == second.reason == "WATCH_LIMIT"
    assert refused.message.startswith("3 health watches are open on this server process")


# Calls of one caller


async def test_caller_above_its_rate_limit_gets_a_retry_delay(config: Config) -> None:
    """RATE_LIMITED. Health is not counted."""
    async with server_with(config, rate_limit_per_caller=0.01) as (server, stubs):
        await stubs.create_post()
        refused = await expect_error(stubs.create_post())
        health = await health_of(server.address)

    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert refused.metadata == {"calls_per_second": "0.01"}
    assert refused.detail(error_details_pb2.QuotaFailure).violations
    assert 90 <= refused.detail(error_details_pb2.RetryInfo).retry_delay.ToSeconds() <= 100
    assert refused.trailing["grpc-retry-pushback-ms"]
    assert health == health_pb2.HealthCheckResponse.SERVING
    assert len(database_contents(config.DATABASE_URL).posts) == 1


def test_rate_limit_allows_a_burst_of_one_second() -> None:
    """Each caller has its own token bucket."""
    now = 100.0
    rates = RateLimiter(4, clock=lambda: now)
    for _ in range(4):
        rates.take("a")
    with pytest.raises(RateLimited) as refused:
        rates.take("a")
    rates.take("b")
    now += 0.25
    rates.take("a")
    with pytest.raises(RateLimited):
        rates.take("a")

    assert refused.value.retry_seconds == 0.25


def test_token_bucket_holds_at_most_one_second() -> None:
    now = 0.0
    rates = RateLimiter(2, clock=lambda: now)
    rates.take("a")
    now = 1000.0
    rates.take("a")
    rates.take("a")

    with pytest.raises(RateLimited):
        rates.take("a")


def test_number_of_remembered_callers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently active one is evicted."""
    monkeypatch.setattr(limits, "MAX_CALLERS", 2)
    rates = RateLimiter(1, clock=lambda: 0.0)
    rates.take("a")
    rates.take("b")
    rates.take("c")

    assert list(rates._buckets) == ["b", "c"]


# The time of a call


@pytest.mark.parametrize("deadline", [None, 60], ids=["no deadline", "a longer one"])
async def test_call_above_the_server_limit_gets_deadline_exceeded(
    config: Config, deadline: float | None
) -> None:
    """It is not done, and the next call succeeds."""
    async with server_with(config, max_call_seconds=0.3) as (server, stubs):
        with write_lock(config.DATABASE_URL):
            request = pb.CreatePostRequest(post=pb.Post(body="too slow"), validate_only=True)
            error = await expect_error(stubs.posts.CreatePost(request, timeout=deadline))
            await eventually(lambda: server.pipeline._running == 0)
        assert (await stubs.create_post("the next")).body == "the next"

    assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.trailing["x-call-id"]


async def test_server_limit_does_not_affect_short_calls_and_watches(config: Config) -> None:
    """The cap is of unary calls alone."""
    async with server_with(config, max_call_seconds=0.3) as (_, stubs):
        watch = stubs.changes.Watch(changes_pb2.WatchRequest())
        await watch.read()
        with write_lock(config.DATABASE_URL):
            slow = await expect_error(stubs.create_post("too slow"))
        after = asyncio.ensure_future(watch.read())
        await stubs.create_post("told")

        assert (await asyncio.wait_for(after, scaled_timeout())).changes
        watch.cancel()
    assert slow.code == grpc.StatusCode.DEADLINE_EXCEEDED


# Sizes


async def test_request_of_maximum_size_is_accepted(config: Config) -> None:
    """One byte more is refused, also when it was compressed."""
    largest = pb.CreatePostRequest(post=pb.Post(body="x" * 3000))
    limit = largest.ByteSize()
    async with server_with(config, max_request_bytes=limit) as (_, stubs):
        for compression in grpc.Compression:
            created = await stubs.posts.CreatePost(largest, compression=compression)
            assert created.body == largest.post.body
            larger = pb.CreatePostRequest(post=pb.Post(body="x" * 3001))
            refused = await expect_error(stubs.posts.CreatePost(larger, compression=compression))
            assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_grpc_does_not_decompress_requests(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would decompress all of them at once."""
    sizes: list[int] = []
    decoded = Decompressor.decoded

    async def seen(decompressor: Decompressor, data: bytes, *arguments: Any) -> Message:
        sizes.append(len(data))
        return await decoded(decompressor, data, *arguments)

    monkeypatch.setattr(Decompressor, "decoded", seen)
    request = pb.CreatePostRequest(post=pb.Post(body="x" * 10_000))
    async with server_with(config) as (_, stubs):
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            assert (await stubs.posts.CreatePost(request, compression=compression)).body == request.post.body

    assert len(sizes) == 2
    assert max(sizes) < 1000


async def test_metadata_of_maximum_size_is_accepted(config: Config) -> None:
    """Keys and values plus 32 bytes each count, as in HTTP/2."""
    limit = 4096
    async with server_with(config, max_metadata_bytes=limit) as (_, stubs):

        async def outcome(length: int) -> Any:
            request = pb.ListPostsRequest()
            return await result_or_error(stubs.posts.ListPosts(request, metadata=(("x-note", "y" * length),)))

        refused = received_error(await outcome(limit - 100))
        size = int(refused.message.partition("(")[2].split()[0])
        most = limit - 100 - (size - limit)
        at_the_limit = await outcome(most)
        above = received_error(await outcome(most + 1))

    assert isinstance(at_the_limit, pb.ListPostsResponse)
    assert (refused.code, above.code) == (grpc.StatusCode.RESOURCE_EXHAUSTED,) * 2


async def test_metadata_below_a_large_limit_is_accepted(config: Config) -> None:
    """gRPC has a soft limit above which it refuses calls at random."""
    async with server_with(config, max_metadata_bytes=65536) as (_, stubs):
        for _ in range(20):
            await stubs.posts.ListPosts(pb.ListPostsRequest(), metadata=(("x-note", "y" * 60_000),))


async def test_batch_of_maximum_size_is_accepted(config: Config) -> None:
    """BATCH_TOO_LARGE names the limit."""
    async with server_with(config, max_batch_size=3) as (_, stubs):
        posts = ResourceApi("Post", stubs)
        await posts.create_many(3)
        refused = [
            await expect_error(posts.batch_create([posts.draft()] * 4)),
            await expect_error(posts.batch_get([1, 2, 3, 4])),
            await expect_error(posts.batch_delete([1, 2, 3, 4])),
        ]

    assert [(it.reason, it.metadata) for it in refused] == [
        ("BATCH_TOO_LARGE", {"count": "4", "max_count": "3"})
    ] * 3


async def test_page_size_is_capped(config: Config) -> None:
    async with server_with(config, max_page_size=3) as (_, stubs):
        posts = ResourceApi("Post", stubs)
        await posts.create_many(7)
        pages = [await posts.all_pages(page_size=size) for size in (3, 4)]

    assert [[len(page) for page in each] for each in pages] == [[3, 3, 1]] * 2


# Connections


async def test_streams_above_the_connection_limit_wait_in_the_client(
    config: Config, write_queue: WriteQueue
) -> None:
    """Two run, the third is sent when one has ended; other connections are not concerned."""
    async with server_with(config, max_streams_per_connection=2) as (server, stubs):
        await stubs.create_post("so that the client knows the limit")
        with write_lock(config.DATABASE_URL):
            before = write_queue.arrived
            running = [asyncio.ensure_future(stubs.create_post(f"{n}")) for n in range(2)]
            await write_queue.wait_for_arrivals(2, since=before)
            waiting = await expect_error(stubs.posts.GetPost(pb.GetPostRequest(id=1), timeout=0.5))
            health = await health_of(server.address)
        await asyncio.gather(*running)
        after = await stubs.posts.GetPost(pb.GetPostRequest(id=1))

    # A read, which would have been answered: the database is locked for writes alone.
    assert waiting.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert health == health_pb2.HealthCheckResponse.SERVING
    assert after.id == 1


async def test_connection_above_the_limit_is_closed(config: Config) -> None:
    """When one ends, another is accepted."""
    alone = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        server, stubs = await stack.enter_async_context(server_with(config, max_connections=2))
        second = grpc.aio.insecure_channel(server.address, alone)
        third = await stack.enter_async_context(grpc.aio.insecure_channel(server.address, alone))
        await stubs.create_post("1")
        await Stubs(second).create_post("2")
        refused = await expect_error(Stubs(third).create_post("3"))
        await stubs.create_post("4")
        await second.close()
        async with asyncio.timeout(scaled_timeout()):
            while isinstance(  # noqa: ASYNC110  # nothing tells of it
                await result_or_error(Stubs(third).create_post("5")), grpc.RpcError
            ):
                await asyncio.sleep(0.05)

    assert refused.code == grpc.StatusCode.UNAVAILABLE


async def test_old_connection_is_replaced_without_failed_calls(config: Config) -> None:
    """A watch may use the grace period and continues elsewhere."""
    async with server_with(config, max_connection_seconds=0.3, max_connection_grace_seconds=0.5) as (
        _,
        stubs,
    ):
        watch = stubs.changes.Watch(changes_pb2.WatchRequest())
        await watch.read()
        ended = asyncio.ensure_future(expect_error(watch.read()))
        async with asyncio.timeout(scaled_timeout()):
            while not ended.done():
                await stubs.posts.ListPosts(pb.ListPostsRequest())

    assert (await ended).code == grpc.StatusCode.UNAVAILABLE


async def test_idle_connection_is_closed(config: Config) -> None:
    async with server_with(config, max_idle_seconds=0.3) as (server, _), raw_client(server.address) as idle:
        await asyncio.wait_for(idle.closed(), scaled_timeout())


@pytest.mark.parametrize("greeting", [b"", PREFACE, PREFACE[:5]], ids=["nothing", "half", "a few bytes"])
async def test_connection_without_handshake_is_closed(config: Config, greeting: bytes) -> None:
    """Also one that says nothing at all."""
    async with (
        server_with(config, handshake_timeout_seconds=0.3) as (server, stubs),
        raw_client(server.address, greeting=greeting) as silent,
    ):
        await stubs.create_post()
        await asyncio.wait_for(silent.closed(), scaled_timeout())


LARGE_ANSWERS = {
    "list": ("ListPosts", pb.ListPostsRequest(page_size=1000)),
    "repeated": (
        "BatchDeletePosts",
        pb.BatchDeletePostsRequest(ids=range(1, 61), request_id="018f6b5e-6a1c-7c3e-9d2b-3f4a5b6c7d8e"),
    ),
    "tried": ("BatchDeletePosts", pb.BatchDeletePostsRequest(ids=range(1, 61), validate_only=True)),
}
"""Requests that change nothing; the second one changes something when it is first sent."""


@pytest.mark.parametrize(("method", "request_sent"), LARGE_ANSWERS.values(), ids=LARGE_ANSWERS)
async def test_caller_that_does_not_read_is_refused_and_closed(
    config: Config, method: str, request_sent: Any
) -> None:
    """Pending responses per connection are limited."""
    async with server_with(
        config, max_pending_response_bytes_per_connection=7_000_000, max_call_seconds=1.5
    ) as (server, stubs):
        posts = ResourceApi("Post", stubs)
        await posts.create_many(60, "x" * 50_000)
        others = getattr(stubs.posts, method)
        await others(request_sent)
        greeting = PREFACE + frame(SETTINGS, 0, 0)
        async with raw_client(server.address, greeting=greeting) as stuck:
            for _ in range(20):
                stuck.call(f"/storeapi.v1.PostService/{method}", request_sent.SerializeToString())
            pending_responses = server.pipeline._pending
            seen: list[int] = []
            await eventually(lambda: noted(seen, pending_responses) > 6_000_000)
            # Other callers get their responses in the meantime.
            assert len((await others(request_sent)).posts) == 60
            # Sooner than gRPC finds out that it does not answer.
            await eventually(lambda: not noted(seen, pending_responses))
            assert max(seen) <= 7_000_000
            await asyncio.wait_for(stuck.closed(), scaled_timeout())


async def test_unread_connections_are_closed_together(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search for them lists all files of the process."""
    looks: list[None] = []
    look = Connections._sockets

    def counted(connections: Connections) -> Any:
        looks.append(None)
        return look(connections)

    monkeypatch.setattr(Connections, "_sockets", counted)
    monkeypatch.setattr(pending, "CUT_SECONDS", 3.0)
    request = pb.GetPostRequest(id=1).SerializeToString()
    greeting = PREFACE + frame(SETTINGS, 0, 0)
    async with server_with(config, max_call_seconds=1.5) as (server, stubs), AsyncExitStack() as stack:
        await stubs.create_post("x" * 65_536)
        pending_responses = server.pipeline._pending.connections
        clients = [
            await stack.enter_async_context(raw_client(server.address, greeting=greeting)) for _ in range(8)
        ]
        for stuck in clients:
            for _ in range(20):
                stuck.call("/storeapi.v1.PostService/GetPost", request)
        await eventually(lambda: len(pending_responses) == len(clients))
        # Sooner than gRPC finds out that they do not answer.
        await eventually(lambda: not pending_responses)
        count = len(looks)
        for stuck in clients:
            await asyncio.wait_for(stuck.closed(), scaled_timeout())

    # One search for the first due connections, and one for all others.
    assert 1 <= count <= 2


@pytest.mark.parametrize("size", [65_000, 1])
async def test_caller_that_does_not_read_small_responses_is_closed(config: Config, size: int) -> None:
    """Each of them is small, but there are a thousand; those of some KiB are limited together, too."""
    nothing_at_once = PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
    request = pb.GetPostRequest(id=1).SerializeToString()
    async with server_with(
        config, max_pending_response_bytes_per_connection=5_000_000, max_call_seconds=1.5
    ) as (server, stubs):
        await stubs.create_post("x" * size)
        async with raw_client(server.address, greeting=nothing_at_once) as stuck:
            closing = asyncio.ensure_future(stuck.closed())
            for _ in range(1000):
                stuck.call("/storeapi.v1.PostService/GetPost", request)
            pending_responses = server.pipeline._pending
            seen: list[int] = []

            def is_closed() -> bool:
                noted(seen, pending_responses)
                return closing.done()

            await eventually(is_closed)
            # Everybody else has what they want.
            await stubs.posts.GetPost(pb.GetPostRequest(id=1))
            await eventually(lambda: not pending_responses.size)

    assert max(seen) <= 5_000_000
    assert (max(seen) > 4_000_000) == (size > 1)


def noted(seen: list[int], unread: Pending) -> int:
    """Bytes that the worst connection has not read now; they are remembered."""
    seen.append(max([it.size for it in unread.connections.values()], default=0))
    return seen[-1]


# Read-only mode


async def test_read_only_server_refuses_writes(config: Config) -> None:
    """READ_ONLY comes after validation."""
    async with server_with(config) as (_, stubs):
        await stubs.create_post("there")
    before = database_contents(config.DATABASE_URL)
    async with server_with(config, read_only=True) as (_, stubs):
        posts = ResourceApi("Post", stubs)
        watch = stubs.changes.Watch(changes_pb2.WatchRequest(earliest=True))
        told = await watch.read()
        while not told.changes:
            told = await watch.read()
        watch.cancel()
        read = await posts.get(1)
        refused = [
            await expect_error(call)
            for call in (
                posts.create(posts.draft()),
                posts.create(posts.draft(), validate_only=True),
                posts.update(posts.resource(id=1, body="x")),
                posts.delete(1),
                posts.batch_create([posts.draft()]),
                posts.batch_delete([1]),
                stubs.create_comment(1),
            )
        ]
        invalid = await expect_error(posts.create(posts.draft("")))

    assert read.body == told.changes[0].post.body == "there"
    assert {(it.code, it.reason) for it in refused} == {(grpc.StatusCode.FAILED_PRECONDITION, "READ_ONLY")}
    assert invalid.reason == "FIELD_INVALID"
    assert database_contents(config.DATABASE_URL) == before


# Connections that gRPC does not limit

SENDING = "closed connections with incomplete requests"


async def test_connections_per_address_are_limited(config: Config) -> None:
    """One more is closed, and those that are there are served."""
    async with (
        server_with(config, max_connections_per_address=3) as (server, stubs),
        AsyncExitStack() as stack,
    ):
        await stubs.create_post()
        clients = [await stack.enter_async_context(raw_client(server.address)) for _ in range(6)]
        closing = [asyncio.ensure_future(client.closed()) for client in clients]
        await eventually(lambda: sum(it.done() for it in closing) == 4)
        await stubs.create_post()
        for it in closing:
            it.cancel()


async def test_connections_without_calls_are_closed_when_crowded(config: Config) -> None:
    """They speak HTTP/2, read pings, and make no call; new callers get in as soon as these are closed."""
    settings = {"max_connections": 5, "max_connections_per_address": 5, "handshake_timeout_seconds": 1.0}
    async with server_with(config, **settings) as (server, stubs), AsyncExitStack() as stack:
        await stubs.create_post()
        clients = [await stack.enter_async_context(raw_client(server.address)) for _ in range(4)]
        closing = [asyncio.ensure_future(client.closed()) for client in clients]
        async with asyncio.timeout(scaled_timeout()):
            await asyncio.gather(*closing)
        # The client sees the end of its connection before the server stops counting it.
        health = await health_of(server.address, waits=True)
        await stubs.create_post()

    assert health == health_pb2.HealthCheckResponse.SERVING


LITTLE_MEMORY = {"max_request_bytes": 400_000, "max_concurrent_bytes": 500_000}


async def test_endless_uploads_are_closed(config: Config) -> None:
    with capture_logs() as logged:
        async with (
            server_with(config, **LITTLE_MEMORY) as (server, stubs),
            raw_client(server.address) as rude,
        ):
            closing = asyncio.ensure_future(rude.closed())
            for _ in range(20):
                rude.begin("/storeapi.v1.PostService/CreatePost", bytes(60_000), size=300_000)
            await asyncio.wait_for(closing, scaled_timeout())
            await stubs.create_post()

    assert [it["limit"] for it in logged if it["event"] == SENDING] == [500_000]


async def test_metadata_does_not_count_as_an_endless_upload(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends a long token with each of many small calls is not cut off."""
    looks: list[int] = []
    original = ConnectionLimits.connections_to_close

    def counted(limits: ConnectionLimits, found: Mapping[str, int], now: float) -> set[str]:
        looks.append(max(found.values()))
        return original(limits, found, now)

    monkeypatch.setattr(ConnectionLimits, "connections_to_close", counted)
    monkeypatch.setattr(connection_limits, "INSPECTION_SECONDS", 0.05)
    metadata = (("authorization", "Bearer " + secrets.token_hex(3500)),)
    request = pb.GetPostRequest(id=1)
    with capture_logs() as logged:
        async with server_with(config, max_concurrent_bytes=4_000_000) as (_, stubs):
            await stubs.create_post()
            while not looks or looks[-1] < 12_000_000:
                calls = [stubs.posts.GetPost(request, metadata=metadata) for _ in range(100)]
                await asyncio.gather(*calls)
                seen = len(looks)
                await eventually(lambda seen=seen: len(looks) > seen)

    assert SENDING not in [it["event"] for it in logged]


async def test_connection_that_only_resets_calls_is_closed(config: Config) -> None:
    request = pb.GetPostRequest(id=1).SerializeToString()
    with capture_logs() as logged:
        async with (
            server_with(config, **LITTLE_MEMORY) as (server, stubs),
            raw_client(server.address) as rude,
        ):
            closing = asyncio.ensure_future(rude.closed())
            async with asyncio.timeout(scaled_timeout()):
                while not closing.done():
                    for _ in range(100):
                        rude.reset(rude.call("/storeapi.v1.PostService/GetPost", request))
                    await asyncio.sleep(0)
            await stubs.create_post()

    assert [it["limit"] for it in logged if it["event"] == SENDING] == [500_000]
