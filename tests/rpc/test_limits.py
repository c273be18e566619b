"""Limits: what is let in at each of them, what one more gets, and that others are served meanwhile."""

import asyncio
import secrets
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
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
from store_service.rpc.decoding import Unpacker
from store_service.rpc.health import MAX_WATCHES_PER_CONNECTION
from store_service.rpc.limits import Rates
from store_service.rpc.pending import Pending
from store_service.server import RunningServer, serving
from tests.frames import INITIAL_WINDOW_SIZE, PREFACE, SETTINGS, frame, raw_client
from tests.patience import patience
from tests.rpc.helpers import Side, Taken, become, contents, locked, outcome_of
from tests.support import Stubs, error_seen, failure


@pytest.fixture
def database_url(database_file: Path) -> str:
    """One engine is enough: what is refused here never reaches it."""
    return f"sqlite:///{database_file}"


@asynccontextmanager
async def limited(config: Config, **settings: Any) -> AsyncIterator[tuple[RunningServer, Stubs]]:
    """A server with other limits, and the stubs on a channel to it."""
    async with (
        serving(config.model_copy(update=settings)) as server,
        grpc.aio.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        yield server, Stubs(channel)


async def health_of(address: str, *, waits: bool = False) -> int:
    """Returns the answer of the health service on a new connection; `waits` repeats a refused connection."""
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=patience(), wait_for_ready=waits
        )
        return int(answer.status)


# Calls that run at once


async def test_calls_up_to_the_limit_run_and_one_more_is_refused(config: Config, taken: Taken) -> None:
    """OVERLOADED: nothing of it was done; health answers; and when one has ended another is let in."""
    async with limited(config, max_concurrent_calls=3) as (server, stubs):
        with locked(config.DATABASE_URL):
            before = taken.arrived
            running = [asyncio.ensure_future(stubs.create_post(f"{n}")) for n in range(3)]
            await taken.arrive(3, since=before)
            refused = await failure(stubs.create_post("one more"))
            health = await health_of(server.address)
        await asyncio.gather(*running)
        await stubs.create_post("after")

    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
    assert refused.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert health == health_pb2.HealthCheckResponse.SERVING
    assert sorted(row[1] for row in contents(config.DATABASE_URL).posts) == ["0", "1", "2", "after"]


async def test_large_requests_that_run_at_once_have_a_limit_together(config: Config, taken: Taken) -> None:
    """Small ones are let in beside them; and when a large one has ended the next is let in."""
    large = [pb.CreatePostRequest(post=pb.Post(body="x" * 60_000)) for _ in range(30)]
    batch = pb.BatchCreatePostsRequest(requests=large)
    size = batch.ByteSize()
    async with limited(config, max_concurrent_bytes=2 * size) as (_, stubs):
        with locked(config.DATABASE_URL):
            before = taken.arrived
            running = [asyncio.ensure_future(outcome_of(stubs.posts.BatchCreatePosts(batch))) for _ in "12"]
            await taken.arrive(2, since=before)
            refused = await failure(stubs.posts.BatchCreatePosts(batch))
            running.append(asyncio.ensure_future(stubs.create_post("small")))
            await taken.arrive(3, since=before)
        await asyncio.gather(*running)
        for _ in range(3):
            await stubs.posts.BatchCreatePosts(batch)

    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
    assert refused.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert len(contents(config.DATABASE_URL).posts) == 5 * 30 + 1


async def test_overload_comes_before_what_is_wrong_with_the_request(config: Config, taken: Taken) -> None:
    """Whoever is refused costs no validation."""
    async with limited(config, max_concurrent_calls=1) as (_, stubs):
        with locked(config.DATABASE_URL):
            before = taken.arrived
            running = asyncio.ensure_future(stubs.create_post("running"))
            await taken.arrive(1, since=before)
            refused = await failure(stubs.create_post(""))
        await running

    assert refused.reason == "OVERLOADED"


async def test_watches_do_not_count_as_calls(config: Config) -> None:
    """They have a limit of their own, and last."""
    async with limited(config, max_concurrent_calls=2) as (_, stubs):
        watches = [stubs.changes.Watch(changes_pb2.WatchRequest()) for _ in range(5)]
        for watch in watches:
            await watch.read()

        assert (await stubs.create_post()).id == 1
        for watch in watches:
            watch.cancel()


