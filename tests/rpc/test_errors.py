"""Errors as callers receive them: their reasons, details and sizes, and what they never disclose."""

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from storeapi.v1 import changes_pb2, errors_pb2
from storeapi.v1 import posts_pb2 as pb
from structlog.testing import capture_logs

from store_service import errors
from store_service.config import Config
from store_service.database import connect
from store_service.database.connection import Connection
from store_service.database.sqlite_connection import SqliteConnection
from store_service.model import Position, Query, ResumePoint, Seen
from store_service.rpc import sending
from store_service.rpc.status import ROWS
from store_service.server import RunningServer
from store_service.service import consistency_tokens, page_tokens, resume_tokens
from store_service.service.posts import Posts
from store_service.service.retention import Retention
from tests.support.contract import send_bytes
from tests.support.database import database_contents
from tests.support.engines import SQLITE_ONLY
from tests.support.errors import ReceivedError, expect_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import NO_READ_AHEAD, Stubs
from tests.support.timeouts import scaled_timeout

REASONS = {
    name.removeprefix("ERROR_REASON_")
    for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name
    if not name.endswith("UNSPECIFIED")
}


def leaves(root: type[errors.ServiceError]) -> set[type[errors.ServiceError]]:
    """Returns the leaves of the tree of errors."""
    below = [it for it in root.__subclasses__() if it.__module__.startswith(errors.__name__)]
    return set().union(*(leaves(it) for it in below)) if below else {root}


def test_every_error_has_a_status() -> None:
    """Every leaf has a status, so none is sent as INTERNAL."""
    assert set(ROWS) == leaves(errors.ServiceError)


def test_every_reason_is_in_the_contract_and_is_used() -> None:
    """The enum of the contract has exactly the reasons that the server sends."""
    assert sorted([row.reason for row in ROWS.values()] + ["INTERNAL"]) == sorted(REASONS)
    assert errors_pb2.ErrorReason.Name(0) == "ERROR_REASON_UNSPECIFIED"


def test_reason_is_the_name_of_its_error() -> None:
    for leaf, row in ROWS.items():
        assert row.reason.replace("_", "").lower() == leaf.__name__.lower()


# Each error, from the server

INVALID = grpc.StatusCode.INVALID_ARGUMENT

Scenario = Callable[[ResourceApi, ResourceApi, Any], Awaitable[Any]]


async def malformed(posts: ResourceApi, comments: ResourceApi, channel: grpc.aio.Channel) -> Any:
    await send_bytes(channel, "/storeapi.v1.PostService/GetPost", b"\xff\xff\xff")


async def commented(posts: ResourceApi, comments: ResourceApi, _: Any) -> Any:
    await comments.create_one()
    await posts.delete(comments.post_id)


async def moved(posts: ResourceApi, comments: ResourceApi, _: Any) -> Any:
    comment = await comments.create_one()
    await comments.update(comments.resource(id=comment.id, body="x", post_id=404))


async def too_large(posts: ResourceApi, comments: ResourceApi, _: Any) -> Any:
    await posts.batch_create([posts.draft("x" * 64_900)] * 64)


async def taken(posts: ResourceApi, comments: ResourceApi, _: Any) -> Any:
    for _ in range(2):
        await posts.create(posts.draft(external_id="article:42"))


async def not_deleted(_: ResourceApi, __: ResourceApi, channel: grpc.aio.Channel) -> Any:
    await Stubs(channel).posts.UndeletePost(pb.UndeletePostRequest(id=1))


async def too_deep(posts: ResourceApi, comments: ResourceApi, _: Any) -> Any:
    parent = 0
    while True:
        parent = (await comments.create(comments.draft(reply_to_id=parent))).id


async def of_another_post(posts: ResourceApi, comments: ResourceApi, _: Any) -> Any:
    comment = await comments.create_one()
    other = await posts.create_one()
    await comments.create(comments.draft(post_id=other.id, reply_to_id=comment.id))


