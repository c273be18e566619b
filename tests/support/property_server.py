"""A server as a child process, and synchronous calls of it."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from storeapi.v1 import comments_pb2, comments_pb2_grpc, posts_pb2, posts_pb2_grpc

from tests.support.errors import ReceivedError, received_error
from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout

SQLITE_ONLY = pytest.mark.parametrize("engine", ["sqlite"], indirect=True, scope="module")
"""For tests of requests that never reach the database."""


@dataclass
class LiveServer:
    """A running server and its stubs."""

    process: ServerProcess
    channel: grpc.Channel

    def __post_init__(self) -> None:
        self.posts = posts_pb2_grpc.PostServiceStub(self.channel)
        self.comments = comments_pb2_grpc.CommentServiceStub(self.channel)

    @property
    def is_alive(self) -> bool:
        assert self.process.process is not None
        return self.process.process.poll() is None

    def do(self, method: Callable[..., Any], request: Message) -> Any:
        """Returns the response of a call that must succeed."""
        return method(request, timeout=scaled_timeout())

    def attempt(self, method: Callable[..., Any], request: Any) -> Any:
        """Returns the response of a call, or its error."""
        try:
            return method(request, timeout=scaled_timeout())
        except grpc.RpcError as error:
            return received_error(error)

    def create_posts(self, *bodies: str) -> list[posts_pb2.Post]:
        requests = [posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body)) for body in bodies]
        return list(
            self.do(self.posts.BatchCreatePosts, posts_pb2.BatchCreatePostsRequest(requests=requests)).posts
        )

    def create_comments(self, post_id: int, *bodies: str) -> list[comments_pb2.Comment]:
        comments = [comments_pb2.Comment(post_id=post_id, body=body) for body in bodies]
        requests = [comments_pb2.CreateCommentRequest(comment=comment) for comment in comments]
        batch = comments_pb2.BatchCreateCommentsRequest(requests=requests)
        return list(self.do(self.comments.BatchCreateComments, batch).comments)

    def wipe(self) -> None:
        """Deletes all posts and comments."""
        everything = posts_pb2.ListPostsRequest(page_size=1000)
        while found := self.do(self.posts.ListPosts, everything).posts:
            ids = [post.id for post in found]
            self.do(self.posts.BatchDeletePosts, posts_pb2.BatchDeletePostsRequest(ids=ids, force=True))


@contextlib.contextmanager
def running_server(process: ServerProcess) -> Iterator[LiveServer]:
    """Runs a server until the end of the block, where it must have met no bug and must stop cleanly."""
    with contextlib.closing(grpc.insecure_channel(process.start().address)) as channel:
        yield LiveServer(process, channel)
    assert process.stop() == 0, process.stderr()
    assert '"event": "unhandled exception"' not in process.stderr()


def error_reason(outcome: Any) -> str | None:
    """Returns the reason of an error; None for a response."""
    return outcome.reason if isinstance(outcome, ReceivedError) else None
