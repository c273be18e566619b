"""The thread in which SQLite reads."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from store_service.database import sqlite_connection
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database, open_database
from store_service.database.connection import Connection
from store_service.model import PageRequest, PostDraft, Query
from store_service.service.operations import INLINE_IDS
from store_service.service.posts import Posts

EVENT_LOOP = threading.get_ident()


@pytest.fixture
async def store(database_file: Path) -> AsyncIterator[Database]:
    """A database with one connection that reads."""
    async with open_database(f"sqlite:///{database_file}", readers=1) as store:
        yield store


@pytest.fixture
async def readers(store: Database) -> list[bool]:
    """Records for each read whether it ran on the event loop."""
    seen: list[bool] = []

    async def watch(connection: Connection, asked: Sequence[None]) -> list[None]:
        await connection._raw.set_trace_callback(lambda _: seen.append(threading.get_ident() == EVENT_LOOP))
        return [None] * len(asked)

    await store.read(BatchOperation(watch), None)
    return seen


async def test_few_rows_are_read_on_the_event_loop(store: Database, readers: list[bool]) -> None:
    """A switch to the thread would cost more than the read."""
    (post,) = await Posts(store).create([PostDraft(body="a")])

    assert await Posts(store).get(post.id) == post
    assert readers == [True]


async def test_large_reads_use_the_thread(store: Database, readers: list[bool]) -> None:
    """Pages and large batches do not block the event loop."""
    posts = Posts(store)
    await posts.create([PostDraft(body="a")])
    await posts.list_page(PageRequest(query=Query(resource="posts"), page_size=10, page_token=""))
    await posts.get_many(range(1, INLINE_IDS + 2), allow_missing=True)

    # The end of the feed is one row, which is read first in the same batch as the page.
    assert readers == [True, False, False]


async def test_slow_file_is_read_in_the_thread(
    store: Database, readers: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads use the thread for some time after a slow read."""
    posts = Posts(store)
    (post,) = await posts.create([PostDraft(body="a")])
    monkeypatch.setattr(sqlite_connection, "SLOW_SECONDS", -1.0)
    monkeypatch.setattr(sqlite_connection, "SLOW_RATIO", 1e9)
    await posts.get(post.id)

    await asyncio.gather(posts.get(post.id), posts.get(post.id))

    assert readers[0] is True
    assert set(readers[1:]) == {False}
