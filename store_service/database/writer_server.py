"""Executes the jobs of workers in the batch queue of the writer process. See docs/decisions/0052.

`remote_writer.py` is the other end.
"""

import asyncio
import pickle
import socket
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import structlog

from store_service.database import writer_frames as frames
from store_service.database.batch_operation import BatchOperation
from store_service.database.batch_queue import BatchQueue
from store_service.database.job_queue import Job
from store_service.database.writer_frames import FrameError, FrameReader, Hello, WriterFailure
from store_service.errors import ServiceError
from store_service.observability.batches import BatchRecord, JobTiming

MAX_HELD_BYTES = 32 * 1024 * 1024
"""Size of the unfinished jobs of a worker at which the writer process reads no more of it. A larger job is
accepted if there is no other one."""

CLOSE_SECONDS = 1.0
"""Maximum time to send the last answers."""

log = structlog.get_logger("store_service.database")


class CallerSpans:
    """Sends the batch of a job to the worker that records its span."""

    def current(self) -> None:
        """Returns None: the jobs of workers bring their callers."""

    def batch_ended(self, span: object, batch: BatchRecord) -> None:
        """Keeps the batch for the answer of a caller."""
        assert isinstance(span, _Caller)
        span.batch = batch


class WriterServer:
    """Accepts connections of workers."""

    def __init__(self, operations: Sequence[BatchOperation[Any, Any]], hello: Hello) -> None:
        """Takes the operations in the order of `hello.operations`, and what workers must have in common."""
        self.operations = operations
        self.hello = hello
        self.queue: BatchQueue
        self.is_stopping = False
        """Whether further jobs are left to the next writer process."""
        self.workers: set[_Worker] = set()
        self.all_left = asyncio.Event()
        """Set while no worker is connected."""
        self.all_left.set()

    @asynccontextmanager
    async def accepting(self, listener: socket.socket, queue: BatchQueue) -> AsyncIterator[None]:
        """Accepts workers and their jobs until the end of the block. Then tells the workers that it stops."""
        self.queue = queue
        queue.after_write(self._committed)
        server = await asyncio.get_running_loop().create_unix_server(lambda: _Worker(self), sock=listener)
        try:
            yield
        finally:
            # Workers that connect from now on wait for the next writer process.
            server.close()
            self.is_stopping = True
            for worker in self.workers:
                worker.send(frames.STOPPING)

    async def finish(self) -> None:
        """Tells the workers that all jobs are answered which were started, and closes the connections."""
        for worker in self.workers:
            worker.send(frames.FINISHED)
            worker.transport.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.all_left.wait()
        except TimeoutError:
            log.warning("a worker did not read the last answers")

    def _committed(self) -> None:
        for worker in self.workers:
            worker.committed()


class _Caller:
    """The caller of a job, which is in a worker. Stands for its future."""

    __slots__ = ("batch", "has_left", "number", "size", "worker")

    def __init__(self, worker: "_Worker", number: int, size: int) -> None:
        self.worker = worker
        self.number = number
        self.size = size
        self.has_left = False
        self.batch: BatchRecord | None = None

    def done(self) -> bool:
        return self.has_left

    def set_result(self, result: Any) -> None:
        self.worker.answer(self, result)

    def set_exception(self, error: Exception) -> None:
        self.worker.answer(self, error if isinstance(error, ServiceError) else _failure(error))


class _Worker(asyncio.Protocol):
    """The connection of a worker."""

    transport: asyncio.Transport

    def __init__(self, server: WriterServer) -> None:
        self._server = server
        self._reader = FrameReader()
        self._callers: dict[int, _Caller] = {}
        self._held_bytes = 0
        self._is_paused = False
        self._answers: list[tuple[int, Any, BatchRecord | None]] = []
        self._answered_bytes = 0
        self._event = frames.NO_EVENT
        self._will_send = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._server.workers.add(self)
        self._server.all_left.clear()
        self.transport.write(self._server.hello.encoded())

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                jobs, left = frames.decoded(payload)
                if not self._server.is_stopping:
                    self._submit(jobs)
                self._cancel(left)
        except FrameError as error:
            log.error("the connection of a worker is closed", cause=str(error))
            self.transport.abort()

    def _submit(self, jobs: Sequence[frames.SentJob]) -> None:
        now = time.perf_counter()
        for number, index, argument, dry_run, size, queued_at in jobs:
            caller = _Caller(self, number, size)
            job = Job(self._server.operations[index], argument, dry_run, size, caller)
            job.timing = JobTiming(queued_at or now, caller if queued_at is not None else None)
            self._callers[number] = caller
            self._held_bytes += size
            self._server.queue.submit(job)
        if self._held_bytes > MAX_HELD_BYTES and not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def _cancel(self, numbers: Sequence[int]) -> None:
        callers = [self._callers.get(number) for number in numbers]
        for caller in callers:
            if caller is not None:
                self._forget(caller)
        if callers:
            self._server.queue.cancel_abandoned()

    def answer(self, caller: _Caller, outcome: Any) -> None:
        """Sends the outcome of a job."""
        self._forget(caller)
        self._answers.append((caller.number, outcome, caller.batch))
        self._answered_bytes += caller.size
        if self._answered_bytes > frames.FRAME_JOB_BYTES:
            self._send()
        else:
            self._send_soon()

    def _forget(self, caller: _Caller) -> None:
        caller.has_left = True
        self._callers.pop(caller.number, None)
        self._held_bytes -= caller.size
        if self._is_paused and self._held_bytes <= MAX_HELD_BYTES and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()

    def committed(self) -> None:
        """Tells the worker that changes have been committed, together with the answers of their jobs."""
        self._event = frames.COMMITTED
        self._send_soon()

    def send(self, event: int) -> None:
        """Sends the waiting answers, and then an event."""
        self._send()
        self._event = event
        self._send()

    def _send_soon(self) -> None:
        if not self._will_send:
            self._will_send = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._will_send = False
        answers, self._answers = self._answers, []
        event, self._event = self._event, frames.NO_EVENT
        self._answered_bytes = 0
        if self.transport.is_closing() or not (answers or event):
            return
        self.transport.write(_encoded(event, answers))

    def connection_lost(self, error: Exception | None) -> None:
        callers, self._callers = self._callers, {}
        for caller in callers.values():
            caller.has_left = True
        self._server.workers.discard(self)
        if not self._server.workers:
            self._server.all_left.set()
        if callers:
            self._server.queue.cancel_abandoned()


def _encoded(event: int, answers: list[tuple[int, Any, BatchRecord | None]]) -> bytes:
    try:
        return frames.encoded((event, answers))
    except Exception:
        # An outcome cannot be sent, such as an error whose cause cannot.
        sendable = [(number, _sendable(outcome), batch) for number, outcome, batch in answers]
        return frames.encoded((event, sendable))


def _sendable(outcome: Any) -> Any:
    try:
        pickle.dumps(outcome)
    except Exception as error:
        if not isinstance(outcome, ServiceError):
            return _failure(error)
        outcome.__cause__ = WriterFailure(str(outcome.__cause__))
    return outcome


def _failure(error: Exception) -> WriterFailure:
    """Returns what a worker gets for an unhandled exception. It logs the text together with its call."""
    return WriterFailure("".join(traceback.format_exception(error)))
