"""What several test modules need: stubs, errors read from a status, a server as a process."""

import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from storeapi.v1 import changes_pb2_grpc, comments_pb2, comments_pb2_grpc, posts_pb2, posts_pb2_grpc

from tests.patience import patience

IS_LONG = bool(os.environ.get("STORE_TEST_LONG"))
"""Whether tests that find more the longer they run take their time, as in `make torture`."""

LITTLE_AHEAD = [("grpc.http2.bdp_probe", 0)]
"""Options of a caller's channel that takes 64 KiB of a stream ahead of what is read, however fast it comes.

Without them gRPC takes as much as it guesses that the network holds: 25 MB on a busy machine.
"""

DETAIL_TYPES = {
    message.DESCRIPTOR.full_name: message
    for message in (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.ResourceInfo,
        error_details_pb2.PreconditionFailure,
        error_details_pb2.QuotaFailure,
        error_details_pb2.RetryInfo,
        error_details_pb2.RequestInfo,
    )
}


class Stubs:
    """The stubs of all services, with short ways to store something."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.posts = posts_pb2_grpc.PostServiceStub(channel)
        self.comments = comments_pb2_grpc.CommentServiceStub(channel)
        self.changes = changes_pb2_grpc.ChangeServiceStub(channel)

    async def create_post(self, body: str = "a post") -> posts_pb2.Post:
        return await self.posts.CreatePost(posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body)))

    async def create_comment(self, post_id: int, body: str = "a comment") -> comments_pb2.Comment:
        comment = comments_pb2.Comment(post_id=post_id, body=body)
        return await self.comments.CreateComment(comments_pb2.CreateCommentRequest(comment=comment))


@dataclass(frozen=True)
class ErrorSeen:
    """An error as a caller sees it."""

    code: grpc.StatusCode
    message: str
    details: list[Message]
    trailing: dict[str, Any]

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        return self.detail(error_details_pb2.ErrorInfo)

    @property
    def reason(self) -> str:
        return self.info.reason

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.info.metadata)

    @property
    def fields(self) -> list[str]:
        """The paths of the BadRequest, in order."""
        return [it.field for it in self.detail(error_details_pb2.BadRequest).field_violations]

    def detail(self, kind: type[Any]) -> Any:
        """The one detail of a type."""
        (found,) = [it for it in self.details if isinstance(it, kind)]
        return found


def error_seen(error: grpc.RpcError) -> ErrorSeen:
    """Reads the error that a call raised."""
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
    details = []
    for packed in status.details:
        message = DETAIL_TYPES[packed.TypeName()]()
        assert packed.Unpack(message)
        details.append(message)
    if details:
        assert status.code == error.code().value[0]
        assert status.message == error.details()
    return ErrorSeen(code=error.code(), message=error.details() or "", details=details, trailing=trailing)


async def failure(call: Any) -> ErrorSeen:
    """Awaits a call that must fail, and reads its error."""
    try:
        answer = await call
    except grpc.RpcError as error:
        return error_seen(error)
    raise AssertionError(f"the call succeeded with {answer}")


@dataclass
class ServerProcess:
    """`store-service serve` in a process of its own, in a folder of its own."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    """Environment variables besides the port, which the system chooses."""
    program: tuple[str, ...] = ("-m", "store_service")
    """What Python runs; something else may change constants first."""
    process: subprocess.Popen[bytes] | None = None
    address: str = ""

    def start(self) -> "ServerProcess":
        """Starts it and waits for the line with the address, which `self.address` then holds."""
        self.begin()
        assert self.process is not None
        try:
            line = _first_line(self.process, patience())
            prefix = "store-service is serving on "
            assert line.startswith(prefix), f"{line!r}; stderr: {self.stderr()}"
        except BaseException:
            # Fixtures end what they have started; this they have not.
            self.kill()
            raise
        self.address = line.removeprefix(prefix).strip()
        return self

    def begin(self) -> None:
        """Starts it and waits for nothing."""
        environment = _without_settings(os.environ)
        environment |= {"STORE_LISTEN": "127.0.0.1:0", **self.settings}
        with (self.folder / "stderr.log").open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "serve"],
                cwd=self.folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )

    def stderr(self) -> str:
        """Everything it has written to stderr, over all its starts."""
        path = self.folder / "stderr.log"
        return path.read_text() if path.exists() else ""

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """Waits for its end and returns its exit code."""
        assert self.process is not None
        code = self.process.wait(patience(seconds))
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.signal()
        return self.wait()

    def kill(self) -> None:
        """SIGKILL, if it is running."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.wait()

    @property
    def rss_bytes(self) -> int:
        """Resident memory."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def most_rss_bytes(self) -> int:
        """The most resident memory that it has had so far."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which nobody's own settings reach the tests, or their database."""
    ours = ("STORE_", "DATABASE_URL", "DB_FORCE_ROLL_BACK")
    return {key: value for key, value in environment.items() if not key.startswith(ours)}


def _first_line(process: subprocess.Popen[bytes], seconds: float) -> str:
    assert process.stdout is not None
    stdout = process.stdout
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
    try:
        return lines.get(timeout=seconds).decode()
    except queue.Empty:
        return ""


def run_command(
    *arguments: str, folder: Path, settings: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `store-service` with arguments to its end."""
    environment = _without_settings(os.environ)
    return subprocess.run(
        [sys.executable, "-m", "store_service", *arguments],
        cwd=folder,
        env=environment | (settings or {}),
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
    )


def wait_until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Polls what no event tells of; for other processes' files and sockets only."""
    end = time.monotonic() + patience(seconds)
    while not condition():
        assert time.monotonic() < end, "it did not become so in time"
        time.sleep(0.01)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses, for servers that must come back to the same one.

    The system gives it to nobody who lets it choose, and it chooses from 32768 on.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
