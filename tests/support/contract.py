"""The methods of the contract, read from the descriptors, and calls with raw bytes."""

from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from store_service.server import service_descriptors

METHODS: list[MethodDescriptor] = [method for service in service_descriptors() for method in service.methods]
"""Every method of the contract. Each takes one request; Watch streams its responses."""


def method_path(method: MethodDescriptor) -> str:
    """Returns the path of a method in an HTTP/2 request."""
    return f"/{method.containing_service.full_name}/{method.name}"


_STREAMS = {method_path(method) for method in METHODS if method.server_streaming}


def request_class(method: MethodDescriptor) -> type[Message]:
    """Returns the request type of a method."""
    return GetMessageClass(method.input_type)


def response_class(method: MethodDescriptor) -> type[Message]:
    """Returns the response type of a method."""
    return GetMessageClass(method.output_type)


def send_bytes(channel: grpc.aio.Channel, path: str, data: bytes) -> Any:
    """Calls a method with bytes instead of a message. Returns the bytes of the first response."""
    # Without serializers gRPC sends the bytes unchanged.
    multi_callable: Any = channel.unary_stream(path) if path in _STREAMS else channel.unary_unary(path)
    call = multi_callable(data)
    return _first_response(call) if path in _STREAMS else call


async def _first_response(stream: Any) -> Any:
    """Returns the first response of a stream and cancels the stream."""
    try:
        return await stream.read()
    finally:
        stream.cancel()