async def foreign_token(posts: ResourceApi, comments: ResourceApi, _: Any) -> Any:
    await posts.page(page_token=page_tokens.make(Query(resource="comments"), 1))


A_UUID = "7f3c9c8e-0d5c-4f2b-9c59-2b5a4c2a8d5e"


async def used_again(posts: ResourceApi, comments: ResourceApi, _: Any) -> Any:
    await posts.create(posts.draft("one"), request_id=A_UUID)
    await posts.create(posts.draft("another"), request_id=A_UUID)


async def watched(channel: grpc.aio.Channel, **request: Any) -> Any:
    """Returns the first response of a watch, or raises its error."""
    watch = Stubs(channel).changes.Watch(changes_pb2.WatchRequest(**request))
    try:
        return await watch.read()
    finally:
        watch.cancel()


async def watch_from_no_token(_: ResourceApi, __: ResourceApi, channel: grpc.aio.Channel) -> Any:
    await watched(channel, resume_token="x")


async def watch_from_elsewhere(_: ResourceApi, __: ResourceApi, channel: grpc.aio.Channel) -> Any:
    token = resume_tokens.make("another store", ResumePoint(position=Position(xid=0, seq=0)))
    await watched(channel, resume_token=token)


async def one_watch_too_many(_: ResourceApi, __: ResourceApi, channel: grpc.aio.Channel) -> Any:
    open_watch = Stubs(channel).changes.Watch(changes_pb2.WatchRequest())
    try:
        await open_watch.read()
        await watched(channel)
    finally:
        open_watch.cancel()


@pytest.fixture
def config(config: Config) -> Config:
    """The maximum number of watches is 1."""
    return config.model_copy(update={"max_watches": 1})


def read_at_least(token: str) -> Scenario:
    """Returns the scenario of a read that requires what a token includes."""

    async def scenario(posts: ResourceApi, comments: ResourceApi, channel: grpc.aio.Channel) -> Any:
        await Stubs(channel).posts.GetPost(pb.GetPostRequest(id=1), metadata=[("at-least", token)])

    return scenario


