"""What works in each topology: directly, and with HAProxy or PgBouncer in front of PostgreSQL."""

import asyncio
import os
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import grpc
import pytest
import sqlalchemy
from storeapi.v1 import posts_pb2

from store_service import config as settings
from store_service.database import connect, schema
from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection
from store_service.database.statements import Statement
from store_service.errors import DatabaseBusy
from store_service.model import PostDraft
from store_service.server import serving
from store_service.service.posts import Posts
from tests.support.database import execute
from tests.support.polling import eventually
from tests.support.poolers import TOPOLOGIES, Pooler, pooler
from tests.support.postgresql import GIVEN_URL, PostgresServer, postgres_server
from tests.support.repository import ROOT
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout
from tests.support.watches import open_watch

RESTARTS = 20 if IS_LONG_RUN else 1
"""How often PostgreSQL and the pooler are restarted."""

RPC_TESTS = ["tests/rpc"] if IS_LONG_RUN else ["tests/rpc/test_posts.py", "tests/rpc/test_comments.py"]

PYTEST_OPTIONS = [
    *("-q", "-n0", "-p", "no:cacheprovider"),
    "-k=postgresql and not test_lost_connection_is_counted and not test_deadlines_lose_no_connection"
    " and not test_watch_skips_nothing_in_a_database_outage",
]
"""All except the tests that count or end the sessions of the service, which behind a pooler are also those of
the test."""

CALLERS = 8
RESPONSES_BETWEEN = 10
"""Minimum number of responses to each caller between two restarts."""

