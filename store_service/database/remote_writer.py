"""The writer of a worker on SQLite: sends jobs to the writer process, and receives their outcomes.

See docs/decisions/0052. `writer_server.py` is the other end.
"""

import asyncio
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog

from store_service.database import writer_frames as frames
from store_service.database.batch_operation import Argument, BatchOperation, Result
from store_service.database.job_queue import Job
from store_service.database.writer_connection import WriterConnection
from store_service.database.writer_frames import Hello, WriterMismatch
from store_service.errors import DatabaseUnavailable, OperatorError, StorageFull
from store_service.observability.batches import BatchObserver, BatchRecord
from store_service.pacing import WAKE_COUNT
from store_service.repeated_failure import RepeatedFailure

WAIT_SECONDS = 5.0
"""Maximum time that jobs wait for the next writer process. Then they fail with DATABASE_UNAVAILABLE, as do
further jobs until it accepts them."""

GATHER_FROM = 16
"""Number of jobs that this worker has just sent, or that have just been answered, from which on further jobs
are gathered."""

GATHER_SECONDS = 0.002
"""How long jobs are gathered under load. A frame costs more than a job, and the writer gathers for longer."""

FIRST_CONNECTION_SECONDS = 30.0
"""Maximum time to connect to the writer process at the start of a worker."""

RECONNECT_SECONDS = 0.05
"""Pause before another attempt to connect. The supervisor holds the socket, so most attempts succeed."""

log = structlog.get_logger("store_service.database")


class WriterLost(Exception):
    """The writer process has ended, or does not accept jobs. The text is one line."""


class WrongWriter(OperatorError):
    """The writer process does not belong to this worker."""


