"""The page of `store-service status`, made of metrics alone."""

import time
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from store_service.observability.samples import Between, Scraped
from store_service.observability.scrape import NoMetrics, scrape

WIDTH = 110
"""Columns of the page where there is no terminal."""

_OUR_PACKAGE = "storeapi.v1."
"""What the names of our methods begin with, all of them, so it tells nothing."""

_NOTHING = "-"


def look(address: str) -> Scraped:
    """The metrics of a service as they are now.

    Raises:
        NoMetrics: The address does not answer, or is not a store-service.
    """
    scraped = Scraped.of(time.monotonic(), scrape(address))
    if "store_build_info" not in scraped.samples and "store_worker_up" not in scraped.samples:
        raise NoMetrics(f"{address} serves metrics, but not those of a store-service")
    return scraped


def show(address: str, before: Scraped, *, every_seconds: float, once: bool) -> None:
    """Shows what the service has done since `before`, again and again until it is interrupted, or `once`.

    Raises:
        NoMetrics: The address does not answer, or is not a store-service.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    if once:
        time.sleep(every_seconds)
        console.print(page(address, Between(before, look(address))))
        return
    with Live(_waiting(address, every_seconds), console=console, auto_refresh=False) as live:
        for shown in _pages(address, before, every_seconds):
            live.update(shown, refresh=True)


def _pages(address: str, before: Scraped, every_seconds: float) -> Iterator[RenderableType]:
    shown: RenderableType = Text("")
    while True:
        time.sleep(every_seconds)
        try:
            now = look(address)
        except NoMetrics as error:
            # It may be starting again; what was last seen stays on the screen.
            yield Group(shown, Text(f"{error}; trying again", style="bold red"))
            continue
        shown = page(address, Between(before, now))
        before = now
        yield shown


def _waiting(address: str, every_seconds: float) -> Text:
    return Text(f"{address}: rates need two looks, {every_seconds:g} s apart")


def page(address: str, between: Between) -> Group:
    """One page: what is running, what comes late, batches, and calls.

    A terminal that is too short cuts off the end, and the calls have the most lines.
    """
    return Group(_head(address, between), _lags(between), _queues(between), _calls(between))


def _head(address: str, between: Between) -> Text:
    now = between.now
    (version, *_) = now.label("store_build_info", "version") or ["?"]
    (database, *_) = now.label("store_build_info", "database") or ["?"]
    text = f"store-service {version} on {database}, {address}"
    if "store_worker_up" in now.samples:
        workers = len(now.samples["store_worker_up"])
        restarts = now.total("store_worker_restarts_total")
        text += f", {now.total('store_worker_up'):.0f} of {workers} workers, {restarts:.0f} restarts"
    errors = between.growth("store_errors_total")
    reasons = (
        f"{reason} {count:.0f}"
        for reason in now.label("store_errors_total", "reason")
        if (count := between.growth("store_errors_total", reason=reason))
    )
    return Text(f"{text}\nerrors in {between.seconds:.1f} s: {', '.join(reasons) if errors else 'none'}")


def _calls(between: Between) -> Table:
    columns = ("method", "calls/s", "not OK/s", "p50", "p99", "in flight")
    rows = []
    handled, durations = "grpc_server_handled_total", "grpc_server_handling_seconds"
    methods = {
        (of["grpc_service"], of["grpc_method"]) for of, _ in between.now.values("store_calls_in_flight")
    }
    for service, method in sorted(methods):
        of = {"grpc_service": service, "grpc_method": method}
        in_flight = between.now.total("store_calls_in_flight", **of)
        # Methods that were never called are not shown.
        if in_flight or between.now.total(handled, **of):
            rate = between.rate(handled, **of)
            row = (
                f"{service.removeprefix(_OUR_PACKAGE)}/{method}",
                _number(rate),
                _number(rate - between.rate(handled, **of, grpc_code="OK")),
                _time(between.quantile(durations, 0.5, **of)),
                _time(between.quantile(durations, 0.99, **of)),
                f"{in_flight:.0f}",
            )
            rows.append(row)
    return _table("calls", columns, rows, name_width=12)


def _queues(between: Between) -> Table:
    columns = ("queue", "batches/s", "size", "p99", "commit p99", "wait p99", "waiting")
    rows = []
    for queue in between.now.label("store_queue_length", "queue"):
        size = between.mean("store_batch_size", queue=queue)
        row = (
            queue,
            _number(between.rate("store_batch_size_count", queue=queue)),
            _NOTHING if size is None else _number(size),
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
        f"{_time(now.total('store_feed_idle_seconds'))} ago" if now.total("store_watches") else _NOTHING,
        f"{now.total('store_watches'):.0f} of {now.total('store_watches_limit'):.0f}",
        f"{now.total('store_connections_lost_total'):.0f}",
    ]
    if "store_wal_bytes" in now.samples:
        columns.append("WAL")
        values.append(_bytes(now.total("store_wal_bytes")))
    return _table("lag", columns, [values])


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, name_width: int = 0
) -> Table:
    """Takes how much of the names in the first column must stay; 0 for a table that has none.

    Where there is too little room, headings are broken into lines and names cut off, and not the numbers.
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
        return _NOTHING
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
