"""Reads from replicas, and what callers require of them, with real streaming standbys."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import psycopg
import pytest
from sqlalchemy.engine import make_url
from storeapi.v1 import comments_pb2, posts_pb2
from structlog.testing import capture_logs

from store_service import config as settings
from store_service.database import replica, schema
from store_service.model import Position, ResumePoint
from store_service.server import RunningServer, serving
from store_service.service import resume_tokens
from store_service.service.search_index import SearchIndex
from tests.support.errors import expect_error
from tests.support.metrics import scrape_metrics
from tests.support.polling import wait_until
from tests.support.ports import free_port
from tests.support.postgresql import PostgresServer, new_database, postgres_server, standby_server
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout
from tests.support.watches import watch_from_now

REQUEST_ID = "3f2b8c1e-7a5d-4e6f-9b0a-1c2d3e4f5a6b"

Metadata = Sequence[tuple[str, str]]


@pytest.fixture(scope="module")
def primary() -> Iterator[PostgresServer]:
    """A primary for all tests of this module."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    """A standby of it."""
    with standby_server(primary.port) as server:
        yield server


@pytest.fixture
def database_url(primary: PostgresServer, standby: PostgresServer) -> Iterator[str]:
    """A database, which the standby has too. Replay runs at the beginning and at the end."""
    with new_database(primary.url) as url:
        schema.upgrade(url)
        yield url
        resume(standby)


def at(server: PostgresServer, url: str) -> str:
    """The same database on another server."""
    return make_url(url).set(port=server.port).render_as_string(hide_password=False)


def execute(server: PostgresServer, statement: str, url: str = "") -> list[tuple[Any, ...]]:
    """Runs a statement, in the database of a URL if it is given, and returns its rows."""
    with psycopg.connect(at(server, url or server.url), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def pause(standby: PostgresServer) -> None:
    """Stops the replay."""
    execute(standby, "SELECT pg_wal_replay_pause()")
    wait_until(lambda: execute(standby, "SELECT pg_get_wal_replay_pause_state()") == [("paused",)])


def resume(standby: PostgresServer) -> None:
    """Lets the replay continue."""
    execute(standby, "SELECT pg_wal_replay_resume()")


@dataclass
class Service:
    """A running service, and calls with metadata."""

    server: RunningServer
    channel: grpc.aio.Channel

    @property
    def stubs(self) -> Stubs:
        """Stubs without metadata."""
        return Stubs(self.channel)

    async def create(
        self, body: str = "a post", *, external_id: str = "", **options: Any
    ) -> tuple[posts_pb2.Post, str]:
        """Creates a post, and returns it with the token of the answer."""
        post = posts_pb2.Post(body=body, external_id=external_id)
        request = posts_pb2.CreatePostRequest(post=post, **options)
        return await token_of(self.stubs.posts.CreatePost(request))

    async def update(self, id: int, body: str) -> posts_pb2.Post:
        """Changes the body of a post."""
        request = posts_pb2.UpdatePostRequest(post={"id": id, "body": body})
        post: posts_pb2.Post = await self.stubs.posts.UpdatePost(request)
        return post

    async def get(self, id: int, *metadata: tuple[str, str]) -> tuple[posts_pb2.Post, str]:
        """Reads a post, and returns it with the token of the answer."""
        return await token_of(self.stubs.posts.GetPost(posts_pb2.GetPostRequest(id=id), metadata=metadata))

    def read_on(self, server: PostgresServer) -> int:
        """How many jobs a replica has executed."""
        queue = f"replica 127.0.0.1:{server.port}"
        return int(scrape_metrics(self.server).total("store_batch_size_sum", queue=queue))

    def is_used(self, server: PostgresServer) -> bool:
        """Whether a replica is used."""
        name = f"127.0.0.1:{server.port}"
        return bool(scrape_metrics(self.server).total("store_replica_used", replica=name))

    def lag(self, server: PostgresServer) -> float:
        """The lag of a replica."""
        name = f"127.0.0.1:{server.port}"
        return scrape_metrics(self.server).total("store_replica_lag_seconds", replica=name)

    async def uses(self, server: PostgresServer, *, used: bool = True) -> None:
        """Waits until a replica is used, or not used."""
        await asyncio.to_thread(wait_until, lambda: self.is_used(server) == used)


async def token_of(call: Any) -> tuple[Any, str]:
    """The answer of a call and its token; empty without one."""
    response = await call
    trailing = dict(await call.trailing_metadata())
    return response, trailing.get("consistency-token", "")


@asynccontextmanager
async def service_at(database_url: str, *replicas: str, **changed: Any) -> AsyncIterator[Service]:
    """A service with replicas."""
    config = settings.load(
        DATABASE_URL=database_url,
        DATABASE_READ_URL=" ".join(replicas),
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        **changed,
    )
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        yield Service(server, channel)


@pytest.fixture
async def service(database_url: str, standby: PostgresServer) -> AsyncIterator[Service]:
    """A service with a replica that is used."""
    async with service_at(database_url, at(standby, database_url)) as service:
        await service.uses(standby)
        yield service


EVENTUAL = ("consistency", "eventual")
STRONG = ("consistency", "strong")


def at_least(token: str) -> tuple[str, str]:
    """The metadata that requires what a token includes."""
    return "at-least", token


def get(id: int) -> posts_pb2.GetPostRequest:
    """The request for a post."""
    return posts_pb2.GetPostRequest(id=id)


async def test_callers_without_metadata_read_from_the_primary(
    service: Service, standby: PostgresServer
) -> None:
    """A client that knows nothing of replicas sees every write."""
    pause(standby)
    post, _ = await service.create()

    assert await service.get(post.id) == (post, "")
    assert (await service.get(post.id, STRONG))[0] == post
    assert service.read_on(standby) == 0


async def test_eventual_read_can_be_stale(service: Service, standby: PostgresServer) -> None:
    first, token = await service.create("first")
    await service.get(first.id, at_least(token))
    pause(standby)
    updated = await service.update(first.id, "second")

    assert (await service.get(first.id, EVENTUAL))[0].body == "first"
    assert (await service.get(first.id, STRONG))[0] == updated


READS: dict[str, Callable[[Stubs, posts_pb2.Post, Metadata], Any]] = {
    "GetPost": lambda stubs, post, metadata: stubs.posts.GetPost(get(post.id), metadata=metadata),
    "GetPost by external id": lambda stubs, post, metadata: stubs.posts.GetPost(
        posts_pb2.GetPostRequest(external_id=post.external_id), metadata=metadata
    ),
    "GetPost with deleted": lambda stubs, post, metadata: stubs.posts.GetPost(
        posts_pb2.GetPostRequest(id=post.id, show_deleted=True), metadata=metadata
    ),
    "BatchGetPosts": lambda stubs, post, metadata: stubs.posts.BatchGetPosts(
        posts_pb2.BatchGetPostsRequest(ids=[post.id]), metadata=metadata
    ),
    "ListPosts": lambda stubs, post, metadata: stubs.posts.ListPosts(
        posts_pb2.ListPostsRequest(), metadata=metadata
    ),
    "ListPostRevisions": lambda stubs, post, metadata: stubs.posts.ListPostRevisions(
        posts_pb2.ListPostRevisionsRequest(id=post.id), metadata=metadata
    ),
    "CountPosts": lambda stubs, post, metadata: stubs.posts.CountPosts(
        posts_pb2.CountPostsRequest(filter={"author": "ann"}), metadata=metadata
    ),
    "CountComments": lambda stubs, post, metadata: stubs.comments.CountComments(
        comments_pb2.CountCommentsRequest(post_ids=[post.id]), metadata=metadata
    ),
    "SearchPosts": lambda stubs, post, metadata: stubs.posts.SearchPosts(
        posts_pb2.SearchPostsRequest(query="needle"), metadata=metadata
    ),
    "ListComments": lambda stubs, post, metadata: stubs.comments.ListComments(
        comments_pb2.ListCommentsRequest(post_id=post.id), metadata=metadata
    ),
}


async def test_every_read_with_the_token_of_a_write_includes_it(
    service: Service, standby: PostgresServer
) -> None:
    """The answer of the replica is that of the primary, and has a token too."""
    for name, read in READS.items():
        reads = service.read_on(standby)
        post = posts_pb2.Post(body="a needle", author="ann", external_id=f"article:{name}")
        created, token = await token_of(
            service.stubs.posts.CreatePost(posts_pb2.CreatePostRequest(post=post))
        )

        answer, seen = await token_of(read(service.stubs, created, [at_least(token)]))

        # The token is independent of where the list continues as a watch.
        on_primary = await read(service.stubs, created, [STRONG])
        for it in (answer, on_primary):
            if "resume_token" in it.DESCRIPTOR.fields_by_name:
                it.resume_token = ""
        assert answer == on_primary, name
        assert seen >= token, name
        assert service.read_on(standby) > reads, name


async def test_search_goes_to_the_primary_when_the_index_of_the_replica_stays_behind(
    database_url: str, standby: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica has the post, and not the words that are added later."""
    may_run = asyncio.Event()
    run = SearchIndex.run

    async def run_later(index: SearchIndex) -> None:
        await may_run.wait()
        await run(index)

    monkeypatch.setattr(SearchIndex, "run", run_later)
    async with service_at(database_url, at(standby, database_url)) as service:
        await service.uses(standby)
        post, token = await service.create("a needle")
        await service.get(post.id, at_least(token))
        pause(standby)
        may_run.set()

        found = await READS["SearchPosts"](service.stubs, post, [at_least(token)])

    assert [it.post for it in found.results] == [post]


