"""Queues of jobs, and the connections that run them in batches.

No RPC uses a connection. An RPC puts a job into a queue and waits. A queue runner takes all jobs that wait,
runs all jobs of one operation with one call, and answers each job. So one statement reads for many callers,
one fsync commits for many callers, and a caller that leaves never loses a connection.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

import structlog

from store_service.database.batch_operation import Argument, BatchOperation, Result
from store_service.database.batch_runner import BatchRunner
from store_service.database.connection import Connection
from store_service.database.job_queue import MAX_BATCH, Job, JobQueue
from store_service.database.remote_writer import RemoteWriter
from store_service.errors import DatabaseUnavailable
from store_service.observability.batches import BatchObserver
from store_service.repeated_failure import RepeatedFailure

QUIET_ROUNDS = 32
"""Under load a reader starts a batch after this many rounds of the event loop without a new job
(docs/decisions/0007)."""

GATHER_SECONDS = 0.005
"""Maximum time that the writer waits, under load, for the next jobs of the callers it has just answered."""

LONE_SECONDS = 0.00015
"""A read that arrives this long after the previous one runs without a batch; see `BatchOperation.run_one`.
One caller that sends each call after the response to the last one takes longer, several callers do not."""

BATCHED_SECONDS = 0.02
"""How long all reads run in batches after one that arrived earlier, or while a batch ran. A mixture of both
costs more than either."""

GATHERED_JOB_BYTES = 2048
"""Mean size of the jobs of a batch above which the writer does not wait for the next jobs of their callers.
The event loop takes longer to send them than a commit takes."""

RECONNECT_SECONDS = 0.25
"""Pause before a lost connection is opened again."""

log = structlog.get_logger("store_service.database")


class IdleConnectionLost(Exception):
    """A connection became unusable before it started a batch, so no job failed."""


def _unavailable_from(error: Exception) -> DatabaseUnavailable:
    unavailable = DatabaseUnavailable()
    unavailable.__cause__ = error
    return unavailable


Open = Callable[[], AbstractAsyncContextManager[Connection]]
"""Opens a connection of `databases` and closes it."""


async def listen_for_nothing(_: Callable[[], None]) -> None:
    """Never returns. For databases that only one process writes to."""
    await asyncio.get_running_loop().create_future()


class BatchQueue:
    """A queue of jobs, and the tasks that run them, each on a connection of its own."""

    def __init__(
        self,
        name: str,
        open_connection: Open,
        *,
        connections: int,
        writes: bool,
        observer: BatchObserver | None = None,
        is_remote: bool = False,
    ) -> None:
        """Takes how to open a connection, how many are opened, whether batches are transactions, the observer
        of the batches, and whether the callers are in other processes."""
        assert connections == 1 or not writes, "jobs are gathered for one connection that writes"
        self._name = name
        self._open = open_connection
        self._connections = connections
        self._writes = writes
        self._waiting = JobQueue()
        self._runner = BatchRunner(self._waiting, writes=writes, observer=observer, is_remote=is_remote)
        self._observer = observer
        if observer is not None:
            observer.metrics.waiting = self._waiting.__len__
        self._idle: dict[asyncio.Future[None], Connection] = {}
        """The idle connections, in the order in which they became idle. The future wakes the runner."""
        self._last_read = 0.0
        """When the last read that can run without a batch arrived, by perf_counter."""
        self._batched_until = 0.0
        self._stopping = False
        self._gather_count: int | None = None
        """Number of waiting jobs that ends the wait of `_gather_after_batch`; None if it does not wait."""
        self._gathered: asyncio.Future[None]
        self._loop: asyncio.AbstractEventLoop

    def after_write(self, callback: Callable[[], None]) -> None:
        """Calls `callback` after each commit."""
        self._runner.after_write.append(callback)

    def after_failure(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when the storage has failed or refused a job."""
        self._runner.after_failure = callback

    async def execute(
        self,
        operation: BatchOperation[Argument, Result],
        argument: Argument,
        *,
        dry_run: bool = False,
        size: int = 0,
    ) -> Result:
        """Waits until a job has run, and returns its result.

        A caller may be cancelled while it waits. A job that has not started is then skipped. A job that has
        started is finished, because the batch has jobs of other callers too. When all callers of a batch have
        left, a read is cancelled, and a write is rolled back if it takes ABANDONED_WRITE_SECONDS more.

        Args:
            operation: The operation to run.
            argument: Its argument.
            dry_run: The job runs in a transaction of its own, which is rolled back.
            size: Approximate bytes that the job takes in a batch; may be 0 for small jobs.

        Raises:
            ServiceError: The outcome of `operation` for this argument, or for its batch.
        """
        if self._stopping:
            raise DatabaseUnavailable
        if operation.run_one is not None and self._is_lone_read():
            result = self._runner.run_one(next(iter(self._idle.values())), operation, argument)
            if result is not None:
                return result
        future: asyncio.Future[Result] = self._loop.create_future()
        job = Job(operation, argument, dry_run, size, future)
        if self._observer is not None:
            job.timing = self._observer.job_queued()
        self.submit(job)
        try:
            return await future
        except asyncio.CancelledError:
            self._runner.cancel_abandoned()
            raise

    def submit(self, job: Job) -> None:
        """Queues a job with its timing. Its future gets the outcome."""
        self._waiting.append(job)
        self._wake_one()
        if self._gather_count is not None and len(self._waiting) >= self._gather_count:
            self._stop_gathering()

    def cancel_abandoned(self) -> None:
        """Cancels the batches whose callers have all left; see `execute`."""
        self._runner.cancel_abandoned()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Opens the connections and runs jobs until the end of the block, then finishes the waiting jobs.

        Raises:
            ServiceError: A connection cannot be opened at the start.
        """
        self._loop = asyncio.get_running_loop()
        opened: list[asyncio.Future[None]] = [self._loop.create_future() for _ in range(self._connections)]
        tasks = [
            asyncio.create_task(self._hold_connections(first), name=f"{self._name}-{n}")
            for n, first in enumerate(opened)
        ]
        try:
            await asyncio.gather(*opened)
            yield
        finally:
            self._stopping = True
            while self._idle:
                self._wake_one()
            await asyncio.gather(*tasks)
            await self._refuse_waiting_jobs(DatabaseUnavailable())

    async def _hold_connections(self, opened: asyncio.Future[None]) -> None:
        """Holds a connection and runs batches on it; opens another one when it is lost."""
        loss = RepeatedFailure(log, "connection lost", end_event="connection restored", level="error")
        while True:
            try:
                # If `databases` could not take a connection back, it gives the task the same one forever.
                # Therefore each connection has a task of its own.
                await asyncio.create_task(self._hold_one(opened, loss), name=f"{self._name}-connection")
                return
            except IdleConnectionLost as error:
                # Waiting jobs run on the next connection. They fail only if it cannot be opened.
                self._count_loss(loss, error)
            except Exception as error:
                if not opened.done():
                    opened.set_exception(error)
                    return
                if self._stopping:
                    return
                # Waiting jobs fail at once, before the pause.
                self._count_loss(loss, error)
                self._runner.after_failure()
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
        runner = self._runner
        # Jobs of the last batch, and jobs that waited when it was answered; 0 if there was only one.
        recent_jobs = 0
        idle = self._loop.create_future()

        def wake() -> None:
            if self._idle.pop(idle, None) is not None:
                idle.set_result(None)

        # Readers follow the writer to another server, so a lost writer must not wait for the next write.
        connection.on_loss(wake)
        while True:
            if recent_jobs and self._writes:
                await self._gather_after_batch(recent_jobs)
            elif recent_jobs:
                await self._gather_jobs()
            if self._waiting:
                await _ensure_usable(connection)
            batch = self._waiting.take()
            if batch:
                runner.queued_before_answers = 0
                await runner.run(connection, batch)
                total = len(batch) + runner.queued_before_answers
                are_large = sum([job.size for job in batch]) > GATHERED_JOB_BYTES * len(batch)
                recent_jobs = 0 if total == 1 or (self._writes and are_large) else total
            elif self._stopping:
                return
            elif connection.is_lost:
                raise IdleConnectionLost("the connection was closed while it was idle")
            else:
                idle = self._loop.create_future()
                self._idle[idle] = connection
                await idle

    async def _gather_after_batch(self, count: int) -> None:
        """Waits until `count` jobs wait, but no longer than GATHER_SECONDS.

        Most callers that were answered send their next call at once, and a commit costs as much for one of
        them as for all.
        """
        if len(self._waiting) < count:
            self._gather_count = count
            self._gathered = self._loop.create_future()
            timer = self._loop.call_later(GATHER_SECONDS, self._stop_gathering)
            await self._gathered
            timer.cancel()
            self._gather_count = None

    def _stop_gathering(self) -> None:
        if not self._gathered.done():
            self._gathered.set_result(None)

    async def _gather_jobs(self) -> None:
        """Lets the event loop run as long as that brings new jobs.

        A switch to the thread of the connection costs more than the statement. gRPC passes on a few calls at
        a time, so a reader that starts at once makes the switch for one or two of them.
        """
        quiet_rounds = 0
        while quiet_rounds < QUIET_ROUNDS and len(self._waiting) < MAX_BATCH:
            before = len(self._waiting)
            await asyncio.sleep(0)
            quiet_rounds = quiet_rounds + 1 if len(self._waiting) == before else 0

    def _is_lone_read(self) -> bool:
        """Whether a read that arrives now has no others to share a batch with."""
        now = time.perf_counter()
        if now - self._last_read < LONE_SECONDS or len(self._idle) < self._connections:
            self._batched_until = now + BATCHED_SECONDS
        self._last_read = now
        return now >= self._batched_until

    def _wake_one(self) -> None:
        if self._idle:
            idle = next(iter(self._idle))
            del self._idle[idle]
            idle.set_result(None)

    async def _refuse_waiting_jobs(self, error: Exception) -> None:
        if not isinstance(error, DatabaseUnavailable):
            error = _unavailable_from(error)
        waiting = self._waiting.clear()
        await self._runner.answer(waiting, [error] * len(waiting))


async def _ensure_usable(connection: Connection) -> None:
    if connection.is_lost:
        raise IdleConnectionLost("the connection was closed while it was idle")
    if connection.needs_confirmation:
        try:
            await connection.confirm()
        except DatabaseUnavailable as error:
            raise IdleConnectionLost(str(error.__cause__ or error)) from None


class Backend(NamedTuple):
    """The parts of an open database."""

    writer: BatchQueue | RemoteWriter
    reader: BatchQueue
    listen: Callable[[Callable[[], None]], Awaitable[None]] = listen_for_nothing
    """Calls its argument whenever any process has committed changes, until it is cancelled."""
    check: Callable[[], None] = lambda: None
    """Raises DatabaseUnavailable if writes would succeed and be lost."""
    check_room: Callable[[], None] = lambda: None
    """Raises StorageFull if the disk has no room for a rewrite of the database."""
    can_rewrite: bool = True
    """Whether there are jobs outside of transactions."""
    pooling: str = ""
    """What is between the service and the database; empty if nothing can be."""
