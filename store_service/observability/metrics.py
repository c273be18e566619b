"""What is counted while the service works: plain numbers that cost next to nothing to change.

One object for each method and each lane, made at the start, so that a call looks nothing up and takes no
lock. Only the event loop changes them, but for commit times, which the thread that writes changes. Others
may read them at any time; `store_service.observability` makes what Prometheus reads of them.
"""

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

RpcType = Literal["unary", "client_stream", "server_stream", "bidi_stream"]
"""The values of the label `grpc_type`, as in go-grpc-middleware."""

CALL_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets for calls."""

WORK_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Upper bounds of the buckets for the parts that calls consist of."""

LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
"""Upper bounds of the buckets for what comes late."""

BATCH_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Upper bounds of the buckets for batches."""


class Histogram:
    """How many values fell between which bounds, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Takes the upper bounds of all buckets but the last, which has none."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value; one that equals a bound is below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class RpcMetrics:
    """The calls of one method."""

    __slots__ = ("codes", "durations", "method", "reasons", "service", "started", "type")

    def __init__(self, name: str, type: RpcType) -> None:
        """Takes the full name, SERVICE/METHOD, and the type."""
        self.service, _, self.method = name.rpartition("/")
        self.type = type
        self.started = 0
        self.codes: defaultdict[str, int] = defaultdict(int)
        self.reasons: defaultdict[str, int] = defaultdict(int)
        self.durations = Histogram(CALL_SECONDS)

    def ended(self, code: str, reason: str, seconds: float) -> None:
        """Counts a call that was counted in `started`; `reason` is empty for OK and for errors of gRPC."""
        self.codes[code] += 1
        if reason:
            self.reasons[reason] += 1
        # `Histogram.observe` inlined: every call runs this.
        durations = self.durations
        durations.counts[bisect_left(CALL_SECONDS, seconds)] += 1
        durations.sum += seconds


class QueueMetrics:
    """The work of one lane, and its connections."""

    def __init__(self) -> None:
        """Counts from zero."""
        self.waiting: Callable[[], int] = lambda: 0
        """How much work waits now; the lane sets it."""
        self.sizes = Histogram(BATCH_SIZES)
        self.durations = Histogram(WORK_SECONDS)
        self.waits = Histogram(WORK_SECONDS)
        self.commits = Histogram(WORK_SECONDS)
        self.openings = Histogram(WORK_SECONDS)
        self.open = 0
        self.lost = 0

    def batch_ended(self, since: Sequence[float], started: float, ended: float) -> None:
        """Counts a batch: since when each of its members had waited, its start and end, by perf_counter."""
        self.sizes.observe(len(since))
        self.durations.observe(ended - started)
        counts, waits = self.waits.counts, 0.0
        for at in since:
            wait = started - at
            counts[bisect_left(WORK_SECONDS, wait)] += 1
            waits += wait
        self.waits.sum += waits


class FeedMetrics:
    """The change feed, as those who watch it get it."""

    def __init__(self) -> None:
        """Counts from zero."""
        self.watches: Callable[[], int] = lambda: 0
        """How many are open now; the feed sets it."""
        self.max_watches = 0
        self.lags = Histogram(LAG_SECONDS)
        self.read_at: float | None = None
        """When the feed was last read, by time.monotonic; None while nobody watches."""

    def read(self, commit_time: int = 0) -> None:
        """Counts a look at the feed; of what it found, the oldest commit in microseconds since 1970, or 0."""
        self.read_at = time.monotonic()
        if commit_time:
            # Clocks of several machines differ.
            self.lags.observe(max(time.time() - commit_time / 1_000_000, 0.0))


class EventLoopMetrics:
    """How late the event loop is."""

    def __init__(self) -> None:
        """Counts from zero."""
        self.lags = Histogram(LAG_SECONDS)
        self.due: float | None = None
        """When the loop should next come by, by time.monotonic; None while nobody looks."""


class Metrics:
    """Everything that one process counts."""

    def __init__(self) -> None:
        """Counts from zero."""
        self.calls: dict[str, RpcMetrics] = {}
        """By full name of the method."""
        self.queues: dict[str, QueueMetrics] = {}
        """By name of the batch queue."""
        self.feed = FeedMetrics()
        self.loop = EventLoopMetrics()

    def method(self, name: str, type: RpcType) -> RpcMetrics:
        """The metrics of a method, SERVICE/METHOD; created by the first call."""
        return self.calls.setdefault(name, RpcMetrics(name, type))

    def queue(self, name: str) -> QueueMetrics:
        """The metrics of a batch queue; created by the first call."""
        return self.queues.setdefault(name, QueueMetrics())