async def test_read_goes_to_the_primary_when_the_replica_does_not_catch_up(
    service: Service, standby: PostgresServer
) -> None:
    """Also if the lag is not known yet, and when it is known."""
    pause(standby)
    post, token = await service.create()

    for _ in range(20):
        answer, seen = await service.get(post.id, at_least(token))
        assert answer == post
        assert seen >= token
    assert service.read_on(standby) == 0


async def test_read_waits_for_a_replica_that_catches_up(
    service: Service, standby: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "WAIT_SECONDS", scaled_timeout())
    pause(standby)
    post, token = await service.create()

    reading = asyncio.create_task(service.get(post.id, at_least(token)))
    await asyncio.to_thread(resume, standby)

    assert (await reading)[0] == post
    assert service.read_on(standby) == 1


async def test_errors_of_reads_have_tokens(service: Service) -> None:
    """So a caller that has seen a deletion does not see the post again."""
    post, _ = await service.create()
    _, token = await token_of(service.stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=post.id)))

    error = await expect_error(service.stubs.posts.GetPost(get(post.id), metadata=[at_least(token)]))

    assert (error.reason, error.trailing["consistency-token"]) == ("POST_NOT_FOUND", token)


class TestWritesWithoutChange:
    """Their tokens include what they answered, although the replica lacks it."""

    @pytest.fixture
    async def stale(
        self, service: Service, standby: PostgresServer, database_url: str
    ) -> AsyncIterator[tuple[Service, posts_pb2.Post]]:
        """Another service, which has written nothing, and a post that its replica lacks."""
        async with service_at(database_url, at(standby, database_url)) as other:
            await other.uses(standby)
            pause(standby)
            post, _ = await service.create("new", external_id="article:1", request_id=REQUEST_ID)
            yield other, post

    async def test_replay(self, stale: tuple[Service, posts_pb2.Post]) -> None:
        service, post = stale

        replayed, token = await service.create("new", external_id="article:1", request_id=REQUEST_ID)

        assert replayed == post
        assert (await service.get(post.id, at_least(token)))[0] == post

    async def test_create_that_returns_an_existing_post(self, stale: tuple[Service, posts_pb2.Post]) -> None:
        service, post = stale
        draft = posts_pb2.Post(body="other", external_id=post.external_id)
        request = posts_pb2.CreatePostRequest(post=draft, return_existing=True)

        existing, token = await token_of(service.stubs.posts.CreatePost(request))

        assert existing == post
        assert (await service.get(post.id, at_least(token)))[0] == post

    async def test_dry_run(self, stale: tuple[Service, posts_pb2.Post]) -> None:
        """Its transaction is rolled back, so no replica ever has it."""
        service, post = stale
        request = posts_pb2.DeletePostRequest(id=post.id, validate_only=True)

        _, token = await token_of(service.stubs.posts.DeletePost(request))

        assert (await service.get(post.id, at_least(token)))[0] == post

    async def test_error(self, stale: tuple[Service, posts_pb2.Post]) -> None:
        """A caller that reads again after a conflict sees the state that caused it."""
        service, post = stale
        request = posts_pb2.UpdatePostRequest(post={"id": post.id, "body": "b", "etag": "v9"})

        error = await expect_error(service.stubs.posts.UpdatePost(request))

        assert error.reason == "ETAG_MISMATCH"
        assert (await service.get(post.id, at_least(error.trailing["consistency-token"])))[0] == post