SCENARIOS: dict[str, tuple[Scenario, grpc.StatusCode, list[str], dict[str, str]]] = {
    "REQUEST_MALFORMED": (malformed, INVALID, [], {}),
    "FIELD_INVALID": (lambda posts, *_: posts.get(0), INVALID, ["BadRequest"], {}),
    "FIELD_MASK_INVALID": (
        lambda posts, *_: posts.update(posts.resource(id=1, body="x"), ["boddy"]),
        INVALID,
        ["BadRequest"],
        {},
    ),
    "FIELD_IMMUTABLE": (moved, INVALID, ["BadRequest"], {}),
    "PAGE_TOKEN_INVALID": (lambda posts, *_: posts.page(page_token="x"), INVALID, ["BadRequest"], {}),
    "PAGE_TOKEN_MISMATCH": (foreign_token, INVALID, ["BadRequest"], {}),
    "BATCH_EMPTY": (lambda posts, *_: posts.batch_get([]), INVALID, ["BadRequest"], {}),
    "BATCH_TOO_LARGE": (
        lambda posts, *_: posts.batch_get([1] * 1001),
        INVALID,
        ["BadRequest"],
        {"count": "1001", "max_count": "1000"},
    ),
    "BATCH_DUPLICATE": (lambda posts, *_: posts.batch_delete([1, 1]), INVALID, ["BadRequest"], {}),
    "REQUEST_ID_REUSED": (used_again, INVALID, ["BadRequest"], {}),
    "RESUME_TOKEN_INVALID": (watch_from_no_token, INVALID, ["BadRequest"], {}),
    "RESUME_TOKEN_FOREIGN": (watch_from_elsewhere, INVALID, ["BadRequest"], {}),
    "CONSISTENCY_TOKEN_INVALID": (read_at_least("x"), INVALID, ["BadRequest"], {}),
    "CONSISTENCY_TOKEN_FOREIGN": (
        read_at_least(consistency_tokens.make("another store", Seen(timeline=1, xid=1))),
        INVALID,
        ["BadRequest"],
        {},
    ),
    "WATCH_LIMIT": (
        one_watch_too_many,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        ["QuotaFailure", "RetryInfo"],
        {"limit": "1"},
    ),
    "POST_NOT_FOUND": (
        lambda posts, *_: posts.get(404),
        grpc.StatusCode.NOT_FOUND,
        ["ResourceInfo"],
        {"post_id": "404", "missing_ids": "404"},
    ),
    "COMMENT_NOT_FOUND": (
        lambda _, comments, __: comments.get(404),
        grpc.StatusCode.NOT_FOUND,
        ["ResourceInfo"],
        {"comment_id": "404", "missing_ids": "404"},
    ),
    "POST_HAS_COMMENTS": (
        commented,
        grpc.StatusCode.FAILED_PRECONDITION,
        ["PreconditionFailure"],
        {"post_id": "1", "comment_count": "1"},
    ),
    "ETAG_MISMATCH": (
        lambda posts, *_: posts.update(posts.resource(id=1, body="x", etag="x")),
        grpc.StatusCode.ABORTED,
        ["ResourceInfo"],
        {"current_etag": "v1"},
    ),
    "EXTERNAL_ID_TAKEN": (
        taken,
        grpc.StatusCode.ALREADY_EXISTS,
        ["ResourceInfo"],
        {"id": "2", "external_id": "article:42"},
    ),
    "NOT_DELETED": (not_deleted, grpc.StatusCode.FAILED_PRECONDITION, ["ResourceInfo"], {}),
    "REPLY_TOO_DEEP": (
        too_deep,
        grpc.StatusCode.FAILED_PRECONDITION,
        ["PreconditionFailure"],
        {"reply_to_id": "65", "max_depth": "64"},
    ),
    "REPLY_POST_MISMATCH": (
        of_another_post,
        grpc.StatusCode.FAILED_PRECONDITION,
        ["PreconditionFailure"],
        {"reply_to_id": "1", "post_id": "1"},
    ),
    "RESPONSE_TOO_LARGE": (too_large, grpc.StatusCode.RESOURCE_EXHAUSTED, [], {"max_bytes": str(4_128_768)}),
}
"""Errors that a single call can cause: the call, and the code, details and metadata. Post 1 exists."""

ELSEWHERE = {
    "SHUTTING_DOWN": "test_pipeline.py",
    "DATABASE_BUSY": "test_database_failures.py",
    "DATABASE_UNAVAILABLE": "test_database_failures.py",
    "STORAGE_FULL": "test_database_failures.py",
    "INTERNAL": "test_errors.py",
    "RESUME_TOKEN_EXPIRED": "test_errors.py",
    "STREAM_STALLED": "test_errors.py",
    "STANDBY_BEHIND": "test_standbys.py",
    "STORE_MOVING": "test_write_modes.py",
    "SEARCH_INDEX_NOT_READY": "test_search_index.py",
    "SEARCH_DISABLED": "test_search.py",
    "CREDENTIALS_MISSING": "test_authentication.py",
    "CREDENTIALS_INVALID": "test_authentication.py",
    "PERMISSION_DENIED": "test_authentication.py",
    "OVERLOADED": "test_limits.py",
    "RATE_LIMITED": "test_limits.py",
    "READ_ONLY": "test_limits.py",
    # Found at the start and by the health service, which sends no reason.
    "SCHEMA_MISMATCH": "test_health.py",
}
"""Errors that need more than one call, and the modules that test them."""


def test_every_reason_has_a_scenario() -> None:
    """Every reason is caused by a test."""
    assert SCENARIOS.keys() | ELSEWHERE.keys() == REASONS
    for reason, module in ELSEWHERE.items():
        text = (Path(__file__).parent / module).read_text()
        assert f'"{reason}"' in text


