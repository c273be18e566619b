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
from store_service.database.connect import open_store
from store_service.errors import DatabaseUnavailable
from store_service.model import Change, Filter, PostDraft, WatchStart
from store_service.rpc import changes as rpc_changes
from store_service.rpc import guard
from store_service.server import serving
from store_service.store.changes import Changes, Piece
from store_service.store.feed import Feed
from store_service.store.posts import Posts
from tests.patience import patience
from tests.rpc.helpers import ON_POSTGRESQL, ONE_ENGINE, become, outcome_of, stoppable
from tests.support import LITTLE_AHEAD, Stubs, error_seen
from tests.watching import Watch, begun, refusal, token_of_now, watching

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
    """Tries until a watch is let in."""
    while True:
        async with watching(channel) as watch:
            try:
                await watch.read()
                return
            except grpc.aio.AioRpcError as error:
                reason = error_seen(error).reason
        assert reason == "WATCH_LIMIT"


# Callers that do not read


async def test_a_caller_that_does_not_read_keeps_nobody_waiting(
    stubs: Stubs, channel: grpc.aio.Channel
) -> None:
    """Others write 20 MB and watch them meanwhile; when it reads at last, nothing is missing."""
    async with begun(channel) as slow, begun(channel) as other:
        ids = await write_much(stubs)
        assert [it.id for it in await other.changes(len(ids))] == ids

        assert [it.id for it in await slow.changes(len(ids))] == ids


async def test_a_caller_that_reads_nothing_is_ended_and_frees_its_place(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After STALL_SECONDS with nothing read; it goes on from what it has read, if it reads again."""
    monkeypatch.setattr(guard, "STALL_SECONDS", 0.5)
    async with channel_to(with_max_watches(config, 1), LITTLE_AHEAD) as channel:
        ids = await write_much(Stubs(channel))
        async with watching(channel, earliest=True) as stalled:
            await stalled.read()
            async with asyncio.timeout(patience()):
                await let_in(channel)
            read, error = await stalled.rest()
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STREAM_STALLED")
        assert len(read) < len(ids)
        async with watching(channel, resume_token=stalled.token) as watch:
            assert read + [it.id for it in await watch.changes(len(ids) - len(read))] == ids


@ONE_ENGINE
async def test_a_caller_that_reads_slowly_is_not_ended(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes for all, while it reads something in STALL_SECONDS."""
    monkeypatch.setattr(guard, "STALL_SECONDS", 0.5)
    async with channel_to(config, LITTLE_AHEAD) as channel:
        ids = await write_much(Stubs(channel), at_once=4)
        told: list[int] = []
        pauses = 0
        async with watching(channel, earliest=True) as watch:
            while len(told) < len(ids):
                told += [it.id for it in (await watch.read()).changes]
                await asyncio.sleep(PAUSE_SECONDS)  # Slowness is what the rule is about.
                pauses += 1

    assert told == ids
    assert pauses * PAUSE_SECONDS > 2 * guard.STALL_SECONDS


# How many


async def test_so_many_watches_and_no_more(config: Config) -> None:
    """One more is refused and says what the limit is; one that is closed makes room for another."""
    async with channel_to(with_max_watches(config, 3)) as channel, AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(begun(channel)) for _ in range(3)]
        error = await refusal(channel)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCH_LIMIT")
        assert error.metadata == {"limit": "3"}
        watches[1].close()
        async with asyncio.timeout(patience()):
            await let_in(channel)

        post = await Stubs(channel).create_post()
        for watch in (watches[0], watches[2]):
            assert [it.post for it in await watch.changes(1)] == [post]


@ONE_ENGINE
async def test_a_watch_that_is_refused_takes_no_place(config: Config) -> None:
    """Whatever is wrong with it, and however often."""
    async with channel_to(with_max_watches(config, 1)) as channel:
        for _ in range(5):
            assert (await refusal(channel, resume_token="nonsense")).reason == "RESUME_TOKEN_INVALID"
            assert (await refusal(channel, post_ids=[0])).reason == "FIELD_INVALID"
        async with begun(channel):
            pass


@ONE_ENGINE
async def test_no_watches_may_be_allowed(config: Config) -> None:
    """With max_watches 0 everything else still works."""
    async with channel_to(with_max_watches(config, 0)) as channel:
        assert (await refusal(channel)).reason == "WATCH_LIMIT"
        assert (await Stubs(channel).create_post()).id == 1


# A server that stops


async def test_a_server_that_stops_gives_each_watch_its_last_token(database_url: str) -> None:
    """The last response and the error have the same, and from it nothing is missed on another server."""
    # A stop that waits for the watches would last for an hour.
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", grace_seconds=3600)
    async with stoppable(config) as server, grpc.aio.insecure_channel(server.running.address) as channel:
        stubs = Stubs(channel)
        async with begun(channel) as busy, begun(channel, post_ids=[987]) as quiet:
            before = [await stubs.create_post(f"before {n}") for n in range(3)]
            told = [it.id for it in await busy.until(before[-1].id)]
            stopped = server.stop()
            ends = []
            for watch in (busy, quiet):
                error = await watch.end()
                assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
                assert error.metadata == {"resume_token": watch.token}
                ends.append(watch.token)
        async with asyncio.timeout(patience()):
            await stopped
    assert told == [it.id for it in before]

    async with channel_to(config) as channel:
        after = [await Stubs(channel).create_post(f"after {n}") for n in range(3)]
        async with watching(channel, resume_token=ends[0]) as watch:
            assert [it.post for it in await watch.changes(3)] == after
        async with watching(channel, resume_token=ends[1]) as watch:
            assert [it.post for it in await watch.until(after[-1].id)][-3:] == after


