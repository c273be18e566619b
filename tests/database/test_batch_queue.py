"""The batch queue: batches, cancellation, results and lost connections. On each engine."""

import asyncio
import random
import sqlite3
import uuid
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import asyncpg
import pytest
import sqlalchemy
import structlog
from sqlalchemy import BigInteger, Text
from sqlalchemy.engine import make_url

from store_service.database import batch_queue, connect, sqlite_file
from store_service.database.batch_operation import DEFERRED, BatchOperation
from store_service.database.change_writes import WriteWithChanges
from store_service.database.comments import COMMENTS
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.job_queue import LARGE_JOB_BYTES, MAX_BATCH, MAX_BATCH_BYTES
from store_service.database.postgresql_connection import PostgresqlConnection
from store_service.database.posts import POSTS
from store_service.database.sqlite_connection import SqliteConnection
from store_service.database.statements import Statement, parameter
from store_service.errors import (
    DatabaseBusy,
    DatabaseUnavailable,
    PostHasComments,
    PostNotFound,
    ServiceError,
    StorageFull,
)
from store_service.model import CommentDraft, Deletion, IdempotencyKey, PostDraft, Update
from store_service.observability.batches import BatchObserver
from store_service.observability.metrics import QueueMetrics
from store_service.service.comments import Comments
from store_service.service.operations import READ_IDS
from store_service.service.posts import Posts
from tests.support.commits import count_commits
from tests.support.database import execute, query
from tests.support.gate import Gate
from tests.support.timeouts import scaled_timeout

INSERT = Statement(
    sqlalchemy.text("INSERT INTO posts (body) VALUES (:body)").bindparams(parameter("body", Text))
)
INSERT_ORPHAN = Statement(
    sqlalchemy.text("INSERT INTO comments (body, post_id) VALUES ('orphan', :post_id)").bindparams(
        parameter("post_id", BigInteger)
    )
)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Database]:
    """An open database that only this test uses."""
    async with connect.open_database(database_url, readers=2) as store:
        yield store


def bodies(database_url: str) -> list[str]:
    """Returns the stored bodies in the order of their ids."""
    return [str(body) for (body,) in query(database_url, "SELECT body FROM posts ORDER BY id")]


class Recorded:
    """An operation that stores bodies one by one and remembers the batches that it was called with."""

    def __init__(self, on_each: Callable[[str], Awaitable[ServiceError | None]] | None = None) -> None:
        self.batches: list[list[str]] = []
        self.operation: BatchOperation[str, str] = BatchOperation(self._run)
        self._on_each = on_each

    async def _run(self, connection: Connection, arguments: Sequence[str]) -> list[str | ServiceError]:
        self.batches.append(list(arguments))
        outcomes: list[str | ServiceError] = []
        for body in arguments:
            error = await self._on_each(body) if self._on_each else None
            if error is None:
                await connection.fetch(INSERT, body=body)
            outcomes.append(error or f"stored {body}")
        return outcomes


async def blocked(store: Database) -> tuple[Gate, asyncio.Task[None]]:
    """Blocks the writer in a gate."""
    gate = Gate()
    task = asyncio.create_task(store.write(gate.operation, None))
    await gate.entered.wait()
    return gate, task


async def turns(number: int = 3) -> None:
    """Runs all ready tasks."""
    for _ in range(number):
        await asyncio.sleep(0)


# Batches


async def test_one_commit_serves_all_waiting_jobs(store: Database, database_url: str) -> None:
    """200 callers, one transaction, one fsync."""
    posts = Posts(store)
    with count_commits(database_url) as commits:
        created = await asyncio.gather(*(posts.create([PostDraft(body=str(n))]) for n in range(200)))

        assert commits.count() == 1
    assert bodies(database_url) == [str(n) for n in range(200)]
    assert [post.body for (post,) in created] == bodies(database_url)


