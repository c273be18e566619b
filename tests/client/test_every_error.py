"""Every exception, as the real server makes a caller see it."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import storeapi
from sqlalchemy import Integer, literal, select
from storeapi.v1 import admin_pb2, comments_pb2, posts_pb2

from store_service import config as settings
from store_service.auth import api_keys
from store_service.auth.principal import Permission
from store_service.config import Config
from store_service.database import changes, connect, schema, sqlite
from store_service.database.statements import Statement
from store_service.model import Seen
from store_service.rpc import sending
from store_service.server import serving
from store_service.service import consistency_tokens, search_index
from store_service.service.posts import Posts
from store_service.service.retention import Retention
from tests.support.client_errors import error_tree
from tests.support.database import execute, write_lock
from tests.support.postgresql import new_database
from tests.support.stoppable_server import StoppableServer, stoppable_server
from tests.support.stubs import NO_READ_AHEAD
from tests.support.timeouts import scaled_timeout

MISSING = 999
KEY = api_keys.new_key()
UUID = "7d1a3a1e-3c0a-4f6e-9a55-5d3b3a1f2c11"


@pytest.fixture
def database_url(database_file: Path) -> str:
    """One engine is enough: that both make the same errors is proved elsewhere."""
    return f"sqlite:///{database_file}"


@dataclass
class Situation:
    """What a way to fail may ask for."""

    client: Any
    """Without retries, so that it shows each failure."""
    make_client: Callable[..., Any]
    make_channel: Callable[[str], Any]
    server: StoppableServer
    address: str
    config: Config
    monkeypatch: pytest.MonkeyPatch
    request: pytest.FixtureRequest

    async def send(self, method: Any, request: Any) -> Any:
        """A request that the client's methods would never make."""
        return await self.client._calls.unary(method, request, 5)

    @property
    def raw(self) -> Any:
        """The stubs, of the kind that the client calls."""
        return getattr(self.client, "_subject", self.client).raw


Way = Callable[[Situation], Awaitable[Any]]


async def malformed(it: Situation) -> None:
    channel = it.make_channel(it.address)
    try:
        await it.send(channel.unary_unary("/storeapi.v1.PostService/GetPost"), b"\xff")
    finally:
        closing = channel.close()
        if closing is not None:
            await closing


async def mask_invalid(it: Situation) -> None:
    request = posts_pb2.UpdatePostRequest(post={"id": 1, "body": "a"}, update_mask={"paths": ["title"]})
    await it.send(it.raw.posts.UpdatePost, request)


async def immutable(it: Situation) -> None:
    post = await it.client.posts.create(body="a")
    comment = await it.client.comments.create(post_id=post.id, body="b")
    request = comments_pb2.UpdateCommentRequest(
        comment={"id": comment.id, "post_id": MISSING}, update_mask={"paths": ["post_id"]}
    )
    await it.send(it.raw.comments.UpdateComment, request)


async def page_token_mismatch(it: Situation) -> None:
    await it.client.posts.create_many(["a", "b"])
    page = await anext(it.client.posts.pages(page_size=1))
    await anext(it.client.posts.list(order_by="id desc", page_token=page.next_page_token))


async def request_id_reused(it: Situation) -> None:
    await it.client.posts.create(body="a", request_id=UUID)
    await it.client.posts.create(body="b", request_id=UUID)


async def post_has_comments(it: Situation) -> None:
    post = await it.client.posts.create(body="a")
    await it.client.comments.create(post_id=post.id, body="b")
    await it.client.posts.delete(post.id)


async def not_deleted(it: Situation) -> None:
    post = await it.client.posts.create(body="a")
    await it.client.posts.undelete(post.id)


async def external_id_taken(it: Situation) -> None:
    request = posts_pb2.CreatePostRequest(post={"body": "a", "external_id": "article:42"})
    post = await it.send(it.raw.posts.CreatePost, request)
    with pytest.raises(storeapi.ExternalIdTaken) as raised:
        await it.send(it.raw.posts.CreatePost, request)
    assert (raised.value.id, raised.value.external_id) == (post.id, "article:42")
    raise raised.value


