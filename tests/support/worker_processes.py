"""The worker processes of a server."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import grpc
from storeapi.v1 import posts_pb2, posts_pb2_grpc

from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout


def worker_pids(process: ServerProcess) -> list[int]:
    """Returns the ids of the worker processes."""
    return _children(process, b"--worker")


def writer_pids(process: ServerProcess) -> list[int]:
    """Returns the id of the writer process. There is none on PostgreSQL, and for a moment after its end."""
    return _children(process, b"--writer-listener")


def _children(process: ServerProcess, option: bytes) -> list[int]:
    """The child processes whose command line has an option."""
    assert process.process is not None
    found = []
    for pid in Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children").read_text().split():
        with suppress(FileNotFoundError):  # it has just ended
            if option in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def kill_processes(pids: list[int]) -> None:
    """Sends SIGKILL to the processes that are still running."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def create_post_on_new_connection(address: str, body: str) -> posts_pb2.Post:
    """Creates a post over a new connection, which the kernel assigns to one of the workers."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body))
        post: posts_pb2.Post = posts_pb2_grpc.PostServiceStub(channel).CreatePost(
            request, wait_for_ready=True, timeout=scaled_timeout()
        )
        return post
