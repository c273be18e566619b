"""Long-lived workers that hold the connections, and the lanes on which work waits for them.

No RPC touches a connection. It hands its work to a lane and waits; a worker takes everything that
waits, does all work of one kind with one call, and answers each. So one statement reads for many
callers, one fsync commits for many, and a caller that goes away never takes a connection with it.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import structlog

from store_service.database.connection import Connection
from store_service.database.driver_errors import RetryTransaction, StatementCancelled
from store_service.database.job_queue import MAX_BATCH, Job, JobQueue
from store_service.errors import DatabaseBusy, DatabaseUnavailable, ServiceError, StorageFull
from store_service.observability.batches import BatchObserver
from store_service.pacing import paced
from store_service.repeated_failure import RepeatedFailure

Argument = TypeVar("Argument")
Result = TypeVar("Result")

QUIET_ROUNDS = 32
"""Rounds of the event loop without new work after which a worker starts that reads on a crowded lane
(docs/decisions/0007)."""

GATHER_SECONDS = 0.005
"""How long a worker that writes waits, on a crowded lane, for those that it has just answered."""

ABANDONED_WRITE_SECONDS = 1.0
"""How long a write may go on that nobody waits for any more; most are committed within it."""

RECONNECT_SECONDS = 0.25
"""Pause before a lost connection is opened again."""

MAX_TRIES = 5
"""How often a batch is run when the database undoes it for the sake of another transaction."""

DEFERRED: Any = object()
"""What comes of work that a batch had no room for: it is done in the next one, before what has come since."""

log = structlog.get_logger("store_service.database")


@dataclass(frozen=True, eq=False)
class BatchOperation(Generic[Argument, Result]):
    """One kind of work, written for a batch."""

    run: Callable[[Connection, Sequence[Argument]], Awaitable[Sequence[Result | ServiceError]]]
    """Does the work of every argument and returns, in their order, what came of each: a result, or the
    error of that one. What it raises is the error of all. What would take too much memory beside the others
    may be DEFERRED; if it is all of it, the next try must do some."""

    insert_only: bool = False
    """`run` changes and deletes nothing that is there, so processes may do it at the same time."""

    single_statement: bool = False
    """`run` is a single `Connection.write`, and nothing that must happen with it."""


class IdleConnectionLost(Exception):
    """A connection became unusable before it began anything, so no work was lost with it."""


def _unavailable_from(error: Exception) -> DatabaseUnavailable:
    unavailable = DatabaseUnavailable()
    unavailable.__cause__ = error
    return unavailable


Open = Callable[[], AbstractAsyncContextManager[Connection]]
"""Opens a connection of `databases` and closes it."""


async def listen_for_nothing(_: Callable[[], None]) -> None:
    """Waits for ever: where one process does all the writing, there is nobody else to hear of."""
    await asyncio.get_running_loop().create_future()


class BatchQueue:
    """A queue of jobs, and the workers that run them."""

    def __init__(
        self,
        name: str,
        open_connection: Open,
        *,
        workers: int,
        writes: bool,
        observer: BatchObserver | None = None,
    ) -> None:
        """Takes how to open a connection for each worker, whether batches are transactions, and who looks."""
        self._name = name
        self._open = open_connection
        self._workers = workers
        self._writes = writes
        self._waiting = JobQueue()
        self._observer = observer
        if observer is not None:
            observer.metrics.waiting = self._waiting.__len__
        self._idle: deque[asyncio.Future[None]] = deque()
        self._stopping = False
        self._queued_before_answers = 0
        """How much waited when the last batch was about to be answered; later, some come again."""
        self._running: dict[Connection, Sequence[Job]] = {}
        self._wanted: int | None = None
        self._gathered: asyncio.Future[None]
        self.after_write: Callable[[], None] = lambda: None
        """Called after every commit."""
        self.after_failure: Callable[[], None] = lambda: None
        """Called when the storage has failed or refused work: an error of the connection, or a full disk."""
        self._loop: asyncio.AbstractEventLoop

    async def execute(
        self,
        operation: BatchOperation[Argument, Result],
        argument: Argument,
        *,
        dry_run: bool = False,
        size: int = 0,
    ) -> Result:
        """Waits until a worker has done the work, and returns its result.

        Who is cancelled while waiting stops waiting: work that has not begun is skipped, work that has
        begun is finished, for it is also the work of others. When all of them have gone a read is ended, and
        a write undone that takes ABANDONED_WRITE_SECONDS more.

        Args:
            operation: What to do.
            argument: What to do it with.
            dry_run: The job runs in a transaction of its own, which is rolled back.
            size: Bytes that it takes in a batch, about; what is small may leave it at 0.

        Raises:
            ServiceError: What `operation` says of this argument, or of all.
        """
        if self._stopping:
            raise DatabaseUnavailable
        future: asyncio.Future[Result] = self._loop.create_future()
        job = Job(operation, argument, dry_run, size, future)
        if self._observer is not None:
            job.timing = self._observer.job_queued()
        self._waiting.append(job)
        self._wake_one()
        if self._wanted is not None and len(self._waiting) >= self._wanted:
            self._stop_waiting()
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel_abandoned_statements()
            raise

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Opens the connections and works until the end of the block, then finishes what waits.

        Raises:
            ServiceError: A connection cannot be opened at the start.
        """
        self._loop = asyncio.get_running_loop()
        opened: list[asyncio.Future[None]] = [self._loop.create_future() for _ in range(self._workers)]
        tasks = [
            asyncio.create_task(self._hold_connections(first), name=f"{self._name}-{n}")
            for n, first in enumerate(opened)
        ]
        try:
            await asyncio.gather(*opened)
            yield
        finally:
            self._stopping = True
            for idle in self._idle:
                if not idle.done():
                    idle.set_result(None)
            await asyncio.gather(*tasks)
            await self._refuse_waiting_jobs(DatabaseUnavailable())

    async def _hold_connections(self, opened: asyncio.Future[None]) -> None:
        """Holds a connection and works with it; opens another when it is lost."""
        loss = RepeatedFailure(log, "connection lost", end_event="connection restored", level="error")
        while True:
            try:
                # `databases` gives a task the same connection for ever when it could not take it back, so
                # each one has a task of its own.
                await asyncio.create_task(self._hold_one(opened, loss), name=f"{self._name}-connection")
                return
            except IdleConnectionLost as error:
                # Whoever waits is served by the next, and told only if there is none.
                self._count_loss(loss, error)
            except Exception as error:
                if not opened.done():
                    opened.set_exception(error)
                    return
                if self._stopping:
                    return
                # Whoever waits is told at once; the pause is ours.
                self._count_loss(loss, error)
                self.after_failure()
                await self._refuse_waiting_jobs(error)
                await asyncio.sleep(RECONNECT_SECONDS)

    def _count_loss(self, loss: RepeatedFailure, error: Exception) -> None:
        if self._observer is not None:
            self._observer.metrics.lost += 1
        cause = str(error.__cause__ or error)
        loss.failed(worker=self._name, error=type(error).__name__, cause=cause)

    async def _hold_one(self, opened: asyncio.Future[None], loss: RepeatedFailure) -> None:
        began = time.perf_counter()
        async with self._open() as connection:
            if not opened.done():
                opened.set_result(None)
            loss.ended(worker=self._name)
            if self._observer is None:
                await self._serve(connection)
                return
            metrics = self._observer.metrics
            metrics.openings.observe(time.perf_counter() - began)
            connection.commits = metrics.commits
            metrics.open += 1
            try:
                await self._serve(connection)
            finally:
                metrics.open -= 1

    async def _serve(self, connection: Connection) -> None:
        crowd = 0
        while True:
            if crowd and self._writes:
                await self._gather_after_batch(crowd)
            elif crowd:
                await self._gather_jobs()
            if self._waiting:
                await _ensure_usable(connection)
            batch = self._waiting.take()
            if batch:
                self._queued_before_answers = 0
                await self._run_batch(connection, batch)
                total = len(batch) + self._queued_before_answers
                crowd = total if total > 1 else 0
            elif self._stopping:
                return
            else:
                idle = self._loop.create_future()
                self._idle.append(idle)
                await idle

    async def _gather_after_batch(self, count: int) -> None:
        """Waits until as many wait as there were after the last batch, answered or not, but no longer than
        GATHER_SECONDS.

        Most of those answered come again at once, and a commit costs as much for one of them as for all.
        """
        if len(self._waiting) < count:
            self._wanted = count
            self._gathered = self._loop.create_future()
            timer = self._loop.call_later(GATHER_SECONDS, self._stop_waiting)
            await self._gathered
            timer.cancel()
            self._wanted = None

    def _stop_waiting(self) -> None:
        if not self._gathered.done():
            self._gathered.set_result(None)

    async def _gather_jobs(self) -> None:
        """Lets the event loop run while it keeps bringing work.

        A trip to the connection's thread costs more than the statement that it runs. gRPC hands calls over a
        few at a time, so a worker that starts at once makes the trip for one or two of them.
        """
        quiet_rounds = 0
        while quiet_rounds < QUIET_ROUNDS and len(self._waiting) < MAX_BATCH:
            before = len(self._waiting)
            await asyncio.sleep(0)
            quiet_rounds = quiet_rounds + 1 if len(self._waiting) == before else 0

    def _cancel_abandoned_statements(self) -> None:
        for connection, batch in self._running.items():
            if not all(job.future.done() for job in batch):
                continue
            if self._writes:
                self._loop.call_later(ABANDONED_WRITE_SECONDS, self._abandon, connection, batch)
            else:
                connection.abandon()

    def _abandon(self, connection: Connection, batch: Sequence[Job]) -> None:
        # By now the connection may work for others.
        if self._running.get(connection) is batch:
            connection.abandon()

    def _wake_one(self) -> None:
        if self._idle:
            self._idle.popleft().set_result(None)

    async def _refuse_waiting_jobs(self, error: Exception) -> None:
        if not isinstance(error, DatabaseUnavailable):
            error = _unavailable_from(error)
        waiting = self._waiting.clear()
        await self._answer(waiting, [error] * len(waiting))

    async def _answer(self, batch: Sequence[Job], outcomes: Sequence[Any]) -> None:
        """Answers each work with its outcome, a few in each round of the event loop; not what is DEFERRED."""
        self._queued_before_answers = len(self._waiting)
        async for job, outcome in paced(zip(batch, outcomes, strict=True)):
            if outcome is not DEFERRED:
                job.answer(outcome)

    async def _run_batch(self, connection: Connection, batch: Sequence[Job]) -> None:
        """Does the work and answers it.

        Raises:
            DatabaseUnavailable: The connection is of no use any more; everybody has been answered.
        """
        try:
            for job in batch:
                if job.dry_run:
                    # Alone: it must not see the changes of other jobs, and its changes are rolled back.
                    await self._run_transaction(connection, [job], dry_run=True)
            await self._run_transaction(connection, [job for job in batch if not job.dry_run], dry_run=False)
        except DatabaseUnavailable as error:
            # Also those whose turn had not come.
            await self._answer(batch, [error] * len(batch))
            raise

    async def _run_transaction(self, connection: Connection, batch: Sequence[Job], *, dry_run: bool) -> None:
        # A caller that leaves while other work runs ends nothing, so its own work must not begin.
        batch = [job for job in batch if not job.future.done()]
        if not batch:
            return
        connection.is_wanted = True
        self._running[connection] = batch
        try:
            if self._observer is None:
                outcomes = await self._outcomes_with_retries(connection, batch, dry_run=dry_run)
            else:
                outcomes = await self._outcomes_observed(self._observer, connection, batch, dry_run=dry_run)
        except StatementCancelled:
            log.debug("cancelled a statement without waiting callers", size=len(batch))
            return
        except DatabaseUnavailable:
            raise
        except Exception as error:
            if isinstance(error, StorageFull):
                self.after_failure()
            # Busy, full: it would meet each of them alone too. Anything else may be the fault of one of them.
            if len(batch) == 1 or isinstance(error, ServiceError):
                await self._answer(batch, [error] * len(batch))
                return
            log.warning(
                "batch failed, running its jobs one by one", error=type(error).__name__, size=len(batch)
            )
            for job in batch:
                await self._run_transaction(connection, [job], dry_run=dry_run)
            return
        finally:
            self._running.pop(connection, None)
        # Only now, after the commit, is anybody told.
        if self._writes and not dry_run:
            self.after_write()
        later = [job for job, outcome in zip(batch, outcomes, strict=True) if outcome is DEFERRED]
        self._waiting.put_back(later)
        await self._answer(batch, outcomes)

    async def _outcomes_observed(
        self, observer: BatchObserver, connection: Connection, batch: Sequence[Job], *, dry_run: bool
    ) -> list[Any]:
        started = time.perf_counter()
        failure: Exception | None = None
        outcomes: list[Any] = [None] * len(batch)
        try:
            outcomes = await self._outcomes_with_retries(connection, batch, dry_run=dry_run)
            return outcomes
        except Exception as error:
            failure = error
            raise
        finally:
            done = [job.timing for job, it in zip(batch, outcomes, strict=True) if it is not DEFERRED]
            observer.batch_ended(done, started, failure)

    async def _outcomes_with_retries(
        self, connection: Connection, batch: Sequence[Job], *, dry_run: bool
    ) -> list[Any]:
        for _ in range(MAX_TRIES):
            try:
                return await self._outcomes(connection, batch, dry_run=dry_run)
            except RetryTransaction as error:
                cause = error.__cause__
        raise DatabaseBusy from cause

    async def _outcomes(self, connection: Connection, batch: Sequence[Job], *, dry_run: bool) -> list[Any]:
        groups: dict[BatchOperation[Any, Any], list[int]] = {}
        for index, job in enumerate(batch):
            groups.setdefault(job.operation, []).append(index)

        outcomes: list[Any] = [None] * len(batch)

        async def run_all() -> None:
            for operation, indexes in groups.items():
                results = await operation.run(connection, [batch[index].argument for index in indexes])
                for index, result in zip(indexes, results, strict=True):
                    outcomes[index] = result

        async def write_all() -> None:
            first = batch[0].operation
            is_alone = len(groups) == 1
            if not dry_run and is_alone and first.single_statement and connection.SINGLE_STATEMENT_WRITES:
                await run_all()
            else:
                async with connection.transaction(
                    dry_run=dry_run, insert_only=is_alone and first.insert_only
                ):
                    await run_all()

        if self._writes:
            await connection.run_in_connection_thread(write_all())
        else:
            await run_all()
        return outcomes


async def _ensure_usable(connection: Connection) -> None:
    if connection.is_lost:
        raise IdleConnectionLost("it has ended while it had nothing to do")
    if connection.is_doubtful:
        try:
            await connection.confirm()
        except DatabaseUnavailable as error:
            raise IdleConnectionLost(str(error.__cause__ or error)) from None


class Backend(NamedTuple):
    """What an open database consists of."""

    writer: BatchQueue
    reader: BatchQueue
    listen: Callable[[Callable[[], None]], Awaitable[None]] = listen_for_nothing
    """Calls back whenever any process has committed changes, until it is cancelled."""
    check: Callable[[], None] = lambda: None
    """Raises DatabaseUnavailable when what is written would be lost, though it succeeds."""