async def reply(it: Situation, *, post_id: int, reply_to_id: int) -> Any:
    request = comments_pb2.CreateCommentRequest(
        comment={"body": "a", "post_id": post_id, "reply_to_id": reply_to_id}
    )
    return await it.send(it.raw.comments.CreateComment, request)


async def reply_post_mismatch(it: Situation) -> None:
    posts = await it.client.posts.create_many(["a", "b"])
    comment = await reply(it, post_id=posts[0].id, reply_to_id=0)
    with pytest.raises(storeapi.ReplyPostMismatch) as raised:
        await reply(it, post_id=posts[1].id, reply_to_id=comment.id)
    assert (raised.value.reply_to_id, raised.value.post_id) == (comment.id, posts[0].id)
    raise raised.value


async def reply_too_deep(it: Situation) -> None:
    post = await it.client.posts.create(body="a")
    comment = await reply(it, post_id=post.id, reply_to_id=0)
    for _ in range(64):
        comment = await reply(it, post_id=post.id, reply_to_id=comment.id)
    with pytest.raises(storeapi.ReplyTooDeep) as raised:
        await reply(it, post_id=post.id, reply_to_id=comment.id)
    assert (raised.value.reply_to_id, raised.value.max_depth) == (comment.id, 64)
    raise raised.value


async def etag_mismatch(it: Situation) -> None:
    post = await it.client.posts.create(body="a")
    await it.client.posts.update(post.id, body="b")
    await it.client.posts.update(post.id, body="c", etag=post.etag)


async def response_too_large(it: Situation) -> None:
    posts = await it.client.posts.create_many(["x" * 60_000] * 80)
    await it.client.posts.delete_many([post.id for post in posts])


@asynccontextmanager
async def another(it: Situation, **settings_of_it: Any) -> AsyncIterator[Any]:
    """A client of another server, with other settings or another database."""
    config = it.config.model_copy(update=settings_of_it)
    async with serving(config) as server:
        yield it.make_client(server.address, retries=False)


async def resume_token_foreign(it: Situation) -> None:
    page = await anext(it.client.posts.pages())
    file = Path(it.config.DATABASE_URL.removeprefix("sqlite:///")).with_name("another.db")
    schema.upgrade(f"sqlite:///{file}")
    async with another(it, DATABASE_URL=f"sqlite:///{file}") as client:
        await anext(client.changes.watch(resume_token=page.resume_token))


async def consistency_token_foreign(it: Situation) -> None:
    token = consistency_tokens.make("another store", Seen(timeline=1, xid=1))
    it.client.read_at_least(token)
    await it.client.posts.count()


async def consistency_token_invalid(it: Situation) -> None:
    it.client.read_at_least("damaged")
    await it.client.posts.count()


async def resume_token_expired(it: Situation) -> None:
    page = await anext(it.client.posts.pages())
    await it.client.posts.create_many(["a"] * 3)
    async with connect.open_database(it.config.DATABASE_URL, readers=1) as store:
        retention = Retention(
            store, change_retention_hours=1e6, max_change_rows=1, request_id_retention_hours=1e6
        )
        assert await retention.step()
    await anext(it.client.changes.watch(resume_token=page.resume_token))


async def standby_behind(it: Situation) -> None:
    await it.client.posts.create(body="a")
    page = await anext(it.client.posts.pages())
    it.monkeypatch.setattr(changes, "IS_STANDBY", Statement(select(literal(1, Integer))))
    execute(it.config.DATABASE_URL, "DELETE FROM changes")
    execute(it.config.DATABASE_URL, "UPDATE sqlite_sequence SET seq = 0 WHERE name = 'changes'")
    await anext(it.client.changes.watch(resume_token=page.resume_token))


