"""The health service at the moment when the server begins to stop."""

from typing import cast
from unittest.mock import Mock

import pytest
from grpc_health.v1 import health_pb2 as pb

from store_service.rpc.call import Context
from store_service.rpc.health import LIVE, HealthService

CONTEXT = cast(Context, Mock(peer=lambda: "ipv4:127.0.0.1:1"))
"""What is asked of a call is where it comes from."""


async def search_is_ready() -> bool:
    return True


async def test_health_watch_sees_a_stop_during_a_check() -> None:
    """Its last status is never the one from before."""

    async def stop_meanwhile() -> None:
        service.stop()

    service = HealthService(stop_meanwhile, search_is_ready, [], max_watches=1)
    watch = service.Watch(pb.HealthCheckRequest(), CONTEXT)

    assert [answer.status async for answer in watch] == [pb.HealthCheckResponse.NOT_SERVING]


async def test_draining_process_stays_live() -> None:

    async def look() -> None:
        pytest.fail("it was looked at")

    service = HealthService(look, search_is_ready, [], max_watches=1)
    watch = service.Watch(pb.HealthCheckRequest(service=LIVE), CONTEXT)
    first = await anext(watch)
    service.stop()

    assert first.status == pb.HealthCheckResponse.SERVING
    assert [answer.status async for answer in watch] == []
    live, whole = [
        (await service.Check(pb.HealthCheckRequest(service=name), CONTEXT)).status for name in (LIVE, "")
    ]
    assert (live, whole) == (pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING)
    listed = (await service.List(pb.HealthListRequest(), CONTEXT)).statuses
    assert listed[LIVE].status == pb.HealthCheckResponse.SERVING
