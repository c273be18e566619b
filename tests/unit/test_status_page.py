"""The page of `store-service status` where there is little room: what shows trouble stays."""

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from store_service.observability.collector import MetricsCollector
from store_service.observability.metrics import Metrics
from store_service.observability.samples import Between, Scraped
from store_service.observability.status_page import page

METHODS = [
    "storeapi.v1.CommentService/BatchCreateComments",
    "storeapi.v1.PostService/GetPost",
    "grpc.health.v1.Health/Check",
]


@pytest.fixture
def between() -> Between:
    """Two seconds in which every method was called and both queues worked."""
    metrics = Metrics()
    calls = [metrics.method(name, "unary") for name in METHODS]
    queues = [metrics.queue(name) for name in ("reader", "writer")]

    def scraped(time: float) -> Scraped:
        families = MetricsCollector(metrics, database="sqlite", wal_file=Path("/no/such/file"))
        return Scraped.of(time, families.collect())

    before = scraped(0)
    for call in calls:
        call.started += 1001
        for n in range(1000):
            call.ended(*(("OK", "") if n % 10 else ("UNAVAILABLE", "OVERLOADED")), 0.123)
    for queue in queues:
        queue.batch_ended([0.1] * 50, 0.2, 0.4)
        queue.commits.observe(0.1)
        queue.waiting = lambda: 7
    metrics.loop.lags.observe(0.1)
    return Between(before, scraped(2))


def lines(between: Between, width: int) -> list[str]:
    """The page on a terminal of some width."""
    output = io.StringIO()
    Console(file=output, width=width).print(page("127.0.0.1:9464", between))
    return output.getvalue().splitlines()


def test_problems_come_before_the_methods(between: Between) -> None:
    """A terminal that is too short cuts off the end."""
    shown = [line.split()[0] for line in lines(between, 110)]

    assert shown[:2] == ["store-service", "errors"]
    titles = [word for word in shown if word in ("lag", "batches", "calls")]
    assert titles == ["lag", "batches", "calls"]


@pytest.mark.parametrize("width", [110, 80, 60])
def test_numbers_are_not_truncated(between: Between, width: int) -> None:
    rows = {line.split()[0][:6]: line.split()[1:] for line in lines(between, width)}

    assert rows["writer"] == ["0.5", "50.0", "248.5", "ms", "99.5", "ms", "99.5", "ms", "7"]
    assert rows["Commen"] == rows["PostSe"] == ["500", "50.0", "175.0", "ms", "248.5", "ms", "1"]
    assert rows["99.5"] == ["ms", "-", "-", "0", "of", "0", "0", "0", "KiB"]


def test_package_name_is_omitted(between: Between) -> None:
    shown = {line.split()[0] for line in lines(between, 80)}

    assert {
        "CommentService/BatchCreateComments",
        "PostService/GetPost",
        "grpc.health.v1.Health/Check",
    } <= shown


@dataclass(frozen=True)
class Status:
    """A replica."""

    name: str
    is_used: bool
    lag_seconds: float


def test_replicas_are_counted_with_the_largest_lag() -> None:
    metrics = Metrics()
    metrics.replicas = [Status("a:5432", True, 0.25), Status("b:5432", False, 12.0)]
    scraped = Scraped.of(0, MetricsCollector(metrics, database="postgresql", wal_file=None).collect())

    assert "1 of 2, lag 12.0 s" in " ".join(" ".join(lines(Between(scraped, scraped), 160)).split())
