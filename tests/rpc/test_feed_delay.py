"""A transaction of another program that delays the change feed is measured and named."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import psycopg
import pytest
from structlog.testing import capture_logs

from store_service import config as settings
from store_service.database import connect, schema
from store_service.model import PostDraft
from store_service.observability.metrics import FeedMetrics
from store_service.server import serving
from store_service.service import feed_delay
from store_service.service.changes import Changes
from store_service.service.feed_delay import FeedDelay
from store_service.service.posts import Posts
from tests.support.metrics import scrape_metrics
from tests.support.polling import eventually
from tests.support.postgresql import PostgresServer, postgres_server
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

GIVE_NUMBER = "SELECT pg_current_xact_id()"


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A server with prepared transactions."""
    with postgres_server({"postgresql.auto.conf": b"max_prepared_transactions = 2\n"}) as server:
        schema.upgrade(server.url)
        yield server


@pytest.fixture(autouse=True)
def _every_delay_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_delay, "LOGGED_SECONDS", 1e-6)


async def test_transaction_that_delays_the_feed_is_named(postgres: PostgresServer) -> None:
    """Also in another database of the server. The end is logged too."""
    metrics = FeedMetrics()
    with psycopg.connect(postgres.url, autocommit=True) as other:
        other.execute("DROP DATABASE IF EXISTS another")
        other.execute("CREATE DATABASE another")
    url = postgres.url.rpartition("/")[0] + "/another?application_name=importer"
    async with connect.open_database(postgres.url) as database:
        delay = FeedDelay(database, metrics)
        with capture_logs() as lines, psycopg.connect(url) as importer:
            importer.execute(GIVE_NUMBER)
            pid = importer.info.backend_pid
            await Posts(database).create([PostDraft(body="a")])
            await delay.measure()
            seconds = metrics.delay_seconds
            importer.rollback()
            await delay.measure()

    assert 0 < seconds < scaled_timeout()
    assert metrics.delay_seconds == 0
    begin, end = lines
    assert begin.pop("began").endswith("Z")
    assert begin == {
        "event": "a transaction delays the change feed",
        "log_level": "warning",
        "transaction": f"session {pid}",
        "database": "another",
        "user": "postgres",
        "application": "importer",
        "state": "idle in transaction",
    }
    assert end["event"] == "the change feed is not delayed any more"


async def test_prepared_transaction_is_named(postgres: PostgresServer) -> None:
    """No session holds it."""
    metrics = FeedMetrics()
    async with connect.open_database(postgres.url) as database:
        with psycopg.connect(postgres.url, autocommit=True) as other:
            other.execute("BEGIN")
            other.execute(GIVE_NUMBER)
            other.execute("PREPARE TRANSACTION 'forgotten'")
            try:
                await Posts(database).create([PostDraft(body="a")])
                with capture_logs() as lines:
                    await FeedDelay(database, metrics).measure()
            finally:
                other.execute("ROLLBACK PREPARED 'forgotten'")

    assert metrics.delay_seconds > 0
    assert [line["transaction"] for line in lines] == ["prepared transaction forgotten"]


async def test_timeout_of_postgresql_bounds_the_delay(postgres: PostgresServer) -> None:
    """As docs/postgresql.md recommends."""
    async with connect.open_database(postgres.url) as database:
        with suppress(psycopg.errors.IdleInTransactionSessionTimeout), psycopg.connect(postgres.url) as other:
            other.execute("SET idle_in_transaction_session_timeout = 100")
            other.execute(GIVE_NUMBER)
            start = (await Changes(database).state()).end
            await Posts(database).create([PostDraft(body="a")])
            async with asyncio.timeout(scaled_timeout()):
                while await Changes(database).read_after(start) is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


async def test_sqlite_has_no_delay(tmp_path: Path) -> None:
    """It has one writer."""
    url = f"sqlite:///{tmp_path}/store.db"
    schema.upgrade(url)
    metrics = FeedMetrics()
    async with connect.open_database(url) as database:
        await Posts(database).create([PostDraft(body="a")])
        await FeedDelay(database, metrics).measure()
    assert metrics.delay_seconds == 0


async def test_delay_is_reported_while_the_server_runs(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the endpoint for metrics."""
    monkeypatch.setattr(feed_delay, "INTERVAL_SECONDS", 0.01)
    config = settings.load(DATABASE_URL=postgres.url, listen="127.0.0.1:0", metrics_listen="127.0.0.1:0")

    def delay() -> float:
        return scrape_metrics(server).total("store_feed_delay_seconds")

    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        with psycopg.connect(postgres.url) as other:
            other.execute(GIVE_NUMBER)
            await Stubs(channel).create_post()
            await eventually(lambda: delay() > 0)
        await eventually(lambda: delay() == 0)
