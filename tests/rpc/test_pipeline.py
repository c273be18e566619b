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
from store_service.rpc import sending
from store_service.rpc.call import Context
from store_service.rpc.reflection import ReflectionService
from store_service.rpc.sending import ResponseSender
from store_service.server import RunningServer
from store_service.service.posts import Posts
from tests.support.contract import send_bytes
from tests.support.database import database_contents, write_lock
from tests.support.engines import SQLITE_ONLY
from tests.support.errors import ReceivedError, expect_error, received_error, result_or_error
from tests.support.http2 import INITIAL_WINDOW_SIZE, PREFACE, SETTINGS, frame, raw_client
from tests.support.polling import eventually
from tests.support.resource_api import ResourceApi
from tests.support.stoppable_server import stoppable_server
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout
from tests.support.write_queue import WriteQueue

LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="")


async def ask_reflection(channel: grpc.aio.Channel) -> Any:
    """A reflection call with one question, whose answer has been read; it is at its end."""
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([LIST_SERVICES]))
    answers = [answer async for answer in call]
    assert len(answers) == 1
    return call


# Every method


def send_malformed(channel: grpc.aio.Channel, path: str, handler: Any) -> Any:
    """Calls a method of any shape with bytes that are no message of any kind."""
    bad = b"\xff\xff\xff"
    if handler.request_streaming and handler.response_streaming:
        return channel.stream_stream(path)(iter([bad])).read()
    if handler.response_streaming:
        return channel.unary_stream(path)(bad).read()
    assert not handler.request_streaming
    return channel.unary_unary(path)(bad)


