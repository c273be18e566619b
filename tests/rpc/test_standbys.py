"""Writes while a standby lags or is missing, and watches after a failover."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import grpc
import psycopg
import pytest
from sqlalchemy.engine import make_url
from storeapi.v1 import posts_pb2

from store_service import config as settings
from store_service.config import Config
from store_service.database import batch_runner, postgresql, schema
from store_service.database.postgresql_connection import PostgresqlConnection
from store_service.server import serving
from store_service.service import retention, search_index
from tests.support.errors import expect_error, received_error, result_or_error
from tests.support.polling import wait_until
from tests.support.postgresql import PostgresServer, postgres_server, standby_server
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout
from tests.support.unreliable_proxy import forwarder, port_of
from tests.support.watches import Watch, watch_from_now


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    """A server of the test's own."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def database_url(primary: PostgresServer) -> str:
    """The database of the primary, which goes with it."""
    schema.upgrade(primary.url)
    return primary.url


def at(port: int, url: str) -> str:
    """The same database on another server."""
    return make_url(url).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    """The rows of one statement."""
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def execute(url: str, statement: str) -> None:
    """Runs a statement."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


async def told_until_the_end(watch: Watch) -> tuple[list[int], str]:
    """The ids of the changes of a watch, and the reason of its end."""
    ids, error = await watch.rest()
    return ids, error.reason


async def test_watches_end_after_a_failover_that_lost_changes(
    primary: PostgresServer, database_url: str
) -> None:
    """A standby that lacks the last changes becomes the primary, at the same address."""
    async with AsyncExitStack() as stack:
        replication = await stack.enter_async_context(forwarder(primary.port))
        making = standby_server(port_of(replication))
        standby = await asyncio.to_thread(making.__enter__)
        stack.push_async_callback(asyncio.to_thread, making.__exit__, None, None, None)
        network = await stack.enter_async_context(forwarder(primary.port))
        config = settings.load(
            DATABASE_URL=at(port_of(network), database_url), listen="127.0.0.1:0", connect_timeout_seconds=2
        )
        server = await stack.enter_async_context(serving(config))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        stubs = Stubs(channel)
        watches = [await stack.enter_async_context(watch_from_now(channel)) for _ in range(5)]
        kept = await stubs.create_post("kept")
        for watch in watches:
            await watch.until(kept.id)
        kept_token = watches[0].token
        there = f"SELECT id FROM posts WHERE id = {kept.id}"
        await asyncio.to_thread(wait_until, lambda: query(at(standby.port, database_url), there))

        replication.server_address = "127.0.0.1:1"
        replication.cut()
        lost = [await stubs.create_post(f"lost {n}") for n in range(5)]
        for watch in watches:
            await watch.until(lost[-1].id)
        await asyncio.to_thread(primary.stop, "immediate")
        await asyncio.to_thread(standby.promote)
        network.server_address = f"127.0.0.1:{standby.port}"
        network.cut()
        async with asyncio.timeout(scaled_timeout()):
            while isinstance(new := await result_or_error(stubs.create_post("new")), grpc.RpcError):
                assert received_error(new).reason == "DATABASE_UNAVAILABLE"

        assert [await told_until_the_end(it) for it in watches] == [([], "RESUME_TOKEN_FOREIGN")] * 5
        async with watch_from_now(channel, resume_token=kept_token) as again:
            assert [it.post for it in await again.until(new.id)] == [
                it for it in await stored(stubs) if it.id != kept.id
            ]


async def test_token_of_a_change_that_a_standby_lacks_is_accepted_later(
    primary: PostgresServer, database_url: str
) -> None:
    """A service on a lagging standby answers UNAVAILABLE, not that the token is foreign."""
    async with AsyncExitStack() as stack:
        replication = await stack.enter_async_context(forwarder(primary.port))
        making = standby_server(port_of(replication))
        standby = await asyncio.to_thread(making.__enter__)
        stack.push_async_callback(asyncio.to_thread, making.__exit__, None, None, None)
        channels = []
        for url, read_only in ((database_url, False), (at(standby.port, database_url), True)):
            config = settings.load(DATABASE_URL=url, listen="127.0.0.1:0", read_only=read_only)
            server = await stack.enter_async_context(serving(config))
            channels.append(await stack.enter_async_context(grpc.aio.insecure_channel(server.address)))
        writer, reader = channels
        replication.server_address = "127.0.0.1:1"
        replication.cut()
        async with watch_from_now(writer) as watch:
            late = await Stubs(writer).create_post("late")
            await watch.until(late.id)
            token = watch.token

        error = await expect_error(started_watch(reader, token))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STANDBY_BEHIND")

        replication.server_address = f"127.0.0.1:{primary.port}"
        there = f"SELECT id FROM posts WHERE id = {late.id}"
        await asyncio.to_thread(wait_until, lambda: query(at(standby.port, database_url), there))
        await started_watch(reader, token)


async def started_watch(channel: grpc.aio.Channel, token: str) -> None:
    """Starts a watch and waits for its first response."""
    async with watch_from_now(channel, resume_token=token):
        pass


async def stored(stubs: Stubs) -> list[posts_pb2.Post]:
    """Every post."""
    return list((await stubs.posts.ListPosts(posts_pb2.ListPostsRequest())).posts)


class TestSynchronousStandby:
    """Commits wait for a standby that does not answer."""

    @pytest.fixture(autouse=True)
    def standby_arrives(self, primary: PostgresServer) -> Iterator[None]:
        """At the end nothing waits."""
        yield
        self.arrive(primary)

    @pytest.fixture
    def config(self, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Config:
        """A server that writes nothing by itself while a test runs."""

        async def step(_: object) -> bool:
            return True

        async def nothing_to_do(_: object) -> bool:
            return False

        # Their first commits may still run when the standby leaves, and every write would wait for them.
        monkeypatch.setattr(retention.Retention, "step", step)
        monkeypatch.setattr(search_index.SearchIndex, "step", nothing_to_do)
        return settings.load(
            DATABASE_URL=database_url,
            listen="127.0.0.1:0",
            statement_timeout_seconds=2,
            lock_timeout_seconds=2,
        )

    async def leave(self, primary: PostgresServer, stubs: Stubs) -> None:
        """From now on commits wait for a standby that does not answer."""
        # The first write comes after what a start writes.
        await stubs.create_post("before")
        statements = ("ALTER SYSTEM SET synchronous_standby_names = 'absent'", "SELECT pg_reload_conf()")
        for statement in statements:
            await asyncio.to_thread(execute, primary.url, statement)
        await asyncio.to_thread(
            wait_until,
            lambda: query(primary.url, "SHOW synchronous_standby_names") == [("absent",)],
        )

    def arrive(self, primary: PostgresServer) -> None:
        """Releases waiting commits, as an acknowledgement of the standby does."""
        execute(primary.url, "ALTER SYSTEM RESET synchronous_standby_names")
        execute(primary.url, "SELECT pg_reload_conf()")

    def waiting(self, primary: PostgresServer) -> int:
        """How many commits wait."""
        ((count,),) = query(primary.url, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        assert isinstance(count, int)
        return count

    @pytest.mark.parametrize("request_id", ["", "3f2b8c1e-7a5d-4e6f-9b0a-1c2d3e4f5a6b"])
    async def test_cancelled_write_is_not_committed_by_its_cancellation(
        self, primary: PostgresServer, config: Config, request_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It still waits for the synchronous standby and is not visible."""
        monkeypatch.setattr(batch_runner, "ABANDONED_WRITE_SECONDS", 0.1)
        was_abandoned = asyncio.Event()
        cancel = PostgresqlConnection.cancel

        def seen(connection: PostgresqlConnection) -> None:
            cancel(connection)
            was_abandoned.set()

        monkeypatch.setattr(PostgresqlConnection, "cancel", seen)
        async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
            stubs = Stubs(channel)
            await self.leave(primary, stubs)
            async with watch_from_now(channel) as watch:
                request = posts_pb2.CreatePostRequest(
                    post=posts_pb2.Post(body="waits"), request_id=request_id
                )
                error = await expect_error(stubs.posts.CreatePost(request, timeout=1))
                async with asyncio.timeout(scaled_timeout()):
                    await was_abandoned.wait()
                # This one comes after it, and so after what a cancellation would have done.
                late = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="comes too late"))
                await expect_error(stubs.posts.CreatePost(late, timeout=1))
                assert [it.body for it in await stored(stubs)] == ["before"]
                assert await asyncio.to_thread(self.waiting, primary) == 1

                await asyncio.to_thread(self.arrive, primary)
                assert [it.post.body for it in await watch.changes(1)] == ["waits"]

        assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED

    async def test_write_that_times_out_in_doubt_is_not_cancelled(
        self, primary: PostgresServer, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The session is abandoned while the commit waits."""
        monkeypatch.setattr(postgresql, "SLACK_SECONDS", 0.2)
        quick = config.model_copy(update={"statement_timeout_seconds": 3.0, "lock_timeout_seconds": 0.2})
        async with serving(quick) as server, grpc.aio.insecure_channel(server.address) as channel:
            stubs = Stubs(channel)
            await self.leave(primary, stubs)
            async with watch_from_now(channel) as watch:
                error = await expect_error(stubs.create_post("waits"))

                seen = [it.body for it in await stored(stubs)]
                waiting = await asyncio.to_thread(self.waiting, primary)
                await asyncio.to_thread(self.arrive, primary)
                assert [it.post.body for it in await watch.changes(1)] == ["waits"]

        assert (error.reason, seen, waiting) == ("DATABASE_UNAVAILABLE", ["before"], 1)