@pytest.mark.parametrize("reason", SCENARIOS)
async def test_error_has_the_documented_details(
    posts: ResourceApi, comments: ResourceApi, channel: grpc.aio.Channel, reason: str
) -> None:
    """Code, reason, domain, metadata and types of details."""
    scenario, code, more, metadata = SCENARIOS[reason]

    error = await expect_error(scenario(posts, comments, channel))

    assert (error.code, error.reason, error.info.domain) == (code, reason, "storeapi")
    assert error.metadata == metadata
    assert [it.DESCRIPTOR.name for it in error.details] == ["ErrorInfo", *more]
    assert error.message
    assert not error.message.startswith(": ")
    assert "x-call-id" in error.trailing
    if more == ["BadRequest"]:
        for violation in error.detail(error_details_pb2.BadRequest).field_violations:
            assert violation.field
            assert violation.description
            assert violation.reason == reason


async def test_request_id_of_another_request_is_reused(
    posts: ResourceApi, comments: ResourceApi, database_url: str
) -> None:
    """Regardless of the first response."""
    post = await posts.create_one()
    nothing = await posts.delete(404, allow_missing=True, request_id=f"{A_UUID[:-1]}0")
    comment = await comments.create(comments.draft(), request_id=f"{A_UUID[:-1]}1")
    another = await posts.create(posts.draft(), request_id=f"{A_UUID[:-1]}2")
    before = database_contents(database_url)

    assert (nothing.id, comment.post_id, another.body) == (404, comments.post_id, "a body")
    for n in range(3):
        for api, id in ((posts, post.id), (comments, comment.id)):
            for call in (
                api.create(api.draft("x"), request_id=f"{A_UUID[:-1]}{n}"),
                api.update(api.resource(id=id, body="x"), request_id=f"{A_UUID[:-1]}{n}"),
                api.delete(id, request_id=f"{A_UUID[:-1]}{n}"),
                api.batch_create([api.draft("x")], request_id=f"{A_UUID[:-1]}{n}"),
                api.batch_delete([id], request_id=f"{A_UUID[:-1]}{n}"),
            ):
                error = await expect_error(call)
                assert (error.reason, error.fields) == ("REQUEST_ID_REUSED", ["request_id"])
    assert database_contents(database_url) == before


async def read_to_the_end(channel: grpc.aio.Channel, **request: Any) -> None:
    """Reads a watch until it fails."""
    async with asyncio.timeout(scaled_timeout()):
        async for _ in Stubs(channel).changes.Watch(changes_pb2.WatchRequest(**request)):
            pass


async def test_expired_resume_token_names_the_earliest_valid_one(
    posts: ResourceApi, channel: grpc.aio.Channel, database_url: str
) -> None:
    """The caller can accept the gap and continue with it."""
    token = (await watched(channel)).resume_token
    await posts.create_many(3)
    async with connect.open_database(database_url, readers=1) as store:
        # All changes have expired.
        assert await Retention(
            store, change_retention_hours=-1, max_change_rows=1000, request_id_retention_hours=1
        ).step()
    await posts.create_one("after")

    error = await expect_error(read_to_the_end(channel, resume_token=token))

    assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED")
    assert [it.DESCRIPTOR.name for it in error.details] == ["ErrorInfo"]
    assert error.metadata.keys() == {"earliest_resume_token"}
    assert_small(error)
    watch: Any = Stubs(channel).changes.Watch(
        changes_pb2.WatchRequest(resume_token=error.metadata["earliest_resume_token"])
    )
    responses = [await watch.read(), await watch.read()]
    watch.cancel()
    bodies = [[it.post.body for it in response.changes] for response in responses]
    assert bodies == [[], ["after"]]