async def test_token_of_a_dry_run_is_reached_by_an_idle_replica(
    service: Service, standby: PostgresServer
) -> None:
    post, _ = await service.create()
    request = posts_pb2.UpdatePostRequest(post={"id": post.id, "body": "b"}, validate_only=True)
    _, token = await token_of(service.stubs.posts.UpdatePost(request))

    await service.get(post.id, at_least(token))

    assert service.read_on(standby) == 1


async def test_token_of_a_watch_includes_the_change(service: Service, standby: PostgresServer) -> None:
    """A consumer that has received a change can read it."""
    pause(standby)
    async with watch_from_now(service.channel) as watch:
        post, _ = await service.create()
        await watch.until(post.id)

        assert (await service.get(post.id, at_least(watch.token)))[0] == post

        await asyncio.to_thread(resume, standby)
        async with asyncio.timeout(scaled_timeout()):
            while not service.read_on(standby):
                await service.get(post.id, at_least(watch.token))


async def test_resume_token_of_another_history_is_answered_by_the_primary(
    service: Service, standby: PostgresServer, database_url: str
) -> None:
    """After a failover another change can have the same numbers, with another time."""
    post, token = await service.create()
    await service.get(post.id, at_least(token))
    last = "SELECT store_id, xid, seq, commit_time FROM feed, changes ORDER BY seq DESC LIMIT 1"
    ((store_id, xid, seq, commit_time),) = execute(standby, last, database_url)

    jobs = []
    for time in (commit_time, commit_time + 1):
        position = Position(xid=xid, seq=seq, time=time)
        resume_token = resume_tokens.make(store_id, ResumePoint(position=position))
        before = service.read_on(standby)
        assert (await service.get(post.id, at_least(resume_token)))[0] == post
        jobs.append(service.read_on(standby) - before)

    # The check, and the read if the check succeeds.
    assert jobs == [2, 1]


