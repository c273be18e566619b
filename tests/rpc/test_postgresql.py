"""What only PostgreSQL can do to the service: lock rows, time out, restart, and be shared by processes."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import psycopg
import pytest
from storeapi.v1 import comments_pb2, posts_pb2

from store_service import config as settings
from store_service.config import Config
from store_service.database import comments, posts, schema
from store_service.database.connect import Database
from store_service.database.resource_sql import ResourceSql
from store_service.database.statements import as_json
from store_service.server import serving
from store_service.service import feed
from tests.support.database import database_contents
from tests.support.errors import ReceivedError, expect_error, received_error, result_or_error
from tests.support.postgresql import PostgresServer, new_database, postgres_server
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout
from tests.support.watches import watch_from_now

POST_COUNT = 20


@pytest.fixture
def database_url(postgres_database: str, request: pytest.FixtureRequest) -> str:
    """PostgreSQL alone."""
    from tests.support.postgresql import clear_database

    clear_database(postgres_database)
    return postgres_database


@pytest.fixture
def config(config: Config) -> Config:
    """A server that does not wait long for a database that is away."""
    return config.model_copy(update={"connect_timeout_seconds": 2})


@asynccontextmanager
async def impatient(config: Config, **seconds: float) -> AsyncIterator[Stubs]:
    """Stubs of a server with one short timeout."""
    changed = config.model_copy(update=seconds)
    async with serving(changed) as server, grpc.aio.insecure_channel(server.address) as channel:
        yield Stubs(channel)


def update(id: int, body: str) -> posts_pb2.UpdatePostRequest:
    return posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=id, body=body))


async def test_locked_row_is_busy_after_the_lock_timeout(config: Config, database_url: str) -> None:
    """Nothing is done then."""
    async with impatient(config, lock_timeout_seconds=0.1) as stubs:
        post = await stubs.create_post("before")
        with psycopg.connect(database_url) as other:
            other.execute("SELECT * FROM posts FOR UPDATE")
            error = await expect_error(stubs.posts.UpdatePost(update(post.id, "after")))

        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_BUSY")
        assert (await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=post.id))).body == "before"
        assert (await stubs.posts.UpdatePost(update(post.id, "after"))).body == "after"


async def test_slow_statement_is_busy_after_the_statement_timeout(config: Config, database_url: str) -> None:
    """The next call succeeds."""
    async with impatient(config, statement_timeout_seconds=0.5) as stubs:
        post = await stubs.create_post()
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE posts IN ACCESS EXCLUSIVE MODE")
            error = await expect_error(stubs.posts.GetPost(posts_pb2.GetPostRequest(id=post.id)))

        assert error.reason == "DATABASE_BUSY"
        assert (await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=post.id))).id == post.id


async def test_two_services_share_a_database(config: Config, stubs: Stubs) -> None:
    """Writes and etags are shared."""
    async with serving(config) as second, grpc.aio.insecure_channel(second.address) as channel:
        other = Stubs(channel)
        post = await stubs.create_post("from the first")
        assert await other.posts.GetPost(posts_pb2.GetPostRequest(id=post.id)) == post

        def change(one: Stubs, body: str) -> object:
            changed = posts_pb2.Post(id=post.id, body=body, etag=post.etag)
            return one.posts.UpdatePost(posts_pb2.UpdatePostRequest(post=changed))

        outcomes = await asyncio.gather(change(stubs, "a"), change(other, "b"), return_exceptions=True)

    failed = [received_error(it) for it in outcomes if isinstance(it, grpc.RpcError)]
    assert [it.reason for it in failed] == ["ETAG_MISMATCH"]


async def test_comment_never_outlives_its_post(config: Config, stubs: Stubs, database_url: str) -> None:
    """With callers of two services."""
    async with serving(config) as second, grpc.aio.insecure_channel(second.address) as channel:
        other = Stubs(channel)
        for _ in range(5):
            post = await stubs.create_post()
            creates = [stubs.create_comment(post.id) for _ in range(20)]
            delete = posts_pb2.DeletePostRequest(id=post.id, force=True)
            outcomes = await asyncio.gather(*creates, other.posts.DeletePost(delete), return_exceptions=True)
            reasons = {received_error(it).reason for it in outcomes if isinstance(it, grpc.RpcError)}
            assert reasons <= {"POST_NOT_FOUND"}

    assert database_contents(database_url).comments == ()


async def test_deadlock_is_retried(database_url: str) -> None:
    """No caller sees it, and no orphan is left."""
    # PostgreSQL finds a deadlock after a second, which must be before the wait for a lock ends.
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", lock_timeout_seconds=20)
    async with AsyncExitStack() as stack:
        both = []
        for _ in range(2):
            server = await stack.enter_async_context(serving(config))
            both.append(Stubs(await stack.enter_async_context(grpc.aio.insecure_channel(server.address))))
        stored = [await both[0].create_post(f"post {n}") for n in range(POST_COUNT)]
        calls = []
        for n, post in enumerate(stored):
            one, two = both if n % 2 else reversed(both)
            calls += [one.posts.UpdatePost(update(post.id, "a")), two.posts.UpdatePost(update(post.id, "b"))]
            calls += [one.create_comment(post.id), two.create_comment(post.id)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert [it for it in outcomes if isinstance(it, BaseException)] == []


class TestRestart:
    """A database restart."""

    @pytest.fixture
    def own_server(self) -> Iterator[PostgresServer]:
        with postgres_server() as server:
            yield server

    @pytest.fixture
    def database_url(self, own_server: PostgresServer) -> Iterator[str]:
        """A database on a server that may be restarted."""
        with new_database(own_server.url) as url:
            schema.upgrade(url)
            yield url

    async def test_service_reconnects(self, own_server: PostgresServer, stubs: Stubs) -> None:
        """Calls are refused as retryable meanwhile."""
        post = await stubs.create_post("kept")
        await asyncio.to_thread(own_server.stop)
        away = [await self.refusal(stubs) for _ in range(3)]
        await asyncio.to_thread(own_server.start)

        assert {(it.code, it.reason) for it in away} == {
            (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        }
        assert (await self.answer_at_last(stubs, post.id)).body == "kept"
        created = await stubs.create_comment(post.id)
        listed = await stubs.comments.ListComments(comments_pb2.ListCommentsRequest(post_id=post.id))
        assert list(listed.comments) == [created]

    async def refusal(self, stubs: Stubs) -> ReceivedError:
        return await expect_error(stubs.create_post("lost"))

    async def answer_at_last(self, stubs: Stubs, id: int) -> posts_pb2.Post:
        """Returns the first response after both batch queues have reconnected by themselves."""
        async with asyncio.timeout(scaled_timeout()):
            while True:
                for call in (
                    stubs.posts.UpdatePost(update(id, "kept")),
                    stubs.posts.GetPost(posts_pb2.GetPostRequest(id=id)),
                ):
                    outcome = await result_or_error(call)
                    if isinstance(outcome, grpc.RpcError):
                        assert received_error(outcome).reason == "DATABASE_UNAVAILABLE"
                        break
                else:
                    return outcome
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("sql", [posts.POSTS, comments.COMMENTS])
def test_rows_are_found_by_their_index(database_url: str, sql: ResourceSql[Any]) -> None:
    """Also in a table of thousands, where the planner might choose a scan."""
    text, arguments = sql.by_id.on("postgresql", {"ids": as_json([5])})
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO posts (body) SELECT 'x' FROM generate_series(1, 10000)")
        connection.execute("INSERT INTO comments (body, post_id) SELECT 'x', id FROM posts")
        connection.execute("ANALYZE")
        plan = connection.execute("EXPLAIN " + text.replace("$1", "%s"), arguments).fetchall()

    assert "Index Scan using" in str(plan)
    # Which posts and threads are being deleted is asked once for the statement.
    assert "Seq Scan" not in re.sub("Seq Scan on (post|thread)_deletions", "", str(plan))


@pytest.mark.parametrize("hears", [True, False])
async def test_changes_of_another_process_are_reported(
    database_url: str, hears: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By NOTIFY, and by polling if a pooler swallows it."""
    if hears:
        # So that nothing is found by looking.
        monkeypatch.setattr(feed, "POLL_SECONDS", 3600)
    else:

        async def hear_nothing(*_: object) -> None:
            await asyncio.get_running_loop().create_future()

        monkeypatch.setattr(Database, "listen", hear_nothing)
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0")
    async with AsyncExitStack() as stack:
        channels = []
        for _ in range(2):
            server = await stack.enter_async_context(serving(config))
            channels.append(await stack.enter_async_context(grpc.aio.insecure_channel(server.address)))
        async with watch_from_now(channels[0]) as watch:
            for _ in range(3):
                post = await Stubs(channels[1]).create_post()
                assert [change.post for change in await watch.changes(1)] == [post]
