"""The catalog of metrics: names, labels and help texts.

RPC metrics have the names and labels of go-grpc-middleware, which dashboards for gRPC expect. The names also
appear in docs/alerts-and-metrics.md, deploy/grafana.json and deploy/alerts.yaml; a test compares them.
"""

from dataclasses import dataclass
from typing import Literal

RPC = ("grpc_type", "grpc_service", "grpc_method")
"""The labels of one method."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    """The meaning of the metric, and of its growth."""
    labels: tuple[str, ...] = ()


METRICS: dict[str, Metric] = {
    "grpc_server_started_total": Metric(
        "counter",
        "RPCs that have started. The rate is the load.",
        RPC,
    ),
    "grpc_server_handled_total": Metric(
        "counter",
        "RPCs that have ended, by status code. UNAVAILABLE, INTERNAL and UNKNOWN are errors of the service, "
        "DEADLINE_EXCEEDED may be, the other codes are errors of callers.",
        (*RPC, "grpc_code"),
    ),
    "grpc_server_handling_seconds": Metric(
        "histogram",
        "Duration of unary RPCs in the service. If it grows, compare its parts: queue wait, batch duration "
        "and event loop lag.",
        RPC,
    ),
    "store_errors_total": Metric(
        "counter",
        "RPCs that ended with an error of this service, by reason. errors.proto says for each reason what to "
        "do.",
        (*RPC, "reason"),
    ),
    "store_calls_in_flight": Metric(
        "gauge",
        "RPCs in flight, including open streams. If it grows and the rate of calls does not, calls have "
        "become slow.",
        RPC,
    ),
    "store_batch_size": Metric(
        "histogram",
        "Number of jobs in one batch. It grows with the load; the maximum is 1000.",
        ("queue",),
    ),
    "store_batch_duration_seconds": Metric(
        "histogram",
        "Duration of a batch from its first statement to its commit. If it grows and the sizes do not, the "
        "database is slow.",
        ("queue",),
    ),
    "store_commit_duration_seconds": Metric(
        "histogram",
        "Duration of COMMIT, mostly the fsync of the disk. Batches that are a single statement on PostgreSQL "
        "are not included.",
        ("queue",),
    ),
    "store_queue_wait_seconds": Metric(
        "histogram",
        "Time that a job waited for the start of its batch. If it exceeds the batch duration, the queue is "
        "overloaded: add read connections, or reduce writes.",
        ("queue",),
    ),
    "store_queue_length": Metric(
        "gauge",
        "Jobs that wait for a batch. It should return to 0 repeatedly.",
        ("queue",),
    ),
    "store_connect_duration_seconds": Metric(
        "histogram",
        "Time to open a connection to the database, at start and after each loss. If it grows, the database "
        "is unreachable or out of connections.",
        ("queue",),
    ),
    "store_connections": Metric(
        "gauge",
        "Open connections to the database: 1 that writes and STORE_READ_CONNECTIONS that read. With fewer, "
        "calls fail.",
        ("queue",),
    ),
    "store_connections_lost_total": Metric(
        "counter",
        "Connections that were lost or could not be opened. The log has the cause of each.",
        ("queue",),
    ),
    "store_replica_used": Metric(
        "gauge",
        "1 if a replica (DATABASE_READ_URL) answers reads. 0 if it cannot be reached, lags too much, or is "
        "not a replica of the primary: the log has the cause, and reads go to other replicas or to the "
        "primary.",
        ("replica",),
    ),
    "store_replica_lag_seconds": Metric(
        "gauge",
        "Age of the oldest state of the primary that a replica has not reached; 0 if it has everything or "
        "does not respond. Above STORE_MAX_REPLICA_LAG_SECONDS it is not used.",
        ("replica",),
    ),
    "store_wal_bytes": Metric(
        "gauge",
        "Size of SQLite's write-ahead log. It stays below 16 MiB except during large transactions. "
        "If it grows, a long read prevents the checkpoint.",
    ),
    "store_watches": Metric("gauge", "Open watches."),
    "store_watches_limit": Metric(
        "gauge",
        "Maximum number of open watches in a process. If store_watches approaches it, raise "
        "STORE_MAX_WATCHES or start more processes.",
    ),
    "store_feed_lag_seconds": Metric(
        "histogram",
        "Age of changes when they were read for watches. If it grows, the read connections are overloaded, "
        "or a long transaction delays the feed.",
    ),
    "store_feed_idle_seconds": Metric(
        "gauge",
        "Time since the change feed was last read for watches; 0 without open watches. Above a few seconds, "
        "watches receive nothing; the log has the cause.",
    ),
    "store_feed_delay_seconds": Metric(
        "gauge",
        "Age of the first committed change that the feed does not send yet, because an older transaction of "
        "the PostgreSQL server is still running. The log names the transaction.",
    ),
    "store_purge_lag_seconds": Metric(
        "gauge",
        "Time since the purge_time of the deleted resource that should have been purged first; 0 if none is "
        "due. Above an hour, purges fail or are too slow; the log has the cause.",
    ),
    "store_search_index_progress": Metric(
        "gauge",
        "Part of the posts and comments that the search index has, from 0 to 1; only with STORE_SEARCH. "
        "Below 1 the index is being built, and searches fail.",
    ),
    "store_search_index_lag_seconds": Metric(
        "gauge",
        "Age of the oldest change that the last step added to the search index; 0 if there was none; only "
        "with STORE_SEARCH. Searches wait for the index: above a few seconds they fail.",
    ),
    "store_search_indexed_total": Metric(
        "counter",
        "Posts and comments that were added to the search index or replaced in it; only with STORE_SEARCH.",
    ),
    "store_event_loop_lag_seconds": Metric(
        "histogram",
        "Delay of the event loop, which every call waits for. If it grows, the process needs more than one "
        "core: start more processes.",
    ),
    "store_event_loop_late_seconds": Metric(
        "gauge",
        "Current delay of the event loop; 0 if it runs on time. Above a second, something blocks it and no "
        "call makes progress.",
    ),
    "store_worker_up": Metric(
        "gauge",
        "1 if the metrics of a worker (STORE_WORKERS) could be read. 0 for a long time means that the worker "
        "does not start or hangs; the log has the cause.",
    ),
    "store_worker_restarts_total": Metric(
        "counter",
        "Workers (STORE_WORKERS) that died and were started again. The log has the cause of each.",
    ),
    "store_certificate_expiry_seconds": Metric(
        "gauge",
        "Expiry time of the certificate that new connections get, in seconds since 1970; only with TLS. "
        "Renew it at least 14 days before.",
    ),
    "store_build_info": Metric(
        "gauge",
        "Always 1. The labels identify the running software.",
        ("version", "python", "grpc", "database"),
    ),
}
"""With several workers on one address, every sample also has the label `worker`."""
