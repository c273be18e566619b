"""Handles the calls of a scripted server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from storeapi.testing._script import Step
from storeapi.testing._upstream import Upstream, seconds_left
from storeapi.v1 import changes_pb2, comments_pb2, posts_pb2, transfer_pb2

METHODS: Final[dict[str, MethodDescriptor]] = {
    method.name: method
    for file in (posts_pb2, comments_pb2, changes_pb2, transfer_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if not method.client_streaming
}
"""Every method for callers and of transfers by name, except Import; names are unique across services."""

_BY_PATH: Final = {f"/{it.containing_service.full_name}/{it.name}": it for it in METHODS.values()}


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that the server received."""

    method: str
    """The name of the RPC, such as "CreatePost"."""
    request: Any
    """The request, a message of `storeapi.v1`."""
    metadata: tuple[tuple[str, str | bytes], ...] = field(repr=False)
    """The metadata, such as an API key; a key may occur more than once."""
    seconds_left: float | None
    """Seconds to the deadline of the caller; None without a deadline."""


@dataclass(frozen=True, kw_only=True)
class _Received:
    data: bytes
    """The serialized request, which is forwarded unchanged."""
    message: Message


class Handlers(grpc.GenericRpcHandler):
    """Every method of the API, and of other services that upstream may have."""

    def __init__(self, begin: Callable[[Call], Step | None], upstream: Upstream | None) -> None:
        """Calls `begin` for each call, which returns the step, or None if the script is empty."""
        self._begin = begin
        self._upstream = upstream

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a method; None if it does not exist."""
        path = handler_call_details.method
        if path in _BY_PATH:
            return self._known(path, _BY_PATH[path])
        return None if self._upstream is None else _unknown(path, self._upstream)

    def _known(self, path: str, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        parse = GetMessageClass(method.input_type).FromString

        def handle(request: _Received, context: grpc.ServicerContext) -> Iterator[bytes]:
            step = self._begin(
                Call(
                    method=method.name,
                    request=request.message,
                    metadata=tuple((key, value) for key, value in context.invocation_metadata()),
                    seconds_left=seconds_left(context),
                )
            )
            if step is not None:
                yield from _play(step, path, request.data, context, self._upstream)
            elif self._upstream is not None:
                yield from self._upstream.forward(path, request.data, context)
            else:
                context.abort(
                    grpc.StatusCode.UNIMPLEMENTED,
                    f"{method.name} was called, but the script has no step for it, and upstream is not set",
                )

        # On the wire a single response is a stream of one message.
        return grpc.unary_stream_rpc_method_handler(
            handle, request_deserializer=lambda data: _Received(data=data, message=parse(data))
        )


def _unknown(path: str, upstream: Upstream) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.stream_stream_rpc_method_handler(
        lambda requests, context: upstream.forward_any(path, requests, context)
    )


def _play(
    step: Step, path: str, data: bytes, context: grpc.ServicerContext, upstream: Upstream | None
) -> Iterator[bytes]:
    """Executes a step, and yields the responses."""
    for message in step.messages:
        yield message.SerializeToString()
    if upstream is not None and step.forwarded:
        yield from upstream.forward(path, data, context, step.forwarded)
    if upstream is not None and step.is_carried_out:
        upstream.carry_out(path, data, context)
    if step.is_silent:
        _wait_for_the_end(context)
    if step.end is not None:
        step.end.end(context)


def _wait_for_the_end(context: grpc.ServicerContext) -> None:
    """Waits until the call ends or the server stops."""
    over = threading.Event()
    if context.add_callback(over.set):
        over.wait()
