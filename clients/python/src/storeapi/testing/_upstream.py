"""Hands calls on to another server, byte by byte."""

import contextlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

import grpc

_FOR_EVER_SECONDS: Final = 1e9

_OPTIONS: Final = (
    # The sizes of messages are for the caller and for upstream to limit.
    ("grpc.max_receive_message_length", -1),
    # Each try of the caller is one of ours.
    ("grpc.enable_retries", 0),
    # A connection of another test that is waiting to be tried again would make this one wait too.
    ("grpc.use_local_subchannel_pool", 1),
)


def seconds_left(context: grpc.ServicerContext) -> float | None:
    """How long the caller waits; None for a caller without a deadline."""
    # Without a deadline gRPC counts to the end of its own time, some centuries away.
    left = context.time_remaining()
    return left if left is not None and left < _FOR_EVER_SECONDS else None


class Upstream:
    """A channel to the server that does what the script does not."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)

    def close(self) -> None:
        """Ends every call that is still open."""
        self._channel.close()

    def forward(
        self, path: str, request: bytes, context: grpc.ServicerContext, limit: int | None = None
    ) -> Iterator[bytes]:
        """Yields the responses of upstream, at most `limit`, and ends the call as upstream does."""
        # A unary response is read as a stream of one message, because gRPC sends both in the same way.
        yield from _handed_on(self._channel.unary_stream(path), request, context, limit)

    def forward_any(
        self, path: str, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """The same for a method of which nothing is known, such as one of the health service."""
        yield from _handed_on(self._channel.stream_stream(path), requests, context, None)

    def carry_out(self, path: str, request: bytes, context: grpc.ServicerContext) -> None:
        """Executes a call on upstream, and drops its response or error."""
        call = _begin(self._channel.unary_stream(path), request, context)
        with contextlib.suppress(grpc.RpcError):
            for _ in call:
                continue


def _begin(method: Callable[..., Any], request: Any, context: grpc.ServicerContext) -> Any:
    """Starts a call that has the caller's metadata and deadline, and that ends when the caller's does."""
    metadata = [
        (key, value)
        for key, value in context.invocation_metadata()
        # These are about the connection to us, not about the call.
        if key != "user-agent" and not key.startswith("grpc-")
    ]
    call = method(request, metadata=metadata, timeout=seconds_left(context))
    if not context.add_callback(call.cancel):
        call.cancel()
    return call


def _handed_on(
    method: Callable[..., Any], request: Any, context: grpc.ServicerContext, limit: int | None
) -> Iterator[bytes]:
    call = _begin(method, request, context)
    try:
        context.send_initial_metadata(tuple(call.initial_metadata() or ()))
        yield from islice(call, limit)
        if limit is None:
            context.set_trailing_metadata(tuple(call.trailing_metadata() or ()))
    except grpc.RpcError:
        context.set_trailing_metadata(tuple(call.trailing_metadata() or ()))
        context.abort(call.code(), call.details() or "")
