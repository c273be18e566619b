"""Which server of PostgreSQL the service works on, and what it does when an address leads to another one."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy.engine import make_url
from storeapi.v1 import posts_pb2
from structlog.testing import capture_logs

from store_service import config as settings
from store_service.database import connect, postgresql, postgresql_connection, schema
from store_service.errors import DatabaseUnavailable
from store_service.server import serving
from tests.support.errors import expect_error, received_error, result_or_error
from tests.support.polling import wait_until
from tests.support.postgresql import PostgresServer, new_database, postgres_server, standby_server
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout
from tests.support.unreliable_proxy import UnreliableProxy

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Service:
    """A service, and the network between it and its database."""

    def __init__(self, channel: grpc.aio.Channel, network: UnreliableProxy) -> None:
        self.stubs = Stubs(channel)
        self.network = network
        self._health = health_pb2_grpc.HealthStub(channel)

    async def create(self) -> posts_pb2.Post:
        """Creates a post; tries again while the database is not available."""
        post: posts_pb2.Post = await tried_again(self.stubs.create_post)
        return post

    async def get(self, id: int) -> posts_pb2.Post:
        """Reads a post once."""
        post: posts_pb2.Post = await self.stubs.posts.GetPost(posts_pb2.GetPostRequest(id=id))
        return post

    async def health(self) -> Any:
        """What a health check says now."""
        return (await self._health.Check(health_pb2.HealthCheckRequest())).status

    async def becomes(self, status: Any) -> None:
        """Waits until health says so."""
        await at_last(self.health, lambda seen: seen == status)


async def at_last(call: Callable[[], Awaitable[Any]], is_wanted: Callable[[Any], bool]) -> Any:
    """The result of a call that is retried until it is the expected one."""
    async with asyncio.timeout(scaled_timeout()):
        while True:
            outcome = await result_or_error(call())
            if is_wanted(outcome):
                return outcome
            await asyncio.sleep(0.02)


async def tried_again(call: Callable[[], Awaitable[Any]]) -> Any:
    """The result of a call that is retried while the database is unavailable."""

    def is_answer(outcome: Any) -> bool:
        if isinstance(outcome, grpc.RpcError):
            assert received_error(outcome).reason == "DATABASE_UNAVAILABLE"
            return False
        return True

    return await at_last(call, is_answer)


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    """A server of the test's own."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def database_url(primary: PostgresServer) -> Iterator[str]:
    """A database on the primary."""
    with new_database(primary.url) as url:
        schema.upgrade(url)
        yield url


@pytest.fixture
def standby(primary: PostgresServer, database_url: str) -> Iterator[PostgresServer]:
    """A standby of it that has everything so far."""
    with standby_server(primary.port) as server:
        yield server


@asynccontextmanager
async def service_at(database_url: str, **changed: Any) -> AsyncIterator[Service]:
    """A service whose address of the database leads to a server that may be changed."""
    url = make_url(database_url)
    network = UnreliableProxy(random.Random(1))
    lead_to(network, url.port)
    async with network.running():
        host, port = network.address.split(":")
        proxied = url.set(host=host, port=int(port)).render_as_string(hide_password=False)
        config = settings.load(
            DATABASE_URL=proxied, listen="127.0.0.1:0", connect_timeout_seconds=2, **changed
        )
        async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
            yield Service(channel, network)


def lead_to(network: UnreliableProxy, port: int | None) -> None:
    """New connections reach this server from now on."""
    network.server_address = f"127.0.0.1:{port}"


def at(server: PostgresServer, database_url: str) -> str:
    """The URL of the same database on another server."""
    return make_url(database_url).set(port=server.port).render_as_string(hide_password=False)


