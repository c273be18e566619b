"""The health service, which looks at the database before it answers.

"" is the whole server; each service is as healthy as the server, for all need the database. LIVE is the
process alone: it serves as long as the process can answer at all.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager

import grpc
import structlog
from grpc_health.v1 import health_pb2 as pb

from store_service.errors import WatchLimit
from store_service.pacing import Signal
from store_service.repeated_failure import RepeatedFailure
from store_service.rpc.call import Context

LIVE = "live"
"""The process itself, for whoever would start it anew. No service of the contract has such a name."""

LOOK_SECONDS = 2.0
"""A database that takes longer to answer is not healthy."""

WATCH_SECONDS = 1.0
"""How often a watched status is looked at, once for all who watch."""

MAX_WATCHES_PER_CONNECTION = 20
"""Health watches of one connection. A client has one for each name that it asks about, and there are five."""

_SERVING = pb.HealthCheckResponse.SERVING
_NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING

log = structlog.get_logger("store_service.rpc")


class HealthService:
    """The methods of grpc.health.v1.Health."""

    def __init__(
        self, look: Callable[[], Awaitable[None]], service_names: Iterable[str], *, max_watches: int
    ) -> None:
        """Takes how health is found out and who may watch it.

        Args:
            look: Looks at the database, and raises when it is not well.
            service_names: What is served.
            max_watches: How many may be open at once; the first of each connection always may.
        """
        self._look = look
        self._names = {"", *service_names}
        """What is as healthy as the database."""
        self._max_watches = max_watches
        self._watches: Counter[str] = Counter()
        """How many are open, by the other end of their connection as gRPC names it."""
        self._stopping = False
        self._changed = Signal()
        """A watched status may be another one."""
        self._seen: pb.HealthCheckResponse.ServingStatus | None = None
        self._waiting = 0
        """How many watch what is as healthy as the database."""
        self._looking: asyncio.Task[None] | None = None
        self._failure = RepeatedFailure(log, "not healthy", end_event="healthy again")

    def stop(self) -> None:
        """Answers NOT_SERVING from now on, tells those who watch, and ends their streams.

        LIVE stays SERVING: a server that finishes its calls must not be killed for it.
        """
        self._stopping = True
        self._changed.notify()

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        if request.service not in {LIVE, *self._names}:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return pb.HealthCheckResponse(status=await self._status(request.service))

    async def List(self, request: pb.HealthListRequest, _: Context) -> pb.HealthListResponse:
        statuses = dict.fromkeys(sorted(self._names), pb.HealthCheckResponse(status=await self._status("")))
        statuses[LIVE] = pb.HealthCheckResponse(status=await self._status(LIVE))
        return pb.HealthListResponse(statuses=statuses)

    async def Watch(
        self, request: pb.HealthCheckRequest, context: Context
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """Sends the status, and again whenever it has changed.

        Raises:
            WatchLimit: Too many are open.
        """
        with self._watch_slot(context.peer()), self._looked_at(request.service):
            last = None
            while True:
                seen = self._changed.count
                is_last = self._stopping
                status = self._watched(request.service)
                if status is not None and status != last:
                    yield pb.HealthCheckResponse(status=status)
                    last = status
                if is_last:
                    return
                await self._changed.wait(seen)

    @contextmanager
    def _watch_slot(self, peer: str) -> Iterator[None]:
        own, limit = self._watches[peer], self._max_watches
        # All connections over a socket have one name: there only the limit for all is kept.
        if own >= MAX_WATCHES_PER_CONNECTION and not peer.startswith("unix:"):
            raise WatchLimit(limit=MAX_WATCHES_PER_CONNECTION, kind="health watches", where="connection")
        # A connection's first is let in, so that nobody can have all the others told that the server is gone.
        if own and self._watches.total() >= limit:
            raise WatchLimit(limit=limit, kind="health watches")
        self._watches[peer] += 1
        try:
            yield
        finally:
            self._watches[peer] -= 1
            if not self._watches[peer]:
                del self._watches[peer]

    @contextmanager
    def _looked_at(self, name: str) -> Iterator[None]:
        """Until the end of the block the database is looked at, if the name's health is the database's."""
        if name not in self._names:
            yield
            return
        self._waiting += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_for_all(), name="health")
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._looking.cancel()
                self._looking = self._seen = None

    async def _look_for_all(self) -> None:
        while not self._stopping:
            status = await self._status("")
            if status != self._seen:
                self._seen = status
                self._changed.notify()
            await asyncio.sleep(WATCH_SECONDS)

    def _watched(self, name: str) -> pb.HealthCheckResponse.ServingStatus | None:
        """The status of a name as it is known; None before the first look."""
        if name == LIVE:
            return _SERVING
        if name not in self._names:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        return _NOT_SERVING if self._stopping else self._seen

    async def _status(self, name: str) -> pb.HealthCheckResponse.ServingStatus:
        if name == LIVE:
            return _SERVING
        if self._stopping:
            return _NOT_SERVING
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._look()
        except Exception as error:
            # Whatever it is: a server that cannot look at its database is not healthy.
            self._failure.failed(error=type(error).__name__, cause=str(error.__cause__ or error))
            return _NOT_SERVING
        self._failure.ended()
        return _SERVING
