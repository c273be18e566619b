"""Watches during a rollback of the database to an earlier state: no silent gap and no lost history."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import psycopg
import pytest

from store_service.database import connect
from store_service.database.connect import Database
from store_service.errors import ResumeTokenForeign
from store_service.model import PostDraft, ResourceKind, WatchFilter, WatchStart
from store_service.service import snapshot
from store_service.service.changes import ChangeBatch, Changes
from store_service.service.feed import POLL_SECONDS, Feed, WatchEvent
from store_service.service.posts import Posts
from tests.support.database import execute, query
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout
from tests.support.watches import watch_from_now

MORE_THAN_A_TEST = 3600.0


def last_seq(database_url: str) -> int:
    """The number of the last change."""
    ((seq,),) = query(database_url, "SELECT max(seq) FROM changes")
    assert isinstance(seq, int)
    return seq


PAYLOAD = '{"body": "new", "create_time": 1, "update_time": 1, "version": 1}'


def set_back(database_url: str, seq: int) -> None:
    """From this change on the database has others with the same numbers, as after a failover."""
    execute(
        database_url,
        f"UPDATE changes SET commit_time = commit_time + 1, payload = '{PAYLOAD}' WHERE seq >= {seq}",
    )


@pytest.mark.parametrize("somebody_writes", [True, False])
async def test_watch_ends_after_a_database_rollback(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str, somebody_writes: bool
) -> None:
    """Also if nothing is written afterwards."""
    async with AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(watch_from_now(channel)) for _ in range(3)]
        lost = await stubs.create_post("lost")
        for watch in watches:
            assert [it.post for it in await watch.changes(1)] == [lost]

        set_back(database_url, last_seq(database_url))
        if somebody_writes:
            await stubs.create_post("after")

        for watch in watches:
            ids, error = await watch.rest()
            assert (ids, error.reason) == ([], "RESUME_TOKEN_FOREIGN")


async def test_watch_continues_from_a_token_of_both_histories(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """It reports the current history, not what other watches have in memory."""
    async with watch_from_now(channel) as watch:
        kept = await stubs.create_post("kept")
        assert [it.post for it in await watch.changes(1)] == [kept]
        token = watch.token
        await stubs.create_post("lost")
        await watch.changes(1)
        set_back(database_url, last_seq(database_url))
        # Until the feed is read again, memory may tell others of what is lost; they end as this one does.
        assert (await watch.end()).reason == "RESUME_TOKEN_FOREIGN"
        async with watch_from_now(channel, resume_token=token) as other:
            assert [it.post.body for it in await other.changes(1)] == ["new"]
            after = await stubs.create_post("after")
            assert [it.post for it in await other.changes(1)] == [after]


class TestMemory:
    """What one task reads for all, and watches that stand elsewhere in it."""

    @pytest.fixture
    async def store(self, database_url: str) -> AsyncIterator[Database]:
        """An open database."""
        async with connect.open_database(database_url) as store:
            yield store

    async def test_slow_watch_continues_after_a_database_rollback(
        self, store: Database, database_url: str
    ) -> None:
        """The buffered changes of the lost history are not sent."""
        posts, feed = Posts(store), Feed(store, max_watches=10)
        slow, quick = watch_of(feed), watch_of(feed)
        await anext(slow), await anext(quick)
        await posts.create([PostDraft(body="kept")])
        assert await bodies(slow, 1) == ["kept"]
        assert await bodies(quick, 1) == ["kept"]
        await posts.create([PostDraft(body="lost")])
        assert await bodies(quick, 1) == ["lost"]

        set_back(database_url, last_seq(database_url))
        with pytest.raises(ResumeTokenForeign):
            await anext(quick)

        assert await bodies(slow, 1) == ["new"]
        await posts.create([PostDraft(body="after")])
        assert await bodies(slow, 1) == ["after"]
        await slow.aclose()

    async def test_watch_ahead_of_the_buffer_is_not_served_from_it(
        self, store: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        may_read = asyncio.Event()
        read_after = Changes.read_after

        async def late_for_all(self: Changes, *arguments: Any) -> ChangeBatch | None:
            task = asyncio.current_task()
            if task is not None and task.get_name() == "feed":
                await may_read.wait()
            return await read_after(self, *arguments)

        monkeypatch.setattr(Changes, "read_after", late_for_all)
        posts, feed = Posts(store), Feed(store, max_watches=10)
        await posts.create([PostDraft(body="before memory begins")])
        up_to_date = watch_of(feed)
        await anext(up_to_date)
        await posts.create([PostDraft(body="lost")])
        ahead = watch_of(feed, earliest=True)
        await anext(ahead)
        assert await bodies(ahead, 2) == ["before memory begins", "lost"]

        set_back(database_url, last_seq(database_url))
        await posts.create([PostDraft(body="after")])
        may_read.set()

        assert await bodies(up_to_date, 2) == ["new", "after"]
        with pytest.raises(ResumeTokenForeign):
            await anext(ahead)
        await up_to_date.aclose()


class TestInitialState:
    """An initial state that contains changes which the database loses before the watch has received them."""

    @pytest.fixture
    async def store(self, database_url: str) -> AsyncIterator[Database]:
        """An open database with more posts than the first page of an initial state has."""
        async with connect.open_database(database_url) as store:
            await Posts(store).create([PostDraft(body="kept")] * (snapshot.FIRST_SIZE + 10))
            yield store

    async def test_initial_state_ends_if_changes_of_an_earlier_page_are_lost(
        self, store: Database, database_url: str
    ) -> None:
        watch = initial_state(Feed(store, max_watches=10), WatchFilter())
        await anext(watch)
        await Posts(store).create([PostDraft(body="lost")])
        token = await token_of_page_with(watch, "lost")

        set_back(database_url, last_seq(database_url))

        with pytest.raises(ResumeTokenForeign):
            await anext(watch)
        with pytest.raises(ResumeTokenForeign):
            await anext(watch_of(Feed(store, max_watches=10), resume_token=token))

    @pytest.mark.parametrize("somebody_writes", [True, False])
    async def test_watch_ends_if_changes_of_its_initial_state_are_lost(
        self, store: Database, database_url: str, somebody_writes: bool
    ) -> None:
        posts_only = WatchFilter(kinds=frozenset({ResourceKind.POST}))
        watch = initial_state(Feed(store, max_watches=10), posts_only)
        await anext(watch)
        await Posts(store).create([PostDraft(body="lost")])
        await token_of_page_with(watch, "lost")
        complete = await anext(watch)
        assert complete.snapshot_complete

        set_back(database_url, last_seq(database_url))
        if somebody_writes:
            await Posts(store).create([PostDraft(body="after")])

        with pytest.raises(ResumeTokenForeign):
            await anext(watch)
        with pytest.raises(ResumeTokenForeign):
            await anext(watch_of(Feed(store, max_watches=10), resume_token=complete.resume_token))

    async def test_watch_continues_if_nothing_is_lost(self, store: Database) -> None:
        """The changes that the initial state contains follow, and tokens become those of other watches."""
        watch = initial_state(Feed(store, max_watches=10), WatchFilter())
        await anext(watch)
        await Posts(store).create([PostDraft(body="during the initial state")])
        token = await token_of_page_with(watch, "during the initial state")
        assert (await anext(watch)).snapshot_complete

        assert await bodies(watch, 1) == ["during the initial state"]
        again = watch_of(Feed(store, max_watches=10), resume_token=token)
        assert (await anext(again)).snapshot_complete
        event = await anext(again)
        assert event.batch is not None
        assert len(event.resume_token) == len(
            (await anext(watch_of(Feed(store, max_watches=10)))).resume_token
        )
        await watch.aclose()
        await again.aclose()

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    async def test_initial_state_can_be_ahead_of_the_feed(self, store: Database, database_url: str) -> None:
        """An older transaction delays the feed, but not the initial state."""
        with psycopg.connect(database_url) as older:
            older.execute("SELECT pg_current_xact_id()")
            await Posts(store).create([PostDraft(body="new")])
            watch = initial_state(Feed(store, max_watches=10), WatchFilter())
            await anext(watch)
            token = await token_of_page_with(watch, "new")
            assert (await anext(watch)).snapshot_complete
            again = watch_of(Feed(store, max_watches=10), resume_token=token)
            assert (await anext(again)).snapshot_complete
            await again.aclose()
            following = asyncio.ensure_future(bodies(watch, 1))
            done, _ = await asyncio.wait([following], timeout=2 * POLL_SECONDS)
            assert not done
        assert (await following)[-1] == "new"
        await watch.aclose()


def initial_state(feed: Feed, filter: WatchFilter) -> Any:
    """A watch that begins with the initial state, without a network."""
    return feed.watch(WatchStart(initial_state=True), filter, heartbeat_seconds=MORE_THAN_A_TEST)


async def token_of_page_with(watch: AsyncIterator[WatchEvent], body: str) -> str:
    """The token after the page of an initial state that ends with this body."""
    while True:
        event = await anext(watch)
        assert event.snapshot
        if event.snapshot[-1].resource.body == body:
            return event.resume_token


def watch_of(feed: Feed, *, earliest: bool = False, resume_token: str | None = None) -> Any:
    """A watch without a network."""
    start = WatchStart(earliest=earliest, resume_token=resume_token)
    return feed.watch(start, WatchFilter(), heartbeat_seconds=MORE_THAN_A_TEST)


async def bodies(watch: AsyncIterator[WatchEvent], count: int) -> list[str]:
    """The bodies of the next `count` changes."""
    found: list[str] = []
    async with asyncio.timeout(scaled_timeout()):
        while len(found) < count:
            event = await anext(watch)
            assert event.batch is not None
            found += [change.resource.body for change in event.batch.changes]
    return found
