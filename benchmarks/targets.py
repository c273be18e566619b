"""The required values of the figures, and the aims."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.rounds import Medians
from benchmarks.watching import WATCHES
from benchmarks.workloads import BATCH_POSTS, BY_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound for one figure."""

    figure: str
    title: str
    must: float
    aim: float | None = None
    """A better value that is not required."""
    sense: Literal["least", "most"] = "least"
    unit: str = ""

    def verdict(self, figure: float) -> str:
        """Returns whether a figure reaches the bounds, in words."""
        if not self._holds(figure, self.must):
            return "missed"
        if self.aim is None:
            return "reached"
        return "aim reached" if self._holds(figure, self.aim) else "aim missed"

    def _holds(self, figure: float, bound: float) -> bool:
        return figure >= bound if self.sense == "least" else figure <= bound


def _of_ceiling(contender: str, title: str, **bounds: tuple[float, float | None]) -> list[Target]:
    prefix = "" if contender == "sqlite" else f"{contender}_"
    return [
        Target(
            figure=f"{prefix}{name}",
            title=f"{title}: {BY_NAME[name].title}, share of the ceiling",
            must=must,
            aim=aim,
        )
        for name, (must, aim) in bounds.items()
    ]


_ENGINES = {"": "SQLite", "postgresql_": "PostgreSQL"}
"""The titles of the engines by the prefix of their figures."""

TARGETS = (
    *_of_ceiling(
        "sqlite",
        "SQLite",
        get_256=(0.80, 0.95),
        create_256=(0.75, 0.95),
        get_1=(0.75, 0.85),
        create_1=(0.45, 0.60),
        list_50=(0.60, None),
        batch_get_100=(0.35, None),
        batch_create_100=(0.16, None),
    ),
    Target(
        figure="create_1_cpu",
        title="SQLite: CPU time of Create, 1 in flight, ratio to the ceiling",
        must=2.2,
        sense="most",
    ),
    *_of_ceiling(
        "postgresql",
        "PostgreSQL",
        get_256=(0.50, None),
        create_256=(0.45, None),
        get_1=(0.50, None),
        create_1=(0.30, None),
    ),
    Target(figure="get_256_against_plain", title="Get, 256 in flight, ratio to grpc.aio + databases", must=6),
    Target(
        figure="create_256_against_plain",
        title="Create, 256 in flight, ratio to grpc.aio + databases",
        must=8,
    ),
    Target(
        figure="batch_create_100_posts_per_s",
        title=f"Posts per second with BatchCreate of {BATCH_POSTS}, ratio to Create, 256 in flight",
        must=10,
    ),
    Target(
        figure="batch_get_100_posts_per_s",
        title=f"Posts per second with BatchGet of {BATCH_POSTS}, ratio to Get, 256 in flight",
        must=15,
    ),
    Target(
        figure="growth",
        title="p50 with the largest table, ratio to the smallest, maximum of all calls",
        must=1.2,
        sense="most",
    ),
    *(
        Target(
            figure=f"{prefix}create_reply_256_to_comment",
            title=f"{engine}: Create of a reply with author and 2 labels, ratio to a comment without",
            must=0.75,
        )
        for prefix, engine in _ENGINES.items()
    ),
    *(
        Target(
            figure=f"{prefix}thread_pages",
            title=f"{engine}: p50 of a page in thread order, ratio to a page by id, maximum",
            must=1.5,
            sense="most",
        )
        for prefix, engine in _ENGINES.items()
    ),
    *(
        Target(
            figure=f"{prefix}search_p99_ms",
            title=f"{engine}: p99 of a search of the newest 50 among a million comments, maximum",
            must=50,
            sense="most",
            unit=" ms",
        )
        for prefix, engine in _ENGINES.items()
    ),
    *(
        Target(
            figure=f"{prefix}create_with_search",
            title=f"{engine}: Create of a comment, 256 in flight, with the search index, ratio to without",
            must=0.8,
        )
        for prefix, engine in _ENGINES.items()
    ),
    Target(figure="workers_get_256", title="Two workers, Get, 256 in flight, ratio to one process", must=1.5),
    Target(
        figure="workers_create_256",
        title="Two workers, Create, 256 in flight, ratio to one process",
        must=1.3,
    ),
    *(
        Target(
            figure=f"workers_{name}_cpu",
            title=f"Two workers, {title}, 256 in flight, CPU time per call, ratio to one process",
            must=1.1,
            sense="most",
        )
        for name, title in (("get_256", "Get"), ("create_256", "Create"))
    ),
    Target(figure="memory_mib", title="Memory after 100,000 calls", must=120, sense="most", unit=" MiB"),
    Target(
        figure="start_seconds",
        title="Time from start to the first response",
        must=1.5,
        sense="most",
        unit=" s",
    ),
    Target(
        figure="watched_create_256",
        title=f"Create, 256 in flight, with {WATCHES} watches of all changes, ratio to no watches",
        must=0.4,
    ),
    Target(figure="watch_lag_s", title="Maximum lag of these watches", must=2, sense="most", unit=" s"),
    Target(
        figure="watch_latency_ms",
        title="SQLite: lag of one watch, median",
        must=20,
        sense="most",
        unit=" ms",
    ),
    Target(
        figure="postgresql_watch_latency_ms",
        title="PostgreSQL: lag of one watch, median",
        must=50,
        sense="most",
        unit=" ms",
    ),
    Target(
        figure="metrics_get_256", title="Get, 256 in flight, with metrics, ratio to no metrics", must=0.97
    ),
    Target(
        figure="client_sync",
        title="Sync client: time of Get, ratio to the raw stub, 1 in flight",
        must=1.15,
        sense="most",
    ),
    Target(
        figure="client_async",
        title="Async client: time of Get, ratio to the raw stub, 1 in flight",
        must=1.15,
        sense="most",
    ),
    Target(figure="client_import_ms", title="import storeapi", must=250, sense="most", unit=" ms"),
    Target(figure="syncs", title="fsyncs for 2,000 Create, 256 in flight", must=499, sense="most"),
)