async def store_moving(it: Situation) -> None:
    request = admin_pb2.SetWriteModeRequest(mode=admin_pb2.WRITE_MODE_REFUSED)
    await it.send(it.raw.admin.SetWriteMode, request)
    await it.client.posts.create(body="a")


async def watch_limit(it: Situation) -> None:
    watches = [it.client.changes.watch(start="initial_state") for _ in range(it.config.max_watches + 1)]
    await it.client.posts.create(body="a")
    try:
        for watch in watches:
            await anext(watch)
    finally:
        for watch in watches:
            await watch.close()


async def stream_stalled(it: Situation) -> None:
    it.monkeypatch.setattr(sending, "STALL_SECONDS", 0.1)
    stalled = asyncio.Event()
    send = sending.ResponseSender.send

    async def watched_send(*arguments: Any) -> None:
        try:
            await send(*arguments)
        except BaseException:
            stalled.set()
            raise

    it.monkeypatch.setattr(sending.ResponseSender, "send", watched_send)
    await it.client.posts.create_many(["x" * 60_000] * 80)
    client = it.make_client(it.address, retries=False, channel_options=NO_READ_AHEAD)
    watch = client.changes.watch(start="initial_state")
    await anext(watch)
    await asyncio.wait_for(stalled.wait(), scaled_timeout())
    async for _ in watch:
        pass  # What was sent before is still to be read.


async def storage_full(it: Situation) -> None:
    for length in (60_000, 4_000, 1):
        for _ in range(1000):
            try:
                await it.client.posts.create(body="x" * length)
            except storeapi.StorageFull:
                if length == 1:
                    raise
                break


async def shutting_down(it: Situation) -> None:
    watch = it.client.changes.watch(start="initial_state")
    await it.client.posts.create(body="a")
    await anext(watch)
    stopping = it.server.stop()
    try:
        await anext(watch)
    finally:
        await stopping


async def database_busy(it: Situation) -> None:
    with write_lock(it.config.DATABASE_URL):
        await it.client.posts.create(body="a")


async def database_unavailable(it: Situation) -> None:
    posts = await it.client.posts.create_many(["x" * 60_000] * 10)
    log = Path(it.config.DATABASE_URL.removeprefix("sqlite:///") + "-wal")
    content = log.read_bytes()  # noqa: ASYNC240 - a test has its event loop to itself
    os.truncate(log, 0)
    try:
        for post in posts:
            await it.client.posts.get(post.id)
    finally:
        log.write_bytes(content)  # noqa: ASYNC240 - a test has its event loop to itself


async def overloaded(it: Situation) -> None:
    url = _copy_of(it)
    async with another(it, DATABASE_URL=url, max_concurrent_calls=1) as client:
        with write_lock(url):
            calls = [asyncio.ensure_future(client.posts.create(body="a")) for _ in range(2)]
            # The other one waits for the lock.
            refused, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(calls)
        await refused.pop()


async def rate_limited(it: Situation) -> None:
    async with another(it, DATABASE_URL=_copy_of(it), rate_limit_per_caller=0.01) as client:
        await client.posts.create(body="a")
        await client.posts.create(body="a")


async def read_only(it: Situation) -> None:
    async with another(it, DATABASE_URL=_copy_of(it), read_only=True) as client:
        await client.posts.create(body="a")


async def search_disabled(it: Situation) -> None:
    async with another(it, DATABASE_URL=_copy_of(it), search=False) as client:
        await anext(client.posts.search("a"))


async def search_index_not_ready(it: Situation) -> None:
    it.monkeypatch.setattr(search_index, "BUILDING_WAIT_SECONDS", 0.01)
    # A server that is read-only does not build the index.
    async with another(it, DATABASE_URL=_copy_of(it), read_only=True) as client:
        await anext(client.posts.search("a"))


