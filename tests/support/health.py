"""The health stream of a server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


@asynccontextmanager
async def health_stream(
    channel: grpc.aio.Channel,
) -> AsyncIterator[AsyncIterator[health_pb2.HealthCheckResponse]]:
    """A health stream after its first response, SERVING."""
    stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    statuses = aiter(stream)
    assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.SERVING
    try:
        yield statuses
    finally:
        stream.cancel()


async def wait_for_not_serving(statuses: AsyncIterator[health_pb2.HealthCheckResponse]) -> None:
    """Waits for NOT_SERVING, the last response of the stream. New calls are refused from then on."""
    assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.NOT_SERVING
