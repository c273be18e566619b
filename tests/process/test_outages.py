"""Log events of a database outage and of a standby."""

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from store_service import config as settings
from store_service import repeated_failure
from store_service.config import Config
from store_service.database import batch_queue, schema
from store_service.rpc import health as health_module
from store_service.server import serving
from store_service.service import feed, retention
from tests.support.polling import eventually
from tests.support.postgresql import PostgresServer, postgres_server
from tests.support.stubs import Stubs
from tests.support.watches import watch_from_now

CHECKS = 40

Lines = list[MutableMapping[str, Any]]


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL that a test may stop."""
    with postgres_server() as server:
        schema.upgrade(server.url)
        yield server


def config_of(server: PostgresServer, **changed: Any) -> Config:
    return settings.load(DATABASE_URL=server.url, listen="127.0.0.1:0", **changed)


@asynccontextmanager
async def channel_to(config: Config) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(config) as running, grpc.aio.insecure_channel(running.address) as channel:
        yield channel


def events(lines: Lines) -> list[Any]:
    return [line["event"] for line in lines]


async def watch_again_and_again(channel: grpc.aio.Channel) -> None:
    """Restarts a watch whenever the outage ends it, as a consumer does."""
    while True:
        try:
            async with watch_from_now(channel) as watch:
                while True:
                    await watch.read()
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.01)


async def test_outage_is_logged_at_its_start_and_end(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many parts of the service fail meanwhile."""
    for module, name in [
        (batch_queue, "RECONNECT_SECONDS"),
        (feed, "POLL_SECONDS"),
        (retention, "PAUSE_SECONDS"),
    ]:
        monkeypatch.setattr(module, name, 0.01)
    monkeypatch.setattr(health_module, "WATCH_INTERVAL_SECONDS", 0.01)
    # At this pace causes change more often than in a minute of real time.
    monkeypatch.setattr(repeated_failure, "MAX_LINES", 1000)
    with capture_logs() as lines:
        async with channel_to(config_of(server)) as channel, watch_from_now(channel) as open_watch:
            # From its first change on, a watch is served from memory and stays open during the outage.
            # Without an open watch, nothing reads the change feed.
            await Stubs(channel).create_post("before")
            await open_watch.changes(1)
            health = health_pb2_grpc.HealthStub(channel)
            consumer = asyncio.create_task(watch_again_and_again(channel))
            server.stop("fast")

            async def is_serving() -> bool:
                answer = await health.Check(health_pb2.HealthCheckRequest())
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

            while [await is_serving() for _ in range(CHECKS)] != [False] * CHECKS:
                pass
            server.start()
            while not await is_serving():
                pass
            for end in (
                "listening for changes again",
                "the change feed is read again",
                "expired rows are deleted again",
            ):
                await eventually(lambda end=end: end in events(lines))
            await eventually(lambda: events(lines).count("connection restored") == 3)
            async with watch_from_now(channel) as watch:
                post = await Stubs(channel).create_post("after")
                assert [it.id for it in await watch.changes(1)] == [post.id]
            consumer.cancel()

    for begin in (
        "not healthy",
        "cannot listen for changes, polling",
        "cannot read the change feed",
        "cannot delete expired rows",
    ):
        # Another line only where the cause was another one.
        causes = [line["cause"] for line in lines if line["event"] == begin]
        assert 1 <= len(causes) == sum(a != b for a, b in zip([None, *causes], causes, strict=False)), begin
    (end,) = [line for line in lines if line["event"] == "healthy again"]
    assert end["count"] >= CHECKS


async def test_promoted_standby_is_polled_and_then_listened_to(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LISTEN fails on a standby; the log reports it once, and not as a failure."""
    monkeypatch.setattr(feed, "STANDBY_SECONDS", 0.01)
    server.stop("fast")
    server.put("standby.signal", b"")
    server.start()
    with capture_logs() as lines:
        config = config_of(server, read_only=True, auto_migrate=False)
        async with channel_to(config) as channel, watch_from_now(channel) as watch:
            await eventually(
                lambda: "polling for changes: the database sends no notifications" in events(lines)
            )
            with psycopg.connect(server.url, autocommit=True) as other:
                other.execute("SELECT pg_promote()")
                await eventually(lambda: is_listening(other))
            async with channel_to(config_of(server)) as primary:
                post = await Stubs(primary).create_post("after")
            assert [it.id for it in await watch.changes(1)] == [post.id]

    assert events(lines).count("polling for changes: the database sends no notifications") == 1
    assert not [line for line in lines if line["event"].startswith("cannot")]


def is_listening(other: psycopg.Connection[Any]) -> bool:
    rows = other.execute("SELECT 1 FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'").fetchall()
    return bool(rows)