def _copy_of(it: Situation) -> str:
    """A database of another server, for a file is served by one."""
    file = Path(it.config.DATABASE_URL.removeprefix("sqlite:///")).with_name("another.db")
    schema.upgrade(f"sqlite:///{file}")
    return f"sqlite:///{file}"


async def internal(it: Situation) -> None:
    async def bug(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    it.monkeypatch.setattr(Posts, "get", bug)
    await it.client.posts.get(1)


async def schema_mismatch(it: Situation) -> None:
    # PostgreSQL alone tells a running service that its tables are others.
    with new_database(it.request.getfixturevalue("postgres")) as url:
        schema.upgrade(url)
        async with another(it, DATABASE_URL=url) as client:
            with psycopg.connect(url) as connection:
                connection.execute("ALTER TABLE posts RENAME TO articles")
            await client.posts.get(1)


async def asked_who_calls(it: Situation, **client: Any) -> None:
    """The response of a server with one API key, which has only the permission read."""
    file = Path(it.config.DATABASE_URL.removeprefix("sqlite:///")).with_name("keys")
    api_keys.append(file, name="reader", key=KEY, permissions=frozenset([Permission.READ]))
    config = it.config.model_copy(update={"api_keys_file": str(file), "DATABASE_URL": it.config.DATABASE_URL})
    await it.server.stop()
    async with serving(config) as server:
        await it.make_client(server.address, retries=False, **client).posts.create(body="a")


async def unavailable(it: Situation) -> None:
    await it.make_client("127.0.0.1:1", retries=False, timeout=5).posts.get(1)


async def connection_failed(it: Situation) -> None:
    await it.make_client("no.such.name.invalid:1").posts.get(1)


async def deadline_exceeded(it: Situation) -> None:
    with write_lock(it.config.DATABASE_URL):
        await it.client.posts.create(body="a", timeout=0.01)


async def cancelled(it: Situation) -> None:
    client = it.make_client(it.address, retries=False)
    with write_lock(it.config.DATABASE_URL):
        call = asyncio.ensure_future(client.posts.create(body="a", timeout=None))
        await asyncio.sleep(0.1)
        await client.close()
        await call


async def resource_exhausted(it: Situation) -> None:
    post = await it.client.posts.create(body="x" * 2000)
    small = [("grpc.max_receive_message_length", 1000)]
    await it.make_client(it.address, retries=False, channel_options=small).posts.get(post.id)


async def unknown_method(it: Situation) -> None:
    """What this version of the client knows and the server does not."""
    channel = it.make_channel(it.address)
    try:
        await it.send(channel.unary_unary("/storeapi.v1.PostService/PinPost"), b"")
    finally:
        closing = channel.close()
        if closing is not None:
            await closing


WAYS: dict[type[storeapi.StoreError], Way] = {
    storeapi.StoreError: unknown_method,
    storeapi.RequestMalformed: malformed,
    storeapi.FieldInvalid: lambda it: it.client.posts.create(body=""),
    storeapi.FieldMaskInvalid: mask_invalid,
    storeapi.FieldImmutable: immutable,
    storeapi.PageTokenInvalid: lambda it: anext(it.client.posts.list(page_token="damaged")),
    storeapi.PageTokenMismatch: page_token_mismatch,
    storeapi.BatchEmpty: lambda it: it.client.posts.delete_many([]),
    storeapi.BatchTooLarge: lambda it: it.client.posts.delete_many(range(1, 1002)),
    storeapi.BatchDuplicate: lambda it: it.client.posts.delete_many([1, 1]),
    storeapi.RequestIdReused: request_id_reused,
    storeapi.ResumeTokenInvalid: lambda it: anext(it.client.changes.watch(resume_token="damaged")),
    storeapi.ResumeTokenForeign: resume_token_foreign,
    storeapi.ConsistencyTokenInvalid: consistency_token_invalid,
    storeapi.ConsistencyTokenForeign: consistency_token_foreign,
    storeapi.CredentialsMissing: asked_who_calls,
    storeapi.CredentialsInvalid: lambda it: asked_who_calls(it, api_key=f"{KEY}x"),
    storeapi.PermissionDenied: lambda it: asked_who_calls(it, api_key=KEY),
    storeapi.PostNotFound: lambda it: it.client.posts.get(MISSING),
    storeapi.CommentNotFound: lambda it: it.client.comments.get(MISSING),
    storeapi.PostHasComments: post_has_comments,
    storeapi.ExternalIdTaken: external_id_taken,
    storeapi.NotDeleted: not_deleted,
    storeapi.ReplyTooDeep: reply_too_deep,
    storeapi.ReplyPostMismatch: reply_post_mismatch,
    storeapi.SchemaMismatch: schema_mismatch,
    storeapi.EtagMismatch: etag_mismatch,
    storeapi.ResourceExhausted: resource_exhausted,
    storeapi.ResponseTooLarge: response_too_large,
    storeapi.WatchLimit: watch_limit,
    storeapi.RateLimited: rate_limited,
    storeapi.Overloaded: overloaded,
    storeapi.ReadOnly: read_only,
    storeapi.SearchDisabled: search_disabled,
    storeapi.SearchIndexNotReady: search_index_not_ready,
    storeapi.StorageFull: storage_full,
    storeapi.ResumeTokenExpired: resume_token_expired,
    storeapi.Unavailable: unavailable,
    storeapi.ConnectionFailed: connection_failed,
    storeapi.ShuttingDown: shutting_down,
    storeapi.StreamStalled: stream_stalled,
    storeapi.StandbyBehind: standby_behind,
    storeapi.StoreMoving: store_moving,
    storeapi.DatabaseBusy: database_busy,
    storeapi.DatabaseUnavailable: database_unavailable,
    storeapi.DeadlineExceeded: deadline_exceeded,
    storeapi.Cancelled: cancelled,
    storeapi.InternalError: internal,
}

ONLY_THEIR_LEAVES = {
    storeapi.InvalidRequest,
    storeapi.Unauthenticated,
    storeapi.NotFound,
    storeapi.AlreadyExists,
    storeapi.PreconditionFailed,
    storeapi.Conflict,
    storeapi.OutOfRange,
}
"""Branches that the service never raises by themselves; a newer one may."""


def test_every_exception_has_a_scenario() -> None:
    """A new exception needs a test that raises it."""
    assert WAYS.keys() | ONLY_THEIR_LEAVES == set(error_tree())


@pytest.mark.parametrize("error", WAYS, ids=lambda error: error.__name__)
async def test_real_server_causes_every_error(
    error: type[storeapi.StoreError],
    database_url: str,
    make_client: Callable[..., Any],
    make_channel: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The caller catches exactly this class, with a clear message without internals."""
    pragmas = {
        storeapi.StorageFull: {"max_page_count": 300},
        storeapi.DatabaseUnavailable: {"cache_size": 10},
        storeapi.DatabaseBusy: {"busy_timeout": 20},
    }
    for name, value in pragmas.get(error, {}).items():
        monkeypatch.setitem(sqlite._WRITER_PRAGMAS, name, value)
    config = settings.load(
        DATABASE_URL=database_url, listen="127.0.0.1:0", max_watches=2, shutdown_grace_seconds=5
    )
    async with stoppable_server(config) as server:
        client = make_client(server.running.address, retries=False)
        address = server.running.address
        it = Situation(client, make_client, make_channel, server, address, config, monkeypatch, request)

        with pytest.raises(error) as raised:
            await WAYS[error](it)

    assert type(raised.value) is error
    assert raised.value.code is error.code or error is storeapi.StoreError
    assert str(raised.value)
    assert isinstance(raised.value.__cause__, grpc.RpcError) or error is storeapi.Cancelled
    for word in ("sqlite", "asyncpg", "psycopg", "Traceback", "secret", "SELECT", database_url):
        assert word not in str(raised.value)
