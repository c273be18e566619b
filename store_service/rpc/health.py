"""The health service, which looks at the database before it answers.

"" is the whole server; each service is as healthy as the server, for all need the database. LIVE is the
process alone: it serves as long as the process can answer at all.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import grpc
import structlog
from grpc_health.v1 import health_pb2 as pb

from store_service.rpc.call import Context

LIVE = "live"
"""The process itself, for whoever would start it anew. No service of the contract has such a name."""

LOOK_SECONDS = 2.0
"""A database that takes longer to answer is not healthy."""

WATCH_SECONDS = 1.0
"""How often a watched status is looked at."""

_SERVING = pb.HealthCheckResponse.SERVING
_NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING

log = structlog.get_logger("store_service.rpc")


class HealthService:
    """The methods of grpc.health.v1.Health."""

    def __init__(self, look: Callable[[], Awaitable[None]], service_names: Iterable[str]) -> None:
        """Takes how to look at the database, which raises when it is not well, and what is served."""
        self._look = look
        self._names = {"", *service_names}
        """What is as healthy as the database."""
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Answers NOT_SERVING from now on, tells those who watch, and ends their streams.

        LIVE stays SERVING: a server that finishes its calls must not be killed for it.
        """
        self._stopping.set()

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        if request.service not in {LIVE, *self._names}:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return pb.HealthCheckResponse(status=await self._status(request.service))

    async def List(self, request: pb.HealthListRequest, _: Context) -> pb.HealthListResponse:
        statuses = dict.fromkeys(sorted(self._names), pb.HealthCheckResponse(status=await self._status("")))
        statuses[LIVE] = pb.HealthCheckResponse(status=await self._status(LIVE))
        return pb.HealthListResponse(statuses=statuses)

    async def Watch(
        self, request: pb.HealthCheckRequest, _: Context
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """Sends the status, and again whenever it has changed."""
        known = request.service in {LIVE, *self._names}
        last = None
        while True:
            # Seen before the status is: a stop that begins meanwhile is told of in the next round.
            is_last = self._stopping.is_set()
            status = await self._status(request.service) if known else pb.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                yield pb.HealthCheckResponse(status=status)
                last = status
            if is_last:
                return
            try:
                await asyncio.wait_for(self._stopping.wait(), WATCH_SECONDS)
            except TimeoutError:
                continue

    async def _status(self, name: str) -> pb.HealthCheckResponse.ServingStatus:
        if name == LIVE:
            return _SERVING
        if self._stopping.is_set():
            return _NOT_SERVING
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._look()
        except Exception as error:
            # Whatever it is: a server that cannot look at its database is not healthy.
            log.warning("not healthy", error=type(error).__name__, cause=str(error.__cause__ or error))
            return _NOT_SERVING
        return _SERVING
