"""Traces of a server as users start it: where they go, and what a wrong setting says."""

import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from storeapi.v1 import posts_pb2, posts_pb2_grpc

from tests.support.server_process import ServerProcess, run_command
from tests.support.timeouts import scaled_timeout

CREATE = "storeapi.v1.PostService/CreatePost"


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Takes spans by OTLP over HTTP; gives its address and what it has taken."""
    taken: list[ExportTraceServiceRequest] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            data = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append(ExportTraceServiceRequest.FromString(data))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", taken
        finally:
            server.shutdown()
            thread.join()


def create(address: str) -> posts_pb2.Post:
    """Creates a post."""
    with grpc.insecure_channel(address) as channel:
        request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="a"))
        post: posts_pb2.Post = posts_pb2_grpc.PostServiceStub(channel).CreatePost(
            request, timeout=scaled_timeout()
        )
        return post


def test_spans_are_exported_before_the_process_ends(database_file: Path) -> None:
    """As the variables of OpenTelemetry say; including the last spans."""
    with collector() as (address, taken):
        settings = {"STORE_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": address}
        process = ServerProcess(database_file.parent, settings).start()
        try:
            create(process.address)
            assert process.stop() == 0
        finally:
            process.kill()

    (resource,) = [it for request in taken for it in request.resource_spans]
    names = {it.key: it.value.string_value for it in resource.resource.attributes}
    spans = {span.name: span for scope in resource.scope_spans for span in scope.spans}
    assert names["service.name"] == "store-service"
    assert spans.keys() >= {CREATE, "writer batch"}
    assert spans["writer batch"].parent_span_id == spans[CREATE].span_id
    assert "Traceback" not in process.stderr()


def test_tracing_without_the_extra_is_one_line(tmp_path: Path) -> None:
    """It says what to install, and exits with 2."""
    blocked = tmp_path / "opentelemetry"
    blocked.mkdir()
    # A package of this name without anything in it, found before any that is installed.
    (blocked / "__init__.py").touch()
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"STORE_TRACING": "true", "PYTHONPATH": path}
    done = run_command("serve", folder=tmp_path, settings=settings)

    assert done.returncode == 2
    assert done.stderr == (
        "store-service: STORE_TRACING: needs the extra store-service[telemetry], which is not installed\n"
    )


def test_unknown_trace_exporter_is_one_line(tmp_path: Path) -> None:
    """With exit code 2."""
    settings = {
        "STORE_TRACING": "true",
        "OTEL_TRACES_EXPORTER": "pigeon",
        "STORE_LISTEN": "127.0.0.1:0",
        "STORE_LOG_LEVEL": "error",
    }
    done = run_command("serve", folder=tmp_path, settings=settings)

    assert done.returncode == 2
    assert done.stderr == (
        "store-service: OTEL_TRACES_EXPORTER: unknown exporter pigeon; known are otlp, console, none\n"
    )


def test_unreachable_collector_delays_nothing(database_file: Path) -> None:
    """Calls succeed and the process ends in time; the spans are lost."""
    settings = {
        "STORE_TRACING": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        # The exporter would try for a minute.
        "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
    }
    process = ServerProcess(database_file.parent, settings).start()
    try:
        assert create(process.address).id == 1
        process.signal()
        code = process.wait(scaled_timeout())
    finally:
        process.kill()

    assert code == 0
    assert '"event": "stopped"' in process.stderr()
    # That is what it says when something has kept it beyond the grace period.
    assert "without waiting any longer" not in process.stderr()
