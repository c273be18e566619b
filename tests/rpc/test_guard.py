"""What is true of every call, whatever its method: its id, its end, its caller's end, and the server's."""

import asyncio
import logging
import struct
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from storeapi.v1 import changes_pb2
from storeapi.v1 import posts_pb2 as pb
from structlog.testing import capture_logs

from store_service import config as settings
from store_service.config import Config
from store_service.rpc import guard
from store_service.rpc.call import Context
from store_service.rpc.guard import Guard
from store_service.rpc.reflection import ReflectionService
from store_service.server import RunningServer
from store_service.store.posts import Posts
from tests.frames import INITIAL_WINDOW_SIZE, PREFACE, SETTINGS, frame, raw_client
from tests.patience import patience
from tests.rpc.helpers import (
    ONE_ENGINE,
    Side,
    Taken,
    become,
    contents,
    locked,
    outcome_of,
    send_bytes,
    stoppable,
)
from tests.support import ErrorSeen, Stubs, error_seen, failure

LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="")


async def ask_reflection(channel: grpc.aio.Channel) -> Any:
    """A reflection call with one question, whose answer has been read; it is at its end."""
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([LIST_SERVICES]))
    answers = [answer async for answer in call]
    assert len(answers) == 1
    return call


# Every method


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every method that the server offers, by its path; filled when the server starts."""
    methods: dict[str, Any] = {}
    add = grpc.aio._server.Server.add_generic_rpc_handlers

    def watched(server: Any, handlers: Any) -> None:
        for handler in handlers:
            methods.update(handler._method_handlers)
        add(server, handlers)

    monkeypatch.setattr(grpc.aio._server.Server, "add_generic_rpc_handlers", watched)
    return methods


def send_malformed(channel: grpc.aio.Channel, path: str, handler: Any) -> Any:
    """Calls a method of any shape with bytes that are no message of any kind."""
    bad = b"\xff\xff\xff"
    if handler.request_streaming and handler.response_streaming:
        return channel.stream_stream(path)(iter([bad])).read()
    if handler.response_streaming:
        return channel.unary_stream(path)(bad).read()
    assert not handler.request_streaming
    return channel.unary_unary(path)(bad)


async def test_every_method_of_the_server_is_guarded(
    registered: dict[str, Any], channel: grpc.aio.Channel
) -> None:
    """Whatever the server offers decodes inside the guard, and answers with an id and a reason."""
    assert {path.split("/")[1] for path in registered} == {
        "storeapi.v1.PostService",
        "storeapi.v1.CommentService",
        "storeapi.v1.ChangeService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    ids = set()
    for path, handler in registered.items():
        error = await failure(send_malformed(channel, path, handler))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"), path
        ids.add(error.trailing["x-call-id"])
    assert len(ids) == len(registered) >= 8 + 9 + 1 + 3 + 1 + 1


async def test_what_reflection_lists_is_what_is_served(
    registered: dict[str, Any], channel: grpc.aio.Channel
) -> None:
    """No service is hidden and none is made up."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    answer = await stub.ServerReflectionInfo(iter([LIST_SERVICES])).read()

    listed = {it.name for it in answer.list_services_response.service}
    assert listed == {path.split("/")[1] for path in registered}