async def test_other_streams_are_limited_as_calls_are(config: Config) -> None:
    """As many, counted by themselves."""
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    async with (
        limited(config, max_concurrent_calls=2) as (server, stubs),
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        streams = []
        for _ in range(2):
            streams.append(reflection.ServerReflectionInfo())
            await streams[-1].write(question)
            await streams[-1].read()
        third = await outcome_of(reflection.ServerReflectionInfo().read())

        assert (await stubs.create_post()).id == 1
    assert error_seen(third).reason == "OVERLOADED"


# Health watches


async def healthy(channel: grpc.aio.Channel) -> Any:
    """A health watch that has been let in."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    return watch


async def test_a_connection_has_only_so_many_health_watches(config: Config) -> None:
    """One more gets WATCH_LIMIT; a check is answered, and when one has ended another is let in."""
    async with limited(config) as (server, _), grpc.aio.insecure_channel(server.address) as channel:
        watches = [await healthy(channel) for _ in range(MAX_WATCHES_PER_CONNECTION)]
        refused = await failure(healthy(channel))
        stub = health_pb2_grpc.HealthStub(channel)
        check = await stub.Check(health_pb2.HealthCheckRequest())
        others = await health_of(server.address)
        watches[0].cancel()
        await become(lambda: server.guard._running < len(watches))
        await healthy(channel)

    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCH_LIMIT")
    assert refused.message.startswith("20 health watches are open on this connection")
    assert refused.metadata == {"limit": "20"}
    assert refused.detail(error_details_pb2.QuotaFailure).violations
    assert check.status == others == health_pb2.HealthCheckResponse.SERVING


async def test_health_watches_of_all_are_limited_but_for_the_first_of_each_connection(config: Config) -> None:
    """Who has them all keeps nobody from the one that a client needs."""
    alone = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        limited(config, max_connections=3) as (server, _),
        grpc.aio.insecure_channel(server.address, alone) as channel,
        grpc.aio.insecure_channel(server.address, alone) as another,
    ):
        watches = [await healthy(channel) for _ in range(3)]
        refused = await failure(healthy(channel))
        await healthy(another)
        second = await failure(healthy(another))
        for watch in watches:
            watch.cancel()
        await become(lambda: server.guard._running == 1)
        await healthy(another)

    assert refused.reason == second.reason == "WATCH_LIMIT"
    assert refused.message.startswith("3 health watches are open on this server process")


# Calls of one caller


async def test_a_caller_above_its_rate_is_told_when_to_come_again(config: Config) -> None:
    """RATE_LIMITED, with the rate and the time; health is not counted."""
    async with limited(config, caller_calls_per_second=0.01) as (server, stubs):
        await stubs.create_post()
        refused = await failure(stubs.create_post())
        health = await health_of(server.address)

    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert refused.metadata == {"calls_per_second": "0.01"}
    assert refused.detail(error_details_pb2.QuotaFailure).violations
    assert 90 <= refused.detail(error_details_pb2.RetryInfo).retry_delay.ToSeconds() <= 100
    assert refused.trailing["grpc-retry-pushback-ms"]
    assert health == health_pb2.HealthCheckResponse.SERVING
    assert len(contents(config.DATABASE_URL).posts) == 1


def test_a_second_worth_of_calls_may_come_at_once_and_one_more_must_wait() -> None:
    """Each caller has a bucket of its own, which fills steadily."""
    now = 100.0
    rates = Rates(4, clock=lambda: now)
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


def test_a_bucket_holds_no_more_than_a_second_worth() -> None:
    """Who has been away for long may not come back with all of it."""
    now = 0.0
    rates = Rates(2, clock=lambda: now)
    rates.take("a")
    now = 1000.0
    rates.take("a")
    rates.take("a")

    with pytest.raises(RateLimited):
        rates.take("a")


def test_only_so_many_callers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays flat, whoever calls; the one who has not called for longest is forgotten."""
    monkeypatch.setattr(limits, "MAX_CALLERS", 2)
    rates = Rates(1, clock=lambda: 0.0)
    rates.take("a")
    rates.take("b")
    rates.take("c")

    assert list(rates._buckets) == ["b", "c"]


# The time of a call


@pytest.mark.parametrize("deadline", [None, 60], ids=["no deadline", "a longer one"])
async def test_a_call_takes_no_longer_than_any_may(config: Config, deadline: float | None) -> None:
    """DEADLINE_EXCEEDED, with the call's id; what was asked for is not done, and the next call is fine."""
    async with limited(config, max_call_seconds=0.3) as (server, stubs):
        with locked(config.DATABASE_URL):
            request = pb.CreatePostRequest(post=pb.Post(body="too slow"), validate_only=True)
            error = await failure(stubs.posts.CreatePost(request, timeout=deadline))
            await become(lambda: server.guard._running == 0)
        assert (await stubs.create_post("the next")).body == "the next"

    assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.trailing["x-call-id"]


async def test_calls_that_take_less_and_watches_are_not_cut(config: Config) -> None:
    """The cap is of unary calls alone."""
    async with limited(config, max_call_seconds=0.3) as (_, stubs):
        watch = stubs.changes.Watch(changes_pb2.WatchRequest())
        await watch.read()
        with locked(config.DATABASE_URL):
            slow = await failure(stubs.create_post("too slow"))
        after = asyncio.ensure_future(watch.read())
        await stubs.create_post("told")

        assert (await asyncio.wait_for(after, patience())).changes
        watch.cancel()
    assert slow.code == grpc.StatusCode.DEADLINE_EXCEEDED


# Sizes


async def test_a_request_as_large_as_may_be_is_taken_and_one_byte_more_is_not(config: Config) -> None:
    """What counts are the bytes of the message, also of one that was compressed."""
    largest = pb.CreatePostRequest(post=pb.Post(body="x" * 3000))
    limit = largest.ByteSize()
    async with limited(config, max_request_bytes=limit) as (_, stubs):
        for compression in grpc.Compression:
            created = await stubs.posts.CreatePost(largest, compression=compression)
            assert created.body == largest.post.body
            larger = pb.CreatePostRequest(post=pb.Post(body="x" * 3001))
            refused = await failure(stubs.posts.CreatePost(larger, compression=compression))
            assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_grpc_leaves_packed_requests_to_the_guard(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would unpack all that have come at once."""
    sizes: list[int] = []
    decoded = Unpacker.decoded

    async def seen(unpacker: Unpacker, data: bytes, *arguments: Any) -> Message:
        sizes.append(len(data))
        return await decoded(unpacker, data, *arguments)

    monkeypatch.setattr(Unpacker, "decoded", seen)
    request = pb.CreatePostRequest(post=pb.Post(body="x" * 10_000))
    async with limited(config) as (_, stubs):
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            assert (await stubs.posts.CreatePost(request, compression=compression)).body == request.post.body

    assert len(sizes) == 2
    assert max(sizes) < 1000


async def test_metadata_as_large_as_may_be_is_taken_and_one_byte_more_is_not(config: Config) -> None:
    """gRPC counts keys and values and 32 for each, those of HTTP/2 too."""
    limit = 4096
    async with limited(config, max_metadata_bytes=limit) as (_, stubs):

        async def outcome(length: int) -> Any:
            request = pb.ListPostsRequest()
            return await outcome_of(stubs.posts.ListPosts(request, metadata=(("x-note", "y" * length),)))

        refused = error_seen(await outcome(limit - 100))
        size = int(refused.message.partition("(")[2].split()[0])
        most = limit - 100 - (size - limit)
        at_the_limit = await outcome(most)
        above = error_seen(await outcome(most + 1))

    assert isinstance(at_the_limit, pb.ListPostsResponse)
    assert (refused.code, above.code) == (grpc.StatusCode.RESOURCE_EXHAUSTED,) * 2


async def test_metadata_below_a_large_limit_is_always_taken(config: Config) -> None:
    """gRPC has a lower limit of its own, above which it refuses some calls by chance."""
    async with limited(config, max_metadata_bytes=65536) as (_, stubs):
        for _ in range(20):
            await stubs.posts.ListPosts(pb.ListPostsRequest(), metadata=(("x-note", "y" * 60_000),))


async def test_a_batch_as_large_as_may_be_is_taken_and_one_more_is_not(config: Config) -> None:
    """BATCH_TOO_LARGE tells the limit that is set."""
    async with limited(config, max_batch_size=3) as (_, stubs):
        posts = Side("Post", stubs)
        await posts.several(3)
        refused = [
            await failure(posts.batch_create([posts.draft()] * 4)),
            await failure(posts.batch_get([1, 2, 3, 4])),
            await failure(posts.batch_delete([1, 2, 3, 4])),
        ]

    assert [(it.reason, it.metadata) for it in refused] == [
        ("BATCH_TOO_LARGE", {"count": "4", "max_count": "3"})
    ] * 3


async def test_a_page_holds_no_more_than_may_be(config: Config) -> None:
    """Who asks for more gets so many, and the rest on further pages."""
    async with limited(config, max_page_size=3) as (_, stubs):
        posts = Side("Post", stubs)
        await posts.several(7)
        pages = [await posts.all_pages(page_size=size) for size in (3, 4)]

    assert [[len(page) for page in each] for each in pages] == [[3, 3, 1]] * 2


# Connections


async def test_streams_above_the_limit_of_a_connection_wait_with_the_client(
    config: Config, taken: Taken
) -> None:
    """Two run, the third is sent when one has ended; other connections are not concerned."""
    async with limited(config, max_streams_per_connection=2) as (server, stubs):
        await stubs.create_post("so that the client knows the limit")
        with locked(config.DATABASE_URL):
            before = taken.arrived
            running = [asyncio.ensure_future(stubs.create_post(f"{n}")) for n in range(2)]
            await taken.arrive(2, since=before)
            waiting = await failure(stubs.posts.GetPost(pb.GetPostRequest(id=1), timeout=0.5))
            health = await health_of(server.address)
        await asyncio.gather(*running)
        after = await stubs.posts.GetPost(pb.GetPostRequest(id=1))

    # A read, which would have been answered: the database is locked for writes alone.
    assert waiting.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert health == health_pb2.HealthCheckResponse.SERVING
    assert after.id == 1


async def test_connections_up_to_the_limit_are_served_and_one_more_is_closed(config: Config) -> None:
    """Those that are there go on; when one has gone, another is let in."""
    alone = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        server, stubs = await stack.enter_async_context(limited(config, max_connections=2))
        second = grpc.aio.insecure_channel(server.address, alone)
        third = await stack.enter_async_context(grpc.aio.insecure_channel(server.address, alone))
        await stubs.create_post("1")
        await Stubs(second).create_post("2")
        refused = await failure(Stubs(third).create_post("3"))
        await stubs.create_post("4")
        await second.close()
        async with asyncio.timeout(patience()):
            while isinstance(  # noqa: ASYNC110  # nothing tells of it
                await outcome_of(Stubs(third).create_post("5")), grpc.RpcError
            ):
                await asyncio.sleep(0.05)

    assert refused.code == grpc.StatusCode.UNAVAILABLE


async def test_an_old_connection_is_replaced_and_no_call_fails(config: Config) -> None:
    """Calls go over another one then; a watch may go on for the grace period, and goes on elsewhere."""
    async with limited(config, max_connection_seconds=0.3, max_connection_grace_seconds=0.5) as (_, stubs):
        watch = stubs.changes.Watch(changes_pb2.WatchRequest())
        await watch.read()
        ended = asyncio.ensure_future(failure(watch.read()))
        async with asyncio.timeout(patience()):
            while not ended.done():
                await stubs.posts.ListPosts(pb.ListPostsRequest())

    assert (await ended).code == grpc.StatusCode.UNAVAILABLE


async def test_an_idle_connection_is_closed(config: Config) -> None:
    """Nobody calls on it; a client would open another for its next call."""
    async with limited(config, max_idle_seconds=0.3) as (server, _), raw_client(server.address) as idle:
        await asyncio.wait_for(idle.closed(), patience())


@pytest.mark.parametrize("greeting", [b"", PREFACE, PREFACE[:5]], ids=["nothing", "half", "a few bytes"])
async def test_a_connection_that_does_not_begin_is_closed(config: Config, greeting: bytes) -> None:
    """Also one that says nothing at all."""
    async with (
        limited(config, handshake_seconds=0.3) as (server, stubs),
        raw_client(server.address, greeting=greeting) as silent,
    ):
        await stubs.create_post()
        await asyncio.wait_for(silent.closed(), patience())


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
async def test_who_does_not_read_is_refused_and_cut_off(
    config: Config, method: str, request_sent: Any
) -> None:
    """Large answers that wait for a connection are limited; after the longest time of a call it is closed."""
    async with limited(config, max_unsent_bytes=7_000_000, max_call_seconds=1.5) as (server, stubs):
        posts = Side("Post", stubs)
        await posts.several(60, "x" * 50_000)
        others = getattr(stubs.posts, method)
        await others(request_sent)
        greeting = PREFACE + frame(SETTINGS, 0, 0)
        async with raw_client(server.address, greeting=greeting) as stuck:
            for _ in range(20):
                stuck.call(f"/storeapi.v1.PostService/{method}", request_sent.SerializeToString())
            unsent = server.guard._pending
            seen: list[int] = []
            await become(lambda: noted(seen, unsent) > 6_000_000)
            # Everybody else has what they want meanwhile.
            assert len((await others(request_sent)).posts) == 60
            # Sooner than gRPC finds out that it does not answer.
            await become(lambda: not noted(seen, unsent))
            assert max(seen) <= 7_000_000
            await asyncio.wait_for(stuck.closed(), patience())


async def test_those_who_do_not_read_are_cut_off_together(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find a connection all files of the process are looked at, so it is not done for each answer."""
    looks: list[None] = []
    look = Connections._sockets

    def counted(connections: Connections) -> Any:
        looks.append(None)
        return look(connections)

    monkeypatch.setattr(Connections, "_sockets", counted)
    monkeypatch.setattr(pending, "CUT_SECONDS", 3.0)
    request = pb.GetPostRequest(id=1).SerializeToString()
    greeting = PREFACE + frame(SETTINGS, 0, 0)
    async with limited(config, max_call_seconds=1.5) as (server, stubs), AsyncExitStack() as stack:
        await stubs.create_post("x" * 65_536)
        unsent = server.guard._pending.connections
        clients = [
            await stack.enter_async_context(raw_client(server.address, greeting=greeting)) for _ in range(8)
        ]
        for stuck in clients:
            for _ in range(20):
                stuck.call("/storeapi.v1.PostService/GetPost", request)
        await become(lambda: len(unsent) == len(clients))
        # Sooner than gRPC finds out that they do not answer.
        await become(lambda: not unsent)
        count = len(looks)
        for stuck in clients:
            await asyncio.wait_for(stuck.closed(), patience())

    # The first who are due, and everybody else.
    assert 1 <= count <= 2


@pytest.mark.parametrize("size", [65_000, 1])
async def test_who_takes_no_small_answers_is_cut_off(config: Config, size: int) -> None:
    """Each of them is small, but there are a thousand; those of some KiB are limited together, too."""
    nothing_at_once = PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
    request = pb.GetPostRequest(id=1).SerializeToString()
    async with limited(config, max_unsent_bytes=5_000_000, max_call_seconds=1.5) as (server, stubs):
        await stubs.create_post("x" * size)
        async with raw_client(server.address, greeting=nothing_at_once) as stuck:
            closing = asyncio.ensure_future(stuck.closed())
            for _ in range(1000):
                stuck.call("/storeapi.v1.PostService/GetPost", request)
            unsent = server.guard._pending
            seen: list[int] = []

            def is_closed() -> bool:
                noted(seen, unsent)
                return closing.done()

            await become(is_closed)
            # Everybody else has what they want.
            await stubs.posts.GetPost(pb.GetPostRequest(id=1))
            await become(lambda: not unsent.size)

    assert max(seen) <= 5_000_000
    assert (max(seen) > 4_000_000) == (size > 1)


def noted(seen: list[int], unread: Pending) -> int:
    """Bytes that the worst connection has not read now; they are remembered."""
    seen.append(max([it.size for it in unread.connections.values()], default=0))
    return seen[-1]


# Read-only mode


async def test_a_read_only_server_reads_and_watches_and_refuses_writes(config: Config) -> None:
    """READ_ONLY comes after what is wrong with the request, for the same request may be sent again later."""
    async with limited(config) as (_, stubs):
        await stubs.create_post("there")
    before = contents(config.DATABASE_URL)
    async with limited(config, read_only=True) as (_, stubs):
        posts = Side("Post", stubs)
        watch = stubs.changes.Watch(changes_pb2.WatchRequest(earliest=True))
        told = await watch.read()
        while not told.changes:
            told = await watch.read()
        watch.cancel()
        read = await posts.get(1)
        refused = [
            await failure(call)
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
        invalid = await failure(posts.create(posts.draft("")))

    assert read.body == told.changes[0].post.body == "there"
    assert {(it.code, it.reason) for it in refused} == {(grpc.StatusCode.FAILED_PRECONDITION, "READ_ONLY")}
    assert invalid.reason == "FIELD_INVALID"
    assert contents(config.DATABASE_URL) == before


# Connections that gRPC does not limit

SENDING = "closed connections with incomplete requests"


async def test_an_address_has_only_so_many_connections(config: Config) -> None:
    """One more is closed, and those that are there are served."""
    async with limited(config, max_connections_per_address=3) as (server, stubs), AsyncExitStack() as stack:
        await stubs.create_post()
        clients = [await stack.enter_async_context(raw_client(server.address)) for _ in range(6)]
        closing = [asyncio.ensure_future(client.closed()) for client in clients]
        await become(lambda: sum(it.done() for it in closing) == 4)
        await stubs.create_post()
        for it in closing:
            it.cancel()


async def test_silent_connections_do_not_keep_others_out(config: Config) -> None:
    """They speak HTTP/2, read pings, and make no call; new callers get in as soon as these are closed."""
    settings = {"max_connections": 5, "max_connections_per_address": 5, "handshake_seconds": 1.0}
    async with limited(config, **settings) as (server, stubs), AsyncExitStack() as stack:
        await stubs.create_post()
        clients = [await stack.enter_async_context(raw_client(server.address)) for _ in range(4)]
        closing = [asyncio.ensure_future(client.closed()) for client in clients]
        async with asyncio.timeout(patience()):
            await asyncio.gather(*closing)
        # The client sees the end of its connection before the server counts it no more.
        health = await health_of(server.address, waits=True)
        await stubs.create_post()

    assert health == health_pb2.HealthCheckResponse.SERVING


LITTLE_MEMORY = {"max_request_bytes": 400_000, "max_concurrent_bytes": 500_000}


async def test_uploads_that_never_end_are_cut_off(config: Config) -> None:
    """Nobody sees them before they are whole, but their connection has received them."""
    with capture_logs() as logged:
        async with limited(config, **LITTLE_MEMORY) as (server, stubs), raw_client(server.address) as rude:
            closing = asyncio.ensure_future(rude.closed())
            for _ in range(20):
                rude.begin("/storeapi.v1.PostService/CreatePost", bytes(60_000), size=300_000)
            await asyncio.wait_for(closing, patience())
            await stubs.create_post()

    assert [it["limit"] for it in logged if it["event"] == SENDING] == [500_000]


async def test_metadata_is_no_request_that_never_ends(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends a long token with each of many small calls is not cut off."""
    looks: list[int] = []
    judge = ConnectionLimits.judge

    def counted(limits: ConnectionLimits, found: Mapping[str, int], now: float) -> set[str]:
        looks.append(max(found.values()))
        return judge(limits, found, now)

    monkeypatch.setattr(ConnectionLimits, "judge", counted)
    monkeypatch.setattr(connection_limits, "LOOK_SECONDS", 0.05)
    metadata = (("authorization", "Bearer " + secrets.token_hex(3500)),)
    request = pb.GetPostRequest(id=1)
    with capture_logs() as logged:
        async with limited(config, max_concurrent_bytes=4_000_000) as (_, stubs):
            await stubs.create_post()
            while not looks or looks[-1] < 12_000_000:
                calls = [stubs.posts.GetPost(request, metadata=metadata) for _ in range(100)]
                await asyncio.gather(*calls)
                seen = len(looks)
                await become(lambda seen=seen: len(looks) > seen)

    assert SENDING not in [it["event"] for it in logged]


async def test_a_connection_that_only_resets_calls_is_cut_off(config: Config) -> None:
    """gRPC drops most of them before anybody sees them."""
    request = pb.GetPostRequest(id=1).SerializeToString()
    with capture_logs() as logged:
        async with limited(config, **LITTLE_MEMORY) as (server, stubs), raw_client(server.address) as rude:
            closing = asyncio.ensure_future(rude.closed())
            async with asyncio.timeout(patience()):
                while not closing.done():
                    for _ in range(100):
                        rude.reset(rude.call("/storeapi.v1.PostService/GetPost", request))
                    await asyncio.sleep(0)
            await stubs.create_post()

    assert [it["limit"] for it in logged if it["event"] == SENDING] == [500_000]