async def test_a_server_that_stops_while_much_is_written_loses_no_watch_its_place(database_url: str) -> None:
    """Writers go on until they are refused: whatever was answered is told before or after the stop."""
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0")
    answered: list[int] = []
    told: list[int] = []

    async def write(stubs: Stubs) -> None:
        while not isinstance(outcome := await outcome_of(stubs.create_post()), grpc.RpcError):
            answered.append(outcome.id)

    async with (
        stoppable(config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
        begun(channel) as watch,
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
        async with watching(channel, resume_token=watch.token) as rest:
            told += [it.id for it in await rest.until(last.id)]
    assert len(told) == len(set(told))
    assert {*answered, last.id} <= set(told)


@pytest.mark.parametrize("initial_state", [False, True])
async def test_a_server_stops_also_when_a_caller_reads_nothing(
    database_url: str, initial_state: bool
) -> None:
    """Its watch is ended with the connection; what it did not read, it is told elsewhere."""
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", grace_seconds=3600)
    start = {"initial_state": True} if initial_state else {"earliest": True}
    async with stoppable(config) as server, grpc.aio.insecure_channel(server.running.address) as channel:
        ids = await write_much(Stubs(channel))
        async with watching(channel, **start) as watch:
            told = [it.id for it in (await watch.read()).changes]
            async with asyncio.timeout(patience()):
                await server.stop()
            more, error = await watch.rest()
            told += more
            assert error.code == grpc.StatusCode.UNAVAILABLE

    async with channel_to(config) as channel, watching(channel, resume_token=watch.token) as rest:
        assert told + [it.id for it in await rest.changes(len(ids) - len(told))] == ids


@ONE_ENGINE
async def test_a_server_that_stops_takes_no_new_watch(config: Config) -> None:
    """It says SHUTTING_DOWN, without a token, for none was begun."""
    async with stoppable(config) as server, grpc.aio.insecure_channel(server.running.address) as channel:
        async with begun(channel) as watch:
            server.stop()
            assert (await watch.end()).reason == "SHUTTING_DOWN"
            async with watching(channel) as late:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await late.read()
        # gRPC itself says CANCELLED to calls that meet it while it closes.
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@ONE_ENGINE
@pytest.mark.parametrize("rounds", range(8))
async def test_reading_for_all_ends_with_the_last_watch(database_url: str, rounds: int) -> None:
    """Also when something is written in the moment in which the watch is closed."""
    async with open_store(database_url, readers=1) as store:
        feed = Feed(store, max_watches=1)
        watch = feed.watch(WatchStart(), Filter(), heartbeat_seconds=10)
        await anext(watch)
        await Posts(store).create([PostDraft(body="one")])
        await anext(watch)
        # Until the reader has come to rest.
        await become(lambda: bool(feed._hint._waiters))
        feed._hint.set()
        for _ in range(rounds):
            await asyncio.sleep(0)
        await watch.aclose()

        await become(lambda: not any(it.get_name() == "feed" for it in asyncio.all_tasks()))
        async with asyncio.timeout(patience()):
            await feed.stop(1)


# What is done once for all


@asynccontextmanager
async def many_up_to_date(channel: grpc.aio.Channel, **request: Any) -> AsyncIterator[list[Watch]]:
    """Ten watches that have been told everything so far."""
    async with AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(begun(channel, **request)) for _ in range(10)]
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

    async def counted(self: Changes, *arguments: Any) -> Piece | None:
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


async def test_a_response_is_encoded_once_for_all_who_want_the_same(
    stubs: Stubs, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each filter, however many watch with it."""
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


@ON_POSTGRESQL
async def test_a_watch_skips_nothing_when_the_database_goes_and_comes_back(
    config: Config, stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """It goes on, or ends with UNAVAILABLE and its token goes on; a file has no connections to lose."""
    answered: list[int] = []
    told: list[int] = []
    is_enough = asyncio.Event()
    is_over = asyncio.Event()

    async def write() -> None:
        while not is_enough.is_set():
            outcome = await outcome_of(stubs.create_post())
            if not isinstance(outcome, grpc.RpcError):
                answered.append(outcome.id)

    async def watch_until_over() -> None:
        token = ""
        while not (is_over.is_set() and answered[-1] in told):
            request: dict[str, Any] = {"resume_token": token} if token else {"earliest": True}
            async with watching(channel, heartbeat_interval=Duration(seconds=1), **request) as watch:
                while not (is_over.is_set() and answered[-1] in told):
                    response = await outcome_of(watch.read())
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
            await become(lambda count=count: len(answered) > count + 30)  # type: ignore[misc]
            await asyncio.to_thread(end_all_connections, database_url)
        count = len(answered)
        await become(lambda: len(answered) > count + 30)
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


async def test_a_failing_read_ends_a_watch_rather_than_skip(
    stubs: Stubs, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails while changes come, in the one reader and in the watches: none is left out."""
    token = await token_of_now(channel)
    read_after = Changes.read_after
    calls = 0

    async def failing(self: Changes, *arguments: Any) -> Piece | None:
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
            async with watching(channel, resume_token=token) as watch:
                while ids[-1] not in told:
                    response = await outcome_of(watch.read())
                    if isinstance(response, grpc.RpcError):
                        assert response.code() == grpc.StatusCode.UNAVAILABLE
                        break
                    told += [it.id for it in response.changes]
                    token = watch.token

    assert told == ids
