"""Makes what Prometheus reads of the counters, when it asks."""

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
"""Every method has these from the start, for deploy/alerts.yaml names them: to Prometheus, what is there only
once it has happened has not grown, and the first bug would alert nobody."""

REASONS = ("INTERNAL", "OVERLOADED", "STORAGE_FULL")
"""And these."""

QUEUE_HISTOGRAMS: dict[str, Callable[[QueueMetrics], Histogram]] = {
    "store_batch_size": lambda lane: lane.sizes,
    "store_batch_duration_seconds": lambda lane: lane.durations,
    "store_commit_duration_seconds": lambda lane: lane.commits,
    "store_queue_wait_seconds": lambda lane: lane.waits,
    "store_pool_wait_seconds": lambda lane: lane.openings,
}


class MetricsCollector(Collector):
    """The metrics of one process."""

    def __init__(
        self,
        measures: Metrics,
        *,
        database: str,
        wal_file: Path | None,
        expires: Callable[[], float | None] = lambda: None,
    ) -> None:
        """Takes the counters, the kind of database, SQLite's write-ahead log, if there is one, and when the
        certificate expires, in seconds since 1970.
        """
        self._measures = measures
        self._database = database
        self._wal_file = wal_file
        self._expires = expires

    def collect(self) -> Iterator[Family]:
        """Reads every counter once; may be called from any thread."""
        yield from self._calls()
        yield from self._lanes()
        yield from self._rest()

    def _calls(self) -> Iterator[Family]:
        calls, errors = counter("store_calls_total"), counter("store_call_errors_total")
        durations, in_flight = histogram("store_call_duration_seconds"), gauge("store_calls_in_flight")
        # Copied first, for a server that is starting still adds methods and lanes.
        for name, measure in list(self._measures.calls.items()):
            for code, count in {**dict.fromkeys(CODES, 0), **measure.codes}.items():
                calls.add_metric([name, code], count)
            for reason, count in {**dict.fromkeys(REASONS, 0), **measure.reasons}.items():
                errors.add_metric([name, reason], count)
            if not measure.is_stream:
                add(durations, [name], measure.durations)
            in_flight.add_metric([name], measure.running)
        yield from (calls, errors, durations, in_flight)

    def _lanes(self) -> Iterator[Family]:
        lanes = dict(self._measures.lanes)
        for family_name, histogram_of in QUEUE_HISTOGRAMS.items():
            family = histogram(family_name)
            for name, lane in lanes.items():
                add(family, [name], histogram_of(lane))
            yield family
        waiting, open_now = gauge("store_queue_length"), gauge("store_connections")
        lost = counter("store_connections_lost_total")
        for name, lane in lanes.items():
            waiting.add_metric([name], lane.waiting())
            open_now.add_metric([name], lane.open)
            lost.add_metric([name], lane.lost)
        yield from (waiting, open_now, lost)

    def _rest(self) -> Iterator[Family]:
        feed, loop, now = self._measures.feed, self._measures.loop, time.monotonic()
        if self._wal_file is not None:
            yield _single("store_wal_bytes", _size(self._wal_file))
        yield _single("store_watches", feed.watches())
        yield _single("store_watches_limit", feed.max_watches)
        read_at, due = feed.read_at, loop.due
        yield _single("store_feed_idle_seconds", 0.0 if read_at is None else max(now - read_at, 0.0))
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
    """An empty family of the catalog."""
    return CounterMetricFamily(name, METRICS[name].help, labels=METRICS[name].labels)


def gauge(name: str) -> GaugeMetricFamily:
    """An empty family of the catalog."""
    return GaugeMetricFamily(name, METRICS[name].help, labels=METRICS[name].labels)


def histogram(name: str) -> HistogramMetricFamily:
    """An empty family of the catalog."""
    return HistogramMetricFamily(name, METRICS[name].help, labels=METRICS[name].labels)


def add(family: HistogramMetricFamily, labels: list[str], counted: Histogram) -> None:
    """Adds what was counted, with the cumulative buckets that Prometheus wants."""
    # Copied first, for it is being changed meanwhile.
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