async def test_different_operations_share_a_commit(store: Database, database_url: str) -> None:
    """All waiting jobs are one transaction."""
    posts = Posts(store)
    first, second = await posts.create([PostDraft(body="a"), PostDraft(body="b")])
    with count_commits(database_url) as commits:
        await asyncio.gather(
            posts.create([PostDraft(body="c")]),
            posts.update([Update(id=first.id, values={"body": "A"}, etag="", request_field="post")]),
            posts.delete(Deletion(ids=(second.id,))),
        )

        assert commits.count() == 1
    assert bodies(database_url) == ["A", "c"]


async def test_single_job_is_not_delayed(store: Database, database_url: str) -> None:
    """Sequential jobs have one commit each."""
    posts = Posts(store)
    with count_commits(database_url) as commits:
        for n in range(5):
            await posts.create([PostDraft(body=str(n))])

            assert commits.count() == n + 1


async def test_batch_size_is_limited(store: Database, database_url: str) -> None:
    """More than MAX_BATCH jobs are several transactions, so the first jobs do not wait for the last ones."""
    recorded = Recorded()
    gate, gated = await blocked(store)
    waiting = [asyncio.create_task(store.write(recorded.operation, str(n))) for n in range(2 * MAX_BATCH + 7)]
    await turns()
    with count_commits(database_url) as commits:
        gate.open()
        answers = await asyncio.gather(*waiting, gated)

        assert [len(batch) for batch in recorded.batches] == [MAX_BATCH, MAX_BATCH, 7]
        assert commits.count() == 3
    assert answers[:-1] == [f"stored {n}" for n in range(2 * MAX_BATCH + 7)]


