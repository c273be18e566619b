"""The writer of a worker, against a writer server on a real file, over a real socket."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from store_service.database import remote_writer, sqlite, writer_server
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database, open_database
from store_service.database.connection import Connection
from store_service.database.remote_writer import WriterLost, WrongWriter
from store_service.database.writer_frames import WriterFailure, WriterProcess
from store_service.database.writer_server import CallerSpans, WriterServer
from store_service.errors import DatabaseUnavailable, PostNotFound, StorageFull
from store_service.observability.batches import BatchObserver
from store_service.observability.metrics import QueueMetrics
from tests.support.polling import eventually
from tests.support.timeouts import scaled_timeout


class UnpicklableError(Exception):
    """Cannot be sent to another process."""

    def __reduce__(self) -> Any:
        raise TypeError("no")


class SentOnce:
    """Can be sent to the writer process, and not back."""

    def __init__(self, is_sent: bool = False) -> None:
        self.is_sent = is_sent

    def __reduce__(self) -> Any:
        if self.is_sent:
            raise TypeError("no")
        return SentOnce, (True,)


async def _echo(_: Connection, arguments: Sequence[Any]) -> Sequence[Any]:
    return arguments


async def _fail(_: Connection, arguments: Sequence[Any]) -> Sequence[Any]:
    raise ValueError("a broken operation")


async def _refuse(_: Connection, arguments: Sequence[Any]) -> Sequence[Any]:
    return [PostNotFound(ids=[it]) for it in arguments]


async def _fill(_: Connection, arguments: Sequence[Any]) -> Sequence[Any]:
    raise StorageFull from UnpicklableError("the cause")


ECHO = BatchOperation(_echo, name="echo")
FAIL = BatchOperation(_fail, name="fail")
REFUSE = BatchOperation(_refuse, name="refuse")
FILL = BatchOperation(_fill, name="fill")
OPERATIONS = (ECHO, FAIL, REFUSE, FILL)


class Writers:
    """Starts writer servers on one socket, as a supervisor starts writer processes."""

    def __init__(self, file: Path, path: str, listener: socket.socket) -> None:
        self.url = f"sqlite:///{file}"
        self.file = file
        self.process = WriterProcess(path, "1", "s", tuple(it.name for it in OPERATIONS))
        self.metrics = QueueMetrics()
        self._listener = listener

    @asynccontextmanager
    async def running(self, **other: Any) -> AsyncIterator[WriterServer]:
        """A writer server until the end of the block, where it hands over to the next one."""
        server = WriterServer(OPERATIONS, self.process._replace(**other).hello(self.file))
        observer = BatchObserver("writer", self.metrics, CallerSpans())
        opening = sqlite.open_writer(self.url, lock_timeout_seconds=5, observer=observer, is_remote=True)
        async with opening as queue, server.accepting(self._listener.dup(), queue):
            yield server
        await server.finish()

    @asynccontextmanager
    async def killed(self) -> AsyncIterator[WriterServer]:
        """Same as `running`, but it loses its connections at the end of the block."""
        async with self.running() as server:
            try:
                yield server
            finally:
                for worker in list(server.workers):
                    worker.transport.abort()
                await server.all_left.wait()


@pytest.fixture
def writers(database_file: Path, tmp_path: Path) -> Iterator[Writers]:
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(tmp_path / "w")
        listener.bind(path)
        listener.listen()
        yield Writers(database_file, path, listener)


@asynccontextmanager
async def worker(writers: Writers) -> AsyncIterator[Database]:
    """The database of a worker."""
    async with open_database(writers.url, writer_process=writers.process) as database:
        yield database


@contextmanager
def held(server: WriterServer) -> Iterator[Callable[[int], Awaitable[None]]]:
    """Jobs that arrive are not queued until the end of the block. Yields a wait for a number of them."""
    submit, jobs = server.queue.submit, []
    server.queue.submit = jobs.append  # type: ignore[method-assign]

    async def wait(count: int) -> None:
        await eventually(lambda: len(jobs) >= count)

    try:
        yield wait
    finally:
        server.queue.submit = submit  # type: ignore[method-assign]
        for job in jobs:
            submit(job)


async def test_result_and_error_arrive(writers: Writers) -> None:
    async with writers.running(), worker(writers) as database:
        assert await database.write(ECHO, {"a": [1, "b"]}) == {"a": [1, "b"]}
        with pytest.raises(PostNotFound) as refused:
            await database.write(REFUSE, 7)
    assert refused.value.ids == (7,)


async def test_unhandled_exception_arrives_with_its_traceback(writers: Writers) -> None:
    """The worker logs it with the call."""
    async with writers.running(), worker(writers) as database:
        with pytest.raises(WriterFailure) as failed:
            await database.write(FAIL, None)
        assert await database.write(ECHO, 1) == 1
    assert "ValueError: a broken operation" in str(failed.value)
    assert "in _fail" in str(failed.value)


async def test_error_arrives_although_its_cause_cannot(writers: Writers) -> None:
    failures: list[None] = []
    async with writers.running(), worker(writers) as database:
        database.after_failed_write(lambda: failures.append(None))
        with pytest.raises(StorageFull) as full:
            await database.write(FILL, None)
    assert str(full.value.__cause__) == "the cause"
    assert failures


async def test_result_that_cannot_be_sent_fails_alone(writers: Writers) -> None:
    async with writers.running() as server, worker(writers) as database:
        with held(server) as arrive:
            jobs = [asyncio.ensure_future(database.write(ECHO, it)) for it in (1, SentOnce(), 2)]
            await arrive(3)
        first, second, third = await asyncio.gather(*jobs, return_exceptions=True)
    assert (first, third) == (1, 2)
    assert isinstance(second, WriterFailure)


async def test_argument_that_cannot_be_sent_fails(writers: Writers) -> None:
    """Its caller gets the error, and later jobs are sent."""
    async with writers.running(), worker(writers) as database:
        with pytest.raises(TypeError, match="no"):
            await database.write(ECHO, UnpicklableError())
        assert await database.write(ECHO, 1) == 1


async def test_each_commit_notifies_all_workers(writers: Writers) -> None:
    """`after_write` is for those with a job in the batch."""
    async with writers.running(), worker(writers) as writing, worker(writers) as other:
        own, all_seen = asyncio.Event(), asyncio.Event()
        others_own: list[None] = []
        writing.after_write(own.set)
        other.after_write(lambda: others_own.append(None))
        listening = asyncio.ensure_future(other.listen(all_seen.set))
        await asyncio.wait_for(all_seen.wait(), scaled_timeout())
        all_seen.clear()
        await writing.write(ECHO, 1)
        assert own.is_set()
        await asyncio.wait_for(all_seen.wait(), scaled_timeout())
        assert others_own == []
        listening.cancel()


async def test_left_job_is_not_started(writers: Writers) -> None:
    """A caller that leaves takes its waiting job along; others get their results."""
    async with writers.running() as server, worker(writers) as database:
        with held(server) as arrive:
            jobs = [asyncio.ensure_future(database.write(ECHO, it)) for it in range(3)]
            await arrive(3)
            jobs[1].cancel()
            # The frame with the cancellation comes before that of this job.
            jobs.append(asyncio.ensure_future(database.write(ECHO, 3)))
            await arrive(4)
        done = await asyncio.gather(*jobs, return_exceptions=True)
    assert isinstance(done[1], asyncio.CancelledError)
    assert [done[0], *done[2:]] == [0, 2, 3]
    assert writers.metrics.sizes.sum == 3


async def test_job_waits_for_the_next_writer_process(writers: Writers) -> None:
    """During a hand-over, those that were received are executed, and the others by the next one."""
    async with writers.running() as server:
        opening = worker(writers)
        database = await opening.__aenter__()
        with held(server) as arrive:
            received = asyncio.ensure_future(database.write(ECHO, 1))
            await arrive(1)
    assert await received == 1
    waiting = asyncio.ensure_future(database.write(ECHO, 2))
    async with writers.running():
        assert await waiting == 2
        assert await database.write(ECHO, 3) == 3
        await opening.__aexit__(None, None, None)


async def test_job_that_arrives_during_a_hand_over_is_sent_again(writers: Writers) -> None:
    """The old writer process leaves it, and the next one executes it."""
    async with writers.running() as server:
        opening = worker(writers)
        database = await opening.__aenter__()
        server.is_stopping = True
        late = asyncio.ensure_future(database.write(ECHO, 1))
        await eventually(lambda: bool(database._writer._sent))  # type: ignore[union-attr]
    assert writers.metrics.sizes.sum == 0
    async with writers.running():
        assert await late == 1
        await opening.__aexit__(None, None, None)
    assert writers.metrics.sizes.sum == 1


async def test_lost_writer_process_fails_what_was_sent(writers: Writers) -> None:
    async with writers.killed() as server:
        opening = worker(writers)
        database = await opening.__aenter__()
        with held(server) as arrive:
            sent = asyncio.ensure_future(database.write(ECHO, 1))
            await arrive(1)
            for it in list(server.workers):
                it.transport.abort()
            with pytest.raises(DatabaseUnavailable) as lost:
                await sent
    assert isinstance(lost.value.__cause__, WriterLost)
    async with writers.running():
        assert await database.write(ECHO, 2) == 2
        await opening.__aexit__(None, None, None)


async def test_job_fails_after_a_time_without_writer_process(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further jobs fail at once, until the next one accepts them."""
    monkeypatch.setattr(remote_writer, "WAIT_SECONDS", 0.05)
    async with writers.running():
        opening = worker(writers)
        database = await opening.__aenter__()
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await database.write(ECHO, 1)
    async with writers.running() as server:
        await eventually(lambda: bool(server.workers))
        while True:
            try:
                assert await database.write(ECHO, 1) == 1
                break
            except DatabaseUnavailable:
                await asyncio.sleep(0.01)
        await opening.__aexit__(None, None, None)


