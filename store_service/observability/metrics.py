"""In-process metrics: plain numbers that are cheap to update.

Each method and each batch queue has one object, created at the start, so a call needs no lookup and no lock.
The event loop makes all updates, except for commit durations, which the thread of the writer updates. Any
thread may read. `collector.py` converts the numbers to Prometheus metrics.
"""

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

RpcType = Literal["unary", "client_stream", "server_stream", "bidi_stream"]
"""The values of the label `grpc_type`, as in go-grpc-middleware."""

CALL_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bucket bounds for the duration of calls."""

BATCH_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Bucket bounds for durations in a batch queue."""

LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
"""Bucket bounds for lags."""

BATCH_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Bucket bounds for the number of jobs in a batch."""


class Histogram:
    """Counts of observed values by bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Takes the upper bounds of the buckets, inclusive. The last bucket, without a bound, is added."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class RpcMetrics:
    """Metrics of one method."""

    __slots__ = ("codes", "durations", "method", "reasons", "service", "started", "type")

    def __init__(self, name: str, type: RpcType) -> None:
        """Takes the full name of the method, SERVICE/METHOD, and its type."""
        self.service, _, self.method = name.rpartition("/")
        self.type = type
        self.started = 0
        self.codes: defaultdict[str, int] = defaultdict(int)
        self.reasons: defaultdict[str, int] = defaultdict(int)
        self.durations = Histogram(CALL_SECONDS)

    def ended(self, code: str, reason: str, seconds: float) -> None:
        """Counts the end of a call. `reason` is empty for OK and for errors of gRPC itself."""
        self.codes[code] += 1
        if reason:
            self.reasons[reason] += 1
        # `Histogram.observe` is inlined, because every call runs this.
        durations = self.durations
        durations.counts[bisect_left(CALL_SECONDS, seconds)] += 1
        durations.sum += seconds


class QueueMetrics:
    """Metrics of one batch queue and its connections."""

    def __init__(self) -> None:
        """Creates metrics without observations."""
        self.waiting: Callable[[], int] = lambda: 0
        """Returns the number of waiting jobs. The queue sets it."""
        self.sizes = Histogram(BATCH_SIZES)
        self.durations = Histogram(BATCH_SECONDS)
        self.waits = Histogram(BATCH_SECONDS)
        self.commits = Histogram(BATCH_SECONDS)
        self.openings = Histogram(BATCH_SECONDS)
        self.open = 0
        """Number of open connections."""
        self.lost = 0
        """Number of connections that were lost or could not be opened."""

    def batch_ended(self, queued: Sequence[float], started: float, ended: float) -> None:
        """Counts a batch: when each job was queued, the start and the end of the batch, by perf_counter."""
        self.sizes.observe(len(queued))
        self.durations.observe(ended - started)
        counts, waits = self.waits.counts, 0.0
        for at in queued:
            wait = started - at
            counts[bisect_left(BATCH_SECONDS, wait)] += 1
            waits += wait
        self.waits.sum += waits


class FeedMetrics:
    """Metrics of the change feed of open watches."""

    def __init__(self) -> None:
        """Creates metrics without observations."""
        self.watches: Callable[[], int] = lambda: 0
        """Returns the number of open watches. The feed sets it."""
        self.max_watches = 0
        self.lags = Histogram(LAG_SECONDS)
        self.read_at: float | None = None
        """Time of the last read of the feed, by time.monotonic; None without open watches."""
        self.delay_seconds = 0.0
        """Age of the first committed change that the feed does not send yet."""

    def read(self, commit_time: int = 0) -> None:
        """Counts a read of the feed.

        Args:
            commit_time: Time of the oldest commit that was read, in microseconds since 1970; 0 if there
                were no changes.
        """
        self.read_at = time.monotonic()
        if commit_time:
            # The lag may be negative, because the clocks of several machines differ.
            self.lags.observe(max(time.time() - commit_time / 1_000_000, 0.0))


class RetentionMetrics:
    """Metrics of the retention."""

    def __init__(self) -> None:
        """Creates metrics without observations."""
        self.purge_lag_seconds = 0.0


class SearchMetrics:
    """Metrics of the index for full-text search."""

    def __init__(self) -> None:
        """Creates metrics without observations."""
        self.enabled = False
        """Whether this process maintains or uses the index."""
        self.progress = 0.0
        self.lag_seconds = 0.0
        self.indexed = 0


class ReplicaStatus(Protocol):
    """A replica, as metrics show it. Any thread may read it."""

    @property
    def name(self) -> str:
        """Its hosts."""

    @property
    def is_used(self) -> bool:
        """Whether it answers reads."""

    @property
    def lag_seconds(self) -> float:
        """Its lag; 0 if it is not known."""


class EventLoopMetrics:
    """Metrics of the event loop."""

    def __init__(self) -> None:
        """Creates metrics without observations."""
        self.lags = Histogram(LAG_SECONDS)
        self.due: float | None = None
        """Time of the next measurement, by time.monotonic; None if nothing is measured."""


class Metrics:
    """All metrics of one process."""

    def __init__(self) -> None:
        """Creates metrics without observations."""
        self.calls: dict[str, RpcMetrics] = {}
        """Metrics of methods by full name."""
        self.queues: dict[str, QueueMetrics] = {}
        """Metrics of batch queues by name."""
        self.feed = FeedMetrics()
        self.retention = RetentionMetrics()
        self.search = SearchMetrics()
        self.loop = EventLoopMetrics()
        self.replicas: Sequence[ReplicaStatus] = ()

    def method(self, name: str, type: RpcType) -> RpcMetrics:
        """Returns the metrics of a method, SERVICE/METHOD. The first call creates them."""
        return self.calls.setdefault(name, RpcMetrics(name, type))

    def queue(self, name: str) -> QueueMetrics:
        """Returns the metrics of a batch queue. The first call creates them."""
        return self.queues.setdefault(name, QueueMetrics())