_RETRIES = [
    ("grpc.service_config", (files("storeapi") / "service_config.json").read_text()),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass
class Topology:
    """A service's way to its database."""

    name: str
    server: PostgresServer
    pooler: Pooler | None

    @property
    def url(self) -> str:
        return self.server.url if self.pooler is None else self.pooler.url

    @property
    def description(self) -> str:
        return TOPOLOGIES[self.name][1]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that tests restart."""
    logs_statements = b"log_statement = 'all'\nlog_line_prefix = '%a '\n"
    with postgres_server({"postgresql.auto.conf": logs_statements}) as server:
        yield server


@pytest.fixture(params=TOPOLOGIES)
def topology(request: pytest.FixtureRequest, server: PostgresServer) -> Iterator[Topology]:
    """Each topology, with an empty database without tables."""
    execute(server.url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    options, _ = TOPOLOGIES[request.param]
    with pooler(server.url, **options) if options is not None else nullcontext() as it:
        yield Topology(request.param, server, it)


@dataclass
class Load:
    """Callers that create and read posts and retry as the service config says, and a watch."""

    stubs: Stubs
    channel: grpc.aio.Channel
    created: dict[int, str] = field(default_factory=dict)
    """The bodies of the posts whose creation was acknowledged."""
    seen: list[tuple[int, str]] = field(default_factory=list)
    """The ids and bodies that the watch has received."""
    responses: list[int] = field(default_factory=lambda: [0] * CALLERS)
    repetitions: int = 0
    """How often a call or a watch was repeated because the database was not available."""
    failures: list[str] = field(default_factory=list)
    is_over: bool = False

    async def call(self, number: int) -> None:
        """Creates posts and reads them until it is over. Repeats a request that fails."""
        while not self.is_over:
            id = str(uuid.uuid4())
            request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=id), request_id=id)
            post = await self._repeated(self.stubs.posts.CreatePost, request)
            self.created[post.id] = id
            read = await self._repeated(self.stubs.posts.GetPost, posts_pb2.GetPostRequest(id=post.id))
            if read != post:
                self.failures.append(f"read {read} after {post}")
            self.responses[number] += 1

    async def _repeated(self, method: Any, request: Any) -> Any:
        while True:
            try:
                return await method(request)
            except grpc.aio.AioRpcError as error:
                self._check(error)
                self.repetitions += 1
                await asyncio.sleep(0.05)

    def _check(self, error: grpc.aio.AioRpcError) -> None:
        """Only an outage and its duration are reasons to repeat a call."""
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            self.failures.append(f"{error.code().name}: {error.details()}")

    async def watch(self) -> None:
        """Follows the changes, and continues after an interruption."""
        request: dict[str, Any] = {"earliest": True}
        while True:
            async with open_watch(self.channel, **request) as watch:
                try:
                    while True:
                        response = await watch.read()
                        request = {"resume_token": watch.token}
                        self.seen += [(it.id, it.post.body) for it in response.changes]
                except grpc.aio.AioRpcError as error:
                    self._check(error)
                    self.repetitions += 1
                    await asyncio.sleep(0.05)

    async def goes_on(self) -> None:
        """Waits until every caller has more responses, or a call has failed."""
        wanted = [it + RESPONSES_BETWEEN for it in self.responses]
        await eventually(
            lambda: (
                bool(self.failures)
                or all(it >= least for it, least in zip(self.responses, wanted, strict=True))
            )
        )


@asynccontextmanager
async def load_on(url: str) -> AsyncIterator[Load]:
    """Callers of a service until the end of the block. Then all of them have finished their last call."""
    config = settings.load(DATABASE_URL=url, listen="127.0.0.1:0")
    async with serving(config) as running, grpc.aio.insecure_channel(running.address, _RETRIES) as channel:
        load = Load(Stubs(channel), channel)
        watch = asyncio.create_task(load.watch())
        callers = [asyncio.create_task(load.call(number)) for number in range(CALLERS)]
        try:
            await load.goes_on()
            yield load
            load.is_over = True
            await asyncio.gather(*callers)
            await eventually(lambda: bool(load.failures) or {*load.created.items()} <= {*load.seen})
        finally:
            for task in (watch, *callers):
                task.cancel()


def timeout_of(text: str) -> BatchOperation[None, Any]:
    """An operation that returns the statement timeout and runs a statement."""
    show, statement = Statement(sqlalchemy.text("SHOW statement_timeout")), Statement(sqlalchemy.text(text))

    async def run(connection: Connection, calls: Sequence[None]) -> list[Any]:
        ((timeout,),) = await connection.fetch(show)
        await connection.fetch(statement)
        return [timeout] * len(calls)

    return BatchOperation(run)


async def test_topology(topology: Topology) -> None:
    """Migration, timeouts, calls and watches, and restarts of PostgreSQL and of the pooler."""
    assert schema.upgrade(topology.url) == schema.EMPTY
    async with connect.open_database(topology.url, statement_timeout_seconds=0.25) as store:
        assert store.pooling == topology.description
        for run in (store.write, store.read):
            assert await run(timeout_of("SELECT 1"), None) == "250ms"
            with pytest.raises(DatabaseBusy):
                await run(timeout_of("SELECT pg_sleep(60)"), None)

    async with load_on(topology.url) as load:
        post = await load.stubs.create_post("first")
        changed = await load.stubs.posts.UpdatePost(
            posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=post.id, body="second"))
        )
        assert changed.body == "second"
        assert load.repetitions == 0
        page = await load.stubs.posts.ListPosts(posts_pb2.ListPostsRequest(page_size=1000))
        assert {it.id for it in page.posts} >= {post.id}
        for _ in range(RESTARTS):
            await asyncio.to_thread(topology.server.stop)
            await asyncio.to_thread(topology.server.start)
            await load.goes_on()
            if topology.pooler is not None:
                await asyncio.to_thread(topology.pooler.restart)
                await load.goes_on()

    assert load.failures == []
    # At least once, in the order of the commits of each post, and nothing else.
    assert {(id, body) for id, body in load.seen if id != post.id} == set(load.created.items())
    assert [body for id, body in dict.fromkeys(load.seen) if id == post.id] == ["first", "second"]


async def test_statements_of_a_call(topology: Topology) -> None:
    """A create and a get are one statement each. In transaction mode there are also BEGIN, with the settings,
    and the end of the transaction.
    """
    schema.upgrade(topology.url)
    async with connect.open_database(topology.url) as store:
        posts = Posts(store)
        # Prepares the statements.
        (post,) = await posts.create([PostDraft(body="a")])
        await posts.get(post.id)
        for call in (lambda: posts.create([PostDraft(body="b")]), lambda: posts.get(post.id)):
            before = len(logged_statements(topology.server))
            await call()
            statements = logged_statements(topology.server)[before:]
            assert len(statements) == (3 if "transaction" in topology.name else 1), statements


def logged_statements(server: PostgresServer) -> list[str]:
    """The statements of the service in the log of PostgreSQL."""
    lines = (server.socket_folder / "log").read_text(errors="replace").splitlines()
    return [line for line in lines if re.match(r"store-service LOG:  (execute|statement)", line)]


@pytest.mark.parametrize("name", [name for name in TOPOLOGIES if "transaction" in name])
def test_rpcs_work_behind_a_pooler_in_transaction_mode(server: PostgresServer, name: str) -> None:
    """The tests of RPCs succeed as they are."""
    options, _ = TOPOLOGIES[name]
    assert options is not None
    with pooler(server.url, **options) as it:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *PYTEST_OPTIONS, *RPC_TESTS],
            cwd=ROOT,
            env=os.environ | {GIVEN_URL: it.url},
            capture_output=True,
            text=True,
            timeout=scaled_timeout(1200 if IS_LONG_RUN else 120),
        )

    assert done.returncode == 0, done.stdout