def ratios(medians: Medians) -> dict[str, float]:
    """Returns ratios of calls per second, where both sides were measured.

    `create_1_cpu` is a ratio of CPU times. `get_256` is this service on SQLite against the ceiling,
    `postgresql_get_256` the same on PostgreSQL, `get_256_against_plain` this service on SQLite against PLAIN,
    `batch_get_100_posts_per_s` the posts per second of batch requests against those of single requests.
    """
    found: dict[str, float] = {}

    def put(key: str, above: float | None, below: float | None) -> None:
        if above is not None and below:
            found[key] = above / below

    def rate(workload: str, contender: str) -> float | None:
        sample = medians.get(workload, {}).get(contender)
        return sample.calls_per_second if sample else None

    for name in medians:
        put(name, rate(name, "sqlite"), rate(name, "ceiling"))
    for name in medians:
        put(f"postgresql_{name}", rate(name, "postgresql"), rate(name, "ceiling"))
    for name in medians:
        put(f"{name}_against_plain", rate(name, "sqlite"), rate(name, "plain"))
    create = medians.get("create_1", {})
    if "sqlite" in create and "ceiling" in create:
        put("create_1_cpu", create["sqlite"].cpu_us, create["ceiling"].cpu_us)
    for one, batch in (("get_256", "batch_get_100"), ("create_256", "batch_create_100")):
        batches = rate(batch, "sqlite")
        posts = batches * BATCH_POSTS if batches is not None else None
        put(f"{batch}_posts_per_s", posts, rate(one, "sqlite"))
    for prefix, contender in (("", "sqlite"), ("postgresql_", "postgresql")):
        put(
            f"{prefix}create_reply_256_to_comment",
            rate("create_reply_256", contender),
            rate("create_comment_256", contender),
        )
    return found


def judged(figures: Mapping[str, float]) -> list[tuple[Target, float]]:
    """Returns the targets whose figures were measured, with the figures."""
    return [(target, figures[target.figure]) for target in TARGETS if target.figure in figures]
