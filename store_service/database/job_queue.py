"""Jobs that wait for a connection, and the order in which they run."""

from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from store_service.observability.batches import JobTiming

MAX_BATCH = 1000
"""Maximum number of jobs in a batch."""

MAX_BATCH_BYTES = 1024 * 1024
"""Total size of jobs at which a batch takes no more jobs, so that memory and duration of a transaction do not
grow with the number of callers. A transaction of this size takes 10 to 30 ms (docs/decisions/0031)."""

LARGE_JOB_BYTES = 256 * 1024
"""Jobs larger than this have a batch of their own."""


class Caller(Protocol):
    """Receives the outcome of a job: the future of a caller, or what stands for it in the writer process."""

    def done(self) -> bool:
        """Whether the caller has left or has the outcome."""

    def set_result(self, result: Any, /) -> None:
        """Takes the result."""

    def set_exception(self, error: Any, /) -> None:
        """Takes the error."""


class _Answered:
    """Replaces the future of a job that was answered, so that a batch that still runs does not keep its
    result in memory."""

    def done(self) -> bool:
        """Returns True."""
        return True


_ANSWERED = _Answered()


class Job:
    """An operation with its argument, and the future of the caller that waits for it."""

    __slots__ = ("argument", "dry_run", "future", "operation", "size", "timing")

    timing: JobTiming
    """When the job was queued, and the span of its call; set only if the queue has an observer."""

    def __init__(self, operation: Any, argument: Any, dry_run: bool, size: int, future: Caller) -> None:
        """Takes the operation and its argument, whether to roll back, the size in bytes, and the future."""
        self.operation = operation
        self.argument = argument
        self.dry_run = dry_run
        self.size = size
        self.future: Caller | _Answered = future

    def answer(self, outcome: Any) -> None:
        """Sets the result or the error, if the caller still waits."""
        future, self.future = self.future, _ANSWERED
        if not isinstance(future, _Answered) and not future.done():
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


class JobQueue:
    """Waiting jobs in the order of their arrival, in two lines: small jobs and large jobs.

    Small jobs share a batch. Each large job has a batch of its own, and between two large jobs the waiting
    small jobs run. So a small job waits for at most one large job.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self._small: deque[Job] = deque()
        self._large: deque[Job] = deque()
        self._large_is_next = False

    def __len__(self) -> int:
        """Number of jobs, including those whose callers have left."""
        return len(self._small) + len(self._large)

    def append(self, job: Job) -> None:
        """Adds a job at the end."""
        self._queue_for(job).append(job)

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Adds jobs at the front, in their order."""
        for job in reversed(list(jobs)):
            self._queue_for(job).appendleft(job)

    def take(self) -> list[Job]:
        """Removes and returns the jobs of the next batch. Drops jobs whose callers have left."""
        batch: list[Job] = []
        while not batch and len(self):
            takes_large = bool(self._large) and (self._large_is_next or not self._small)
            self._large_is_next = not takes_large
            batch = self._take_large() if takes_large else self._take_small()
        return batch

    def clear(self) -> list[Job]:
        """Removes and returns all jobs."""
        jobs = [*self._small, *self._large]
        self._small.clear()
        self._large.clear()
        return jobs

    def _queue_for(self, job: Job) -> deque[Job]:
        return self._large if job.size > LARGE_JOB_BYTES else self._small

    def _take_large(self) -> list[Job]:
        job = self._large.popleft()
        return [] if job.future.done() else [job]

    def _take_small(self) -> list[Job]:
        batch: list[Job] = []
        size = 0
        while self._small and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
            job = self._small.popleft()
            if not job.future.done():
                batch.append(job)
                size += job.size
        return batch