class RemoteWriter:
    """Has the methods of `BatchQueue` for a queue in the writer process.

    All jobs of one round of the event loop are sent in one frame. There is no task for a job.
    """

    def __init__(self, path: str, hello: Hello, observer: BatchObserver | None) -> None:
        """Takes the socket of the writer process, what it must say, and the observer of the batches."""
        self._path = path
        self.hello = hello
        """What the writer process must say."""
        self._indexes = {name: index for index, name in enumerate(hello.operations)}
        self._observer = observer
        if observer is not None:
            observer.metrics.waiting = lambda: len(self._unsent) + len(self._sent)
        self._after_write: list[Callable[[], None]] = []
        self._after_failure: Callable[[], None] = lambda: None
        self._listeners: list[Callable[[], None]] = []
        self._number = 0
        """Number of the last job."""
        self._unsent: dict[int, Job] = {}
        self._sent: dict[int, Job] = {}
        """The jobs by number that have no outcome yet."""
        self._left: list[int] = []
        """Sent jobs whose callers have left since the last frame."""
        self._outcomes: deque[tuple[Job, Any]] = deque()
        """What callers get next."""
        self._connection: WriterConnection | None = None
        """The connection to a writer process that accepts jobs."""
        self._recent_answers = 0
        """Number of answers in the last frame that had some."""
        self._will_send = False
        self._refuses = False
        """Whether there has been no writer process for WAIT_SECONDS, or this worker stops."""
        self._refusal: asyncio.TimerHandle | None = None
        self._is_stopping = False
        self._loss = RepeatedFailure(
            log, "writer process lost", end_event="writer process accepts jobs again", level="error"
        )
        self._loop: asyncio.AbstractEventLoop

    def after_write(self, callback: Callable[[], None]) -> None:
        """Calls `callback` after each commit with a job of this worker."""
        self._after_write.append(callback)

    def after_failure(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when the storage has failed or refused a job, or the writer process was lost."""
        self._after_failure = callback

    async def listen(self, callback: Callable[[], None]) -> None:
        """Calls `callback` now and after each commit of the writer process, until it is cancelled."""
        self._listeners.append(callback)
        try:
            callback()
            await self._loop.create_future()
        finally:
            self._listeners.remove(callback)

    async def execute(
        self,
        operation: BatchOperation[Argument, Result],
        argument: Argument,
        *,
        dry_run: bool = False,
        size: int = 0,
    ) -> Result:
        """Waits until the writer process has run a job, and returns its result; see `BatchQueue.execute`.

        Raises:
            DatabaseUnavailable: The writer process ended before its answer, so the job may have run or not.
                Or there has been no writer process for WAIT_SECONDS, so it has not.
        """
        assert operation.name in self._indexes, "write_operations.py has all operations that write"
        if self._refuses:
            raise DatabaseUnavailable from WriterLost("there is no writer process")
        future: asyncio.Future[Result] = self._loop.create_future()
        job = Job(operation, argument, dry_run, size, future)
        if self._observer is not None:
            job.timing = self._observer.job_queued()
        self._number = number = self._number + 1
        self._unsent[number] = job
        self.send_soon()
        try:
            return await future
        except asyncio.CancelledError:
            if self._unsent.pop(number, None) is None and self._sent.pop(number, None) is not None:
                self._left.append(number)
                self.send_soon()
            raise

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connects to the writer process, and again whenever it was lost, until the end of the block.

        Raises:
            WrongWriter: The writer process does not belong to this worker.
            DatabaseUnavailable: There is no writer process.
        """
        self._loop = asyncio.get_running_loop()
        connected: asyncio.Future[None] = self._loop.create_future()
        task = asyncio.create_task(self._stay_connected(connected), name="writer-connection")
        try:
            try:
                async with asyncio.timeout(FIRST_CONNECTION_SECONDS):
                    await connected
            except TimeoutError:
                raise DatabaseUnavailable from WriterLost("the writer process does not respond")
            yield
        finally:
            self._is_stopping = True
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if self._refusal is not None:
                self._refusal.cancel()
            self._unsent.update(self._sent)
            self._refuse()

    async def _stay_connected(self, first: asyncio.Future[None]) -> None:
        """Connects, and connects again when the connection was lost. `first` is the first connection."""
        while True:
            try:
                _, connection = await self._loop.create_unix_connection(
                    lambda: WriterConnection(self), self._path
                )
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            try:
                if not await connection.greeted:
                    await asyncio.sleep(RECONNECT_SECONDS)
                    continue
                self._begin(connection)
                if not first.done():
                    first.set_result(None)
                await connection.lost
            except WriterMismatch as error:
                if not first.done():
                    first.set_exception(WrongWriter(str(error)))
                    return
                log.error("this worker stops: it cannot use the writer process", cause=str(error))
                self._refuse()
                # The supervisor then starts a worker that can.
                signal.raise_signal(signal.SIGTERM)
                return
            finally:
                connection.transport.abort()

    def _begin(self, connection: WriterConnection) -> None:
        """Sends the waiting jobs over a connection that accepts them."""
        if self._observer is not None:
            self._observer.metrics.open = 1
        self._connection = connection
        self._refuses = False
        if self._refusal is not None:
            self._refusal.cancel()
        self._loss.ended()
        self.send_soon()
        # The last writer process may have ended between a commit and its message.
        _call_all(self._listeners)

    def ended(self, *, is_finished: bool) -> None:
        """Called when the connection was lost. `is_finished`: Jobs without outcomes have not been started."""
        self._connection = None
        if self._is_stopping:
            return
        self._left.clear()
        sent, self._sent = self._sent, {}
        if self._observer is not None:
            self._observer.metrics.open = 0
        if is_finished:
            self._unsent = {**sent, **self._unsent}
        else:
            if self._observer is not None:
                self._observer.metrics.lost += 1
            self._loss.failed()
            self._fail(sent, "the writer process ended before its answer")
        self._refusal = self._loop.call_later(WAIT_SECONDS, self._refuse)

    def _refuse(self) -> None:
        self._refuses = True
        unsent, self._unsent = self._unsent, {}
        self._fail(unsent, "there is no writer process")

    def _fail(self, jobs: dict[int, Job], cause: str) -> None:
        error = DatabaseUnavailable()
        error.__cause__ = WriterLost(cause)
        self._answer([(job, error) for job in jobs.values()])
        self._after_failure()

    def send_soon(self) -> None:
        """Sends what is waiting: in the next round of the event loop, or under load after GATHER_SECONDS."""
        if not self._will_send and self._connection is not None:
            self._will_send = True
            if len(self._sent) + self._recent_answers < GATHER_FROM:
                self._loop.call_soon(self._send)
            else:
                self._loop.call_later(GATHER_SECONDS, self._send)

    def _send(self) -> None:
        self._will_send = False
        connection = self._connection
        if connection is None:
            return
        left, self._left = self._left, []
        unsent, self._unsent = self._unsent, {}
        while unsent and not connection.is_full:
            jobs: list[frames.SentJob] = []
            size = 0
            for number, job in unsent.items():
                index = self._indexes[job.operation.name]
                has_span = self._observer is not None and job.timing.span is not None
                queued_at = job.timing.queued_at if has_span else None
                jobs.append((number, index, job.argument, job.dry_run, job.size, queued_at))
                size += job.size
                if size > frames.FRAME_JOB_BYTES:
                    break
            sending = [unsent.pop(number) for number, *_ in jobs]
            try:
                frame = frames.encoded((jobs, left))
            except Exception as error:
                # An argument cannot be sent. That is an unhandled exception of its caller.
                self._answer([(job, error) for job in sending])
                continue
            self._sent.update(zip((number for number, *_ in jobs), sending, strict=True))
            connection.transport.write(frame)
            left = []
        if left:
            connection.transport.write(frames.encoded(([], left)))
        # The transport is full. It calls `send_soon` when it is not.
        self._unsent = unsent

    def received(self, event: int, answers: list[tuple[int, Any, BatchRecord | None]]) -> None:
        """Handles a message of the writer process."""
        if event == frames.COMMITTED:
            if answers:
                _call_all(self._after_write)
            _call_all(self._listeners)
        elif event == frames.STOPPING:
            # Further jobs wait for the next writer process.
            self._connection = None
        if answers:
            self._recent_answers = len(answers)
        outcomes: list[tuple[Job, Any]] = []
        for number, outcome, batch in answers:
            # None if the caller has left.
            job = self._sent.pop(number, None)
            if job is not None:
                outcomes.append((job, outcome))
                if batch is not None and self._observer is not None:
                    self._observer.remote_batch_ended(job.timing, batch)
                if isinstance(outcome, DatabaseUnavailable | StorageFull):
                    self._after_failure()
        self._answer(outcomes)

    def _answer(self, outcomes: list[tuple[Job, Any]]) -> None:
        """Wakes callers, WAKE_COUNT in each round of the event loop."""
        is_waking = bool(self._outcomes)
        self._outcomes += outcomes
        if not is_waking:
            self._wake()

    def _wake(self) -> None:
        for _ in range(min(WAKE_COUNT, len(self._outcomes))):
            job, outcome = self._outcomes.popleft()
            job.answer(outcome)
        if self._outcomes:
            self._loop.call_soon(self._wake)


def _call_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()
