"""Every metric: its name, its labels, and what to do with it.

docs/alerts-and-metrics.md, deploy/grafana.json and deploy/alerts.yaml speak of these names; a test keeps
them together.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One family."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    """What it is, and what to do with it."""
    labels: tuple[str, ...] = ()


METRICS: dict[str, Metric] = {
    "store_calls_total": Metric(
        "counter",
        "Calls that have ended, by status code. Its rate is the load; UNAVAILABLE, INTERNAL and UNKNOWN are "
        "errors of the service, DEADLINE_EXCEEDED may be, the other codes are errors of callers.",
        ("method", "code"),
    ),
    "store_call_errors_total": Metric(
        "counter",
        "Calls that ended with an error of ours, by its reason. The reason says what to do; the manual of "
        "each stands beside it in errors.proto.",
        ("method", "reason"),
    ),
    "store_call_duration_seconds": Metric(
        "histogram",
        "How long calls took in the service, but for streams. When it grows, look at the queue, the batches "
        "and the event loop, which are its parts.",
        ("method",),
    ),
    "store_calls_in_flight": Metric(
        "gauge",
        "Calls that are running now, open streams among them. When it grows and the rate of calls does not, "
        "something is slow.",
        ("method",),
    ),
    "store_batch_size": Metric(
        "histogram",
        "How many pieces of work one batch did together. Grows under load, which is how the service keeps "
        "up; at 1000 batches are full.",
        ("lane",),
    ),
    "store_batch_duration_seconds": Metric(
        "histogram",
        "How long a batch took, from its first statement to its commit. When it grows for the same sizes, "
        "the database is slow.",
        ("lane",),
    ),
    "store_commit_duration_seconds": Metric(
        "histogram",
        "How long COMMIT took, of which most is the disk's sync. When it grows, look at the disk. Batches "
        "that are a single statement on PostgreSQL are not in it.",
        ("lane",),
    ),
    "store_queue_wait_seconds": Metric(
        "histogram",
        "How long work waited for its batch to begin. When it is longer than a batch takes, the lane is "
        "crowded: more readers, or fewer writes.",
        ("lane",),
    ),
    "store_queue_length": Metric(
        "gauge",
        "Work that waits for a batch now. It should fall to 0 again and again.",
        ("lane",),
    ),
    "store_pool_wait_seconds": Metric(
        "histogram",
        "How long a worker waited for its connection to the database, at the start and after each loss. "
        "When it grows, the database is out of reach or out of connections.",
        ("lane",),
    ),
    "store_connections": Metric(
        "gauge",
        "Open connections. 1 to write and STORE_READ_CONNECTIONS to read; with fewer, calls fail.",
        ("lane",),
    ),
    "store_connections_lost_total": Metric(
        "counter",
        "Connections that were lost or could not be opened. Any growth has a reason that the log tells.",
        ("lane",),
    ),
    "store_wal_bytes": Metric(
        "gauge",
        "Size of SQLite's write-ahead log. It stays below 16 MiB except during large transactions. "
        "When it grows, a long read prevents the checkpoint.",
    ),
    "store_watches": Metric("gauge", "Watches that are open now."),
    "store_watches_limit": Metric(
        "gauge",
        "Most watches that may be open in a process. When store_watches comes near, raise "
        "STORE_MAX_WATCHES or start more processes.",
    ),
    "store_feed_lag_seconds": Metric(
        "histogram",
        "How old changes were when they were read for watches. When it grows, the readers are crowded, or a "
        "long transaction holds up the order of the feed.",
    ),
    "store_feed_idle_seconds": Metric(
        "gauge",
        "How long ago the change feed was read for watches; 0 while nobody watches. Above a few seconds, "
        "watches hear nothing: look at the log for why it cannot be read.",
    ),
    "store_event_loop_lag_seconds": Metric(
        "histogram",
        "How late the event loop came by. Every call waits as long. When it grows, the process has more to "
        "do than one core can: fewer calls for it, or more processes.",
    ),
    "store_event_loop_late_seconds": Metric(
        "gauge",
        "How late the event loop is right now; 0 when it is in time. Above a second, something blocks it "
        "and no call gets on.",
    ),
    "store_worker_up": Metric(
        "gauge",
        "Whether a process of STORE_WORKERS could be asked for its metrics. 0 for long means that it does "
        "not start or hangs: look at the log.",
    ),
    "store_worker_restarts_total": Metric(
        "counter",
        "How often a process of STORE_WORKERS has died and was to be started again. Any growth has a reason "
        "that the log tells.",
    ),
    "store_certificate_expiry_seconds": Metric(
        "gauge",
        "When the certificate expires that is shown to whoever connects now, in seconds since 1970; only "
        "with TLS. Less than 14 days ahead, it should have been renewed.",
    ),
    "store_build_info": Metric(
        "gauge",
        "Always 1; its labels tell what is running.",
        ("version", "python", "grpc", "database"),
    ),
}
"""Where one address shows several processes, everything has the label `worker` as well."""
