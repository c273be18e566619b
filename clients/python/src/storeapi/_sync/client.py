# Made from storeapi/_async/client.py by tools/generate_sync.py: change that one, then `make protos`.
"""StoreClient: the channel and what hangs on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from storeapi._connection import DEFAULT_TARGET, check_own_channel, new_channel
from storeapi._sync.calls import Calls
from storeapi._sync.comments import Comments
from storeapi._sync.posts import Posts
from storeapi.v1 import changes_pb2_grpc, comments_pb2_grpc, posts_pb2_grpc


@dataclass(frozen=True, kw_only=True, slots=True)
class RawStubs:
    """The generated stubs, on the client's channel.

    They take and give messages of `storeapi.v1`, know nothing of the client's timeout, and raise
    grpc.RpcError.
    """

    posts: posts_pb2_grpc.PostServiceStub
    """Every method of PostService."""
    comments: comments_pb2_grpc.CommentServiceStub
    """Every method of CommentService."""
    changes: changes_pb2_grpc.ChangeServiceStub
    """Every method of ChangeService."""


class StoreClient:
    """A client of the posts-and-comments service, to be shared by the threads of one process.

    It connects at its first call and connects again whenever the connection was lost, so one client can
    live as long as the program:

        with StoreClient("store.example.com:50051") as client:
            post = client.posts.create(body="Hello")

    A call that fails raises a StoreError; the tree is drawn in `storeapi.errors`. Failed calls are not
    repeated: whether to call again is the caller's choice.
    """

    posts: Posts
    """Adds, reads, changes and deletes posts."""
    comments: Comments
    """Adds, reads, changes, counts and deletes comments."""
    raw: RawStubs
    """The generated stubs, for what the methods here do not offer."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float | None = 10.0,
        credentials: grpc.ChannelCredentials | None = None,
        channel_options: Sequence[tuple[str, Any]] = (),
        channel: grpc.Channel | None = None,
    ) -> None:
        """Prepares the connection; nothing is sent before the first call.

        Args:
            target: Address of the server, such as `store.example.com:50051`, or any other gRPC target.
            timeout: Deadline in seconds of each call that names none of its own; None for no deadline.
            credentials: What to encrypt with, such as `grpc.ssl_channel_credentials()`. Without, the
                connection is not encrypted.
            channel_options: gRPC channel options on top of the client's own, which is a receive limit of
                64 MiB for one message.
            channel: A finished channel instead of a new one, with interceptors, for example. It is not
                closed with the client, and `target`, `credentials` and `channel_options` must be left out.

        Raises:
            TypeError: `channel` is a channel of the other kind, or none.
            ValueError: `channel` is given together with what only a new channel could follow.
        """
        self._own_channel: grpc.Channel | None = None
        if channel is None:
            channel = self._own_channel = new_channel(target, credentials, channel_options)
        else:
            check_own_channel(channel, grpc.Channel, target, credentials, channel_options)
        self._calls = Calls(timeout)
        self.raw = RawStubs(
            posts=posts_pb2_grpc.PostServiceStub(channel),
            comments=comments_pb2_grpc.CommentServiceStub(channel),
            changes=changes_pb2_grpc.ChangeServiceStub(channel),
        )
        self.posts = Posts(self._calls, self.raw.posts)
        self.comments = Comments(self._calls, self.raw.comments)

    def close(self) -> None:
        """Closes the connection, which ends open calls, and refuses new ones; closing again does nothing."""
        self._calls.close()
        if self._own_channel is not None:
            self._own_channel.close()

    def __enter__(self) -> StoreClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