async def test_every_call_has_an_id_of_its_own(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Trailing metadata names the call, whether it went well or not, unary or streaming."""
    health = health_pb2_grpc.HealthStub(channel)
    good = [
        stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a"))),
        stubs.posts.ListPosts(pb.ListPostsRequest()),
        health.Check(health_pb2.HealthCheckRequest()),
    ]
    bad = [
        stubs.posts.GetPost(pb.GetPostRequest(id=0)),
        stubs.posts.GetPost(pb.GetPostRequest(id=404)),
        health.Check(health_pb2.HealthCheckRequest(service="x")),
    ]

    ids = []
    for call in good:
        await call
        ids.append(dict(await call.trailing_metadata())["x-call-id"])
    ids += [(await failure(call)).trailing["x-call-id"] for call in bad]
    ids.append(dict(await (await ask_reflection(channel)).trailing_metadata())["x-call-id"])

    assert all(ids)
    assert len(set(ids)) == len(ids)


async def test_ids_of_calls_differ_between_servers(config: Config, tmp_path: Path) -> None:
    """A call can be found in the logs of many servers, and of one that was started again."""
    ids = []
    for _ in range(2):
        async with stoppable(config) as server, grpc.aio.insecure_channel(server.running.address) as channel:
            ids.append(
                (await failure(Stubs(channel).posts.GetPost(pb.GetPostRequest()))).trailing["x-call-id"]
            )

    assert ids[0] != ids[1]


async def test_a_bug_in_a_stream_is_internal(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams are guarded as other calls are: an id, and nothing of the inside."""

    def stumbles(*_: Any) -> Any:
        raise ValueError("secret")

    monkeypatch.setattr(ReflectionService, "_answer", stumbles)

    error = await failure(ask_reflection(channel))

    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert error.detail(error_details_pb2.RequestInfo).request_id == error.trailing["x-call-id"]
    assert "secret" not in error.message + repr(error.details)
    assert "ValueError" not in error.message + repr(error.details)


@ONE_ENGINE
@pytest.mark.parametrize(
    ("path", "request_sent", "code"),
    [
        ("/grpc.health.v1.Health/Watch", health_pb2.HealthCheckRequest(), "CANCELLED"),
        ("/storeapi.v1.ChangeService/Watch", changes_pb2.WatchRequest(), "CANCELLED"),
        ("/storeapi.v1.PostService/ListPosts", pb.ListPostsRequest(), "OK"),
    ],
    ids=["health", "watch", "list"],
)
async def test_a_caller_that_hangs_up_on_its_answer_is_no_bug(
    config: Config, caplog: pytest.LogCaptureFixture, path: str, request_sent: Message, code: str
) -> None:
    """A stream is CANCELLED as any that its caller has left, and gRPC tells of no error."""
    nothing_at_once = frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
    async with stoppable(config) as server:
        with capture_logs() as logged:
            async with raw_client(server.running.address, greeting=PREFACE + nothing_at_once) as client:
                client.call(path, request_sent.SerializeToString())
                await client.answered()
            await become(lambda: any(it["event"] == "call" for it in logged))
        await server.stop()

    assert [(it["event"], it["code"]) for it in logged if it["event"] in {"call", "bug"}] == [("call", code)]
    assert not caplog.records


@ONE_ENGINE
async def test_an_answer_that_cannot_be_sent_to_who_is_there_is_a_bug(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has gone, so something else is wrong."""

    class Broken:
        async def write(self, _: bytes) -> None:
            raise grpc.aio.InternalError("secret")

    send = Guard._send

    async def send_to_broken(self: Guard, _: Context, response: Message) -> None:
        await send(self, cast(Context, Broken()), response)

    monkeypatch.setattr(guard, "GONE_SECONDS", 0)
    monkeypatch.setattr(Guard, "_send", send_to_broken)

    with capture_logs() as logged:
        error = await failure(ask_reflection(channel))

    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert [it["event"] for it in logged if it["log_level"] == "error"] == ["bug"]


@ONE_ENGINE
@pytest.mark.parametrize(
    "error",
    [grpc.aio.InternalError("Failed grpc_call_start_batch: 8"), grpc.aio.UsageError("x"), ValueError("x")],
)
@pytest.mark.usefixtures("channel")
def test_other_errors_of_grpc_are_logged(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    """Only those that say that a caller has gone are not."""
    logging.getLogger("grpc._cython.cygrpc").error("raised in core", exc_info=error)

    assert [it.message for it in caplog.records] == ["raised in core"]


async def test_a_malformed_message_ends_a_stream_after_good_ones_were_answered(
    channel: grpc.aio.Channel,
) -> None:
    """Each message of a stream is decoded when its turn comes."""
    call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
    await call.write(LIST_SERVICES.SerializeToString())
    assert await call.read()

    await call.write(b"\xff")

    assert (await failure(call.read())).reason == "REQUEST_MALFORMED"


# A caller that goes away


async def test_work_of_a_caller_that_is_gone_is_skipped_and_what_has_begun_is_finished(
    server: RunningServer, side: Side, taken: Taken, database_url: str
) -> None:
    """Nobody is held up by a caller that left: begun work is also the work of others, the rest is dropped."""
    before = taken.arrived
    with locked(database_url):
        calls = {}
        for name in ("begun, gone", "waiting, gone", "waiting, there", "waiting, gone too"):
            calls[name] = side.create(side.draft(name))
            # One after the other, so that the first alone is begun.
            await taken.arrive(len(calls), since=before)
        assert len(taken.arguments) == before + 1

        for name, call in calls.items():
            if "gone" in name:
                call.cancel()
        await become(lambda: server.guard._running == 1)

    there = await calls["waiting, there"]

    stored = [row[1] for row in getattr(contents(database_url), side.plural)]
    assert stored == ["begun, gone", "waiting, there"]
    assert await side.get(there.id) == there


async def test_a_caller_that_rides_with_one_that_is_gone_is_answered(
    server: RunningServer, side: Side, taken: Taken, database_url: str
) -> None:
    """Cancelling one call never touches the transaction that others ride in."""
    before = taken.arrived
    with locked(database_url):
        first = side.create(side.draft("first"))
        await taken.arrive(1, since=before)
        batch = [side.create(side.draft(f"rider {n}")) for n in range(20)]
        await taken.arrive(21, since=before)

    # Now they are taken together; half of them leave while that goes on.
    for call in batch[::2]:
        call.cancel()
    answered = await asyncio.gather(first, *batch[1::2])

    assert [it.body for it in answered] == ["first", *(f"rider {n}" for n in range(1, 20, 2))]
    assert (await side.stored("after")).body == "after"
    assert {it.body for it in answered} <= {it.body for it in side.of(await side.page())}
    await become(lambda: server.guard._running == 0)


async def test_a_call_whose_deadline_passes_while_it_waits_is_not_done(
    server: RunningServer, stubs: Stubs, taken: Taken, database_url: str
) -> None:
    """A caller that was told DEADLINE_EXCEEDED before its turn finds nothing stored afterwards."""
    request = pb.CreatePostRequest(post=pb.Post(body="late"))
    before = taken.arrived
    with locked(database_url):
        begun = stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="begun")))
        await taken.arrive(1, since=before)
        error = await failure(stubs.posts.CreatePost(request, timeout=0.3))
        await become(lambda: server.guard._running == 1)
    await begun

    assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert [row[1] for row in contents(database_url).posts] == ["begun"]


async def test_callers_that_leave_leave_nothing_behind(
    server: RunningServer, channel: grpc.aio.Channel, stubs: Stubs
) -> None:
    """Cancelled calls and streams are not counted as running for ever."""
    health = health_pb2_grpc.HealthStub(channel)
    streams = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(10)]
    for stream in streams:
        await stream.read()
    described = [reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo() for _ in range(10)]
    for stream in described:
        await stream.write(LIST_SERVICES)
        await stream.read()
    assert server.guard._running == 20

    for stream in [*streams, *described]:
        stream.cancel()
    calls = [stubs.posts.ListPosts(pb.ListPostsRequest()) for _ in range(50)]
    for call in calls:
        call.cancel()

    await become(lambda: server.guard._running == 0)
    assert not server.guard._streams


# A server that stops


def assert_shutting_down(error: ErrorSeen) -> None:
    """UNAVAILABLE, for a retry elsewhere."""
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert [it.DESCRIPTOR.name for it in error.details] == ["ErrorInfo", "RetryInfo"]
    assert error.detail(error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds() > 0


async def test_a_stopping_server_finishes_what_runs_and_takes_nothing_new(
    config: Config, taken: Taken, database_url: str
) -> None:
    """A call that runs is answered; new ones are told to go elsewhere; health says so too."""
    async with stoppable(config) as server, grpc.aio.insecure_channel(server.running.address) as channel:
        posts, health = Side("Post", Stubs(channel)), health_pb2_grpc.HealthStub(channel)
        before = taken.arrived
        with locked(database_url):
            running = asyncio.ensure_future(posts.create(posts.draft("running")))
            await taken.arrive(1, since=before)
            stopped = server.stop()
            await become(lambda: server.running.guard._draining)

            for call in (posts.get(1), posts.create(posts.draft()), posts.page(), posts.get(0)):
                assert_shutting_down(await failure(call))
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert not running.done()
            assert not stopped.done()

        assert (await running).body == "running"
        await asyncio.wait_for(stopped, patience())

    assert [row[1] for row in contents(database_url).posts] == ["running"]


async def test_bytes_are_read_before_a_stopping_server_refuses(
    config: Config, taken: Taken, database_url: str
) -> None:
    """What is no request is told so first; what is one need not be right to be sent elsewhere."""
    async with stoppable(config) as server, grpc.aio.insecure_channel(server.running.address) as channel:
        posts = Side("Post", Stubs(channel))
        before = taken.arrived
        with locked(database_url):
            running = asyncio.ensure_future(posts.create(posts.draft()))
            await taken.arrive(1, since=before)
            server.stop()
            await become(lambda: server.running.guard._draining)

            malformed = await failure(send_bytes(channel, "/storeapi.v1.PostService/GetPost", b"\xff"))
            assert malformed.reason == "REQUEST_MALFORMED"
            assert_shutting_down(await failure(posts.get(-1)))
        await running


@pytest.fixture
def patient_config(database_url: str) -> Config:
    """An hour of grace, which no test waits for."""
    return settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", grace_seconds=3600)


async def test_open_streams_end_at_once_when_the_server_stops(patient_config: Config) -> None:
    """Nobody who just listens keeps the server from stopping; who watches health is told why."""
    async with (
        stoppable(patient_config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        idle = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await idle.write(LIST_SERVICES)
        assert (await idle.read()).list_services_response.service
        silent = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
        await become(lambda: server.running.guard._running == 3)

        stopped = server.stop()

        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        assert await watch.code() == grpc.StatusCode.OK
        assert_shutting_down(await failure(idle.read()))
        assert_shutting_down(await failure(silent.read()))
        await asyncio.wait_for(stopped, patience())


async def test_a_server_without_calls_stops_at_once(patient_config: Config) -> None:
    """The grace is for calls that run, not a pause."""
    async with (
        stoppable(patient_config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        await Stubs(channel).create_post()

        await asyncio.wait_for(server.stop(), patience())


@pytest.fixture
def hasty_config(database_url: str) -> Config:
    """No grace at all."""
    return settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", grace_seconds=0)


async def test_a_call_that_takes_longer_than_the_grace_is_cut_off(
    hasty_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stops whether or not everybody is done; who is not learns that the answer will not come."""
    entered = asyncio.Event()

    async def takes_for_ever(*_: Any) -> Any:
        entered.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Posts, "get_post", takes_for_ever)
    async with (
        stoppable(hasty_config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        call = asyncio.ensure_future(failure(Stubs(channel).posts.GetPost(pb.GetPostRequest(id=1))))
        await entered.wait()

        await asyncio.wait_for(server.stop(), patience())

        error = await asyncio.wait_for(call, patience())
        assert error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_a_write_that_has_begun_is_finished_though_its_caller_was_cut_off(
    hasty_config: Config, taken: Taken, database_url: str
) -> None:
    """The database is closed after the work, not in the middle of it."""
    async with (
        stoppable(hasty_config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        posts = Side("Post", Stubs(channel))
        before = taken.arrived
        with locked(database_url):
            call = asyncio.ensure_future(outcome_of(posts.create(posts.draft("begun"))))
            await taken.arrive(1, since=before)
            stopped = server.stop()
            cut_off = await asyncio.wait_for(call, patience())
            assert not stopped.done()
        await asyncio.wait_for(stopped, patience())

    assert error_seen(cut_off).code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert [row[1] for row in contents(database_url).posts] == ["begun"]