def sql(url: str, *statements: str) -> None:
    """Runs statements, each by itself."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def ends_sessions(url: str) -> str:
    """A statement that ends sessions of the service."""
    database = make_url(url).database
    return (
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        f" WHERE application_name = 'store-service' AND datname = '{database}'"
    )


async def test_database_that_was_temporarily_read_only_is_written_again(
    primary: PostgresServer, database_url: str
) -> None:
    """Sessions opened meanwhile are closed."""
    database = make_url(database_url).database
    async with service_at(database_url) as service:
        await service.create()

        sql(primary.url, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        sql(primary.url, ends_sessions(database_url))
        with capture_logs() as lines:
            # At first it only says that the sessions have ended.
            while "default_transaction_read_only" not in cause_of_not_healthy(lines):
                await service.becomes(NOT_SERVING)
            refused = await expect_error(service.stubs.create_post())
        sql(primary.url, f"ALTER DATABASE {database} RESET default_transaction_read_only")
        post = await service.create()

        assert refused.reason == "DATABASE_UNAVAILABLE"
        assert (await tried_again(lambda: service.get(post.id))) == post
        await service.becomes(SERVING)


def cause_of_not_healthy(lines: Sequence[Any]) -> str:
    """What the log said last of a health check that was not well."""
    return next((line["cause"] for line in reversed(lines) if line["event"] == "not healthy"), "")


async def test_session_that_becomes_read_only_is_closed(primary: PostgresServer, database_url: str) -> None:
    """It is not used for reads either, because writes may go elsewhere."""
    async with service_at(database_url) as service:
        post = await service.create()

        sql(primary.url, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        # A reload reaches sessions a moment later.
        await at_last(service.stubs.create_post, lambda seen: isinstance(seen, grpc.RpcError))
        await service.becomes(NOT_SERVING)
        refused = await expect_error(service.get(post.id))
        sql(primary.url, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
        created = await service.create()

        assert refused.reason == "DATABASE_UNAVAILABLE"
        assert (await tried_again(lambda: service.get(created.id))) == created
        await service.becomes(SERVING)


async def test_address_that_temporarily_leads_to_a_standby_recovers(
    primary: PostgresServer, standby: PostgresServer, database_url: str
) -> None:
    """Nothing is served from the standby."""
    async with service_at(database_url) as service:
        post = await service.create()

        lead_to(service.network, standby.port)
        service.network.cut()
        await service.becomes(NOT_SERVING)
        refused = [await expect_error(service.stubs.create_post()), await expect_error(service.get(post.id))]
        lead_to(service.network, primary.port)
        created = await service.create()

        assert {it.reason for it in refused} == {"DATABASE_UNAVAILABLE"}
        assert [await tried_again(lambda: service.get(created.id)) for _ in range(8)] == [created] * 8
        await service.becomes(SERVING)


async def test_readers_follow_the_writer_to_a_promoted_standby(
    primary: PostgresServer, standby: PostgresServer, database_url: str
) -> None:
    """Sessions to the former primary are closed."""
    async with service_at(database_url) as service:
        await service.create()
        await asyncio.to_thread(standby.promote)

        lead_to(service.network, standby.port)
        # The session that writes was opened first.
        sql(primary.url, ends_sessions(database_url) + " ORDER BY backend_start LIMIT 1")
        created = await service.create()

        assert len(bodies(at(standby, database_url))) == 2
        assert [await service.get(created.id) for _ in range(8)] == [created] * 8


async def test_read_only_service_serves_a_standby(standby: PostgresServer, database_url: str) -> None:
    """Without LISTEN."""
    sql(database_url, "INSERT INTO posts (body) VALUES ('on the primary')")
    at_standby = at(standby, database_url)

    async with service_at(at_standby, read_only=True) as service:
        await asyncio.to_thread(
            wait_until, lambda: "on the primary" in bodies(at_standby)
        )  # replication takes a moment
        assert (await service.get(1)).body == "on the primary"
        assert await service.health() == SERVING


def bodies(url: str) -> list[str]:
    """What is stored."""
    with psycopg.connect(url) as connection:
        return [body for (body,) in connection.execute("SELECT body FROM posts ORDER BY id")]


async def test_read_write_service_refuses_a_standby(standby: PostgresServer, database_url: str) -> None:
    """The error says what to do."""
    with pytest.raises(DatabaseUnavailable) as caught:
        async with connect.open_database(at(standby, database_url)):
            pass

    assert "is a standby" in str(caught.value.__cause__)
    assert "STORE_READ_ONLY" in str(caught.value.__cause__)


async def test_silent_server_is_left_for_the_server_that_its_address_leads_to(
    primary: PostgresServer, standby: PostgresServer, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host without power closes no connection, and a statement could still wait for its response."""
    monkeypatch.setattr(postgresql_connection, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(postgresql, "SLACK_SECONDS", 3600)
    async with service_at(database_url) as service:
        post = await service.create()
        service.network.freeze()
        calls = [service.stubs.create_post(), service.get(post.id)]
        waiting = [asyncio.create_task(expect_error(call)) for call in calls]
        await asyncio.to_thread(standby.promote)
        lead_to(service.network, standby.port)

        assert [(await it).reason for it in waiting] == ["DATABASE_UNAVAILABLE"] * 2
        created = await service.create()
        assert [await tried_again(lambda: service.get(created.id)) for _ in range(8)] == [created] * 8
