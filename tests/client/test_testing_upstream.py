"""storeapi.testing.ScriptedServer with an upstream: what is not scripted is as if it were not there."""

import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass

import grpc
import pytest
import storeapi
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc_health.v1 import health_pb2, health_pb2_grpc
from storeapi._status import store_error
from storeapi.testing import RunningServer, ScriptedServer, running_server
from storeapi.v1 import changes_pb2, changes_pb2_grpc, posts_pb2, posts_pb2_grpc

from tests.support.timeouts import scaled_timeout

POST = storeapi.Post(id=1, body="a", etag="e1")
GET = posts_pb2.GetPostRequest(id=1)
WATCH = changes_pb2.WatchRequest()
CREATE = posts_pb2.CreatePostRequest(
    post=posts_pb2.Post(body="a"), request_id="6f0c8f5e-0a3b-4a53-9d2c-0f2a7b1c9d10"
)


@dataclass(frozen=True, kw_only=True)
class Between:
    """A server between a caller and another scripted server, and stubs that call it."""

    server: ScriptedServer
    upstream: ScriptedServer
    posts: posts_pb2_grpc.PostServiceStub
    changes: changes_pb2_grpc.ChangeServiceStub


@pytest.fixture
def between() -> Iterator[Between]:
    with (
        ScriptedServer() as upstream,
        ScriptedServer(upstream=upstream.target) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        yield Between(
            server=server,
            upstream=upstream,
            posts=posts_pb2_grpc.PostServiceStub(channel),
            changes=changes_pb2_grpc.ChangeServiceStub(channel),
        )


class OwnUpstream(grpc.GenericRpcHandler):
    """A server whose watch sends one message and then detects cancellation."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.is_over = threading.Event()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_stream_rpc_method_handler(self.watch)

    def watch(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(self.is_over.set)
        context.add_callback(self.end.set)
        context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-call-id", "c-1"),))
        yield changes_pb2.WatchResponse(resume_token="t1").SerializeToString()
        self.end.wait(scaled_timeout())


@pytest.fixture
def own_upstream() -> OwnUpstream:
    return OwnUpstream()


@pytest.fixture
def between_own(own_upstream: OwnUpstream) -> Iterator[ScriptedServer]:
    """A scripted server between the caller and that one."""
    upstream = grpc.server(futures.ThreadPoolExecutor(2), handlers=[own_upstream])
    port = upstream.add_insecure_port("127.0.0.1:0")
    upstream.start()
    with ScriptedServer(upstream=f"127.0.0.1:{port}") as server:
        yield server
    upstream.stop(None).wait()


@pytest.fixture
def through(between_own: ScriptedServer) -> Iterator[changes_pb2_grpc.ChangeServiceStub]:
    """The changes of that one, as the caller sees them."""
    with grpc.insecure_channel(between_own.target) as channel:
        yield changes_pb2_grpc.ChangeServiceStub(channel)


@pytest.fixture(scope="module")
def real_server() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


def batch(token: str) -> storeapi.ChangeBatch:
    return storeapi.ChangeBatch(changes=(), resume_token=token)


def failure(call) -> grpc.RpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value


# Handing on


def test_unscripted_call_goes_to_upstream(between):
    """After the script the server is transparent."""
    between.server.fail("GetPost", storeapi.ShuttingDown())
    between.upstream.answer("GetPost", POST)

    error = failure(lambda: between.posts.GetPost(GET))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert between.upstream.calls == ()
    assert between.posts.GetPost(GET).etag == "e1"
    assert len(between.server.calls_of("GetPost")) == 2


def test_metadata_and_deadline_are_forwarded(between):
    """A missing deadline stays missing."""
    between.upstream.answer("GetPost", POST, POST)

    between.posts.GetPost(GET, metadata=[("x-key", "1"), ("x-key", "2"), ("x-bin", b"\xff")], timeout=100)
    between.posts.GetPost(GET)

    with_both, without = between.upstream.calls
    assert [pair for pair in with_both.metadata if pair[0].startswith("x-")] == [
        ("x-key", "1"),
        ("x-key", "2"),
        ("x-bin", b"\xff"),
    ]
    # gRPC sends three digits, rounded up.
    assert 90 < with_both.seconds_left <= 101
    assert without.seconds_left is None


def test_unknown_fields_are_forwarded(between):
    """Requests are forwarded as bytes, so fields of a newer contract survive."""
    between.upstream.answer("GetPost", POST)
    request = posts_pb2.GetPostRequest.FromString(GET.SerializeToString() + b"\xf8\x07\x05")

    between.posts.GetPost(request)

    (field,) = UnknownFieldSet(between.upstream.calls[0].request)
    assert (field.field_number, field.data) == (127, 5)


def test_upstream_error_is_forwarded_completely(between):
    """Code, message, reason, metadata, call id and retry delay."""
    sent = storeapi.DatabaseBusy("ü%", metadata={"key": "value"}, call_id="c-1", retry_after=0.25)
    between.upstream.fail("GetPost", sent)

    error = store_error(failure(lambda: between.posts.GetPost(GET)))

    assert type(error) is storeapi.DatabaseBusy
    assert (error.message, error.metadata, error.call_id) == ("ü%", {"key": "value"}, "c-1")
    assert error.retry_after == 0.25


def test_unreachable_upstream_is_unavailable():
    with (
        ScriptedServer(upstream="127.0.0.1:1") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        error = failure(lambda: posts_pb2_grpc.PostServiceStub(channel).GetPost(GET))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "127.0.0.1:1" in error.details()


def test_large_messages_are_forwarded(between):
    """Limits are those of the caller and of upstream, not the 4 MiB default of gRPC."""
    body = "a" * (5 * 1024 * 1024)
    between.upstream.answer("CreatePost", storeapi.Post(id=1, body=body))
    options = [("grpc.max_receive_message_length", -1)]

    with grpc.insecure_channel(between.server.target, options=options) as channel:
        request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body))
        post = posts_pb2_grpc.PostServiceStub(channel).CreatePost(request)

    assert post.body == body
    assert between.upstream.calls[0].request.post.body == body


def test_stream_is_forwarded_to_its_end(between):
    """Every message, and then the end that upstream gave it."""
    between.upstream.answer("Watch", batch("t1"), batch("t2"))
    between.upstream.fail("Watch", storeapi.WatchLimit())

    tokens = [response.resume_token for response in between.changes.Watch(WATCH)]
    error = store_error(failure(lambda: list(between.changes.Watch(WATCH))))

    assert tokens == ["t1", "t2"]
    assert type(error) is storeapi.WatchLimit


def test_upstream_metadata_is_forwarded(own_upstream, through):
    """Initial and trailing metadata, such as the call id."""
    call = through.Watch(WATCH)

    next(call)
    own_upstream.end.set()

    assert ("x-first", "1") in call.initial_metadata()
    assert ("x-call-id", "c-1") in call.trailing_metadata()


@pytest.mark.parametrize("ends", ["cancel", "deadline"])
def test_cancelled_call_is_cancelled_upstream(own_upstream, through, ends):
    call = through.Watch(WATCH, timeout=0.3 if ends == "deadline" else None)
    next(call)

    if ends == "cancel":
        call.cancel()

    assert own_upstream.is_over.wait(scaled_timeout())


def test_cut_stream_is_ended_upstream(own_upstream, through, between_own):
    """`after=1` forwards one message and then cancels upstream."""
    between_own.cut("Watch", after=1)
    call = through.Watch(WATCH)

    response = next(call)
    error = failure(lambda: next(call))

    assert response.resume_token == "t1"
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert own_upstream.is_over.wait(scaled_timeout())


def test_upstream_stream_falls_silent(between):
    """`after=1` forwards one message and nothing more."""
    between.upstream.answer("Watch", batch("t1"), batch("t2"))
    between.server.stall("Watch", after=1)
    call = between.changes.Watch(WATCH, timeout=0.3)

    response = next(call)
    error = failure(lambda: next(call))

    assert response.resume_token == "t1"
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


# Lost responses


def test_response_is_lost_after_upstream(between):
    """The call is done before the caller sees a broken connection."""
    between.upstream.answer("CreatePost", POST)
    between.server.lose_answer("CreatePost")

    error = failure(lambda: between.posts.CreatePost(CREATE))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert list(error.trailing_metadata()) == []
    assert [call.request for call in between.upstream.calls] == [CREATE]
    assert between.upstream.unused == ()


def test_error_is_lost_like_a_response(between):
    """The caller cannot know that the call was refused."""
    between.upstream.fail("CreatePost", storeapi.FieldInvalid())
    between.server.lose_answer("CreatePost")

    error = failure(lambda: between.posts.CreatePost(CREATE))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert len(between.upstream.calls) == 1


def test_hanging_call_does_not_reach_upstream(between):
    """What never arrived is not done."""
    between.server.hang("CreatePost")

    error = failure(lambda: between.posts.CreatePost(CREATE, timeout=0.1))

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert between.upstream.calls == ()


# In front of the real service


def test_write_with_lost_response_is_done_once(real_server):
    """The second attempt has the same request id and gets the first response."""
    with (
        ScriptedServer(upstream=real_server.target) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        posts = posts_pb2_grpc.PostServiceStub(channel)
        server.lose_answer("CreatePost")
        failure(lambda: posts.CreatePost(CREATE))

        post = posts.CreatePost(CREATE)

        assert list(posts.ListPosts(posts_pb2.ListPostsRequest()).posts) == [post]


def test_other_services_are_forwarded(real_server):
    """Such as the health service."""
    with (
        ScriptedServer(upstream=real_server.target) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_other_services_are_unimplemented_without_upstream():
    with ScriptedServer() as server, grpc.insecure_channel(server.target) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check

        error = failure(lambda: check(health_pb2.HealthCheckRequest()))

    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
