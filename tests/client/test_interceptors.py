"""Clients on channels whose calls interceptors have replaced.

Such a call may support nothing but iteration. OpenTelemetry replaces a streaming call by a generator, Datadog
wraps it, and a wrapper of one's own may take no more than (request, timeout, metadata).
"""

import asyncio
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
import sentry_sdk
import storeapi
import wrapt
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import (
    GrpcAioInstrumentorClient,
    GrpcInstrumentorClient,
    aio_client_interceptors,
    client_interceptor,
)
from opentelemetry.instrumentation.grpc.grpcext import intercept_channel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.integrations.grpc.aio.client import (
    SentryUnaryStreamClientInterceptor,
    SentryUnaryUnaryClientInterceptor,
)
from sentry_sdk.integrations.grpc.client import ClientInterceptor as SentryClientInterceptor
from storeapi._status import store_error
from storeapi.v1 import changes_pb2, changes_pb2_grpc

from tests.support.client_watch import change_batch, read_ids, resume_tokens
from tests.support.timeouts import scaled_timeout

pytestmark = pytest.mark.usefixtures("short_pauses")


POST = storeapi.Post(id=1, body="a")
BEGIN = change_batch(token="t0", heartbeat=True)


# Channels


class Bare:
    """A channel whose methods are functions and generators, and have nothing else of gRPC's."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def unary_unary(self, *arguments: Any, **keywords: Any) -> Any:
        method = self._channel.unary_unary(*arguments, **keywords)

        def call(request: Any, timeout: float | None = None, metadata: Any = None) -> Any:
            return method(request, timeout=timeout, metadata=metadata)

        return call

    def close(self) -> Any:
        return self._channel.close()


class BareChannel(Bare, grpc.Channel):
    def unary_stream(self, *arguments: Any, **keywords: Any) -> Any:
        method = self._channel.unary_stream(*arguments, **keywords)

        def call(request: Any, timeout: float | None = None, metadata: Any = None) -> Iterator[Any]:
            yield from method(request, timeout=timeout, metadata=metadata)

        return call

    def stream_stream(self, *arguments: Any, **keywords: Any) -> Any:
        return self._channel.stream_stream(*arguments, **keywords)

    stream_unary = subscribe = unsubscribe = __enter__ = __exit__ = None


class BareAioChannel(Bare, grpc.aio.Channel):
    def unary_stream(self, *arguments: Any, **keywords: Any) -> Any:
        method = self._channel.unary_stream(*arguments, **keywords)

        async def call(
            request: Any,
            timeout: float | None = None,  # noqa: ASYNC109 - gRPC's own argument
            metadata: Any = None,
        ) -> Any:
            async for response in method(request, timeout=timeout, metadata=metadata):
                yield response

        return call

    def stream_stream(self, *arguments: Any, **keywords: Any) -> Any:
        return self._channel.stream_stream(*arguments, **keywords)

    stream_unary = get_state = wait_for_state_change = channel_ready = None
    __aenter__ = __aexit__ = None


class WrappedCall(wrapt.ObjectProxy):
    """A call of which a span ends with the last response, as Datadog's."""

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.__wrapped__)


class WrappingInterceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def intercept_unary_unary(self, continuation, details, request):
        return WrappedCall(continuation(details, request))

    def intercept_unary_stream(self, continuation, details, request):
        return WrappedCall(continuation(details, request))


class WrappingUnary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation, details, request):
        call = await continuation(details, request)
        await call.code()
        return call


class WrappingStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation, details, request):
        call = await continuation(details, request)

        async def responses():
            async for response in call:
                yield response

        return responses()


def opentelemetry(target: str) -> grpc.Channel:
    return intercept_channel(grpc.insecure_channel(target), client_interceptor())


def opentelemetry_aio(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors())


def sentry(target: str) -> grpc.Channel:
    return grpc.intercept_channel(grpc.insecure_channel(target), SentryClientInterceptor())


def sentry_aio(target: str) -> grpc.aio.Channel:
    interceptors = [SentryUnaryUnaryClientInterceptor(), SentryUnaryStreamClientInterceptor()]
    return grpc.aio.insecure_channel(target, interceptors=interceptors)