async def test_all_tokens_of_a_call_are_required(service: Service, standby: PostgresServer) -> None:
    _, old = await service.create()
    pause(standby)
    post, new = await service.create()

    for tokens in ((old, new), (new, old)):
        answer, _ = await service.get(post.id, *map(at_least, tokens), EVENTUAL)
        assert answer == post
    assert max(old, new) == new


async def test_transaction_that_is_still_running_delays_the_replica(
    service: Service, standby: PostgresServer, database_url: str
) -> None:
    """A later transaction is on the replica, and an earlier one may still be committed."""
    first, old = await service.create()
    await service.get(first.id, at_least(old))
    with psycopg.connect(database_url) as open_transaction:
        open_transaction.execute("SELECT pg_current_xact_id()")
        post, token = await service.create()
        there = f"SELECT id FROM posts WHERE id = {post.id}"
        await asyncio.to_thread(wait_until, lambda: execute(standby, there, database_url))
        await service.get(first.id, EVENTUAL)
        before = service.read_on(standby)

        assert (await service.get(post.id, at_least(token)))[0] == post
        assert service.read_on(standby) == before


async def test_idle_primary_is_no_lag(database_url: str, standby: PostgresServer) -> None:
    """The time of the last replayed transaction says nothing about the lag."""
    age = "SELECT extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())"
    async with service_at(database_url, at(standby, database_url), max_replica_lag_seconds=1) as service:
        await service.uses(standby)
        await asyncio.to_thread(wait_until, lambda: execute(standby, age)[0][0] > 1.5)

        assert service.is_used(standby)
        assert service.lag(standby) < 1


async def test_replica_that_lags_too_much_is_left_out(database_url: str, standby: PostgresServer) -> None:
    with capture_logs() as lines:
        async with service_at(database_url, at(standby, database_url), max_replica_lag_seconds=1) as service:
            await service.uses(standby)
            pause(standby)
            post, _ = await service.create()
            await service.uses(standby, used=False)

            assert service.lag(standby) > 0
            assert (await service.get(post.id, EVENTUAL))[0] == post

            await asyncio.to_thread(resume, standby)
            await service.uses(standby)
    assert "it lags more than STORE_MAX_REPLICA_LAG_SECONDS" in causes(lines)
    assert "replica is used again" in [it["event"] for it in lines]


def causes(lines: list[Any]) -> set[str]:
    """Why replicas were not used, according to the log."""
    return {it["cause"] for it in lines if it["event"] == "replica is not used"}


async def test_service_starts_without_its_replica(
    database_url: str, standby: PostgresServer, primary: PostgresServer
) -> None:
    """It uses the replica as soon as it responds."""
    nowhere = make_url(database_url).set(port=free_port()).render_as_string(hide_password=False)
    async with service_at(database_url, nowhere, at(standby, database_url)) as service:
        post, _ = await service.create()
        assert (await service.get(post.id, STRONG))[0] == post
        await service.uses(standby)


async def test_server_that_is_not_a_replica_is_refused(database_url: str, primary: PostgresServer) -> None:
    """The primary itself, and a standby of another server with a copy of the database."""
    with postgres_server() as other, standby_server(other.port) as foreign:
        schema.upgrade(other.url)
        with capture_logs() as lines:
            async with service_at(
                database_url, f"{database_url}?target_session_attrs=any", foreign.url
            ) as service:
                await asyncio.to_thread(wait_until, lambda: len(causes(lines)) > 1)
                post, _ = await service.create()

                assert (await service.get(post.id, EVENTUAL))[0] == post
                assert not service.is_used(foreign)
                assert not service.is_used(primary)
    assert causes(lines) == {
        "the server is not a standby",
        "it is not a standby of the server of DATABASE_URL: the system identifiers differ",
    }
