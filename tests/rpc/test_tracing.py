"""Spans: one for each call, with the right end, below the caller's; and one for each batch it rode in."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from storeapi.v1 import posts_pb2 as pb

from store_service import config as settings
from store_service.config import Config
from store_service.errors import BadSetting
from store_service.observability import span_export
from store_service.server import RunningServer, serving
from tests.support.database import write_lock
from tests.support.engines import SQLITE_ONLY
from tests.support.errors import expect_error
from tests.support.polling import eventually
from tests.support.resource_api import ResourceApi
from tests.support.stoppable_server import stoppable_server
from tests.support.stubs import Stubs
from tests.support.watches import watch_from_now
from tests.support.write_queue import WriteQueue, run_in_one_batch

GET, CREATE = "storeapi.v1.PostService/GetPost", "storeapi.v1.PostService/CreatePost"
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Spans:
    """What was exported."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    async def one(self, name: str) -> ReadableSpan:
        """The only span of a name, once it has ended."""
        await eventually(lambda: bool(self.named(name)))
        (span,) = self.named(name)
        return span

    def batches_of(self, call: ReadableSpan) -> list[ReadableSpan]:
        """The spans below that of a call."""
        return [
            span
            for span in self._exporter.get_finished_spans()
            if span.parent is not None and span.parent.span_id == call.get_span_context().span_id
        ]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """Spans are kept in memory instead of being sent away."""
    spans = Spans()
    monkeypatch.setattr(span_export, "tracer_provider", lambda: spans.provider)
    yield spans
    spans.provider.shutdown()


@pytest.fixture
def config(config: Config, spans: Spans) -> Config:
    """A server that makes spans."""
    return config.model_copy(update={"tracing": True})


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_call_is_a_span(spans: Spans, stubs: Stubs) -> None:
    """With the attributes of the semantic conventions, and the call id of the log."""
    call = stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a")))
    await call
    span = await spans.one(CREATE)

    assert span.kind is SpanKind.SERVER
    assert span.parent is None
    assert attributes(span) == {
        "rpc.system": "grpc",
        "rpc.service": "storeapi.v1.PostService",
        "rpc.method": "CreatePost",
        "rpc.grpc.status_code": 0,
        "store.call_id": dict(await call.trailing_metadata())["x-call-id"],
    }
    assert span.status.status_code is StatusCode.UNSET
    assert span.events == ()


@SQLITE_ONLY
async def test_span_has_the_parent_of_the_caller(spans: Spans, stubs: Stubs) -> None:
    """From traceparent and tracestate; baggage is ignored."""
    metadata = (
        ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01"),
        ("tracestate", "vendor=1"),
        ("baggage", "user=somebody"),
    )
    await stubs.posts.ListPosts(pb.ListPostsRequest(), metadata=metadata)
    span = await spans.one("storeapi.v1.PostService/ListPosts")

    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN_ID
    assert f"{span.get_span_context().trace_id:032x}" == TRACE_ID
    assert span.get_span_context().trace_state.get("vendor") == "1"
    assert "somebody" not in str(attributes(span))


@SQLITE_ONLY
@pytest.mark.parametrize(
    "traceparent", ["", "nonsense", f"00-{'0' * 32}-{SPAN_ID}-01", f"ff-{TRACE_ID}-x-01"]
)
async def test_damaged_trace_header_starts_a_new_trace(spans: Spans, stubs: Stubs, traceparent: str) -> None:
    await stubs.posts.ListPosts(pb.ListPostsRequest(), metadata=(("traceparent", traceparent),))

    assert (await spans.one("storeapi.v1.PostService/ListPosts")).parent is None


