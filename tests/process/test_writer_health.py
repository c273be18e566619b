"""Health detects a disk that accepts no writes, also without callers."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from storeapi.v1 import posts_pb2, posts_pb2_grpc

from tests.support.errors import received_error
from tests.support.polling import wait_until
from tests.support.server_process import ServerProcess

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@contextmanager
def no_file_can_be_written(process: ServerProcess) -> Iterator[None]:
    """Every write of the process to a file fails, as on a disk that has died; reads work."""
    assert process.process is not None
    pid = process.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("somebody_writes", [True, False])
def test_health_reports_a_disk_that_takes_no_writes(
    server_process: ServerProcess, somebody_writes: bool
) -> None:
    """A probe detects it on an idle server, and detects the recovery."""
    server_process.start()
    with grpc.insecure_channel(server_process.address) as channel:
        posts: Any = posts_pb2_grpc.PostServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        post = posts_pb2.Post(body="a")

        def status() -> Any:
            return health.Check(health_pb2.HealthCheckRequest()).status

        created = posts.CreatePost(posts_pb2.CreatePostRequest(post=post))
        assert status() == SERVING

        with no_file_can_be_written(server_process):
            if somebody_writes:
                with pytest.raises(grpc.RpcError) as refused:
                    posts.CreatePost(posts_pb2.CreatePostRequest(post=post))
                assert received_error(refused.value).reason == "DATABASE_UNAVAILABLE"
            wait_until(lambda: status() == NOT_SERVING)
            assert posts.GetPost(posts_pb2.GetPostRequest(id=created.id)).body == "a"

        wait_until(lambda: status() == SERVING)
        assert posts.CreatePost(posts_pb2.CreatePostRequest(post=post)).id > created.id
