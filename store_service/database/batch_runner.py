"""Runs one batch of jobs on a connection, and answers the jobs."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from store_service.database.batch_operation import DEFERRED, Argument, BatchOperation, Result
from store_service.database.connection import Connection
from store_service.database.driver_errors import RetryTransaction, StatementCancelled
from store_service.database.job_queue import Job, JobQueue
from store_service.errors import DatabaseBusy, DatabaseUnavailable, ServiceError, StorageFull
from store_service.observability.batches import BatchObserver
from store_service.pacing import paced

ABANDONED_WRITE_SECONDS = 1.0
"""How long a write continues after all of its callers have left. Most writes are committed within it."""

MAX_TRIES = 5
"""How often a batch is run if the database rolls it back because of another transaction."""

log = structlog.get_logger("store_service.database")


class BatchRunner:
    """Runs the batches of one queue on any of its connections."""

    def __init__(
        self, queue: JobQueue, *, writes: bool, observer: BatchObserver | None, is_remote: bool = False
    ) -> None:
        """Takes the queue for deferred jobs, whether batches are transactions, the observer, and whether the
        callers are in other processes."""
        self._queue = queue
        self._writes = writes
        self._observer = observer
        self._is_remote = is_remote
        self._running: dict[Connection, Sequence[Job]] = {}
        self.queued_before_answers = 0
        """Number of jobs that waited just before the last batch was answered. Answered callers may queue
        their next jobs after that."""
        self.after_write: list[Callable[[], None]] = []
        """Called after each commit."""
        self.after_failure: Callable[[], None] = lambda: None
        """Called when the storage has failed or refused a job: an error of the connection, or a full disk."""

    async def run(self, connection: Connection, batch: Sequence[Job]) -> None:
        """Runs a batch and answers its jobs.

        Raises:
            DatabaseUnavailable: The connection is not usable any more. All jobs have been answered.
        """
        try:
            for job in batch:
                if job.dry_run:
                    # Alone: it must not see the changes of other jobs, and its changes are rolled back.
                    await self._run_transaction(connection, [job], dry_run=True)
            await self._run_transaction(connection, [job for job in batch if not job.dry_run], dry_run=False)
        except DatabaseUnavailable as error:
            # Jobs of the batch that have not started fail too.
            await self.answer(batch, [error] * len(batch))
            raise

    def run_one(
        self, connection: Connection, operation: BatchOperation[Argument, Result], argument: Argument
    ) -> Result | None:
        """Runs a read on an idle connection without waiting, and returns its result.

        A batch would switch between two tasks, which costs more than the statement (docs/decisions/0055).

        Returns:
            None if a batch has to run the read: because of its argument, or because the connection is slow or
            has failed.

        Raises:
            ServiceError: The outcome of the operation.
        """
        if not connection.reads_inline:
            return None
        assert operation.run_one is not None
        connection.is_cancelled = False
        timing = None if self._observer is None else self._observer.job_queued()
        try:
            result = operation.run_one(connection, argument)
        except DatabaseUnavailable:
            # The batch fails too, and the connection is replaced.
            return None
        if self._observer is not None and timing is not None and result is not None:
            self._observer.batch_ended([timing], timing.queued_at, None)
        return result

    async def answer(self, batch: Sequence[Job], outcomes: Sequence[Any]) -> None:
        """Gives each job its outcome, a few in each round of the event loop. Skips outcomes that are
        DEFERRED. Callers in other processes get all outcomes at once, because none is woken here."""
        self.queued_before_answers = len(self._queue)
        answered = zip(batch, outcomes, strict=True)
        if self._is_remote:
            for job, outcome in answered:
                if outcome is not DEFERRED:
                    job.answer(outcome)
            return
        async for job, outcome in paced(answered):
            if outcome is not DEFERRED:
                job.answer(outcome)

    def cancel_abandoned(self) -> None:
        """Cancels the statements of batches whose callers have all left: reads at once, writes after
        ABANDONED_WRITE_SECONDS."""
        for connection, batch in self._running.items():
            if not all(job.future.done() for job in batch):
                continue
            if self._writes:
                loop = asyncio.get_running_loop()
                loop.call_later(ABANDONED_WRITE_SECONDS, self._cancel_if_running, connection, batch)
            else:
                connection.cancel()

    def _cancel_if_running(self, connection: Connection, batch: Sequence[Job]) -> None:
        # The connection may run another batch by now.
        if self._running.get(connection) is batch:
            connection.cancel()

    async def _run_transaction(self, connection: Connection, batch: Sequence[Job], *, dry_run: bool) -> None:
        # A caller that leaves while other jobs of the batch run cancels nothing. Its own job must not start.
        batch = [job for job in batch if not job.future.done()]
        if not batch:
            return
        connection.is_cancelled = False
        self._running[connection] = batch
        try:
            if self._observer is None:
                outcomes = await self._outcomes_with_retries(connection, batch, dry_run=dry_run)
            else:
                outcomes = await self._observed_outcomes(self._observer, connection, batch, dry_run=dry_run)
        except StatementCancelled:
            log.debug("cancelled a statement without waiting callers", size=len(batch))
            return
        except DatabaseUnavailable:
            raise
        except Exception as error:
            if isinstance(error, StorageFull):
                self.after_failure()
            # A ServiceError, such as DatabaseBusy or StorageFull, would be the same for each job alone. Any
            # other error may be caused by a single job.
            if len(batch) == 1 or isinstance(error, ServiceError):
                await self.answer(batch, [error] * len(batch))
                return
            log.warning(
                "batch failed, running its jobs one by one", error=type(error).__name__, size=len(batch)
            )
            for job in batch:
                await self._run_transaction(connection, [job], dry_run=dry_run)
            return
        finally:
            self._running.pop(connection, None)
        # No job is answered before the commit.
        if self._writes and not dry_run:
            for callback in self.after_write:
                callback()
        deferred = [job for job, outcome in zip(batch, outcomes, strict=True) if outcome is DEFERRED]
        self._queue.put_back(deferred)
        await self.answer(batch, outcomes)

    async def _observed_outcomes(
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
            if not first.in_transaction:
                assert len(batch) == 1, "other jobs of the batch would have no transaction"
                async with connection.autocommit():
                    await run_all()
            elif not dry_run and is_alone and first.single_statement and connection.SINGLE_STATEMENT_WRITES:
                await run_all()
            else:
                await connection.run_transaction(
                    run_all, dry_run=dry_run, insert_only=is_alone and first.insert_only
                )

        if self._writes:
            await connection.run_in_connection_thread(write_all())
        else:
            async with connection.autocommit():
                await run_all()
        return outcomes