async def test_full_batch_takes_no_more_jobs(store: Database) -> None:
    """Memory and duration of a batch do not grow with the number of large jobs."""
    recorded = Recorded()
    sizes = [LARGE_JOB_BYTES] * (2 * MAX_BATCH_BYTES // LARGE_JOB_BYTES) + [0, 1]
    gate, gated = await blocked(store)
    waiting = [
        asyncio.create_task(store.write(recorded.operation, str(n), size=size))
        for n, size in enumerate(sizes)
    ]
    await turns()
    gate.open()
    await asyncio.gather(*waiting, gated)

    assert recorded.batches == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9"]]


async def test_small_job_waits_for_at_most_one_large_job(store: Database) -> None:
    recorded = Recorded()
    gate, gated = await blocked(store)
    jobs = [(f"large {n}", LARGE_JOB_BYTES + 1) for n in range(3)] + [("small 0", 0), ("small 1", 0)]
    waiting = [asyncio.create_task(store.write(recorded.operation, name, size=size)) for name, size in jobs]
    await turns()
    gate.open()
    await asyncio.gather(*waiting, gated)

    assert recorded.batches == [["large 0"], ["small 0", "small 1"], ["large 1"], ["large 2"]]


async def test_large_job_waits_for_at_most_one_batch_of_small_jobs(store: Database) -> None:
    recorded = Recorded()
    gate, gated = await blocked(store)
    small = [asyncio.create_task(store.write(recorded.operation, str(n))) for n in range(2 * MAX_BATCH)]
    large = asyncio.create_task(store.write(recorded.operation, "large", size=LARGE_JOB_BYTES + 1))
    await turns()
    gate.open()
    await asyncio.gather(*small, large, gated)

    assert [len(batch) for batch in recorded.batches] == [1, MAX_BATCH, MAX_BATCH]
    assert recorded.batches[0] == ["large"]


async def test_writer_does_not_wait_for_callers_of_large_jobs(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their next jobs take longer to arrive than a commit takes."""

    async def wait_long(_: str) -> None:
        monkeypatch.setattr(batch_queue, "GATHER_SECONDS", 3600.0)

    recorded = Recorded(wait_long)
    size = batch_queue.GATHERED_JOB_BYTES + 1
    gate, gated = await blocked(store)
    waiting = [asyncio.create_task(store.write(recorded.operation, str(n), size=size)) for n in range(2)]
    await turns()
    gate.open()
    await asyncio.gather(*waiting, gated)
    async with asyncio.timeout(scaled_timeout()):
        await store.write(recorded.operation, "next")

    assert recorded.batches == [["0", "1"], ["next"]]


LARGE = "a" * 2**16
MANY = Deletion(ids=tuple(range(1, READ_IDS + 1)), allow_missing=True, force=True)

LARGE_WRITES: dict[str, tuple[int, Callable[[Posts, Comments], Awaitable[Any]]]] = {
    "creates_posts": (2, lambda posts, _: posts.create([PostDraft(body=LARGE)] * 60)),
    "creates_comments": (
        2,
        lambda _, comments: comments.create([CommentDraft(body=LARGE, post_id=1)] * 60),
    ),
    "creates_with_request_ids": (
        2,
        lambda posts, _: posts.create(
            [PostDraft(body=LARGE)] * 60, key=IdempotencyKey(id=str(uuid.uuid4()), fingerprint="")
        ),
    ),
    "updates_posts": (
        32,
        lambda posts, _: posts.update([Update(id=1, values={"body": LARGE}, etag="", request_field="post")]),
    ),
    "updates_comments": (
        32,
        lambda _, comments: comments.update(
            [Update(id=1, values={"body": LARGE}, etag="", request_field="comment")]
        ),
    ),
    "deletes_posts": (2, lambda posts, _: posts.delete(MANY)),
    "deletes_comments": (2, lambda _, comments: comments.delete(MANY)),
}


@pytest.mark.parametrize(("count", "write"), LARGE_WRITES.values(), ids=LARGE_WRITES)
async def test_large_writes_need_more_than_one_batch(
    database_url: str, count: int, write: Callable[[Posts, Comments], Awaitable[Any]]
) -> None:
    """The size includes what the job has to read."""
    measure = QueueMetrics()

    def observe(name: str) -> BatchObserver | None:
        return BatchObserver(name, measure, None) if name == "writer" else None

    async with connect.open_database(database_url, readers=1, observe=observe) as store:
        posts, comments = Posts(store), Comments(store)
        await posts.create([PostDraft(body="a")])
        await comments.create([CommentDraft(body="a", post_id=1)])
        gate, gated = await blocked(store)
        waiting = [asyncio.ensure_future(write(posts, comments)) for _ in range(count)]
        await turns()
        gate.open()
        await asyncio.gather(*waiting, gated)

    # Two for the setup, one for the gate.
    assert sum(measure.sizes.counts) == 3 + 2


async def test_jobs_run_in_order(store: Database, database_url: str) -> None:
    recorded = Recorded()
    gate, gated = await blocked(store)
    waiting = [asyncio.create_task(store.write(recorded.operation, str(n))) for n in range(50)]
    await turns()
    gate.open()
    await asyncio.gather(*waiting, gated)

    assert recorded.batches == [[str(n) for n in range(50)]]
    assert bodies(database_url) == [str(n) for n in range(50)]


async def test_deferred_job_runs_first_in_the_next_batch(store: Database) -> None:
    """Deferred jobs run before later jobs. Cancelled ones are skipped."""
    gate = Gate()
    batches: list[list[int]] = []

    async def two_of(_: Connection, numbers: Sequence[int]) -> list[int]:
        batches.append(list(numbers))
        await gate.pass_through()
        return [n if place < 2 else DEFERRED for place, n in enumerate(numbers)]

    operation = BatchOperation(two_of)
    waiting = [asyncio.create_task(store.write(operation, n)) for n in range(6)]
    await gate.entered.wait()
    waiting += [asyncio.create_task(store.write(operation, n)) for n in (6, 7)]
    await turns()
    waiting[3].cancel()
    gate.open()
    answers = await asyncio.gather(*waiting, return_exceptions=True)

    assert batches == [[0, 1, 2, 3, 4, 5], [2, 4, 5, 6, 7], [5, 6, 7], [7]]
    assert [n for n in answers if not isinstance(n, BaseException)] == [0, 1, 2, 4, 5, 6, 7]
    assert waiting[3].cancelled()


async def test_job_is_counted_in_the_batch_that_runs_it(database_url: str) -> None:
    """Batches in which a job was deferred are not counted."""
    measure = QueueMetrics()

    async def one_of(_: Connection, numbers: Sequence[int]) -> list[int]:
        return [numbers[0], *[DEFERRED] * (len(numbers) - 1)]

    def observe(name: str) -> BatchObserver | None:
        return BatchObserver(name, measure, None) if name == "reader" else None

    operation = BatchOperation(one_of)
    async with connect.open_database(database_url, readers=1, observe=observe) as store:
        await asyncio.gather(*(store.read(operation, n) for n in range(3)))

    assert measure.sizes.counts[0] == 3
    assert sum(measure.waits.counts) == 3


async def test_readers_run_concurrently(store: Database) -> None:
    """A slow read blocks one reader, not all of them."""
    slow = Gate()
    reading = asyncio.create_task(store.read(slow.operation, None))
    await slow.entered.wait()
    quick = Gate()
    quick.open()

    try:
        async with asyncio.timeout(scaled_timeout()):
            await store.read(quick.operation, None)
        assert not reading.done()
    finally:
        slow.open()
    await reading


async def test_reads_and_writes_do_not_wait_for_each_other(store: Database) -> None:
    """Reads do not wait for a running write."""
    posts = Posts(store)
    (post,) = await posts.create([PostDraft(body="a")])
    gate, gated = await blocked(store)

    try:
        async with asyncio.timeout(scaled_timeout()):
            assert await posts.get(post.id) == post
        assert not gated.done()
    finally:
        gate.open()
    await gated


# Cancelled callers


async def test_cancelled_job_is_skipped_before_its_start(store: Database, database_url: str) -> None:
    recorded = Recorded()
    gate, gated = await blocked(store)
    waiting = [asyncio.create_task(store.write(recorded.operation, body)) for body in ("a", "gone", "b")]
    await turns()
    waiting[1].cancel()
    await turns()
    gate.open()
    answers = await asyncio.gather(*waiting, gated, return_exceptions=True)

    assert recorded.batches == [["a", "b"]]
    assert isinstance(answers[1], asyncio.CancelledError)
    assert bodies(database_url) == ["a", "b"]


async def test_cancelled_job_is_finished_after_its_start(store: Database, database_url: str) -> None:
    """The batch belongs to other callers too."""
    gate = Gate()

    async def wait(_: str) -> None:
        await gate.pass_through()

    recorded = Recorded(wait)
    waiting = [asyncio.create_task(store.write(recorded.operation, body)) for body in ("leaves", "stays")]
    await gate.entered.wait()
    waiting[0].cancel()
    await turns()
    gate.open()

    assert await waiting[1] == "stored stays"
    assert waiting[0].cancelled()
    assert bodies(database_url) == ["leaves", "stays"]


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry_run", "committed"])
async def test_job_cancelled_during_an_earlier_dry_run_is_skipped(
    store: Database, database_url: str, dry_run: bool
) -> None:
    trial = Gate()
    recorded = Recorded()
    gate, gated = await blocked(store)
    trying = asyncio.create_task(store.write(trial.operation, None, dry_run=True))
    await turns()
    waiting = [
        asyncio.create_task(store.write(recorded.operation, body, dry_run=dry_run))
        for body in ("gone", "stays")
    ]
    await turns()
    gate.open()
    await trial.entered.wait()
    waiting[0].cancel()
    await turns()
    trial.open()
    answers = await asyncio.gather(*waiting, trying, gated, return_exceptions=True)

    assert recorded.batches == [["stays"]]
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1] == "stored stays"
    assert bodies(database_url) == (["stays"] if not dry_run else [])


# Errors


async def test_error_of_one_job_does_not_affect_others(store: Database, database_url: str) -> None:

    async def refuse(body: str) -> ServiceError | None:
        return PostNotFound(ids=[7]) if body == "bad" else None

    recorded = Recorded(refuse)
    answers = await asyncio.gather(
        *(store.write(recorded.operation, body) for body in ("a", "bad", "b")), return_exceptions=True
    )

    assert recorded.batches == [["a", "bad", "b"]]
    assert (answers[0], answers[2]) == ("stored a", "stored b")
    assert isinstance(answers[1], PostNotFound)
    assert bodies(database_url) == ["a", "b"]


async def test_batch_with_an_unhandled_exception_is_repeated_job_by_job(
    store: Database, database_url: str
) -> None:

    async def stumble(body: str) -> None:
        if body == "bad":
            raise ZeroDivisionError

    recorded = Recorded(stumble)
    answers = await asyncio.gather(
        *(store.write(recorded.operation, body) for body in ("a", "bad", "b")), return_exceptions=True
    )

    assert recorded.batches == [["a", "bad", "b"], ["a"], ["bad"], ["b"]]
    assert (answers[0], answers[2]) == ("stored a", "stored b")
    assert isinstance(answers[1], ZeroDivisionError)
    assert bodies(database_url) == ["a", "b"]


async def test_cancelled_job_is_not_repeated(store: Database, database_url: str) -> None:
    gate = Gate()

    async def stumble(body: str) -> None:
        if body == "bad":
            await gate.pass_through()
            raise ZeroDivisionError

    recorded = Recorded(stumble)
    waiting = [
        asyncio.create_task(store.write(recorded.operation, body)) for body in ("gone", "bad", "stays")
    ]
    await gate.entered.wait()
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    gate.open()
    answers = await asyncio.gather(*waiting, return_exceptions=True)

    assert recorded.batches == [["gone", "bad", "stays"], ["bad"], ["stays"]]
    assert [type(it) for it in answers] == [asyncio.CancelledError, ZeroDivisionError, str]
    assert bodies(database_url) == ["stays"]


async def test_database_error_fails_the_batch_without_repetition(store: Database, database_url: str) -> None:
    """A database that is busy for a batch would be busy for each of its jobs."""

    async def busy(body: str) -> None:
        if body == "b":
            raise DatabaseBusy

    recorded = Recorded(busy)
    answers = await asyncio.gather(
        *(store.write(recorded.operation, body) for body in ("a", "b", "c")), return_exceptions=True
    )

    assert [type(answer) for answer in answers] == [DatabaseBusy] * 3
    assert len(recorded.batches) == 1
    assert bodies(database_url) == []


async def test_success_is_reported_after_the_commit(store: Database, database_url: str) -> None:
    """If the commit fails, all jobs fail, although each of them succeeded."""
    # Both are rolled back with the transaction.
    at_the_commit = (
        "PRAGMA defer_foreign_keys = 1"
        if connect.is_sqlite(database_url)
        else "ALTER TABLE comments ALTER CONSTRAINT comments_post_id_fkey DEFERRABLE INITIALLY DEFERRED"
    )

    async def run(connection: Connection, post_ids: Sequence[int]) -> list[str]:
        await connection.fetch(Statement(sqlalchemy.text(at_the_commit)))
        for post_id in post_ids:
            await connection.fetch(INSERT_ORPHAN, post_id=post_id)
        looked_fine.append(True)
        return ["stored"] * len(post_ids)

    looked_fine: list[bool] = []
    with pytest.raises((sqlite3.IntegrityError, asyncpg.ForeignKeyViolationError)):
        await store.write(BatchOperation(run), 1)

    assert looked_fine
    assert query(database_url, "SELECT count(*) FROM comments") == [(0,)]
    (post,) = await Posts(store).create([PostDraft(body="the connection is still of use")])
    assert bodies(database_url) == [post.body]


async def test_acknowledged_write_is_visible_to_another_process(store: Database, database_url: str) -> None:
    """Another process sees the write as soon as the caller has the response."""
    posts = Posts(store)
    for n in range(10):
        await posts.create([PostDraft(body=str(n))])

        assert bodies(database_url)[-1] == str(n)


# Dry runs


REQUEST_ID = "3f2b8c1e-7a5d-4e6f-9b0a-1c2d3e4f5a6b"


def noting(
    write: Callable[..., Awaitable[Any]], written: list[WriteWithChanges]
) -> Callable[..., Awaitable[Any]]:
    """Wraps `write` and records its arguments."""

    def noted(connection: Connection, what: WriteWithChanges, **values: Any) -> Awaitable[Any]:
        written.append(what)
        return write(connection, what, **values)

    return noted


async def test_dry_run_is_rolled_back(store: Database, database_url: str) -> None:
    """Other jobs of the batch are committed."""
    posts = Posts(store)
    (post,) = await posts.create([PostDraft(body="a")])
    outcomes = await asyncio.gather(
        posts.create([PostDraft(body="kept")]),
        posts.delete(Deletion(ids=(post.id,)), dry_run=True),
        posts.create([PostDraft(body="tried")], dry_run=True),
    )

    assert [post.body for post in outcomes[1].items] == ["a"]
    assert [post.body for post in outcomes[2]] == ["tried"]
    assert bodies(database_url) == ["a", "kept"]


async def test_dry_run_of_a_deletion_deletes_nothing(
    store: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = Posts(store)
    (one, two) = await posts.create([PostDraft(body="one"), PostDraft(body="two")])
    await Comments(store).create([CommentDraft(body="c", post_id=one.id, field="post_id")])
    written: list[WriteWithChanges] = []
    for kind in (SqliteConnection, PostgresqlConnection):
        monkeypatch.setattr(kind, "write", noting(kind.write, written))
    forced = Deletion(ids=(two.id, 404, one.id), force=True, allow_missing=True)

    tried = await posts.delete(forced, dry_run=True)
    tried_again = await posts.delete(forced, key=IdempotencyKey(id=REQUEST_ID, fingerprint="f"), dry_run=True)
    with pytest.raises(PostHasComments):
        await posts.delete(Deletion(ids=(one.id,)), dry_run=True)
    assert written == []
    assert bodies(database_url) == ["one", "two"]

    assert await posts.delete(forced) == tried == tried_again
    assert written == [COMMENTS.delete, POSTS.delete]
    assert bodies(database_url) == []


async def test_batch_releases_finished_results(store: Database) -> None:

    class Large:
        """A large result."""

    answers: list[weakref.ref[Large]] = []
    last = Gate()

    async def answer(_: Connection, arguments: Sequence[int]) -> list[Large]:
        if arguments == [3]:
            await last.pass_through()
        large = Large()
        answers.append(weakref.ref(large))
        return [large]

    operation = BatchOperation(answer)

    async def call(number: int) -> None:
        await store.write(operation, number, dry_run=True)

    gate, gated = await blocked(store)
    calls = [asyncio.create_task(call(n)) for n in range(4)]
    await turns()
    gate.open()
    await asyncio.gather(*calls[:3], gated)
    await last.entered.wait()
    left = [it() for it in answers]
    last.open()
    await calls[3]

    assert left == [None] * 3


async def test_dry_run_commits_nothing(store: Database, database_url: str) -> None:
    """A dry run needs no fsync."""
    posts = Posts(store)
    with count_commits(database_url) as commits:
        await asyncio.gather(*(posts.create([PostDraft(body="tried")], dry_run=True) for _ in range(5)))

        assert commits.count() == 0
    assert bodies(database_url) == []


async def test_failed_dry_run_leaves_no_transaction(store: Database, database_url: str) -> None:
    """The transaction is closed after an error too."""

    async def stumble(_: str) -> None:
        raise ZeroDivisionError

    recorded = Recorded(stumble)
    with pytest.raises(ZeroDivisionError):
        await store.write(recorded.operation, "bad", dry_run=True)

    await Posts(store).create([PostDraft(body="after")])
    assert bodies(database_url) == ["after"]


# Lost connections


async def test_lost_connection_is_reopened(
    store: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of the batch fail at once; later ones succeed."""
    monkeypatch.setattr(batch_queue, "RECONNECT_SECONDS", 0)
    connections: list[Connection] = []

    async def lose(connection: Connection, _: Sequence[Any]) -> list[None]:
        connections.append(connection)
        await connection.fetch(INSERT, body="lost")
        raise DatabaseUnavailable

    async def store_body(connection: Connection, arguments: Sequence[str]) -> list[None]:
        connections.append(connection)
        for body in arguments:
            await connection.fetch(INSERT, body=body)
        return [None] * len(arguments)

    with pytest.raises(DatabaseUnavailable):
        await store.write(BatchOperation(lose), None)
    await until_available(lambda: store.write(BatchOperation(store_body), "kept"))

    before, after = connections
    assert before is not after
    assert bodies(database_url) == ["kept"]


async def until_available(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeats a call while it raises DatabaseUnavailable."""
    while True:
        try:
            return await call()
        except DatabaseUnavailable:
            await asyncio.sleep(0)


@pytest.mark.parametrize("error", [DatabaseUnavailable(), StorageFull()], ids=["unavailable", "full"])
async def test_failed_write_is_reported_to_health(store: Database, error: ServiceError) -> None:

    async def fail(_: Connection, __: Sequence[Any]) -> list[None]:
        raise error

    was_reported = asyncio.Event()
    store.after_failed_write(was_reported.set)
    with pytest.raises(type(error)):
        await store.write(BatchOperation(fail), None)

    async with asyncio.timeout(scaled_timeout()):
        await was_reported.wait()


async def test_waiting_jobs_fail_when_the_connection_is_lost(store: Database) -> None:

    async def lose(_: Connection, __: Sequence[Any]) -> list[None]:
        await gate.pass_through()
        raise DatabaseUnavailable

    gate = Gate()
    first = asyncio.create_task(store.write(BatchOperation(lose), None))
    await gate.entered.wait()
    others = [
        asyncio.create_task(store.write(Recorded().operation, "waits", size=MAX_BATCH_BYTES))
        for _ in range(3)
    ]
    await turns()
    with structlog.testing.capture_logs() as lines:
        gate.open()
        answers = await asyncio.gather(first, *others, return_exceptions=True)

    assert [type(answer) for answer in answers] == [DatabaseUnavailable] * 4
    assert [(line["log_level"], line["event"], line["worker"]) for line in lines] == [
        ("error", "connection lost", "writer")
    ]


async def test_jobs_fail_during_an_outage_and_succeed_after_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_queue, "RECONNECT_SECONDS", 0.01)
    async with connect.open_database(database_url, readers=1) as store:
        posts = Posts(store)
        (post,) = await posts.create([PostDraft(body="a")])

        async def lose(_: Connection, __: Sequence[Any]) -> list[None]:
            raise DatabaseUnavailable

        with taken_away(database_url):
            with pytest.raises(DatabaseUnavailable):
                await store.read(BatchOperation(lose), None)
            for _ in range(3):
                with pytest.raises(DatabaseUnavailable):
                    await asyncio.wait_for(posts.get(post.id), scaled_timeout())

        async with asyncio.timeout(scaled_timeout()):
            assert await until_available(lambda: posts.get(post.id)) == post


@contextmanager
def taken_away(database_url: str) -> Iterator[None]:
    """Blocks all connections to a database until the end of the block."""
    if connect.is_sqlite(database_url):
        path = sqlite_file.database_path(database_url)
        away = path.rename(path.with_name("away.db"))
        path.mkdir()
        yield
        path.rmdir()
        away.rename(path)
        return
    url = make_url(database_url)
    # PostgreSQL does not allow this from a connection to the same database.
    outside = url.set(database="postgres").render_as_string(hide_password=False)
    execute(outside, f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false")
    try:
        everybody = f"FROM pg_stat_activity WHERE datname = '{url.database}'"
        assert all(done for (done,) in query(outside, f"SELECT pg_terminate_backend(pid, 10000) {everybody}"))
        yield
    finally:
        execute(outside, f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true")


# Stopping


async def test_waiting_jobs_are_finished_at_close(database_url: str) -> None:
    recorded = Recorded()
    async with connect.open_database(database_url, readers=1) as store:
        gate, gated = await blocked(store)
        waiting = [asyncio.create_task(store.write(recorded.operation, str(n))) for n in range(MAX_BATCH + 5)]
        await turns()
        asyncio.get_running_loop().call_soon(gate.open)

    assert await asyncio.gather(*waiting, gated) == [*(f"stored {n}" for n in range(MAX_BATCH + 5)), None]
    assert bodies(database_url) == [str(n) for n in range(MAX_BATCH + 5)]


async def test_closed_database_refuses_jobs(database_url: str) -> None:
    async with connect.open_database(database_url, readers=1) as store:
        posts = Posts(store)

    with pytest.raises(DatabaseUnavailable):
        await posts.create([PostDraft(body="late")])
    with pytest.raises(DatabaseUnavailable):
        await posts.get(1)


async def test_connection_lost_during_close_fails_waiting_jobs(
    database_url: str,
) -> None:

    async def lose(_: Connection, __: Sequence[Any]) -> list[str]:
        raise DatabaseUnavailable

    async with connect.open_database(database_url, readers=1) as store:
        gate, gated = await blocked(store)
        waiting = [asyncio.create_task(store.write(BatchOperation(lose), None)) for _ in range(3)]
        waiting += [
            asyncio.create_task(store.write(Recorded().operation, "waits")) for _ in range(MAX_BATCH + 3)
        ]
        await turns()
        asyncio.get_running_loop().call_soon(gate.open)

    await gated
    answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), scaled_timeout())
    assert {type(answer) for answer in answers} == {DatabaseUnavailable}


# All together


async def test_every_caller_gets_its_own_result(store: Database, database_url: str) -> None:
    """1,000 callers write, fail, run dry runs and cancel."""
    chance = random.Random(7)

    async def refuse(body: str) -> ServiceError | None:
        if body.startswith("bug"):
            raise ZeroDivisionError(body)
        return PostNotFound(ids=[1]) if body.startswith("refused") else None

    recorded = Recorded(refuse)
    kinds = ["fine"] * 12 + ["refused", "refused", "bug", "tried", "leaves"]
    wanted = [f"{chance.choice(kinds)} {n}" for n in range(1000)]
    tasks: list[asyncio.Task[str]] = []
    for body in wanted:
        dry_run = body.startswith("tried")
        tasks.append(asyncio.create_task(store.write(recorded.operation, body, dry_run=dry_run)))
        if chance.random() < 0.2:
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
            for number, task in enumerate(tasks):
                if wanted[number].startswith("leaves"):
                    task.cancel()
    for number, task in enumerate(tasks):
        if wanted[number].startswith("leaves"):
            task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    for body, answer in zip(wanted, answers, strict=True):
        kind = body.split()[0]
        if kind in ("fine", "tried"):
            assert answer == f"stored {body}"
        elif kind == "bug":
            assert isinstance(answer, ZeroDivisionError)
            assert answer.args == (body,)
        elif kind == "refused":
            assert isinstance(answer, PostNotFound)
    stored = [body for body in bodies(database_url) if not body.startswith("leaves")]
    assert stored == [body for body in wanted if body.startswith("fine")]


@pytest.mark.parametrize("dry_run", [True, False], ids=["a trial before them", "one by one"])
async def test_connection_lost_during_a_batch_fails_its_remaining_jobs(
    store: Database, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    """Later jobs use another connection."""
    monkeypatch.setattr(batch_queue, "RECONNECT_SECONDS", 0.01)

    async def run(_: Connection, arguments: Sequence[str]) -> list[str]:
        if "bad" in arguments:
            # A single job loses the connection. A batch fails as by a bug, so its jobs run one by one.
            raise DatabaseUnavailable if len(arguments) == 1 else RuntimeError
        return list(arguments)

    operation: BatchOperation[str, str] = BatchOperation(run)
    async with asyncio.timeout(scaled_timeout()):
        outcomes = await asyncio.gather(
            store.write(operation, "bad", dry_run=dry_run),
            *(store.write(operation, "good") for _ in range(3)),
            return_exceptions=True,
        )
        while True:
            try:
                assert await store.write(operation, "next") == "next"
                break
            except DatabaseUnavailable:
                await asyncio.sleep(0)

    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 4
