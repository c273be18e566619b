"""The health service at the moment when the server begins to stop."""

from typing import cast

from grpc_health.v1 import health_pb2 as pb

from store_service.rpc.call import Context
from store_service.rpc.health import HealthService


async def test_a_watch_is_told_of_a_stop_that_begins_while_it_looks() -> None:
    """Its last status is never the one from before."""

    async def stop_meanwhile() -> None:
        service.stop()

    service = HealthService(stop_meanwhile, [])
    watch = service.Watch(pb.HealthCheckRequest(), cast(Context, None))

    assert [answer.status async for answer in watch] == [
        pb.HealthCheckResponse.SERVING,
        pb.HealthCheckResponse.NOT_SERVING,
    ]
