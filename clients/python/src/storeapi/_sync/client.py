# Made from storeapi/_async/client.py by tools/generate_sync.py: change that one, then `make protos`.
"""StoreClient: the channel, the stubs and the resource methods."""

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
from storeapi._consistency import Consistency, checked
from storeapi._metadata import with_metadata
from storeapi._sync.admin import Admin
from storeapi._sync.calls import Calls
from storeapi._sync.changes import Changes
from storeapi._sync.comments import Comments
from storeapi._sync.posts import Posts
from storeapi._sync.transfer import Transfer
from storeapi.v1 import (
    admin_pb2_grpc,
    changes_pb2_grpc,
    comments_pb2_grpc,
    posts_pb2_grpc,
    transfer_pb2_grpc,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RawStubs:
    """The generated stubs, on the client's channel.

    They use the messages of `storeapi.v1` and send the API key of the client. They have no default deadline,
    no retries and no request ids, and raise grpc.RpcError.
    """

    posts: posts_pb2_grpc.PostServiceStub
    """Every method of PostService."""
    comments: comments_pb2_grpc.CommentServiceStub
    """Every method of CommentService."""
    changes: changes_pb2_grpc.ChangeServiceStub
    """Every method of ChangeService."""
    admin: admin_pb2_grpc.AdminServiceStub
    """Every method of AdminService."""
    transfer: transfer_pb2_grpc.TransferServiceStub
    """Every method of TransferService."""


class StoreClient:
    """A client of the posts-and-comments service, to be shared by the threads of one process.

    It connects at its first call and reconnects when the connection is lost. Use one client for the lifetime
    of the program:

        with StoreClient("store.example.com:50051") as client:
            post = client.posts.create(body="Hello")

    Every call has a deadline. A call that fails because the service is unavailable is repeated until then,
    with growing pauses. This is safe for writes, because each has a request_id. A call that fails finally
    raises a StoreError; `storeapi.errors` shows the tree.
    """

    posts: Posts
    """Creates, reads, updates, counts and deletes posts."""
    comments: Comments
    """Creates, reads, updates, counts and deletes comments."""
    changes: Changes
    """The change feed."""
    admin: Admin
    """Erases authors."""
    transfer: Transfer
    """Exports and imports everything."""
    raw: RawStubs
    """The generated stubs."""

    def __init__(
        self,
        target: str | Sequence[str] | None = None,
        *,
        timeout: Timeout = CLIENT_DEFAULT,
        retries: bool = True,
        consistency: Consistency | None = None,
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

        The environment provides defaults.

        Args:
            target: Address of the server, such as `store.example.com:50051`, or any other gRPC target.
                Several addresses, in a list or separated by commas, are used in turn, except those that do
                not respond; their names are resolved now, and with TLS they must be the same. A single name
                may have several addresses too. None: STOREAPI_TARGET, or localhost:50051.
            timeout: Default deadline in seconds of a call with all its attempts; above 0 and at most
                100,000,000; None for no deadline. CLIENT_DEFAULT: STOREAPI_TIMEOUT, or 10.
            retries: Whether to repeat calls that failed because the service is unavailable.
            consistency: What reads include if the service has read replicas. "own_writes": everything that
                was stored before the first call of this client, and everything that this client has written,
                read or watched. "strong": everything that was stored before the read, from the primary.
                "eventual": the state of any replica, which can lag. None: STOREAPI_CONSISTENCY, or
                "own_writes".
            api_key: The API key to authenticate with. None: STOREAPI_API_KEY.
            tls: Whether to use TLS. None: STOREAPI_TLS, or yes if a certificate is given.
            tls_ca: The certificate authority of the server: path of a PEM file, or its bytes. None:
                STOREAPI_TLS_CA, or the authorities that gRPC knows.
            tls_cert: The client certificate, for mTLS. None: STOREAPI_TLS_CERT.
            tls_key: Its private key. None: STOREAPI_TLS_KEY.
            credentials: gRPC credentials instead of these four, such as `grpc.ssl_channel_credentials()`.
            channel_options: gRPC channel options; they override `storeapi.CHANNEL_OPTIONS`.
            channel: An existing channel, with interceptors for example. It is not closed with the client, and
                excludes the arguments that configure a channel.

        Raises:
            TypeError: `channel` is a channel of the other kind, or not a channel.
            ValueError: An argument or variable is invalid, or a file cannot be read; the message names it.
        """
        self._own_channel: grpc.Channel | None = None
        options: dict[str, Any] = {
            "target": target,
            "tls": tls,
            "tls_ca": tls_ca,
            "tls_cert": tls_cert,
            "tls_key": tls_key,
            "credentials": credentials,
            "channel_options": tuple(channel_options),
        }
        consistency = checked(consistency)
        if channel is None:
            settings = connection(timeout=timeout, api_key=api_key, **options)
            channel = self._own_channel = new_channel(settings)
        else:
            settings = connection_of_channel(
                channel, grpc.Channel, timeout=timeout, api_key=api_key, **options
            )
        self._target = settings.target
        channel = with_metadata(channel, settings.metadata)
        self._calls = Calls(
            timeout=settings.timeout, retries=retries, goal=settings.goal, consistency=consistency
        )
        self.raw = RawStubs(
            posts=posts_pb2_grpc.PostServiceStub(channel),
            comments=comments_pb2_grpc.CommentServiceStub(channel),
            changes=changes_pb2_grpc.ChangeServiceStub(channel),
            admin=admin_pb2_grpc.AdminServiceStub(channel),
            transfer=transfer_pb2_grpc.TransferServiceStub(channel),
        )
        self.posts = Posts(self._calls, self.raw.posts)
        self.comments = Comments(self._calls, self.raw.comments)
        self.changes = Changes(self._calls, self.raw.changes)
        self.admin = Admin(self._calls, self.raw.admin)
        self.transfer = Transfer(self._calls, self.raw.transfer)

    @property
    def consistency_token(self) -> str:
        """What this client has written and read, for `read_at_least` of another client; empty if the service
        has no read replicas, or with another consistency than "own_writes"."""
        return self._calls.reads.token

    def read_at_least(self, token: str) -> None:
        """Makes later reads include what another client has written, read or watched.

            client.read_at_least(token)

        Args:
            token: The `consistency_token` of that client, or a resume token of a watch. A token that the
                service refuses raises ConsistencyTokenInvalid or ConsistencyTokenForeign at the next read.
        """
        self._calls.reads.require(token)

    def close(self) -> None:
        """Closes the connection and ends open calls; closing again has no effect."""
        self._calls.close()
        if self._own_channel is not None:
            self._own_channel.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({repr(self._target) if self._target else 'channel=...'})"

    def __enter__(self) -> StoreClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