def wrapped(target: str) -> grpc.Channel:
    return grpc.intercept_channel(grpc.insecure_channel(target), WrappingInterceptor())


def wrapped_aio(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, interceptors=[WrappingUnary(), WrappingStream()])


CHANNELS = {
    "opentelemetry": (opentelemetry, opentelemetry_aio),
    "sentry": (sentry, sentry_aio),
    "wrapped": (wrapped, wrapped_aio),
    "bare": (
        lambda target: BareChannel(grpc.insecure_channel(target)),
        lambda target: BareAioChannel(grpc.aio.insecure_channel(target)),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def sentry_is_on() -> Iterator[None]:
    """Without an address nothing leaves. Integrations would change gRPC and drivers for all later tests."""
    sentry_sdk.init(traces_sample_rate=1.0, default_integrations=False, auto_enabling_integrations=False)
    yield
    sentry_sdk.init(default_integrations=False, auto_enabling_integrations=False)


@pytest.fixture(params=CHANNELS)
async def client(request, make_client, scripted):
    """A client on each kind of channel, with a key, which is added around the interceptors."""
    is_async = request.node.callspec.params["make_client"] == "async"
    channel = CHANNELS[request.param][is_async](scripted.target)
    yield make_client(channel=channel, api_key="secret")
    closing = channel.close()
    if closing is not None:
        await closing


# What holds on each


async def test_intercepted_calls_behave_as_without_interceptors(client, scripted):
    """Responses, retries and typed errors with all their data."""
    scripted.fail("CreatePost", grpc.StatusCode.UNAVAILABLE)
    scripted.answer("CreatePost", POST)
    scripted.fail("GetPost", storeapi.PostNotFound(metadata={"post_id": "7"}))

    assert await client.posts.create(body="a") == POST
    with pytest.raises(storeapi.PostNotFound) as raised:
        await client.posts.get(7)

    assert raised.value.post_id == 7
    assert [dict(it.metadata)["authorization"] for it in scripted.calls] == ["Bearer secret"] * 3


async def test_intercepted_watch_survives_a_restart(client, scripted):
    """Each change once; the error of the lost connection is the cause of the resume."""
    scripted.cut("Watch", BEGIN, change_batch(1, token="t1"))
    scripted.fail("Watch", grpc.StatusCode.UNAVAILABLE, times=2)
    scripted.stall("Watch", change_batch(2, token="t2"))

    async with client.changes.watch() as watch:
        seen = await read_ids(watch, 2)

    assert seen == [1, 2]
    assert resume_tokens(scripted) == ["", "t1", "t1", "t1"]


async def test_cleanup_does_not_replace_the_server_error(client, scripted):
    scripted.cut("Watch", change_batch(1, token="t1"))
    scripted.fail("Watch", storeapi.ResumeTokenExpired())
    async with client.changes.watch() as watch:
        await anext(watch)

        with pytest.raises(storeapi.ResumeTokenExpired):
            await anext(watch)


async def test_silent_server_is_detected_through_interceptors(client, scripted):
    """Also if the call cannot be cancelled."""
    scripted.stall("Watch", BEGIN, change_batch(1, token="t1"))
    scripted.stall("Watch", change_batch(2, token="t2"))

    async with client.changes.watch(heartbeat_seconds=0.05) as watch:
        seen = await read_ids(watch, 2)

    assert seen == [1, 2]
    assert resume_tokens(scripted) == ["", "t1"]


@pytest.mark.parametrize("closes", ["watch", "client"])
async def test_close_ends_the_iteration_through_interceptors(client, scripted, closes):
    """At once, from another task, without an error."""
    scripted.stall("Watch", change_batch(1, token="t1"))
    watch = client.changes.watch()
    await anext(watch)

    async def rest():
        return [it async for it in watch]

    waiting = asyncio.create_task(rest())
    await asyncio.sleep(0)
    await (watch if closes == "watch" else client).close()

    assert await asyncio.wait_for(waiting, scaled_timeout()) == []


async def test_unread_watch_can_be_closed_twice(client, scripted):
    """And closing it again."""
    scripted.stall("Watch", change_batch(1, 2, token="t1"))
    watch = client.changes.watch()
    await anext(watch)

    await watch.close()
    await watch.close()

    assert [it async for it in watch] == []


async def test_watch_of_stopped_server_is_unavailable(make_client, scripted, request):
    """Cleanup adds no other error."""
    is_async = request.node.callspec.params["make_client"] == "async"
    channel = CHANNELS["bare"][is_async]("127.0.0.1:1")
    client = make_client(channel=channel, timeout=0.3)

    with pytest.raises(storeapi.Unavailable):
        await anext(client.changes.watch())

    closing = channel.close()
    if closing is not None:
        await closing


# What is special


def test_closed_watch_ends_on_the_server():
    """With the next message where the call cannot be cancelled, at the latest with a heartbeat."""
    ended, closed = threading.Event(), threading.Event()

    class Changes(changes_pb2_grpc.ChangeServiceServicer):
        def Watch(self, request, context):
            context.add_callback(ended.set)
            yield changes_pb2.WatchResponse(resume_token="t1", heartbeat=True)
            closed.wait(scaled_timeout())
            yield changes_pb2.WatchResponse(resume_token="t2", heartbeat=True)
            ended.wait(scaled_timeout())

    server = grpc.server(futures.ThreadPoolExecutor(2))
    changes_pb2_grpc.add_ChangeServiceServicer_to_server(Changes(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with opentelemetry(f"127.0.0.1:{port}") as channel, storeapi.StoreClient(channel=channel) as client:
        watch = client.changes.watch()
        next(watch.batches())
        waiting = threading.Thread(target=lambda: list(watch))
        waiting.start()

        watch.close()
        waiting.join(scaled_timeout())
        assert not waiting.is_alive()
        closed.set()

        assert ended.wait(scaled_timeout())
    server.stop(None).wait()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    """OpenTelemetry as it is switched on for a whole program."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    instrumentors = [GrpcInstrumentorClient(), GrpcAioInstrumentorClient()]
    for it in instrumentors:
        it.instrument()
    yield provider, exporter
    for it in instrumentors:
        it.uninstrument()


async def test_calls_are_spans_of_a_traced_program(make_client, scripted, spans):
    """The client creates its channel as usual; watches are spans too."""
    provider, exporter = spans
    scripted.answer("GetPost", POST)
    scripted.cut("Watch", change_batch(1, token="t1"))
    scripted.stall("Watch", change_batch(2, token="t2"))

    client = make_client(scripted.target)
    with provider.get_tracer("test").start_as_current_span("program") as program:
        await client.posts.get(1)
        async with client.changes.watch() as watch:
            seen = await read_ids(watch, 2)
        assert trace.get_current_span() is program
    await client.close()

    assert seen == [1, 2]
    found = {it.name: it for it in exporter.get_finished_spans()}
    for method in ("/storeapi.v1.PostService/GetPost", "/storeapi.v1.ChangeService/Watch"):
        assert found[method].parent.span_id == program.get_span_context().span_id


def test_error_without_methods_is_converted():
    """An interceptor may raise the base class of gRPC errors, which has no methods."""
    error = store_error(grpc.RpcError("the breaker is open"))

    assert (type(error), error.code) == (storeapi.StoreError, grpc.StatusCode.UNKNOWN)
    assert str(error) == "the breaker is open"


def test_failed_cancellation_does_not_hide_the_error(scripted):
    """Whatever goes wrong there, the caller hears why the call failed."""

    class Stubborn(WrappedCall):
        def cancel(self):
            raise OSError("not now")

    class Interceptor(grpc.UnaryStreamClientInterceptor):
        def intercept_unary_stream(self, continuation, details, request):
            return Stubborn(continuation(details, request))

    scripted.cut("Watch", change_batch(1, token="t1"))
    scripted.fail("Watch", storeapi.ResumeTokenExpired())
    with grpc.insecure_channel(scripted.target) as plain:
        client = storeapi.StoreClient(channel=grpc.intercept_channel(plain, Interceptor()))
        watch = client.changes.watch()
        next(watch)
        with pytest.raises(storeapi.ResumeTokenExpired):
            next(watch)
        client.close()
