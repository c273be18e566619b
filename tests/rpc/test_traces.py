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
from store_service import telemetry
from store_service.config import BadSetting, Config
from store_service.server import RunningServer, serving
from tests.rpc.helpers import ONE_ENGINE, Side, Taken, become, locked, stoppable, together
from tests.support import Stubs, failure
from tests.watching import begun

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
        await become(lambda: bool(self.named(name)))
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
    monkeypatch.setattr(telemetry, "tracer_provider", lambda: spans.provider)
    yield spans
    spans.provider.shutdown()


@pytest.fixture
def config(database_url: str, spans: Spans) -> Config:
    """A server that makes spans."""
    return settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", traces=True)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_call_is_a_span(spans: Spans, stubs: Stubs) -> None:
    """With the attributes that the semantic conventions want, and the id under which the log has it."""
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


@ONE_ENGINE
async def test_a_span_is_below_that_of_the_caller(spans: Spans, stubs: Stubs) -> None:
    """By the W3C headers traceparent and tracestate; baggage is nobody's business here."""
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


@ONE_ENGINE
@pytest.mark.parametrize(
    "traceparent", ["", "nonsense", f"00-{'0' * 32}-{SPAN_ID}-01", f"ff-{TRACE_ID}-x-01"]
)
async def test_a_damaged_header_begins_a_trace_of_its_own(
    spans: Spans, stubs: Stubs, traceparent: str
) -> None:
    """It is no reason to refuse a call."""
    await stubs.posts.ListPosts(pb.ListPostsRequest(), metadata=(("traceparent", traceparent),))

    assert (await spans.one("storeapi.v1.PostService/ListPosts")).parent is None


