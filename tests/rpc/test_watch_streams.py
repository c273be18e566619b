"""Watches as streams: slow ones, dead ones, too many, and what becomes of them when something stops."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from storeapi.v1 import changes_pb2 as pb
from storeapi.v1 import posts_pb2

from store_service import config as settings
from store_service.config import Config
from store_service.database.connect import open_database
from store_service.errors import DatabaseUnavailable
from store_service.model import Change, PostDraft, WatchFilter, WatchStart
from store_service.rpc import changes as rpc_changes
from store_service.rpc import sending
from store_service.server import serving
from store_service.service.changes import ChangeBatch, Changes
from store_service.service.feed import Feed
from store_service.service.posts import Posts
from tests.support.engines import POSTGRESQL_ONLY, SQLITE_ONLY
from tests.support.errors import received_error, result_or_error
from tests.support.polling import eventually
from tests.support.stoppable_server import stoppable_server
from tests.support.stubs import NO_READ_AHEAD, Stubs
from tests.support.timeouts import scaled_timeout
from tests.support.watches import Watch, current_token, open_watch, watch_error, watch_from_now

BODY_BYTES = 60_000
MANY = 340
"""Posts of that size are 20 MB, far more than gRPC sends ahead."""

PAUSE_SECONDS = 0.02
"""Between two responses, for a caller that is slow."""


def with_max_watches(config: Config, count: int) -> Config:
    return config.model_copy(update={"max_watches": count})


@asynccontextmanager
async def channel_to(
    config: Config, options: Sequence[tuple[str, Any]] = ()
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server with these settings."""
    async with serving(config) as server, grpc.aio.insecure_channel(server.address, options) as channel:
        yield channel