@SQLITE_ONLY
async def test_unsampled_call_is_not_traced(spans: Spans, stubs: Stubs) -> None:
    """The decision is made where the trace begins; nothing of such a call is exported."""
    metadata = (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00"),)
    await stubs.posts.ListPosts(pb.ListPostsRequest(), metadata=metadata)
    await stubs.create_post()
    await spans.one(CREATE)

    assert spans.named("storeapi.v1.PostService/ListPosts") == []
    assert len(spans.named("reader batch")) == 0


@SQLITE_ONLY
async def test_client_error_is_not_a_span_error(spans: Spans, stubs: Stubs) -> None:
    """The span has the code and the reason."""
    await expect_error(stubs.posts.GetPost(pb.GetPostRequest(id=404)))
    span = await spans.one(GET)

    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert attributes(span)["error.type"] == "POST_NOT_FOUND"
    assert span.status.status_code is StatusCode.UNSET


@SQLITE_ONLY
async def test_unhandled_exception_is_a_span_error(
    spans: Spans, stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the text of the exception."""

    def stumbles(_: Any) -> Any:
        raise ValueError("secret")

    monkeypatch.setattr("store_service.rpc.posts.post_to_message", stumbles)
    await expect_error(stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a"))))
    span = await spans.one(CREATE)

    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "INTERNAL")
    assert "secret" not in span.to_json()


async def test_deadline_is_a_span_error_and_cancellation_is_not(
    spans: Spans, stubs: Stubs, write_queue: WriteQueue, database_url: str
) -> None:
    with write_lock(database_url):
        late = stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a")), timeout=1)
        assert (await expect_error(late)).code is grpc.StatusCode.DEADLINE_EXCEEDED
        span = await spans.one(CREATE)
        assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert span.status.status_code is StatusCode.ERROR

        gone = stubs.posts.UpdatePost(pb.UpdatePostRequest(post=pb.Post(id=1, body="b")))
        await write_queue.wait_for_arrivals(2, since=0)
        gone.cancel()
        span = await spans.one("storeapi.v1.PostService/UpdatePost")
        assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
        assert span.status.status_code is StatusCode.UNSET


async def test_calls_of_one_batch_share_its_number(
    spans: Spans, posts: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """Each trace has a span of the batch, with its size and the wait."""
    await run_in_one_batch(write_queue, posts, database_url, [lambda: posts.create(posts.draft())] * 3)
    await eventually(lambda: len(spans.named(CREATE)) == 4)
    found = [batch for call in spans.named(CREATE) for batch in spans.batches_of(call)]

    riding = [batch for batch in found if attributes(batch)["store.batch.size"] == 3]
    assert len(found) == 4
    assert len(riding) == 3
    assert len({batch.get_span_context().trace_id for batch in riding}) == 3
    assert len({attributes(batch)["store.batch.number"] for batch in riding}) == 1
    # The one that held up the writer rode alone, before them.
    assert len({attributes(batch)["store.batch.number"] for batch in found}) == 2
    for batch in riding:
        assert batch.name == "writer batch"
        assert attributes(batch)["store.queue.name"] == "writer"
        assert attributes(batch)["store.queue.wait_seconds"] > 0
        assert batch.start_time is not None
        assert batch.end_time is not None
        assert batch.end_time >= batch.start_time
        assert batch.status.status_code is StatusCode.UNSET


@SQLITE_ONLY
async def test_concurrent_calls_keep_their_batches_apart(spans: Spans, stubs: Stubs) -> None:
    """Every read is below the call that asked for it."""
    post = await stubs.create_post()
    await asyncio.gather(*(stubs.posts.GetPost(pb.GetPostRequest(id=post.id)) for _ in range(20)))
    await eventually(lambda: len(spans.named(GET)) == 20)

    assert [len(spans.batches_of(call)) for call in spans.named(GET)] == [1] * 20


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_failed_batch_is_a_span_error(
    spans: Spans, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the class of the error, which the caller sees as DATABASE_BUSY."""
    config = settings.load(
        DATABASE_URL=database_url, listen="127.0.0.1:0", tracing=True, lock_timeout_seconds=0.05
    )
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        with write_lock(database_url):
            await expect_error(Stubs(channel).create_post())
    span = await spans.one(CREATE)
    (batch,) = spans.batches_of(span)

    assert attributes(span)["error.type"] == attributes(batch)["error.type"].upper().replace(
        "DATABASEBUSY", "DATABASE_BUSY"
    )
    assert span.status.status_code is batch.status.status_code is StatusCode.ERROR


async def test_watch_is_one_span(spans: Spans, stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Without children, because it may last for days."""
    async with watch_from_now(channel) as watch:
        await stubs.create_post()
        await watch.response()
    span = await spans.one("storeapi.v1.ChangeService/Watch")

    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
    assert spans.batches_of(span) == []


@SQLITE_ONLY
async def test_call_refused_by_a_draining_server_is_a_span_error(
    spans: Spans, config: Config, database_url: str
) -> None:
    """Its reason is SHUTTING_DOWN."""
    async with (
        stoppable_server(config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
        watch_from_now(channel) as watch,
    ):
        server.stop()
        await watch.read()
        with pytest.raises(grpc.RpcError):
            await watch.read()
    span = await spans.one("storeapi.v1.ChangeService/Watch")

    assert attributes(span)["error.type"] == "SHUTTING_DOWN"
    assert span.status.status_code is StatusCode.ERROR


@SQLITE_ONLY
async def test_tracing_is_disabled_by_default(database_url: str) -> None:
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0")
    async with serving(config) as server:
        assert isinstance(server, RunningServer)
        assert server.pipeline._tracing is None


# Where they go


@pytest.mark.parametrize(
    ("variables", "classes"),
    [
        ({}, ["opentelemetry.exporter.otlp.proto.http"]),
        ({"OTEL_TRACES_EXPORTER": "none"}, []),
        ({"OTEL_TRACES_EXPORTER": "console"}, ["opentelemetry.sdk.trace.export"]),
        (
            {"OTEL_TRACES_EXPORTER": "otlp, console"},
            ["opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk.trace.export"],
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["opentelemetry.exporter.otlp.proto.grpc"]),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            ["opentelemetry.exporter.otlp.proto.http"],
        ),
    ],
)
def test_standard_variables_choose_the_exporter(
    variables: dict[str, str], classes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of OpenTelemetry."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    exporters = span_export.exporters()
    modules = [type(exporter).__module__ for exporter in exporters]
    for exporter in exporters:
        exporter.shutdown()

    assert len(modules) == len(classes)
    assert all(module.startswith(wanted) for module, wanted in zip(modules, classes, strict=True))


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_TRACES_EXPORTER", "pigeon"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "pigeon")],
)
def test_unknown_exporter_is_an_invalid_setting(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names the variable."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(BadSetting, match=f"^{variable}: "):
        span_export.exporters()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "store-service"),
        ({"OTEL_SERVICE_NAME": "posts"}, "posts"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=posts,a=b"}, "posts"),
    ],
)
def test_service_name_comes_from_the_standard_variables(
    variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default is store-service."""
    for variable, value in ({"OTEL_TRACES_EXPORTER": "none"} | variables).items():
        monkeypatch.setenv(variable, value)
    provider = span_export.tracer_provider()

    assert provider.resource.attributes["service.name"] == name
    assert provider.resource.attributes["service.version"]
    provider.shutdown()