@ONE_ENGINE
async def test_a_caller_that_does_not_sample_is_not_traced(spans: Spans, stubs: Stubs) -> None:
    """The decision is made where the trace begins; nothing of such a call is exported."""
    metadata = (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00"),)
    await stubs.posts.ListPosts(pb.ListPostsRequest(), metadata=metadata)
    await stubs.create_post()
    await spans.one(CREATE)

    assert spans.named("storeapi.v1.PostService/ListPosts") == []
    assert len(spans.named("reader batch")) == 0


@ONE_ENGINE
async def test_an_error_of_the_caller_is_no_error_of_the_service(spans: Spans, stubs: Stubs) -> None:
    """The span has its code and its reason, and no error status."""
    await failure(stubs.posts.GetPost(pb.GetPostRequest(id=404)))
    span = await spans.one(GET)

    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert attributes(span)["error.type"] == "POST_NOT_FOUND"
    assert span.status.status_code is StatusCode.UNSET


@ONE_ENGINE
async def test_a_bug_is_an_error(spans: Spans, stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The span says INTERNAL; what the exception says is for the log alone."""

    def stumbles(_: Any) -> Any:
        raise ValueError("secret")

    monkeypatch.setattr("store_service.rpc.posts.post_to_message", stumbles)
    await failure(stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a"))))
    span = await spans.one(CREATE)

    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "INTERNAL")
    assert "secret" not in span.to_json()


async def test_deadlines_and_cancels_have_their_own_ends(
    spans: Spans, stubs: Stubs, taken: Taken, database_url: str
) -> None:
    """A deadline that has passed is an error; a caller that went away is none."""
    with locked(database_url):
        late = stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a")), timeout=1)
        assert (await failure(late)).code is grpc.StatusCode.DEADLINE_EXCEEDED
        span = await spans.one(CREATE)
        assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert span.status.status_code is StatusCode.ERROR

        gone = stubs.posts.UpdatePost(pb.UpdatePostRequest(post=pb.Post(id=1, body="b")))
        await taken.arrive(2, since=0)
        gone.cancel()
        span = await spans.one("storeapi.v1.PostService/UpdatePost")
        assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
        assert span.status.status_code is StatusCode.UNSET


async def test_calls_that_rode_together_have_the_same_batch(
    spans: Spans, posts: Side, taken: Taken, database_url: str
) -> None:
    """Each has a span of it in its own trace, with its size, its number, and how long the call waited."""
    await together(taken, posts, database_url, [lambda: posts.create(posts.draft())] * 3)
    await become(lambda: len(spans.named(CREATE)) == 4)
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
        assert attributes(batch)["store.lane"] == "writer"
        assert attributes(batch)["store.queue.wait_seconds"] > 0
        assert batch.start_time is not None
        assert batch.end_time is not None
        assert batch.end_time >= batch.start_time
        assert batch.status.status_code is StatusCode.UNSET


@ONE_ENGINE
async def test_calls_at_the_same_time_keep_their_batches_apart(spans: Spans, stubs: Stubs) -> None:
    """Every read is below the call that asked for it."""
    post = await stubs.create_post()
    await asyncio.gather(*(stubs.posts.GetPost(pb.GetPostRequest(id=post.id)) for _ in range(20)))
    await become(lambda: len(spans.named(GET)) == 20)

    assert [len(spans.batches_of(call)) for call in spans.named(GET)] == [1] * 20


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_batch_that_fails_is_an_error(
    spans: Spans, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the class of the error, which the caller sees as DATABASE_BUSY."""
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", traces=True, lock_seconds=0.05)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        with locked(database_url):
            await failure(Stubs(channel).create_post())
    span = await spans.one(CREATE)
    (batch,) = spans.batches_of(span)

    assert attributes(span)["error.type"] == attributes(batch)["error.type"].upper().replace(
        "DATABASEBUSY", "DATABASE_BUSY"
    )
    assert span.status.status_code is batch.status.status_code is StatusCode.ERROR


async def test_a_watch_is_one_span_without_children(
    spans: Spans, stubs: Stubs, channel: grpc.aio.Channel
) -> None:
    """It reads for as long as it lasts, which may be days."""
    async with begun(channel) as watch:
        await stubs.create_post()
        await watch.response()
    span = await spans.one("storeapi.v1.ChangeService/Watch")

    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
    assert spans.batches_of(span) == []


@ONE_ENGINE
async def test_a_call_that_is_refused_because_the_server_stops_is_an_error(
    spans: Spans, config: Config, database_url: str
) -> None:
    """Its reason is SHUTTING_DOWN."""
    async with (
        stoppable(config) as server,
        grpc.aio.insecure_channel(server.running.address) as channel,
        begun(channel) as watch,
    ):
        server.stop()
        await watch.read()
        with pytest.raises(grpc.RpcError):
            await watch.read()
    span = await spans.one("storeapi.v1.ChangeService/Watch")

    assert attributes(span)["error.type"] == "SHUTTING_DOWN"
    assert span.status.status_code is StatusCode.ERROR


@ONE_ENGINE
async def test_spans_are_off_unless_they_are_wanted(database_url: str) -> None:
    """Then no call and no work looks for them."""
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0")
    async with serving(config) as server:
        assert isinstance(server, RunningServer)
        assert server.guard._tracing is None


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
def test_the_standard_variables_choose_the_exporter(
    variables: dict[str, str], classes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in every other program that uses OpenTelemetry."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    exporters = telemetry.exporters()
    modules = [type(exporter).__module__ for exporter in exporters]
    for exporter in exporters:
        exporter.shutdown()

    assert len(modules) == len(classes)
    assert all(module.startswith(wanted) for module, wanted in zip(modules, classes, strict=True))


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_TRACES_EXPORTER", "pigeon"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "pigeon")],
)
def test_an_unknown_exporter_is_a_bad_setting(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names the variable."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(BadSetting, match=f"^{variable}: "):
        telemetry.exporters()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "store-service"),
        ({"OTEL_SERVICE_NAME": "posts"}, "posts"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=posts,a=b"}, "posts"),
    ],
)
def test_the_service_is_called_what_the_variables_say(
    variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And store-service when they say nothing."""
    for variable, value in ({"OTEL_TRACES_EXPORTER": "none"} | variables).items():
        monkeypatch.setenv(variable, value)
    provider = telemetry.tracer_provider()

    assert provider.resource.attributes["service.name"] == name
    assert provider.resource.attributes["service.version"]
    provider.shutdown()