async def test_every_method_is_guarded(registered: dict[str, Any], channel: grpc.aio.Channel) -> None:
    """Each decodes inside the pipeline, and responds with a call id and a reason."""
    assert {path.split("/")[1] for path in registered} == {
        "storeapi.v1.PostService",
        "storeapi.v1.CommentService",
        "storeapi.v1.AdminService",
        "storeapi.v1.TransferService",
        "storeapi.v1.ChangeService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    ids = set()
    for path, handler in registered.items():
        error = await expect_error(send_malformed(channel, path, handler))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"), path
        ids.add(error.trailing["x-call-id"])
    assert len(ids) == len(registered) >= 8 + 9 + 1 + 3 + 1 + 1


async def test_reflection_lists_the_served_services(
    registered: dict[str, Any], channel: grpc.aio.Channel
) -> None:
    """No service is hidden and none is made up."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    answer = await stub.ServerReflectionInfo(iter([LIST_SERVICES])).read()

    listed = {it.name for it in answer.list_services_response.service}
    assert listed == {path.split("/")[1] for path in registered}


async def test_every_call_has_an_id_in_trailing_metadata(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Successful or not, unary or streaming."""
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
    ids += [(await expect_error(call)).trailing["x-call-id"] for call in bad]
    ids.append(dict(await (await ask_reflection(channel)).trailing_metadata())["x-call-id"])

    assert all(ids)
    assert len(set(ids)) == len(ids)


async def test_call_ids_differ_between_servers(config: Config, tmp_path: Path) -> None:
    """And between restarts."""
    ids = []
    for _ in range(2):
        async with (
            stoppable_server(config) as server,
            grpc.aio.insecure_channel(server.running.address) as channel,
        ):
            ids.append(
                (await expect_error(Stubs(channel).posts.GetPost(pb.GetPostRequest()))).trailing["x-call-id"]
            )

    assert ids[0] != ids[1]


async def test_unhandled_exception_in_a_stream_is_internal(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams are guarded as other calls are: an id, and nothing of the inside."""

    def stumbles(*_: Any) -> Any:
        raise ValueError("secret")

    monkeypatch.setattr(ReflectionService, "_respond", stumbles)

    error = await expect_error(ask_reflection(channel))

    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert error.detail(error_details_pb2.RequestInfo).request_id == error.trailing["x-call-id"]
    assert "secret" not in error.message + repr(error.details)
    assert "ValueError" not in error.message + repr(error.details)


@SQLITE_ONLY
@pytest.mark.parametrize(
    ("path", "request_sent", "code"),
    [
        ("/grpc.health.v1.Health/Watch", health_pb2.HealthCheckRequest(), "CANCELLED"),
        ("/storeapi.v1.ChangeService/Watch", changes_pb2.WatchRequest(), "CANCELLED"),
        ("/storeapi.v1.PostService/ListPosts", pb.ListPostsRequest(), "OK"),
    ],
    ids=["health", "watch", "list"],
)
async def test_caller_that_cancels_during_a_response_is_no_error(
    config: Config, caplog: pytest.LogCaptureFixture, path: str, request_sent: Message, code: str
) -> None:
    """The stream is CANCELLED, and gRPC logs nothing."""
    nothing_at_once = frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
    async with stoppable_server(config) as server:
        with capture_logs() as logged:
            async with raw_client(server.running.address, greeting=PREFACE + nothing_at_once) as client:
                client.call(path, request_sent.SerializeToString())
                await client.answered()
            await eventually(lambda: any(it["event"] == "rpc finished" for it in logged))
        await server.stop()

    assert [
        (it["event"], it["code"]) for it in logged if it["event"] in {"rpc finished", "unhandled exception"}
    ] == [("rpc finished", code)]
    assert not caplog.records


@SQLITE_ONLY
async def test_failed_send_to_a_connected_caller_is_an_unhandled_exception(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:

    class Broken:
        async def write(self, _: bytes) -> None:
            raise grpc.aio.InternalError("secret")

    send = ResponseSender.send

    async def send_to_broken(self: ResponseSender, _: Context, response: Message) -> None:
        await send(self, cast(Context, Broken()), response)

    monkeypatch.setattr(sending, "CANCEL_SECONDS", 0)
    monkeypatch.setattr(ResponseSender, "send", send_to_broken)

    with capture_logs() as logged:
        error = await expect_error(ask_reflection(channel))

    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert [it["event"] for it in logged if it["log_level"] == "error"] == ["unhandled exception"]


@SQLITE_ONLY
@pytest.mark.parametrize(
    "error",
    [grpc.aio.InternalError("Failed grpc_call_start_batch: 8"), grpc.aio.UsageError("x"), ValueError("x")],
)
@pytest.mark.usefixtures("channel")
def test_other_grpc_errors_are_logged(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    """Errors of disconnected callers are not logged."""
    logging.getLogger("grpc._cython.cygrpc").error("raised in core", exc_info=error)

    assert [it.message for it in caplog.records] == ["raised in core"]


async def test_malformed_message_ends_a_stream_after_earlier_responses(
    channel: grpc.aio.Channel,
) -> None:
    """Each message of a stream is decoded when its turn comes."""
    call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
    await call.write(LIST_SERVICES.SerializeToString())
    assert await call.read()

    await call.write(b"\xff")

    assert (await expect_error(call.read())).reason == "REQUEST_MALFORMED"


# A caller that goes away


async def test_waiting_job_of_a_cancelled_call_is_skipped(
    server: RunningServer, api: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """A started job is finished, because it shares a batch."""
    before = write_queue.arrived
    with write_lock(database_url):
        calls = {}
        for name in ("begun, gone", "waiting, gone", "waiting, there", "waiting, gone too"):
            calls[name] = api.create(api.draft(name))
            # One after the other, so that the first alone is begun.
            await write_queue.wait_for_arrivals(len(calls), since=before)
        assert len(write_queue.arguments) == before + 1

        for name, call in calls.items():
            if "gone" in name:
                call.cancel()
        await eventually(lambda: server.pipeline._running == 1)

    there = await calls["waiting, there"]

    stored = [row[1] for row in getattr(database_contents(database_url), api.plural)]
    assert stored == ["begun, gone", "waiting, there"]
    assert await api.get(there.id) == there


async def test_cancelled_call_does_not_affect_others_in_its_batch(
    server: RunningServer, api: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """Cancelling one call never touches the transaction that others ride in."""
    before = write_queue.arrived
    with write_lock(database_url):
        first = api.create(api.draft("first"))
        await write_queue.wait_for_arrivals(1, since=before)
        batch = [api.create(api.draft(f"rider {n}")) for n in range(20)]
        await write_queue.wait_for_arrivals(21, since=before)

    # Now they are taken together; half of them leave while that goes on.
    for call in batch[::2]:
        call.cancel()
    answered = await asyncio.gather(first, *batch[1::2])

    assert [it.body for it in answered] == ["first", *(f"rider {n}" for n in range(1, 20, 2))]
    assert (await api.create_one("after")).body == "after"
    assert {it.body for it in answered} <= {it.body for it in api.resources_in(await api.page())}
    await eventually(lambda: server.pipeline._running == 0)


async def test_expired_waiting_call_is_not_done(
    server: RunningServer, stubs: Stubs, write_queue: WriteQueue, database_url: str
) -> None:
    request = pb.CreatePostRequest(post=pb.Post(body="late"))
    before = write_queue.arrived
    with write_lock(database_url):
        begun = stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="begun")))
        await write_queue.wait_for_arrivals(1, since=before)
        error = await expect_error(stubs.posts.CreatePost(request, timeout=0.3))
        await eventually(lambda: server.pipeline._running == 1)
    await begun

    assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert [row[1] for row in database_contents(database_url).posts] == ["begun"]


async def test_cancelled_calls_leave_no_state(
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
    assert server.pipeline._running == 20

    for stream in [*streams, *described]:
        stream.cancel()
    calls = [stubs.posts.ListPosts(pb.ListPostsRequest()) for _ in range(50)]
    for call in calls:
        call.cancel()

    await eventually(lambda: server.pipeline._running == 0)
    assert not server.pipeline._streams


# A server that stops


def assert_shutting_down(error: ReceivedError) -> None:
    """UNAVAILABLE, for a retry elsewhere."""
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert [it.DESCRIPTOR.name for it in error.details] == ["ErrorInfo", "RetryInfo"]
    assert error.detail(error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds() > 0


async def test_draining_server_finishes_calls_and_refuses_new_ones(
    config: Config, write_queue: WriteQueue, database_url: str
) -> None:
    """Health says NOT_SERVING."""
    async with (
        stoppable_server(config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        posts, health = ResourceApi("Post", Stubs(channel)), health_pb2_grpc.HealthStub(channel)
        before = write_queue.arrived
        with write_lock(database_url):
            running = asyncio.ensure_future(posts.create(posts.draft("running")))
            await write_queue.wait_for_arrivals(1, since=before)
            stopped = server.stop()
            await eventually(lambda: server.running.pipeline._draining)

            for call in (posts.get(1), posts.create(posts.draft()), posts.page(), posts.get(0)):
                assert_shutting_down(await expect_error(call))
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert not running.done()
            assert not stopped.done()

        assert (await running).body == "running"
        await asyncio.wait_for(stopped, scaled_timeout())

    assert [row[1] for row in database_contents(database_url).posts] == ["running"]


async def test_decoding_precedes_the_drain_check(
    config: Config, write_queue: WriteQueue, database_url: str
) -> None:
    async with (
        stoppable_server(config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        posts = ResourceApi("Post", Stubs(channel))
        before = write_queue.arrived
        with write_lock(database_url):
            running = asyncio.ensure_future(posts.create(posts.draft()))
            await write_queue.wait_for_arrivals(1, since=before)
            server.stop()
            await eventually(lambda: server.running.pipeline._draining)

            malformed = await expect_error(send_bytes(channel, "/storeapi.v1.PostService/GetPost", b"\xff"))
            assert malformed.reason == "REQUEST_MALFORMED"
            assert_shutting_down(await expect_error(posts.get(-1)))
        await running


@pytest.fixture
def patient_config(database_url: str) -> Config:
    """An hour of grace, which no test waits for."""
    return settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", shutdown_grace_seconds=3600)


async def test_open_streams_end_at_once_at_a_stop(patient_config: Config) -> None:
    """A health watch gets its last status."""
    async with (
        stoppable_server(patient_config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        idle = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await idle.write(LIST_SERVICES)
        assert (await idle.read()).list_services_response.service
        silent = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
        await eventually(lambda: server.running.pipeline._running == 3)

        stopped = server.stop()

        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        assert await watch.code() == grpc.StatusCode.OK
        assert_shutting_down(await expect_error(idle.read()))
        assert_shutting_down(await expect_error(silent.read()))
        await asyncio.wait_for(stopped, scaled_timeout())


async def test_server_without_calls_stops_at_once(patient_config: Config) -> None:
    """The grace period is a maximum."""
    async with (
        stoppable_server(patient_config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        await Stubs(channel).create_post()

        await asyncio.wait_for(server.stop(), scaled_timeout())


@pytest.fixture
def hasty_config(database_url: str) -> Config:
    """No grace at all."""
    return settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", shutdown_grace_seconds=0)


async def test_call_longer_than_the_grace_period_is_ended(
    hasty_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = asyncio.Event()

    async def takes_for_ever(*_: Any, **__: Any) -> Any:
        entered.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Posts, "get", takes_for_ever)
    async with (
        stoppable_server(hasty_config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        call = asyncio.ensure_future(expect_error(Stubs(channel).posts.GetPost(pb.GetPostRequest(id=1))))
        await entered.wait()

        await asyncio.wait_for(server.stop(), scaled_timeout())

        error = await asyncio.wait_for(call, scaled_timeout())
        assert error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_started_write_is_finished_after_its_call_was_ended(
    hasty_config: Config, write_queue: WriteQueue, database_url: str
) -> None:
    """The database is closed after it."""
    async with (
        stoppable_server(hasty_config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
    ):
        posts = ResourceApi("Post", Stubs(channel))
        before = write_queue.arrived
        with write_lock(database_url):
            call = asyncio.ensure_future(result_or_error(posts.create(posts.draft("begun"))))
            await write_queue.wait_for_arrivals(1, since=before)
            stopped = server.stop()
            cut_off = await asyncio.wait_for(call, scaled_timeout())
            assert not stopped.done()
        await asyncio.wait_for(stopped, scaled_timeout())

    assert received_error(cut_off).code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert [row[1] for row in database_contents(database_url).posts] == ["begun"]