async def test_stalled_stream_is_ended(
    posts: ResourceApi, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that the caller does not read ends with STREAM_STALLED."""
    send, stalled = sending.ResponseSender.send, asyncio.Event()

    async def watched_send(*arguments: Any) -> None:
        try:
            await send(*arguments)
        except errors.StreamStalled:
            stalled.set()
            raise

    monkeypatch.setattr(sending, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(sending.ResponseSender, "send", watched_send)
    for _ in range(2):
        await posts.create_many(60, "x" * 60_000)
    async with grpc.aio.insecure_channel(server.address, NO_READ_AHEAD) as channel:
        watch: Any = Stubs(channel).changes.Watch(changes_pb2.WatchRequest(initial_state=True))
        first = await watch.read()
        await asyncio.wait_for(stalled.wait(), scaled_timeout())

        async def read_on() -> None:
            while (response := await watch.read()) is not grpc.aio.EOF:
                seen.extend(response.changes)

        seen = list(first.changes)
        error = await expect_error(read_on())

    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STREAM_STALLED")
    assert error.metadata == {}
    assert [it.DESCRIPTOR.name for it in error.details] == ["ErrorInfo", "RetryInfo"]
    assert 0 < len(seen) < 120


# Sizes


def assert_small(error: ReceivedError) -> None:
    """Checks that details are below 4 KiB and all trailing metadata, in base64, below 8 KiB."""
    details = error.trailing["grpc-status-details-bin"]
    assert len(details) < 4096
    total = 32 + len("grpc-message") + 3 * len(error.message.encode())
    for key, value in error.trailing.items():
        length = (len(value) * 4 + 2) // 3 if key.endswith("-bin") else len(value)
        total += 32 + len(key) + length
    assert total < 8192


HUGE = [2**63 - 1 - n for n in range(1000)]


@pytest.mark.parametrize("method", ["batch_get", "batch_delete"])
async def test_thousand_missing_ids_are_truncated(api: ResourceApi, method: str) -> None:
    """The error has the number of the others."""
    error = await expect_error(getattr(api, method)(HUGE))

    assert error.reason == api.not_found
    assert_small(error)
    listed = error.metadata["missing_ids"]
    assert listed.startswith(f"{HUGE[0]},{HUGE[1]},")
    shown, _, rest = listed.partition(",... and ")
    assert len(shown.split(",")) + int(rest.removesuffix(" more")) == 1000


async def test_thousand_missing_external_ids_are_truncated(api: ResourceApi) -> None:
    """Next to ids too. Some of them are in the metadata."""
    for character in ('"', "x", "\U0001f600"):
        length = 248 // len(character.encode())
        external_ids = [character * length + f"{n:08}" for n in range(1000)]
        for ids, names in (([], external_ids), (HUGE[:500], external_ids[:500])):
            error = await expect_error(api.batch_get(ids, external_ids=names))

            assert error.reason == api.not_found
            assert_small(error)
            assert json.loads(error.metadata["missing_external_ids"]) == external_ids[:3], character


async def test_thousand_comments_on_missing_posts_are_truncated(comments: ResourceApi) -> None:
    """The same, if the error also has a field for each id."""
    error = await expect_error(comments.batch_create([comments.draft(post_id=id) for id in HUGE]))

    assert error.reason == "POST_NOT_FOUND"
    assert error.metadata["missing_ids"].endswith(" and 950 more")
    assert_small(error)


async def test_thousand_posts_with_comments_are_truncated(posts: ResourceApi, stubs: Stubs) -> None:
    """All comments are counted."""
    ids = [it.id for it in await posts.create_many(1000)]
    comments = ResourceApi("Comment", stubs)
    await comments.batch_create([comments.draft(post_id=id) for id in ids])

    error = await expect_error(posts.batch_delete(ids))

    assert error.reason == "POST_HAS_COMMENTS"
    assert error.metadata["comment_count"] == "1000"
    assert error.metadata["post_id"].endswith(" and 950 more")
    assert_small(error)


def counted(error: ReceivedError) -> int:
    """Returns the number of violations of an error, including truncated ones."""
    *shown, last = error.detail(error_details_pb2.BadRequest).field_violations
    rest = last.description.removeprefix("and ").removesuffix(" more")
    return len(shown) + (int(rest) if last.field == "..." else 1)


@SQLITE_ONLY
async def test_thousands_of_violations_are_truncated(comments: ResourceApi) -> None:
    """The error has the number of the others."""
    request = comments.pb.CreateCommentRequest(
        comment=comments.draft("\0", id=1, post_id=-1, etag="x", create_time={}, update_time={}),
        request_id="x",
        validate_only=True,
    )

    error = await expect_error(
        comments.call("BatchCreateComments", requests=[request] * 1000, request_id="x")
    )

    assert error.reason == "FIELD_INVALID"
    assert counted(error) == 8001
    assert_small(error)


@SQLITE_ONLY
async def test_thousand_invalid_ids_are_truncated(api: ResourceApi) -> None:
    """The same for invalid ids."""
    get = await expect_error(api.batch_get([-1] * 1000))
    delete = await expect_error(api.batch_delete([HUGE[0]] * 1000))

    assert (counted(get), counted(delete)) == (1000, 999)
    assert_small(get)
    assert_small(delete)


@SQLITE_ONLY
async def test_long_mask_paths_are_truncated(api: ResourceApi) -> None:
    """The error contains only characters that gRPC does not escape."""
    for character in ("\U0001f600", "é", "\0", '"', "%", "x", "\\", "\n"):
        for count in (1, 100):
            paths = [f"{character * 4000}{n}" for n in range(count)]
            error = await expect_error(api.update(api.resource(id=1, body="x"), paths))

            assert error.reason == "FIELD_MASK_INVALID"
            assert error.message.isascii()
            assert_small(error)


async def test_long_texts_are_not_returned_in_errors(api: ResourceApi) -> None:
    """Orders, tokens, etags and request ids of any length."""
    long = "\U0001f600" * 50_000
    id = (await api.create_one()).id

    for call in (
        api.page(order_by=long),
        api.page(page_token=long),
        api.delete(id, etag=long),
        api.delete(id, request_id=long),
        api.create(api.draft(etag=long)),
    ):
        assert_small(await expect_error(call))


# Unhandled exceptions


def is_silent(error: ReceivedError, *secrets: str) -> bool:
    """Whether an error discloses nothing of the unhandled exception, in its text or details."""
    everything = error.message + repr(error.details) + repr(sorted(error.trailing.items()))
    return not any(word.lower() in everything.lower() for word in secrets)


def raises(error: BaseException) -> Callable[..., Awaitable[Any]]:
    """An unexpected internal exception."""

    async def behave(*_: Any, **__: Any) -> Any:
        raise error

    return behave


class UnforeseenError(Exception):
    """An error that the service does not know."""


BUGS = [
    ValueError("secret"),
    KeyError("secret"),
    UnforeseenError("secret"),
    TimeoutError("secret"),
    StopAsyncIteration("secret"),
    asyncio.InvalidStateError("secret"),
    asyncio.CancelledError("secret"),
    sqlite3.ProgrammingError("secret"),
    grpc.RpcError("secret"),
    OSError(2, "secret", "/secret"),
    UnicodeEncodeError("utf-8", "secret", 0, 1, "secret"),
    errors.InvalidRequest(),
    errors.NotFound.__new__(errors.NotFound),
]


@SQLITE_ONLY
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
async def test_unhandled_exception_is_internal_with_a_call_id(
    posts: ResourceApi, monkeypatch: pytest.MonkeyPatch, bug: BaseException
) -> None:
    """The exception is in the log under the same id."""
    monkeypatch.setattr(Posts, "get", raises(bug))

    with capture_logs() as logged:
        error = await asyncio.wait_for(expect_error(posts.get(1)), scaled_timeout())

    assert (error.code, error.reason, error.metadata) == (grpc.StatusCode.INTERNAL, "INTERNAL", {})
    call_id = error.detail(error_details_pb2.RequestInfo).request_id
    assert call_id == error.trailing["x-call-id"]
    assert call_id in error.message
    assert is_silent(error, "secret", type(bug).__name__, "Traceback", "store_service", ".py")
    (line,) = [it for it in logged if it["event"] == "unhandled exception"]
    assert (line["call_id"], line["exc_info"]) == (call_id, bug)


async def test_service_survives_an_unhandled_exception(
    posts: ResourceApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unhandled exception ends only one call."""
    with monkeypatch.context() as patch:
        patch.setattr(Posts, "get", raises(ValueError("secret")))
        await expect_error(posts.get(1))

    post = await posts.create_one()

    assert await posts.get(post.id) == post


@SQLITE_ONLY
async def test_internal_cancellation_is_answered(posts: ResourceApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled future inside a method is an unhandled exception, not the cancellation of the call."""

    async def waits_for_what_is_cancelled(*_: Any, **__: Any) -> Any:
        inside = asyncio.get_running_loop().create_future()
        inside.cancel()
        return await inside

    monkeypatch.setattr(Posts, "get", waits_for_what_is_cancelled)

    error = await asyncio.wait_for(expect_error(posts.get(1)), scaled_timeout())

    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")


@SQLITE_ONLY
async def test_internal_timeout_is_answered(posts: ResourceApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """An internal timeout is not the deadline of the caller."""

    async def gives_up(*_: Any, **__: Any) -> Any:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    monkeypatch.setattr(Posts, "get", gives_up)

    error = await asyncio.wait_for(expect_error(posts.get(1)), scaled_timeout())

    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")


@SQLITE_ONLY
async def test_missing_response_is_an_unhandled_exception(
    posts: ResourceApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that returns nothing is detected before gRPC sends the response."""

    async def returns_nothing(*_: Any, **__: Any) -> Any:
        return None

    monkeypatch.setattr(Posts, "get", returns_nothing)

    assert (await expect_error(posts.get(1))).reason == "INTERNAL"


async def test_unknown_driver_error_is_an_unhandled_exception(
    posts: ResourceApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the text of the driver nor the statement is sent."""
    fetch = Connection.fetch
    monkeypatch.setattr(SqliteConnection, "reads_inline", False)

    async def misspelt(connection: Connection, statement: Any, **values: Any) -> Any:
        await connection._run("SELECT secret nowhere FORM")
        return await fetch(connection, statement, **values)

    monkeypatch.setattr(Connection, "fetch", misspelt)

    for call in (
        posts.get(1),
        posts.create(posts.draft()),
        posts.batch_create([posts.draft()], validate_only=True),
    ):
        # To print a traceback with the local variables takes longer than the rest.
        with capture_logs():
            error = await expect_error(call)

        assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert is_silent(error, "secret", "nowhere", "sqlite", "asyncpg", "SyntaxError", "OperationalError")


@SQLITE_ONLY
async def test_expired_call_gets_deadline_exceeded(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method is cancelled, and no exception is logged."""
    ended = asyncio.Event()

    async def takes_long(*_: Any, **__: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(Posts, "get", takes_long)

    with capture_logs() as logged:
        error = await expect_error(stubs.posts.GetPost(pb.GetPostRequest(id=1), timeout=0.5))
        await asyncio.wait_for(ended.wait(), scaled_timeout())

    assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert not [it for it in logged if it["event"] == "unhandled exception"]


def names(found: Iterable[type]) -> list[str]:
    return sorted(it.__name__ for it in found)


def test_drawn_tree_matches_the_errors() -> None:
    """The tree in the docstring of the module has all errors."""
    drawn: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        depth = len(line) - len(line.lstrip(" │├└─"))
        words = line.strip(" │├└─").split()
        if words and words[0] != "StoreError" and ("├" in line or "└" in line):
            drawn.append((depth // 4 - 1, words[0]))

    def walked(root: type, depth: int) -> list[tuple[int, str]]:
        found = []
        for one in root.__subclasses__():
            if one.__module__.startswith(errors.__name__):
                found += [(depth, one.__name__), *walked(one, depth + 1)]
        return found

    assert sorted(drawn) == sorted(walked(errors.ServiceError, 1))
    assert names(leaves(errors.ServiceError)) == names(ROWS)
