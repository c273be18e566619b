"""The page of `store-service status`, which is made from the metrics of a service."""

import time
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from store_service.observability.samples import Between, Scraped
from store_service.observability.scrape import NoMetrics, scrape

WIDTH = 110
"""Width of the page in columns if stdout is not a terminal."""

_PACKAGE_PREFIX = "storeapi.v1."
"""Prefix that is left out of the names of methods."""

_NO_VALUE = "-"


def fetch(address: str) -> Scraped:
    """Returns the current metrics of a service.

    Raises:
        NoMetrics: The address does not respond, or is not a store-service.
    """
    scraped = Scraped.of(time.monotonic(), scrape(address))
    if "store_build_info" not in scraped.samples and "store_worker_up" not in scraped.samples:
        raise NoMetrics(f"{address} serves metrics, but not those of a store-service")
    return scraped


def show(address: str, before: Scraped, *, every_seconds: float, once: bool) -> None:
    """Shows a page of the time since `before`, and then a page of each interval until it is interrupted.

    Args:
        address: The metrics address.
        before: The first scrape.
        every_seconds: Length of an interval.
        once: Print one page and return.

    Raises:
        NoMetrics: With `once`: the address does not respond, or is not a store-service.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    if once:
        time.sleep(every_seconds)
        console.print(page(address, Between(before, fetch(address))))
        return
    with Live(_first_page(address, every_seconds), console=console, auto_refresh=False) as live:
        for current in _pages(address, before, every_seconds):
            live.update(current, refresh=True)


def _pages(address: str, before: Scraped, every_seconds: float) -> Iterator[RenderableType]:
    current: RenderableType = Text("")
    while True:
        time.sleep(every_seconds)
        try:
            now = fetch(address)
        except NoMetrics as error:
            # The service may be restarting. The last page stays on the screen.
            yield Group(current, Text(f"{error}; retrying", style="bold red"))
            continue
        current = page(address, Between(before, now))
        before = now
        yield current


def _first_page(address: str, every_seconds: float) -> Text:
    return Text(f"{address}: calculating rates, {every_seconds:g} s")


def page(address: str, between: Between) -> Group:
    """Returns a page: the service, lags, batches and calls.

    The calls are last, because they have the most lines and a short terminal cuts off the end.
    """
    return Group(_head(address, between), _lags(between), _queues(between), _calls(between))


def _head(address: str, between: Between) -> Text:
    now = between.now
    (version, *_) = now.label_values("store_build_info", "version") or ["?"]
    (database, *_) = now.label_values("store_build_info", "database") or ["?"]
    text = f"store-service {version} on {database}, {address}"
    if "store_worker_up" in now.samples:
        workers = len(now.samples["store_worker_up"])
        restarts = now.total("store_worker_restarts_total")
        text += f", {now.total('store_worker_up'):.0f} of {workers} workers, {restarts:.0f} restarts"
    errors = between.growth("store_errors_total")
    reasons = (
        f"{reason} {count:.0f}"
        for reason in now.label_values("store_errors_total", "reason")
        if (count := between.growth("store_errors_total", reason=reason))
    )
    return Text(f"{text}\nerrors in {between.seconds:.1f} s: {', '.join(reasons) if errors else 'none'}")


def _calls(between: Between) -> Table:
    columns = ("method", "calls/s", "not OK/s", "p50", "p99", "in flight")
    rows = []
    handled, durations = "grpc_server_handled_total", "grpc_server_handling_seconds"
    methods = {
        (labels["grpc_service"], labels["grpc_method"])
        for labels, _ in between.now.values("store_calls_in_flight")
    }
    for service, method in sorted(methods):
        labels = {"grpc_service": service, "grpc_method": method}
        in_flight = between.now.total("store_calls_in_flight", **labels)
        # Methods that were never called are not shown.
        if in_flight or between.now.total(handled, **labels):
            rate = between.rate(handled, **labels)
            row = (
                f"{service.removeprefix(_PACKAGE_PREFIX)}/{method}",
                _number(rate),
                _number(rate - between.rate(handled, **labels, grpc_code="OK")),
                _time(between.quantile(durations, 0.5, **labels)),
                _time(between.quantile(durations, 0.99, **labels)),
                f"{in_flight:.0f}",
            )
            rows.append(row)
    return _table("calls", columns, rows, name_width=12)


def _queues(between: Between) -> Table:
    columns = ("queue", "batches/s", "size", "p99", "commit p99", "wait p99", "waiting")
    rows = []
    for queue in between.now.label_values("store_queue_length", "queue"):
        size = between.mean("store_batch_size", queue=queue)
        row = (
            queue,
            _number(between.rate("store_batch_size_count", queue=queue)),
            _NO_VALUE if size is None else _number(size),
            _time(between.quantile("store_batch_duration_seconds", 0.99, queue=queue)),
            _time(between.quantile("store_commit_duration_seconds", 0.99, queue=queue)),
            _time(between.quantile("store_queue_wait_seconds", 0.99, queue=queue)),
            f"{between.now.total('store_queue_length', queue=queue):.0f}",
        )
        rows.append(row)
    return _table("batches", columns, rows, name_width=6)


def _lags(between: Between) -> Table:
    now = between.now
    columns = ["event loop p99", "feed p99", "feed read", "watches", "connections lost"]
    values = [
        _time(between.quantile("store_event_loop_lag_seconds", 0.99)),
        _time(between.quantile("store_feed_lag_seconds", 0.99)),
        f"{_time(now.total('store_feed_idle_seconds'))} ago" if now.total("store_watches") else _NO_VALUE,
        f"{now.total('store_watches'):.0f} of {now.total('store_watches_limit'):.0f}",
        f"{now.total('store_connections_lost_total'):.0f}",
    ]
    if "store_replica_used" in now.samples:
        columns.append("replicas used")
        count = len(now.samples["store_replica_used"])
        lag = max(value for _, value in now.values("store_replica_lag_seconds"))
        values.append(f"{now.total('store_replica_used'):.0f} of {count}, lag {_time(lag)}")
    if "store_search_index_progress" in now.samples:
        columns.append("search index")
        progress = min(value for _, value in now.values("store_search_index_progress"))
        values.append(f"{progress:.0%}")
    if "store_wal_bytes" in now.samples:
        columns.append("WAL")
        values.append(_bytes(now.total("store_wal_bytes")))
    return _table("lag", columns, [values])


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, name_width: int = 0
) -> Table:
    """Returns a table.

    If the terminal is too narrow, headings are wrapped and names are truncated, but not numbers. `name_width`
    is the minimum width of the names in the first column; 0 if that column has no names.
    """
    table = Table(
        title=title, title_justify="left", box=None, expand=True, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for index, column in enumerate(columns):
        widest = max((len(row[index]) for row in rows), default=0)
        is_name = name_width and not index
        table.add_column(
            column,
            justify="right" if index else "left",
            overflow="ellipsis",
            min_width=min(widest, name_width) if is_name else widest,
        )
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _bytes(count: float) -> str:
    mebi = 1024 * 1024
    return f"{count / mebi:.1f} MiB" if count >= mebi else f"{count / 1024:.0f} KiB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _NO_VALUE
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
