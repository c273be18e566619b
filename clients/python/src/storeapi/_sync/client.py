# Made from storeapi/_async/client.py by tools/generate_sync.py: change that one, then `make protos`.
"""StoreClient: the channel and what hangs on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from storeapi._connection import (
    CLIENT_DEFAULT,
    Secret,
    Timeout,
    connection,
    connection_of_channel,
    new_channel,
)
from storeapi._metadata import with_metadata
from storeapi._sync.calls import Calls
from storeapi._sync.changes import Changes
from storeapi._sync.comments import Comments
from storeapi._sync.posts import Posts
from storeapi.v1 import changes_pb2_grpc, comments_pb2_grpc, posts_pb2_grpc


@dataclass(frozen=True, kw_only=True, slots=True)
class RawStubs:
    """The generated stubs, on the client's channel.

    They take and give messages of `storeapi.v1`, carry the client's API key, know nothing of its timeout, its
    retries and its request ids, and raise grpc.RpcError.
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

    Every call has a deadline. A call that fails because the service cannot be reached or cannot answer now is
    made again until then, with growing pauses; writes too, for each carries a request_id by which the service
    does nothing twice. Whatever fails in the end raises a StoreError; the tree is drawn in `storeapi.errors`.
    """

    posts: Posts
    """Adds, reads, changes and deletes posts."""
    comments: Comments
    """Adds, reads, changes, counts and deletes comments."""
    changes: Changes
    """Tells what changed."""
    raw: RawStubs
    """The generated stubs, for what the methods here do not offer."""

    def __init__(
        self,
        target: str | Sequence[str] | None = None,
        *,
        timeout: Timeout = CLIENT_DEFAULT,
        retries: bool = True,
        api_key: str | None = None,
        tls: bool | None = None,
        tls_ca: Secret | None = None,
        tls_cert: Secret | None = None,
        tls_key: Secret | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        channel_options: Sequence[tuple[str, Any]] = (),
        channel: grpc.Channel | None = None,
    ) -> None:
        """Prepares the connection; nothing is sent before the first call.

        What is not given is taken from the environment, if it is there.

        Args:
            target: Address of the server, such as `store.example.com:50051`, or any other gRPC target.
                Several addresses, in a list or separated by commas, are used in turn, and one that does not
                answer is left out; their names are looked up now, and with TLS they must be the same. A
                single name may have several addresses too. None: STOREAPI_TARGET, or localhost:50051.
            timeout: Deadline in seconds of each call that names none of its own, with all its tries; above 0
                and at most 100,000,000; None for no deadline. CLIENT_DEFAULT: STOREAPI_TIMEOUT, or 10.
            retries: Whether to make calls again that failed for want of the service.
            api_key: Who calls, for a service that asks. None: STOREAPI_API_KEY.
            tls: Whether to encrypt. None: STOREAPI_TLS, or yes if a certificate is given.
            tls_ca: What the server's certificate must be signed by: path of a PEM file, or its bytes. None:
                STOREAPI_TLS_CA, or the authorities that gRPC knows.
            tls_cert: The client's own certificate, for a server that wants one. None: STOREAPI_TLS_CERT.
            tls_key: The key that belongs to it. None: STOREAPI_TLS_KEY.
            credentials: gRPC's own object instead of these four, such as `grpc.ssl_channel_credentials()`.
            channel_options: gRPC channel options; they go before the client's own, which are
                `storeapi.CHANNEL_OPTIONS`.
            channel: A finished channel instead of a new one, with interceptors, for example. It is not
                closed with the client, and what only a new channel can follow must be left out.

        Raises:
            TypeError: `channel` is a channel of the other kind, or none.
            ValueError: Something does not fit, or a file cannot be read; one line names the argument or the
                variable.
        """
        self._own_channel: grpc.Channel | None = None
        if channel is None:
            settings = connection(
                target=target,
                timeout=timeout,
                api_key=api_key,
                tls=tls,
                tls_ca=tls_ca,
                tls_cert=tls_cert,
                tls_key=tls_key,
                credentials=credentials,
                channel_options=channel_options,
            )
            channel = self._own_channel = new_channel(settings)
        else:
            settings = connection_of_channel(
                channel,
                grpc.Channel,
                timeout=timeout,
                api_key=api_key,
                target=target,
                tls=tls,
                tls_ca=tls_ca,
                tls_cert=tls_cert,
                tls_key=tls_key,
                credentials=credentials,
                channel_options=tuple(channel_options),
            )
        self._target = settings.target
        channel = with_metadata(channel, settings.metadata)
        self._calls = Calls(timeout=settings.timeout, retries=retries, goal=settings.goal)
        self.raw = RawStubs(
            posts=posts_pb2_grpc.PostServiceStub(channel),
            comments=comments_pb2_grpc.CommentServiceStub(channel),
            changes=changes_pb2_grpc.ChangeServiceStub(channel),
        )
        self.posts = Posts(self._calls, self.raw.posts)
        self.comments = Comments(self._calls, self.raw.comments)
        self.changes = Changes(self._calls, self.raw.changes)

    def close(self) -> None:
        """Closes the connection, which ends open calls, and refuses new ones; closing again does nothing."""
        self._calls.close()
        if self._own_channel is not None:
            self._own_channel.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({repr(self._target) if self._target else 'channel=...'})"

    def __enter__(self) -> StoreClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
