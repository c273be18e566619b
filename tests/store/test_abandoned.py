"""Statements for callers who have gone end, and the connection that ran them goes on. On each engine."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import sqlalchemy

from store_service.database import workers
from store_service.database.connect import Store, open_store
from store_service.database.connection import Connection
from store_service.database.statements import Statement
from store_service.database.workers import Operation
from store_service.model import PostDraft
from store_service.store.posts import Posts
from tests.patience import patience
from tests.store.by_hand import query

WITHOUT_END = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 2000000000)"
READ = Statement(sqlalchemy.text(f"{WITHOUT_END} SELECT count(*) FROM n"))
WRITE = Statement(
    sqlalchemy.text(
        f"{WITHOUT_END} INSERT INTO posts (body) SELECT CAST(count(*) AS TEXT) FROM n RETURNING id"
    )
)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A database with one connection that reads, so that it is seen whether that is free again."""
    async with open_store(database_url, readers=1, statement_seconds=60) as store:
        yield store


class Slow:
    """An operation that takes an hour; it says when it has begun, and on which connection."""

    def __init__(self, statement: Statement) -> None:
        self.begun = asyncio.Event()
        self.connections: list[Connection] = []
        self._statement = statement
        self._loop = asyncio.get_running_loop()
        self.operation: Operation[Any, Any] = Operation(self._run)

    async def _run(self, connection: Connection, arguments: Sequence[Any]) -> Sequence[Any]:
        self.connections.append(connection)
        self._loop.call_soon_threadsafe(self.begun.set)
        return [await connection.fetch(self._statement)] * len(arguments)


async def test_a_read_ends_when_its_only_caller_has_gone(store: Store) -> None:
    """The next read does not wait for it, and runs on the same connection."""
    slow = Slow(READ)
    call = asyncio.create_task(store.read(slow.operation, None))
    await slow.begun.wait()
    call.cancel()

    async with asyncio.timeout(patience()):
        assert await Posts(store).get_posts([1], allow_missing=True)
        after = Slow(Statement(sqlalchemy.text("SELECT 1")))
        assert [tuple(row) for row in await store.read(after.operation, None)] == [(1,)]
    assert after.connections == slow.connections


async def test_a_read_goes_on_while_anybody_waits(store: Store) -> None:
    """It is the work of all who ride in its batch; only when the last has gone is it ended."""
    gate = Slow(READ)
    first = asyncio.create_task(store.read(gate.operation, None))
    await gate.begun.wait()
    slow = Slow(READ)
    riders = [asyncio.create_task(store.read(slow.operation, None)) for _ in range(2)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(slow.begun.wait(), patience())
    (connection,) = slow.connections
    riders[0].cancel()
    await asyncio.wait(riders[:1])
    is_wanted = connection.is_wanted
    riders[1].cancel()
    await asyncio.wait(riders)

    assert is_wanted
    assert not connection.is_wanted
    async with asyncio.timeout(patience()):
        await Posts(store).get_posts([1], allow_missing=True)


async def test_a_write_that_nobody_waits_for_is_undone_after_a_while(store: Store, database_url: str) -> None:
    """It keeps nobody else from writing, nothing of it is stored, and the connection goes on."""
    slow = Slow(WRITE)
    call = asyncio.create_task(store.write(slow.operation, None))
    await slow.begun.wait()
    call.cancel()

    async with asyncio.timeout(patience() + workers.LAST_SECONDS):
        await Posts(store).create_posts([PostDraft(body="the next")])
    assert [body for (body,) in query(database_url, "SELECT body FROM posts")] == ["the next"]


async def test_what_follows_an_ended_statement_in_its_work_is_not_begun(store: Store) -> None:
    """Work of many statements ends too, when its callers go between two of them."""
    begun, gone, ends = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(connection: Connection, arguments: Sequence[Any]) -> Sequence[Any]:
        begun.set()
        await gone.wait()
        try:
            return [await connection.fetch(READ)] * len(arguments)
        finally:
            ends.set()

    call = asyncio.create_task(store.read(Operation(run), None))
    await begun.wait()
    call.cancel()
    await asyncio.wait([call])
    gone.set()

    await asyncio.wait_for(ends.wait(), patience())
    await Posts(store).get_posts([1], allow_missing=True)
