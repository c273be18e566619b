"""What looks at the work of a lane: counters, and the spans of those who wait."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from store_service.observability.metrics import QueueMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """A batch that was done, for one of the calls that rode in it."""

    lane: str
    number: int
    """Counts the batches of the lane; calls that have the same number rode together."""
    size: int
    wait_seconds: float
    """How long the call's work had waited for the batch to begin."""
    seconds: float
    error: str = ""
    """Class of the error that ended it, for all."""


class BatchSpans(Protocol):
    """Tells the spans of calls of the batches that they rode in."""

    def current(self) -> object | None:
        """The span of the call that is running, if anybody wants to hear of it."""

    def batch_ended(self, span: object, batch: BatchRecord) -> None:
        """Tells such a span of a batch that has just ended."""


class JobTiming:
    """A piece of work, as its lane's observer remembers it."""

    __slots__ = ("since", "span")

    def __init__(self, since: float, span: object | None) -> None:
        """Takes when it came, by perf_counter, and the span that waits for it."""
        self.since = since
        self.span = span


class BatchObserver:
    """Looks at one lane."""

    def __init__(self, lane: str, measure: QueueMetrics, spans: BatchSpans | None) -> None:
        """Takes the lane's name, its counters, and whom to tell of batches."""
        self.measure = measure
        self._lane = lane
        self._spans = spans
        self._number = 0

    def job_queued(self) -> JobTiming:
        """What to remember of a piece of work that comes now."""
        return JobTiming(time.perf_counter(), None if self._spans is None else self._spans.current())

    def batch_ended(self, batch: Sequence[JobTiming], started: float, error: BaseException | None) -> None:
        """Counts a batch that began at `started` and has just ended, and tells the spans of its members."""
        ended = time.perf_counter()
        self.measure.batch_ended([timing.since for timing in batch], started, ended)
        if self._spans is None:
            return
        self._number += 1
        for timing in batch:
            if timing.span is not None:
                self._spans.batch_ended(
                    timing.span,
                    BatchRecord(
                        lane=self._lane,
                        number=self._number,
                        size=len(batch),
                        wait_seconds=started - timing.since,
                        seconds=ended - started,
                        error="" if error is None else type(error).__name__,
                    ),
                )


ObserverFactory = Callable[[str], BatchObserver | None]
"""Gives the observer of a lane by its name, or None when nobody looks."""


def without_observer(_: str) -> None:
    """Nobody looks."""
