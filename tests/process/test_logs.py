"""The log: its contents, its formats, and what it never contains."""

import asyncio
import hashlib
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from storeapi.v1 import changes_pb2, changes_pb2_grpc, comments_pb2, posts_pb2

from store_service import logs
from store_service.auth import api_keys
from store_service.auth.principal import Permission
from tests.support.errors import ReceivedError, expect_error
from tests.support.forked_process import start_module
from tests.support.polling import wait_until
from tests.support.server_process import ServerProcess, serve_with_stderr
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

SECRET = "s3cret"
"""In every body that the tests send, and in nothing that a log may hold."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for the whole module; nothing is set but its port."""
    process = ServerProcess(tmp_path_factory.mktemp("server"))
    process.start()
    yield process
    process.kill()


@pytest.fixture
async def channel(running: ServerProcess) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to that server."""
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield channel


@pytest.fixture
def server_process(database_file: Path) -> Iterator[ServerProcess]:
    """A server as a child process, not started yet, whose database needs no upgrade."""
    process = ServerProcess(database_file.parent)
    yield process
    process.kill()


def log_lines(server: ServerProcess) -> list[dict[str, Any]]:
    """The log, of which every line must be a JSON object."""
    lines = [json.loads(line) for line in server.stderr().splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return lines


def line_of_call(server: ServerProcess, call_id: str) -> dict[str, Any]:
    """Returns the log line of a call."""
    wait_until(lambda: call_id in server.stderr())
    (line,) = [it for it in log_lines(server) if it["event"] == "rpc finished" and it["call_id"] == call_id]
    return line


def is_time(text: str) -> bool:
    """Whether a text is a time in UTC, to the microsecond."""
    return re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text) is not None


async def test_call_is_logged_as_one_json_line(running: ServerProcess, channel: grpc.aio.Channel) -> None:
    """With its method, outcome, duration, caller, and the call id that the caller received."""
    call = Stubs(channel).posts.CreatePost(
        posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=f"fine {SECRET}"))
    )
    await call
    call_id = dict(await call.trailing_metadata())["x-call-id"]
    line = line_of_call(running, call_id)

    assert line.keys() == {"event", "level", "timestamp", "method", "code", "ms", "peer", "call_id"}
    assert (line["event"], line["level"]) == ("rpc finished", "info")
    assert line["method"] == "storeapi.v1.PostService/CreatePost"
    assert line["code"] == "OK"
    assert 0 < line["ms"] < 60_000
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", line["peer"])
    assert is_time(line["timestamp"])


async def test_call_log_names_the_caller_and_never_the_key(tmp_path: Path) -> None:
    """Whatever the outcome of the call and whatever was wrong with the key."""
    key = api_keys.new_key()
    api_keys.append(tmp_path / "keys", name="billing", key=key, permissions=frozenset([Permission.READ]))
    server = ServerProcess(tmp_path, {"STORE_API_KEYS_FILE": "keys"}).start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            list_posts = Stubs(channel).posts.ListPosts
            call = list_posts(posts_pb2.ListPostsRequest(), metadata=(("authorization", f"Bearer {key}"),))
            await call
            good = line_of_call(server, dict(await call.trailing_metadata())["x-call-id"])
            wrong = list_posts(posts_pb2.ListPostsRequest(), metadata=(("authorization", f"Bearer {key}x"),))
            bad = line_of_call(server, (await expect_error(wrong)).trailing["x-call-id"])
    finally:
        server.stop()

    assert (good["code"], good["caller"]) == ("OK", "billing")
    assert (bad["code"], "caller" in bad) == ("UNAUTHENTICATED", False)
    assert key not in server.stderr()
    assert hashlib.sha256(key.encode()).hexdigest() not in server.stderr()


async def test_failed_call_is_logged_as_one_line(running: ServerProcess, channel: grpc.aio.Channel) -> None:
    """With its code and the call id of the error."""
    error = await expect_error(Stubs(channel).posts.GetPost(posts_pb2.GetPostRequest(id=2**60)))
    line = line_of_call(running, error.trailing["x-call-id"])

    assert (line["method"], line["code"]) == ("storeapi.v1.PostService/GetPost", "NOT_FOUND")
    assert line["level"] == "info"


async def test_every_call_has_its_own_id(running: ServerProcess, channel: grpc.aio.Channel) -> None:
    """Successful or not."""
    ids = []
    for id in range(-5, 5):
        error = await expect_error(Stubs(channel).comments.GetComment(comments_pb2.GetCommentRequest(id=id)))
        ids.append(error.trailing["x-call-id"])
    for call_id in ids:
        line_of_call(running, call_id)

    assert len(set(ids)) == 10


async def test_streams_and_health_checks_are_logged(
    running: ServerProcess, channel: grpc.aio.Channel
) -> None:
    """Cancelled calls too."""
    health = health_pb2_grpc.HealthStub(channel)
    check = health.Check(health_pb2.HealthCheckRequest())
    await check
    line = line_of_call(running, dict(await check.trailing_metadata())["x-call-id"])
    assert (line["method"], line["code"]) == ("grpc.health.v1.Health/Check", "OK")

    watch = health.Watch(health_pb2.HealthCheckRequest())
    await watch.read()
    watch.cancel()
    # In a thread, for it is this loop that sends the cancellation.
    await asyncio.to_thread(wait_until, lambda: "Health/Watch" in running.stderr())
    (line,) = [it for it in log_lines(running) if it.get("method") == "grpc.health.v1.Health/Watch"]
    assert line["code"] == "CANCELLED"


async def test_stream_cancelled_during_a_response_is_logged(
    running: ServerProcess, channel: grpc.aio.Channel
) -> None:
    """Also if the caller had stopped reading."""
    drafts = [posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="x" * 60_000))] * 50
    for _ in range(2):
        await Stubs(channel).posts.BatchCreatePosts(posts_pb2.BatchCreatePostsRequest(requests=drafts))
    watch = changes_pb2_grpc.ChangeServiceStub(channel).Watch(changes_pb2.WatchRequest(earliest=True))
    assert (await watch.read()).resume_token
    watch.cancel()

    # In a thread, for it is this loop that sends the cancellation.
    await asyncio.to_thread(wait_until, lambda: "ChangeService/Watch" in running.stderr())
    (line,) = [it for it in log_lines(running) if it.get("method") == "storeapi.v1.ChangeService/Watch"]
    assert (line["event"], line["code"]) == ("rpc finished", "CANCELLED")


async def send_bodies_in_every_way(stubs: Stubs) -> list[ReceivedError]:
    """Calls with secret bodies, most of which fail, each in another way; returns the errors."""
    post = await stubs.create_post(f"1 {SECRET}")
    comment = await stubs.create_comment(post.id, f"2 {SECRET}")
    await stubs.posts.UpdatePost(
        posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=post.id, body=f"3 {SECRET}")),
    )
    drafts = [posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=f"{n} {SECRET}")) for n in range(10)]
    await stubs.posts.BatchCreatePosts(posts_pb2.BatchCreatePostsRequest(requests=drafts))
    await stubs.posts.ListPosts(posts_pb2.ListPostsRequest())
    failing = [
        stubs.create_post(f"NUL \0 {SECRET}"),
        stubs.create_post(f"too long {SECRET}" + "x" * 70_000),
        stubs.create_comment(2**40, f"no post {SECRET}"),
        stubs.posts.CreatePost(posts_pb2.CreatePostRequest(post=posts_pb2.Post(id=5, body=f"id {SECRET}"))),
        stubs.posts.CreatePost(
            posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=SECRET), request_id=SECRET)
        ),
        stubs.posts.UpdatePost(
            posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=post.id, body=f"etag {SECRET}", etag=SECRET))
        ),
        stubs.comments.UpdateComment(
            comments_pb2.UpdateCommentRequest(
                comment=comments_pb2.Comment(id=comment.id, post_id=2**40, body=f"another post {SECRET}")
            )
        ),
        stubs.comments.BatchCreateComments(
            comments_pb2.BatchCreateCommentsRequest(
                requests=[
                    comments_pb2.CreateCommentRequest(
                        comment=comments_pb2.Comment(post_id=2**40, body=f"batch {SECRET}")
                    )
                ]
            )
        ),
        stubs.posts.ListPosts(posts_pb2.ListPostsRequest(page_token=SECRET, order_by=SECRET)),
    ]
    return [await expect_error(call) for call in failing]


async def test_bodies_are_never_logged(running: ServerProcess, channel: grpc.aio.Channel) -> None:
    """Neither stored nor refused ones."""
    errors = await send_bodies_in_every_way(Stubs(channel))
    for error in errors:
        line_of_call(running, error.trailing["x-call-id"])

    assert len({error.code for error in errors}) >= 3
    assert SECRET not in running.stderr()


def break_posts(server: ServerProcess) -> None:
    """Has the database refuse every new post in a way that the service does not know."""
    with closing(sqlite3.connect(server.folder / "store.db")) as connection:
        connection.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON posts BEGIN SELECT RAISE(ABORT, 'broken'); END"
        )


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_unhandled_exception_is_logged_with_its_traceback_and_without_bodies(
    server_process: ServerProcess, log_format: str
) -> None:
    """Under the call id that the caller received, in both log formats."""
    server_process.settings["STORE_LOG_FORMAT"] = log_format
    server_process.start()
    break_posts(server_process)
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        # Alone, and together with others, which are then tried one by one.
        alone = await expect_error(Stubs(channel).create_post(f"alone {SECRET}"))
        drafts = [posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=f"{n} {SECRET}")) for n in range(3)]
        batch = posts_pb2.BatchCreatePostsRequest(requests=drafts)
        calls = [Stubs(channel).posts.BatchCreatePosts(batch) for _ in range(5)]
        errors = [alone, *[await expect_error(call) for call in calls]]
    assert server_process.stop() == 0

    log = server_process.stderr()
    for error in errors:
        assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert log.count(error.trailing["x-call-id"]) == 2, "one line of the exception and one of the call"
    assert "IntegrityError" in log
    assert "broken" in log
    assert "store_service/service/resources.py" in log
    assert SECRET not in log
    if log_format == "json":
        exceptions = [line for line in log_lines(server_process) if line["event"] == "unhandled exception"]
        assert [line["level"] for line in exceptions] == ["error"] * 6
        assert {line["call_id"] for line in exceptions} == {error.trailing["x-call-id"] for error in errors}


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_undecodable_body_is_not_logged(
    server_process: ServerProcess, database_file: Path, log_format: str
) -> None:
    """The error of Python would contain its bytes."""
    with closing(sqlite3.connect(database_file)) as connection, connection:
        connection.execute(
            "INSERT INTO posts (id, body) VALUES (1, CAST(? AS TEXT))", [f"{SECRET} ".encode() + b"\xff"]
        )
    server_process.settings["STORE_LOG_FORMAT"] = log_format
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        stubs = Stubs(channel)
        errors = [
            await expect_error(stubs.posts.GetPost(posts_pb2.GetPostRequest(id=1))),
            await expect_error(stubs.posts.ListPosts(posts_pb2.ListPostsRequest())),
        ]
    assert server_process.stop() == 0

    assert [error.reason for error in errors] == ["INTERNAL", "INTERNAL"]
    assert "OperationalError" in server_process.stderr()
    assert SECRET not in server_process.stderr()


async def test_calls_are_not_logged_at_level_warning(server_process: ServerProcess) -> None:
    """Neither successful nor failed ones; unhandled exceptions are."""
    server_process.settings["STORE_LOG_LEVEL"] = "warning"
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        await send_bodies_in_every_way(Stubs(channel))
        assert server_process.stderr() == ""
        break_posts(server_process)
        await expect_error(Stubs(channel).create_post())
    assert server_process.stop() == 0

    (line,) = log_lines(server_process)
    assert (line["event"], line["level"]) == ("unhandled exception", "error")


def test_start_and_stop_are_logged(server_process: ServerProcess) -> None:
    """In order, with the address and times."""
    (server_process.folder / "store.db").unlink()
    server_process.start()
    server_process.stop()
    lines = log_lines(server_process)

    assert [line["event"] for line in lines] == ["schema upgraded", "serving", "stopping", "stopped"]
    assert lines[1]["address"] == server_process.address
    assert all(is_time(line["timestamp"]) and line["level"] == "info" for line in lines)


@pytest.mark.parametrize("log_format", ["", "json"], ids=["auto", "json"])
async def test_terminal_log_is_readable_unless_configured(tmp_path: Path, log_format: str) -> None:
    """Colors and columns on a terminal, JSON if STORE_LOG_FORMAT says so."""
    terminal, stderr = pty.openpty()
    with serve_with_stderr(tmp_path, stderr=stderr, STORE_LOG_FORMAT=log_format, TERM="xterm") as address:
        os.close(stderr)
        async with grpc.aio.insecure_channel(address) as channel:
            call = Stubs(channel).posts.CreatePost(
                posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=SECRET))
            )
            await call
            call_id = str(dict(await call.trailing_metadata())["x-call-id"])
    log = _all_of(terminal)

    (line,) = [it for it in log.splitlines() if call_id in it]
    assert "storeapi.v1.PostService/CreatePost" in line
    assert SECRET not in log
    if log_format == "json":
        assert json.loads(line)["code"] == "OK"
    else:
        assert not line.startswith("{")
        assert "\x1b[" in line, "no colours"


def _all_of(terminal: int) -> str:
    """What was written to a terminal whose other end is closed."""
    parts = []
    try:
        while part := os.read(terminal, 65_536):
            parts.append(part)
    except OSError:
        pass  # how Linux tells the end
    os.close(terminal)
    return b"".join(parts).decode()


# The reader of the log


@dataclass
class Served:
    """A server with a configurable log destination."""

    process: subprocess.Popen[bytes]
    address: str

    async def create_posts(self, count: int) -> None:
        async with grpc.aio.insecure_channel(self.address) as channel:
            for _ in range(count):
                await Stubs(channel).posts.CreatePost(
                    posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="a")), timeout=scaled_timeout()
                )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(scaled_timeout())


@contextmanager
def logging_to(stderr: int, folder: Path) -> Iterator[Served]:
    """A server until the end of the block; the file descriptor is closed here when the server has it."""
    with start_module(
        "store_service",
        "serve",
        "--listen=127.0.0.1:0",
        folder=folder,
        environment=os.environ | {"STORE_LOG_LEVEL": "info"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
    ) as process:
        os.close(stderr)
        try:
            assert process.stdout is not None
            yield Served(process, process.stdout.readline().decode().split()[-1])
        finally:
            process.kill()


async def test_full_disk_of_the_log_affects_no_call(database_file: Path) -> None:
    """Lines that cannot be written are dropped."""
    with logging_to(os.open("/dev/full", os.O_WRONLY), database_file.parent) as served:
        await served.create_posts(20)
        assert served.stop() == 0


async def test_closed_log_pipe_affects_no_call(database_file: Path) -> None:
    """As after the crash of a log shipper."""
    read, write = os.pipe()
    with logging_to(write, database_file.parent) as served:
        os.close(read)
        await served.create_posts(20)
        assert served.stop() == 0


async def test_blocked_log_pipe_affects_no_call_and_no_stop(database_file: Path) -> None:
    """A pipe holds about 300 lines; more are not awaited, and the server stops without them."""
    read, write = os.pipe()
    with logging_to(write, database_file.parent) as served:
        await served.create_posts(700)
        assert served.stop() == 0
    os.close(read)


@pytest.fixture
def configured() -> None:
    """Logs as a server writes them."""
    logs.configure(level="info", format="json")


@pytest.mark.usefixtures("configured")
def test_log_queue_is_bounded(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """While the reader is blocked, lines do not fill the memory; the oldest are written."""
    monkeypatch.setattr(logs, "MAX_BUFFERED_BYTES", 1000)
    is_writing, may_write = threading.Event(), threading.Event()

    def stuck(chunk: bytes) -> bool:
        is_writing.set()
        may_write.wait(scaled_timeout())
        return bool(os.write(2, chunk))

    monkeypatch.setattr(logs, "_write_to_stderr", stuck)
    log = structlog.get_logger("test")
    with logs.in_background():
        log.warning("first")
        assert is_writing.wait(scaled_timeout())
        for _ in range(100):
            log.warning("x" * 100)
        may_write.set()

    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (dropped,) = [line for line in lines if line["event"] == "log lines were dropped"]
    assert lines[0]["event"] == "first"
    assert dropped["count"] + len(lines) - 2 == 100
    assert 0 < len(lines) - 2 < 10


@pytest.mark.usefixtures("configured")
def test_dropped_lines_are_counted(capfd: pytest.CaptureFixture[str]) -> None:
    """As soon as the log can be written again."""
    log = structlog.get_logger("test")
    with logs.in_background():
        with pytest.MonkeyPatch.context() as patch:
            written = threading.Event()
            patch.setattr(logs, "_write_to_stderr", lambda _: written.set() or False)
            log.warning("lost")
            assert written.wait(scaled_timeout())
        log.warning("kept")

    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(it["event"], it.get("count")) for it in events] == [
        ("kept", None),
        ("log lines were dropped", 1),
    ]
