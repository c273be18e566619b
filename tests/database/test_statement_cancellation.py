"""Statements of cancelled calls end, and their connection is reused. On each engine."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import pytest
import sqlalchemy

from store_service.database import batch_runner
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database, open_database
from store_service.database.connection import Connection
from store_service.database.driver_errors import StatementCancelled
from store_service.database.statements import Statement
from store_service.model import PostDraft
from store_service.service.posts import Posts
from tests.support.database import query
from tests.support.gate import Gate
from tests.support.timeouts import scaled_timeout

WITHOUT_END = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 2000000000)"
READ = Statement(sqlalchemy.text(f"{WITHOUT_END} SELECT count(*) FROM n"))
WRITE = Statement(
    sqlalchemy.text(
        f"{WITHOUT_END} INSERT INTO posts (body) SELECT CAST(count(*) AS TEXT) FROM n RETURNING id"
    )
)
SHORT = Statement(sqlalchemy.text("SELECT 1"))


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Database]:
    """A database with one reader, so that the next read needs the same connection."""
    async with open_database(database_url, readers=1, statement_timeout_seconds=60) as store:
        yield store


class Slow:
    """An operation that takes an hour. Sets an event when it has started, and records the connection."""

    def __init__(self, statement: Statement) -> None:
        self.begun = asyncio.Event()
        self.connections: list[Connection] = []
        self._statement = statement
        self._loop = asyncio.get_running_loop()
        self.operation: BatchOperation[Any, Any] = BatchOperation(self._run)

    async def _run(self, connection: Connection, arguments: Sequence[Any]) -> Sequence[Any]:
        self.connections.append(connection)
        self._loop.call_soon_threadsafe(self.begun.set)
        return [await connection.fetch(self._statement)] * len(arguments)


async def test_read_without_callers_is_cancelled(store: Database) -> None:
    """The next read does not wait for it and uses the same connection."""
    slow = Slow(READ)
    call = asyncio.create_task(store.read(slow.operation, None))
    await slow.begun.wait()
    call.cancel()

    async with asyncio.timeout(scaled_timeout()):
        assert await Posts(store).get_many([1], allow_missing=True)
        after = Slow(SHORT)
        assert [tuple(row) for row in await store.read(after.operation, None)] == [(1,)]
    assert after.connections == slow.connections


async def test_read_continues_while_any_caller_waits(store: Database) -> None:
    gate = Slow(READ)
    first = asyncio.create_task(store.read(gate.operation, None))
    await gate.begun.wait()
    slow = Slow(READ)
    riders = [asyncio.create_task(store.read(slow.operation, None)) for _ in range(2)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(slow.begun.wait(), scaled_timeout())
    (connection,) = slow.connections
    riders[0].cancel()
    await asyncio.wait(riders[:1])
    was_cancelled = connection.is_cancelled
    riders[1].cancel()
    await asyncio.wait(riders)

    assert not was_cancelled
    assert connection.is_cancelled
    async with asyncio.timeout(scaled_timeout()):
        await Posts(store).get_many([1], allow_missing=True)


async def test_abandoned_write_is_rolled_back_after_a_delay(store: Database, database_url: str) -> None:
    """It does not block other writes, and the connection is reused."""
    slow = Slow(WRITE)
    call = asyncio.create_task(store.write(slow.operation, None))
    await slow.begun.wait()
    call.cancel()

    async with asyncio.timeout(scaled_timeout() + batch_runner.ABANDONED_WRITE_SECONDS):
        await Posts(store).create([PostDraft(body="the next")])
    assert [body for (body,) in query(database_url, "SELECT body FROM posts")] == ["the next"]


async def test_cancelled_job_starts_no_further_statement(store: Database) -> None:
    """The callers leave between two statements of an operation."""
    begun, gone = asyncio.Event(), asyncio.Event()
    outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def run(connection: Connection, arguments: Sequence[Any]) -> Sequence[Any]:
        begun.set()
        await gone.wait()
        try:
            rows = await connection.fetch(SHORT)
        except StatementCancelled as error:
            outcome.set_result(error)
            raise
        outcome.set_result(rows)
        return [rows] * len(arguments)

    call = asyncio.create_task(store.read(BatchOperation(run), None))
    await begun.wait()
    call.cancel()
    await asyncio.wait([call])
    gone.set()

    assert isinstance(await asyncio.wait_for(outcome, scaled_timeout()), StatementCancelled)
    await Posts(store).get_many([1], allow_missing=True)


async def test_cancelled_read_leaves_its_task_uncancelled(store: Database) -> None:
    """The statement is cancelled once; timeouts and task groups of the task still work."""
    gate, slow = Gate(), Slow(READ)
    first = asyncio.create_task(store.read(gate.operation, None))
    await gate.entered.wait()
    calls = [asyncio.create_task(store.read(slow.operation, None)) for _ in range(3)]
    await asyncio.sleep(0)
    gate.open()
    await first
    await slow.begun.wait()
    for call in calls:
        call.cancel()

    async def count_cancellations(_: Connection, arguments: Sequence[Any]) -> Sequence[int]:
        task = asyncio.current_task()
        assert task is not None
        return [task.cancelling()] * len(arguments)

    async with asyncio.timeout(scaled_timeout()):
        assert await store.read(BatchOperation(count_cancellations), None) == 0


async def test_timeout_of_an_abandoned_write_does_not_cancel_the_next(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write ended before the delay, and the connection runs another batch by then."""
    monkeypatch.setattr(batch_runner, "ABANDONED_WRITE_SECONDS", 3600.5)
    loop = asyncio.get_running_loop()
    call_later = loop.call_later
    timers: list[Callable[[], object]] = []

    def noted_call_later(delay: float, callback: Callable[..., object], *args: Any, **options: Any) -> Any:
        if delay == batch_runner.ABANDONED_WRITE_SECONDS:
            timers.append(partial(callback, *args))
        return call_later(delay, callback, *args, **options)

    monkeypatch.setattr(loop, "call_later", noted_call_later)
    abandoned, next_one = Gate(), Gate()
    connections: list[Connection] = []

    async def run(connection: Connection, arguments: Sequence[Any]) -> Sequence[Any]:
        connections.append(connection)
        await next_one.pass_through()
        return [await connection.fetch(SHORT)] * len(arguments)

    leaving = asyncio.create_task(store.write(abandoned.operation, None))
    await abandoned.entered.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    abandoned.open()
    staying = asyncio.create_task(store.write(BatchOperation(run), None))
    await next_one.entered.wait()
    for end in timers:
        end()
    was_cancelled = [connection.is_cancelled for connection in connections]
    next_one.open()

    assert len(timers) == 1
    assert was_cancelled == [False]
    assert [tuple(row) for row in await staying] == [(1,)]
