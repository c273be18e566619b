"""The stored change feed: readers of trimmed changes, and resume tokens of lists."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from store_service.database import connect
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.errors import ResumeTokenExpired, ResumeTokenForeign, ServiceError
from store_service.model import (
    Page,
    PageRequest,
    Position,
    Post,
    PostDraft,
    Query,
    Update,
    WatchFilter,
    WatchStart,
)
from store_service.service import resume_tokens
from store_service.service.changes import ChangeBatch, Changes
from store_service.service.feed import Feed
from store_service.service.pages import read_pages
from store_service.service.posts import Posts
from store_service.service.retention import Retention
from tests.support.database import execute, query
from tests.support.timeouts import scaled_timeout


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Database]:
    """An open database."""
    async with connect.open_database(database_url, readers=1) as store:
        yield store


async def test_reader_whose_next_change_was_trimmed_gets_an_error(store: Database) -> None:
    """The reader never continues after the gap."""
    changes, posts = Changes(store), Posts(store)
    await posts.create([PostDraft(body="first")])
    first = await changes.read_after((await changes.state()).trimmed)
    assert first is not None
    for n in range(5):
        await posts.create([PostDraft(body=f"later {n}")])
    retention = Retention(store, change_retention_hours=1, max_change_rows=2, request_id_retention_hours=1)

    assert await retention.step()

    with pytest.raises(ResumeTokenExpired) as told:
        await changes.read_after(first.end)
    state = await changes.state()
    earliest = resume_tokens.read(told.value.earliest_resume_token, state.store_id).position
    rest = await changes.read_after(earliest)
    assert rest is not None
    assert [change.resource.body for change in rest.changes] == ["later 3", "later 4"]
    with pytest.raises(ResumeTokenExpired):
        await changes.check(first.end)


async def test_other_watches_continue_after_a_trim(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    may_read = asyncio.Event()
    read_after = Changes.read_after

    async def late_for_all(changes: Changes, position: Position) -> ChangeBatch | None:
        task = asyncio.current_task()
        if task is not None and task.get_name() == "feed":
            await may_read.wait()
        return await read_after(changes, position)

    monkeypatch.setattr(Changes, "read_after", late_for_all)
    posts, feed = Posts(store), Feed(store, max_watches=2)
    behind = feed.watch(WatchStart(), WatchFilter(), heartbeat_seconds=3600)
    await anext(behind)
    for n in range(3):
        await posts.create([PostDraft(body=f"before {n}")])
    assert await Retention(
        store, change_retention_hours=1, max_change_rows=1, request_id_retention_hours=1
    ).step()
    up_to_date = feed.watch(WatchStart(), WatchFilter(), heartbeat_seconds=3600)
    await anext(up_to_date)
    may_read.set()

    async with asyncio.timeout(scaled_timeout()):
        with pytest.raises(ResumeTokenExpired):
            await anext(behind)
        await posts.create([PostDraft(body="after")])
        told = await anext(up_to_date)
    await up_to_date.aclose()

    assert told.batch is not None
    assert [change.resource.body for change in told.batch.changes] == ["after"]


async def test_reader_after_the_trimmed_changes_continues(store: Database) -> None:
    changes, posts = Changes(store), Posts(store)
    await posts.create([PostDraft(body="first")])
    first = await changes.read_after((await changes.state()).trimmed)
    assert first is not None
    await posts.create([PostDraft(body="second")])

    assert await Retention(
        store, change_retention_hours=1, max_change_rows=1, request_id_retention_hours=1
    ).step()

    assert (await changes.state()).trimmed == first.end
    await changes.check(first.end)
    second = await changes.read_after(first.end)
    assert second is not None
    assert [change.resource.body for change in second.changes] == ["second"]


async def test_start_of_the_feed_is_identified_by_its_change_time(store: Database, database_url: str) -> None:
    changes, posts = Changes(store), Posts(store)
    await posts.create([PostDraft(body=body) for body in "abc"])
    assert await Retention(
        store, change_retention_hours=1, max_change_rows=2, request_id_retention_hours=1
    ).step()
    state = await changes.state()
    assert state.trimmed.time
    await changes.check(state.trimmed)
    # A token of an earlier version, without a time.
    await changes.check(replace(state.trimmed, time=0))

    with pytest.raises(ResumeTokenForeign):
        await changes.check(replace(state.end, time=0))
    execute(database_url, "UPDATE changes SET commit_time = commit_time + 1")
    with pytest.raises(ResumeTokenForeign):
        await changes.check(state.trimmed)


async def test_last_trimmed_change_is_kept(store: Database, database_url: str) -> None:
    """No step deletes the last trimmed change."""
    changes, posts = Changes(store), Posts(store)

    async def kept_of(count: int, *, rows: int, hours: float = 1) -> list[object]:
        for _ in range(count):
            await posts.create([PostDraft(body="x")])
        assert await Retention(
            store, change_retention_hours=hours, max_change_rows=rows, request_id_retention_hours=1
        ).step()
        return [id for (id,) in query(database_url, "SELECT resource_id FROM changes ORDER BY seq")]

    assert await kept_of(3, rows=5) == [1, 2, 3]
    assert await kept_of(3, rows=5) == [1, 2, 3, 4, 5, 6]
    assert await kept_of(1, rows=5) == [2, 3, 4, 5, 6, 7]
    assert await kept_of(0, rows=2) == [5, 6, 7]
    assert await kept_of(0, rows=2, hours=-1) == [7]
    state = await changes.state()
    assert (state.trimmed.seq, state.trimmed.time) == (state.end.seq, state.end.time)
    assert await kept_of(2, rows=5) == [7, 8, 9]


async def test_changes_of_one_transaction_share_its_number(store: Database, database_url: str) -> None:
    posts = Posts(store)
    (post,) = await posts.create([PostDraft(body="a")])
    await asyncio.gather(
        posts.create([PostDraft(body="b")]),
        posts.update([Update(id=post.id, values={"body": "A"}, etag="", request_field="post")]),
    )
    await posts.create([PostDraft(body="c")])

    first, second, third, last = (
        xid for (xid,) in query(database_url, "SELECT xid FROM changes ORDER BY seq")
    )
    assert first < second == third < last


async def test_token_of_a_list_precedes_its_page(store: Database) -> None:
    changes, posts = Changes(store), Posts(store)
    await posts.create([PostDraft(body="before")])

    async def read(_: Connection, __: PageRequest) -> Page[Post]:
        await posts.create([PostDraft(body="meanwhile")])
        return Page(items=(), next_page_token="")

    async def run(connection: Connection, requests: Sequence[PageRequest]) -> list[Page[Post] | ServiceError]:
        return await read_pages(connection, requests, read)

    request = PageRequest(query=Query(resource="posts"), page_size=10, page_token="")
    page = await store.read(BatchOperation(run), request)

    token = resume_tokens.read(page.resume_token, (await changes.state()).store_id)
    piece = await changes.read_after(token.position)
    assert piece is not None
    assert [change.resource.body for change in piece.changes] == ["meanwhile"]