async def test_worker_does_not_start_with_another_program(writers: Writers) -> None:
    async with writers.running(version="2"):
        with pytest.raises(WrongWriter, match="runs another version"):
            async with worker(writers):
                raise AssertionError("it started")


async def test_worker_stops_when_the_next_writer_process_is_another_program(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor then starts a worker of the same program."""
    signals: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", signals.append)
    async with writers.running():
        opening = worker(writers)
        database = await opening.__aenter__()
    async with writers.running(version="2"):
        await eventually(lambda: bool(signals))
        with pytest.raises(DatabaseUnavailable):
            await database.write(ECHO, 1)
        await opening.__aexit__(None, None, None)
    assert signals == [signal.SIGTERM]


@pytest.mark.parametrize("sent", [b"\xff" * 8, b"\x00\x00\x00\x08nonsense"], ids=["too large", "damaged"])
async def test_garbage_ends_only_its_connection(writers: Writers, sent: bytes) -> None:
    async with writers.running() as server, worker(writers) as database:
        reader, writer = await asyncio.open_unix_connection(writers.process.socket)
        writer.write(sent)
        # The first frame, and then the end.
        assert await asyncio.wait_for(reader.read(), scaled_timeout())
        writer.close()
        await eventually(lambda: len(server.workers) == 1)
        assert await database.write(ECHO, 1) == 1


async def test_writer_process_reads_no_more_than_it_can_hold(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest stays with the worker, and runs later."""
    monkeypatch.setattr(writer_server, "MAX_HELD_BYTES", 300_000)
    bodies = [f"{number:05}" * 20_000 for number in range(40)]
    async with writers.running() as server, worker(writers) as full, worker(writers) as other:
        with held(server) as arrive:
            jobs = [asyncio.ensure_future(full.write(ECHO, it, size=len(it))) for it in bodies]
            await arrive(1)
            # Both ends are in this event loop, so this is enough to send and receive all of them.
            for _ in range(2000):
                await asyncio.sleep(0)
            # A worker with fewer jobs is not affected.
            jobs.append(asyncio.ensure_future(other.write(ECHO, 1)))
            await eventually(lambda: len(server.workers) == 2 and min(_counts(server)) == 1)
            held_bytes = max(it._held_bytes for it in server.workers)
        assert await asyncio.gather(*jobs) == [*bodies, 1]
    # A frame ends at 1 MiB.
    assert 300_000 < held_bytes < sum(map(len, bodies)) / 2


def _counts(server: WriterServer) -> list[int]:
    """The numbers of unfinished jobs of the workers."""
    return [len(it._callers) for it in server.workers]