async def write_much(stubs: Stubs, *, at_once: int = 34) -> list[int]:
    """20 MB of posts; returns their ids."""
    ids: list[int] = []
    request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="x" * BODY_BYTES))
    requests = posts_pb2.BatchCreatePostsRequest(requests=[request] * at_once)
    for _ in range(MANY // at_once):
        batch = await stubs.posts.BatchCreatePosts(requests)
        ids += [post.id for post in batch.posts]
    return ids


async def let_in(channel: grpc.aio.Channel) -> None:
    """Retries until a watch is accepted."""
    while True:
        async with open_watch(channel) as watch:
            try:
                await watch.read()
                return
            except grpc.aio.AioRpcError as error:
                reason = received_error(error).reason
        assert reason == "WATCH_LIMIT"


# Callers that do not read


async def test_caller_that_does_not_read_blocks_no_other(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Others write and watch 20 MB meanwhile; nothing is lost."""
    async with watch_from_now(channel) as slow, watch_from_now(channel) as other:
        ids = await write_much(stubs)
        assert [it.id for it in await other.changes(len(ids))] == ids

        assert [it.id for it in await slow.changes(len(ids))] == ids


async def test_stalled_watch_is_ended_and_frees_its_place(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After STALL_SECONDS; it continues from the last response read."""
    monkeypatch.setattr(sending, "STALL_SECONDS", 0.5)
    async with channel_to(with_max_watches(config, 1), NO_READ_AHEAD) as channel:
        ids = await write_much(Stubs(channel))
        async with open_watch(channel, earliest=True) as stalled:
            await stalled.read()
            async with asyncio.timeout(scaled_timeout()):
                await let_in(channel)
            read, error = await stalled.rest()
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STREAM_STALLED")
        assert len(read) < len(ids)
        async with open_watch(channel, resume_token=stalled.token) as watch:
            assert read + [it.id for it in await watch.changes(len(ids) - len(read))] == ids


@SQLITE_ONLY
async def test_slow_watch_is_not_ended(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it reads something in STALL_SECONDS."""
    monkeypatch.setattr(sending, "STALL_SECONDS", 0.5)
    async with channel_to(config, NO_READ_AHEAD) as channel:
        ids = await write_much(Stubs(channel), at_once=4)
        told: list[int] = []
        pauses = 0
        async with open_watch(channel, earliest=True) as watch:
            while len(told) < len(ids):
                told += [it.id for it in (await watch.read()).changes]
                await asyncio.sleep(PAUSE_SECONDS)  # Slowness is what the rule is about.
                pauses += 1

    assert told == ids
    assert pauses * PAUSE_SECONDS > 2 * sending.STALL_SECONDS


# How many


async def test_watches_are_limited(config: Config) -> None:
    """The error has the limit; a free slot is used again."""
    async with channel_to(with_max_watches(config, 3)) as channel, AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(watch_from_now(channel)) for _ in range(3)]
        error = await watch_error(channel)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCH_LIMIT")
        assert error.metadata == {"limit": "3"}
        watches[1].close()
        async with asyncio.timeout(scaled_timeout()):
            await let_in(channel)

        post = await Stubs(channel).create_post()
        for watch in (watches[0], watches[2]):
            assert [it.post for it in await watch.changes(1)] == [post]


@SQLITE_ONLY
async def test_refused_watch_uses_no_slot(config: Config) -> None:
    async with channel_to(with_max_watches(config, 1)) as channel:
        for _ in range(5):
            assert (await watch_error(channel, resume_token="nonsense")).reason == "RESUME_TOKEN_INVALID"
            assert (await watch_error(channel, post_ids=[0])).reason == "FIELD_INVALID"
        async with watch_from_now(channel):
            pass


@SQLITE_ONLY
async def test_zero_watches_may_be_allowed(config: Config) -> None:
    """Everything else works."""
    async with channel_to(with_max_watches(config, 0)) as channel:
        assert (await watch_error(channel)).reason == "WATCH_LIMIT"
        assert (await Stubs(channel).create_post()).id == 1


# A server that stops


async def test_stopping_server_gives_each_watch_its_last_token(database_url: str) -> None:
    """Nothing is lost on another server."""
    # A stop that waits for the watches would last for an hour.
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", shutdown_grace_seconds=3600)
    async with (
        stoppable_server(config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        stubs = Stubs(channel)
        async with watch_from_now(channel) as busy, watch_from_now(channel, post_ids=[987]) as quiet:
            before = [await stubs.create_post(f"before {n}") for n in range(3)]
            told = [it.id for it in await busy.until(before[-1].id)]
            stopped = server.stop()
            ends = []
            for watch in (busy, quiet):
                error = await watch.end()
                assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
                assert error.metadata == {"resume_token": watch.token}
                ends.append(watch.token)
        async with asyncio.timeout(scaled_timeout()):
            await stopped
    assert told == [it.id for it in before]

    async with channel_to(config) as channel:
        after = [await Stubs(channel).create_post(f"after {n}") for n in range(3)]
        async with open_watch(channel, resume_token=ends[0]) as watch:
            assert [it.post for it in await watch.changes(3)] == after
        async with open_watch(channel, resume_token=ends[1]) as watch:
            assert [it.post for it in await watch.until(after[-1].id)][-3:] == after


async def test_stopping_server_under_load_keeps_the_position_of_each_watch(database_url: str) -> None:
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0")
    answered: list[int] = []
    told: list[int] = []

    async def write(stubs: Stubs) -> None:
        while not isinstance(outcome := await result_or_error(stubs.create_post()), grpc.RpcError):
            answered.append(outcome.id)

    async with (
        stoppable_server(config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
        watch_from_now(channel) as watch,
        asyncio.TaskGroup() as writers,
    ):
        for _ in range(8):
            writers.create_task(write(Stubs(channel)))
        told += [it.id for it in await watch.changes(100)]
        server.stop()
        more, error = await watch.rest()
        told += more
        assert error.reason == "SHUTTING_DOWN"

    async with channel_to(config) as channel:
        last = await Stubs(channel).create_post("last")
        async with open_watch(channel, resume_token=watch.token) as rest:
            told += [it.id for it in await rest.until(last.id)]
    assert len(told) == len(set(told))
    assert {*answered, last.id} <= set(told)


@pytest.mark.parametrize("initial_state", [False, True])
async def test_server_with_a_stalled_watch_stops(database_url: str, initial_state: bool) -> None:
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", shutdown_grace_seconds=3600)
    start = {"initial_state": True} if initial_state else {"earliest": True}
    async with (
        stoppable_server(config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        ids = await write_much(Stubs(channel))
        async with open_watch(channel, **start) as watch:
            told = [it.id for it in (await watch.read()).changes]
            async with asyncio.timeout(scaled_timeout()):
                await server.stop()
            more, error = await watch.rest()
            told += more
            assert error.code == grpc.StatusCode.UNAVAILABLE

    async with channel_to(config) as channel, open_watch(channel, resume_token=watch.token) as rest:
        assert told + [it.id for it in await rest.changes(len(ids) - len(told))] == ids


@SQLITE_ONLY
async def test_stopping_server_accepts_no_watch(config: Config) -> None:
    """SHUTTING_DOWN without a token."""
    async with (
        stoppable_server(config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        async with watch_from_now(channel) as watch:
            server.stop()
            assert (await watch.end()).reason == "SHUTTING_DOWN"
            async with open_watch(channel) as late:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await late.read()
        # gRPC itself says CANCELLED to calls that meet it while it closes.
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@SQLITE_ONLY
@pytest.mark.parametrize("rounds", range(8))
async def test_shared_read_ends_with_the_last_watch(database_url: str, rounds: int) -> None:
    """Also if a write comes at the same moment."""
    async with open_database(database_url, readers=1) as store:
        feed = Feed(store, max_watches=1)
        watch = feed.watch(WatchStart(), WatchFilter(), heartbeat_seconds=10)
        await anext(watch)
        await Posts(store).create([PostDraft(body="one")])
        await anext(watch)
        # Until the reader has come to rest.
        await eventually(lambda: bool(feed._maybe_changed._waiters))
        feed._maybe_changed.set()
        for _ in range(rounds):
            await asyncio.sleep(0)
        await watch.aclose()

        await eventually(lambda: not any(it.get_name() == "feed" for it in asyncio.all_tasks()))
        async with asyncio.timeout(scaled_timeout()):
            await feed.stop(1)


# What is done once for all


@asynccontextmanager
async def many_up_to_date(channel: grpc.aio.Channel, **request: Any) -> AsyncIterator[list[Watch]]:
    """Ten watches that have received all changes so far."""
    async with AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(watch_from_now(channel, **request)) for _ in range(10)]
        post = await Stubs(channel).create_post("everybody has this")
        for watch in watches:
            await watch.until(post.id)
        yield watches


async def test_one_read_serves_all_watches(
    stubs: Stubs, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are up to date never read the database themselves."""
    readers: Counter[str] = Counter()
    read_after = Changes.read_after

    async def counted(self: Changes, *arguments: Any) -> ChangeBatch | None:
        task = asyncio.current_task()
        assert task is not None
        readers[task.get_name()] += 1
        return await read_after(self, *arguments)

    async with many_up_to_date(channel) as watches:
        monkeypatch.setattr(Changes, "read_after", counted)
        for n in range(10):
            post = await stubs.create_post(f"post {n}")
            for watch in watches:
                assert [it.post for it in await watch.until(post.id)] == [post]

    assert set(readers) == {"feed"}


async def test_response_is_encoded_once_per_filter(
    stubs: Stubs, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: Counter[int] = Counter()
    to_message = rpc_changes._change_to_message

    def counted(change: Change) -> pb.Change:
        encoded[change.resource.id] += 1
        return to_message(change)

    async with many_up_to_date(channel) as watches, many_up_to_date(channel, kinds=[1]) as others:
        for watch in watches:
            await watch.changes(1)
        monkeypatch.setattr(rpc_changes, "_change_to_message", counted)
        posts = [await stubs.create_post(f"post {n}") for n in range(5)]
        for watch in (*watches, *others):
            assert [it.post for it in await watch.changes(5)] == posts

    assert encoded == {post.id: 2 for post in posts}


# A database that goes away


@POSTGRESQL_ONLY
async def test_watch_skips_nothing_in_a_database_outage(
    config: Config, stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """It continues, or ends with UNAVAILABLE and a valid token."""
    answered: list[int] = []
    told: list[int] = []
    is_enough = asyncio.Event()
    is_over = asyncio.Event()

    async def write() -> None:
        while not is_enough.is_set():
            outcome = await result_or_error(stubs.create_post())
            if not isinstance(outcome, grpc.RpcError):
                answered.append(outcome.id)

    async def watch_until_over() -> None:
        token = ""
        while not (is_over.is_set() and answered[-1] in told):
            request: dict[str, Any] = {"resume_token": token} if token else {"earliest": True}
            async with open_watch(channel, heartbeat_interval=Duration(seconds=1), **request) as watch:
                while not (is_over.is_set() and answered[-1] in told):
                    response = await result_or_error(watch.read())
                    if isinstance(response, grpc.RpcError):
                        assert response.code() == grpc.StatusCode.UNAVAILABLE
                        break
                    told.extend(it.id for it in response.changes)
                    token = watch.token

    async with asyncio.TaskGroup() as group:
        writer = group.create_task(write())
        group.create_task(watch_until_over())
        for _ in range(3):
            count = len(answered)
            await eventually(lambda count=count: len(answered) > count + 30)  # type: ignore[misc]
            await asyncio.to_thread(end_all_connections, database_url)
        count = len(answered)
        await eventually(lambda: len(answered) > count + 30)
        is_enough.set()
        await writer
        is_over.set()

    assert told == sorted(set(told))
    assert set(answered) <= set(told)


def end_all_connections(database_url: str) -> None:
    """As a restart of PostgreSQL does."""
    with psycopg.connect(database_url, autocommit=True) as other:
        ended = other.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE application_name = 'store-service' AND datname = current_database()"
        ).fetchall()
    assert ended


async def test_failed_read_ends_a_watch_without_a_gap(
    stubs: Stubs, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the shared reader and in the watches."""
    token = await current_token(channel)
    read_after = Changes.read_after
    calls = 0

    async def failing(self: Changes, *arguments: Any) -> ChangeBatch | None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise DatabaseUnavailable
        return await read_after(self, *arguments)

    monkeypatch.setattr(Changes, "read_after", failing)
    told: list[int] = []
    ids = []
    for n in range(20):
        ids.append((await stubs.create_post(f"post {n}")).id)
        while ids[-1] not in told:
            async with open_watch(channel, resume_token=token) as watch:
                while ids[-1] not in told:
                    response = await result_or_error(watch.read())
                    if isinstance(response, grpc.RpcError):
                        assert response.code() == grpc.StatusCode.UNAVAILABLE
                        break
                    told += [it.id for it in response.changes]
                    token = watch.token

    assert told == ids
