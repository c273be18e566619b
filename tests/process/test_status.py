"""The command `store-service status`: a page made from the metrics of a running service."""

import http.server
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from storeapi.v1 import posts_pb2, posts_pb2_grpc

from tests.support.forked_process import start_module
from tests.support.polling import wait_until
from tests.support.server_process import ServerProcess, run_command
from tests.support.timeouts import scaled_timeout


@pytest.fixture
def running(database_file: Path) -> Iterator[ServerProcess]:
    """A server with metrics."""
    process = ServerProcess(database_file.parent, {"STORE_METRICS_LISTEN": "127.0.0.1:0"}).start()
    yield process
    process.kill()


def metrics_address(process: ServerProcess) -> str:
    """The metrics address in the log."""
    (address,) = re.findall(r'"address": "(\S+)", "event": "serving metrics"', process.stderr())
    assert isinstance(address, str)
    return address


def test_status_once_prints_one_page(running: ServerProcess, tmp_path: Path) -> None:
    """With calls, batches and lag."""
    with grpc.insecure_channel(running.address) as channel:
        request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="a"))
        posts_pb2_grpc.PostServiceStub(channel).CreatePost(request)
    address = metrics_address(running)
    done = run_command("status", address, "--once", "--every", "0.2", folder=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(rf"store-service \S+ on sqlite, {address}\n", done.stdout)
    assert re.search(r"^PostService/CreatePost +0\.0 ", done.stdout, re.MULTILINE)
    assert re.search(r"^writer ", done.stdout, re.MULTILINE)
    assert re.search(r"^event loop p99 .* WAL$", done.stdout, re.MULTILINE)
    assert "0 of 100" in done.stdout
    assert "\x1b" not in done.stdout


def test_status_runs_until_it_is_interrupted(running: ServerProcess, tmp_path: Path) -> None:
    """It continues while the service is away, and Ctrl-C exits with 0."""
    output = tmp_path / "page"
    command = ["store_service", "status", metrics_address(running), "--every", "0.1"]
    with output.open("w") as stdout:
        page = start_module(
            *command, folder=tmp_path, environment=os.environ, stdout=stdout, stderr=subprocess.PIPE
        )
    try:
        wait_until(lambda: page.poll() is not None or _is_looking(running))
        running.kill()
        # Where there is no terminal, only the last page is printed, at the end.
        page.send_signal(signal.SIGINT)
        _, stderr = page.communicate(timeout=scaled_timeout())
    finally:
        page.kill()

    assert (page.returncode, stderr) == (0, b"")


def _is_looking(process: ServerProcess) -> bool:
    """Whether metrics were requested: a closed connection exists."""
    assert process.process is not None
    port = int(metrics_address(process).rpartition(":")[2])
    tables = Path(f"/proc/{process.process.pid}/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "06" for line in tables)


@pytest.mark.parametrize("options", [[], ["--once"]])
def test_status_of_unreachable_service_is_one_line(tmp_path: Path, options: list[str]) -> None:
    """And exit code 1, also without `--once`."""
    done = run_command("status", "127.0.0.1:1", *options, folder=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "store-service: cannot reach 127.0.0.1:1: Connection refused\n"


@contextmanager
def other_service(status: int, body: bytes) -> Iterator[str]:
    """An HTTP server that is not store-service."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b"", "does not serve metrics: HTTP status 404"),
        (200, b"<html>", "does not serve metrics: the response is in another format"),
        (200, b"up 1\n", "serves metrics, but not those of a store-service"),
    ],
)
def test_status_of_another_server_is_one_line(tmp_path: Path, status: int, body: bytes, says: str) -> None:
    """The line says what responded."""
    with other_service(status, body) as address:
        done = run_command("status", address, "--once", folder=tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"store-service: {address} {says}\n")


def test_status_of_the_grpc_port_is_explained(running: ServerProcess, tmp_path: Path) -> None:
    """It is not the metrics port."""
    done = run_command("status", running.address, "--once", folder=tmp_path)

    assert done.returncode == 1
    assert (
        done.stderr
        == f"store-service: {running.address} does not serve metrics: the response is in another format\n"
    )


def test_status_address_comes_from_the_settings(running: ServerProcess, tmp_path: Path) -> None:
    """Without one, the line says what is missing."""
    settings = {"STORE_METRICS_LISTEN": metrics_address(running)}
    done = run_command("status", "--once", "--every", "0.1", folder=tmp_path, settings=settings)
    lost = run_command("status", "--once", folder=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert settings["STORE_METRICS_LISTEN"] in done.stdout
    assert (lost.returncode, lost.stdout) == (2, "")
    assert lost.stderr == "store-service: ADDRESS is required if STORE_METRICS_LISTEN is not set\n"


def test_invalid_status_address_is_a_usage_error(tmp_path: Path) -> None:
    """Exit code 2."""
    done = run_command("status", "here", folder=tmp_path)

    assert done.returncode == 2
    assert done.stderr.startswith("store-service: ADDRESS must be HOST:PORT")
    assert done.stderr.count("\n") == 1
