"""Converts the in-process metrics to Prometheus metrics when they are scraped."""

import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from store_service.observability.catalog import METRICS
from store_service.observability.metrics import Histogram, Metrics, QueueMetrics

CODES = ("OK", "DATA_LOSS", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNKNOWN")
"""Codes that every method has from the start, because deploy/alerts.yaml uses them: in Prometheus a counter
that appears with the value 1 has not increased, so the first error would not trigger an alert."""

REASONS = ("INTERNAL", "OVERLOADED", "STORAGE_FULL")
"""Reasons that every method has from the start, for the same purpose."""

QUEUE_HISTOGRAMS: dict[str, Callable[[QueueMetrics], Histogram]] = {
    "store_batch_size": lambda queue: queue.sizes,
    "store_batch_duration_seconds": lambda queue: queue.durations,
    "store_commit_duration_seconds": lambda queue: queue.commits,
    "store_queue_wait_seconds": lambda queue: queue.waits,
    "store_connect_duration_seconds": lambda queue: queue.openings,
}


class MetricsCollector(Collector):
    """The metrics of one process."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        database: str,
        wal_file: Path | None,
        expires: Callable[[], float | None] = lambda: None,
    ) -> None:
        """Takes the in-process metrics and the further values of the process.

        Args:
            metrics: The in-process metrics.
            database: sqlite or postgresql.
            wal_file: The write-ahead log of SQLite; None on PostgreSQL.
            expires: Returns when the TLS certificate expires, in seconds since 1970; None without TLS.
        """
        self._metrics = metrics
        self._database = database
        self._wal_file = wal_file
        self._expires = expires

    def collect(self) -> Iterator[Family]:
        """Yields the metrics as they are now. Any thread may call it."""
        yield from self._rpcs()
        yield from self._queues()
        yield from self._rest()

    def _rpcs(self) -> Iterator[Family]:
        started, handled = counter("grpc_server_started_total"), counter("grpc_server_handled_total")
        durations, errors = histogram("grpc_server_handling_seconds"), counter("store_errors_total")
        in_flight = gauge("store_calls_in_flight")
        # A copy, because a server that starts is still adding methods.
        for rpc in list(self._metrics.calls.values()):
            labels = [rpc.type, rpc.service, rpc.method]
            # The codes are read first. Otherwise a call that starts and ends in between would make the number
            # of calls in flight negative.
            codes = {**dict.fromkeys(CODES, 0), **rpc.codes}
            started_count = rpc.started
            started.add_metric(labels, started_count)
            for code, count in codes.items():
                handled.add_metric([*labels, code], count)
            for reason, count in {**dict.fromkeys(REASONS, 0), **rpc.reasons}.items():
                errors.add_metric([*labels, reason], count)
            # The caller determines the duration of a stream.
            if rpc.type == "unary":
                add(durations, labels, rpc.durations)
            in_flight.add_metric(labels, started_count - sum(codes.values()))
        yield from (started, handled, durations, errors, in_flight)

    def _queues(self) -> Iterator[Family]:
        queues = dict(self._metrics.queues)
        for family_name, get_histogram in QUEUE_HISTOGRAMS.items():
            family = histogram(family_name)
            for name, queue in queues.items():
                add(family, [name], get_histogram(queue))
            yield family
        waiting, open_now = gauge("store_queue_length"), gauge("store_connections")
        lost = counter("store_connections_lost_total")
        for name, queue in queues.items():
            waiting.add_metric([name], queue.waiting())
            open_now.add_metric([name], queue.open)
            lost.add_metric([name], queue.lost)
        yield from (waiting, open_now, lost)

    def _rest(self) -> Iterator[Family]:
        feed, loop, now = self._metrics.feed, self._metrics.loop, time.monotonic()
        if self._wal_file is not None:
            yield _single("store_wal_bytes", _size(self._wal_file))
        if self._metrics.replicas:
            used, lags = gauge("store_replica_used"), gauge("store_replica_lag_seconds")
            for replica in self._metrics.replicas:
                used.add_metric([replica.name], replica.is_used)
                lags.add_metric([replica.name], replica.lag_seconds)
            yield from (used, lags)
        yield _single("store_watches", feed.watches())
        yield _single("store_watches_limit", feed.max_watches)
        read_at, due = feed.read_at, loop.due
        yield _single("store_feed_idle_seconds", 0.0 if read_at is None else max(now - read_at, 0.0))
        yield _single("store_feed_delay_seconds", feed.delay_seconds)
        yield _single("store_purge_lag_seconds", self._metrics.retention.purge_lag_seconds)
        search = self._metrics.search
        if search.enabled:
            yield _single("store_search_index_progress", search.progress)
            yield _single("store_search_index_lag_seconds", search.lag_seconds)
            indexed = counter("store_search_indexed_total")
            indexed.add_metric([], search.indexed)
            yield indexed
        yield _single("store_event_loop_late_seconds", 0.0 if due is None else max(now - due, 0.0))
        for name, counted in (
            ("store_feed_lag_seconds", feed.lags),
            ("store_event_loop_lag_seconds", loop.lags),
        ):
            family = histogram(name)
            add(family, [], counted)
            yield family
        if (expires := self._expires()) is not None:
            yield _single("store_certificate_expiry_seconds", expires)
        info = gauge("store_build_info")
        info.add_metric(
            [version("store-service"), platform.python_version(), version("grpcio"), self._database], 1
        )
        yield info


def counter(name: str) -> CounterMetricFamily:
    """Returns an empty counter of the catalog."""
    return CounterMetricFamily(name, METRICS[name].help, labels=METRICS[name].labels)


def gauge(name: str) -> GaugeMetricFamily:
    """Returns an empty gauge of the catalog."""
    return GaugeMetricFamily(name, METRICS[name].help, labels=METRICS[name].labels)


def histogram(name: str) -> HistogramMetricFamily:
    """Returns an empty histogram of the catalog."""
    return HistogramMetricFamily(name, METRICS[name].help, labels=METRICS[name].labels)


def add(family: HistogramMetricFamily, labels: list[str], counted: Histogram) -> None:
    """Adds a histogram with the cumulative buckets that Prometheus expects."""
    # A copy, because the event loop may change the counts at any time.
    counts = list(counted.counts)
    bounds = [*(str(float(bound)) for bound in counted.bounds), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(counts)), strict=True))
    family.add_metric(labels, buckets=buckets, sum_value=counted.sum)


def _single(name: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, METRICS[name].help, value=value)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
