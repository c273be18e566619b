"""Observes the batches of a batch queue: updates its metrics, and the spans of the calls."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from store_service.observability.metrics import QueueMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """A finished batch, from the point of view of one of its jobs."""

    queue: str
    number: int
    """Number of the batch in its queue, from 1. It is the same for all jobs of the batch."""
    size: int
    """Number of jobs in the batch."""
    wait_seconds: float
    """Time that the job waited for the start of the batch."""
    seconds: float
    """Duration of the batch."""
    error: str = ""
    """Class of the error that ended the whole batch; empty without one."""


class BatchSpans(Protocol):
    """Adds batches to the spans of calls."""

    def current(self) -> object | None:
        """Returns the span of the current call; None if it is not recorded."""

    def batch_ended(self, span: object, batch: BatchRecord) -> None:
        """Adds a batch that has just ended to the span of a call."""


class JobTiming:
    """The start of the wait of a job, and the span of its call."""

    __slots__ = ("queued_at", "span")

    def __init__(self, queued_at: float, span: object | None) -> None:
        """Takes when the job was queued, by perf_counter, and the span of its call, if it is recorded."""
        self.queued_at = queued_at
        self.span = span


class BatchObserver:
    """Observes one batch queue."""

    def __init__(self, queue: str, metrics: QueueMetrics, spans: BatchSpans | None) -> None:
        """Takes the name and the metrics of the queue; `spans` is None without tracing."""
        self.metrics = metrics
        self._queue = queue
        self._spans = spans
        self._number = 0

    def job_queued(self) -> JobTiming:
        """Returns the timing of a job that is queued now."""
        return JobTiming(time.perf_counter(), None if self._spans is None else self._spans.current())

    def batch_ended(self, batch: Sequence[JobTiming], started: float, error: BaseException | None) -> None:
        """Counts a batch that has just ended, and adds it to the spans of its calls.

        Args:
            batch: The timings of its jobs.
            started: Start of the batch, by perf_counter.
            error: The error that ended the whole batch, if there is one.
        """
        ended = time.perf_counter()
        self.metrics.batch_ended([timing.queued_at for timing in batch], started, ended)
        if self._spans is None:
            return
        self._number += 1
        for timing in batch:
            if timing.span is not None:
                self._spans.batch_ended(
                    timing.span,
                    BatchRecord(
                        queue=self._queue,
                        number=self._number,
                        size=len(batch),
                        wait_seconds=started - timing.queued_at,
                        seconds=ended - started,
                        error="" if error is None else type(error).__name__,
                    ),
                )

    def remote_batch_ended(self, timing: JobTiming, batch: BatchRecord) -> None:
        """Adds a batch of another process to the span of the call of one of its jobs."""
        if self._spans is not None:
            self._spans.batch_ended(timing.span, batch)


ObserverFactory = Callable[[str], BatchObserver | None]
"""Returns the observer for the batch queue with a name; None for no observer."""


def without_observer(_: str) -> None:
    """Returns no observer."""
