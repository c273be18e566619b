"""The health service, which checks the database for each response.

The service name "" is the whole server. Each gRPC service has the status of the server, because all need the
database. The name LIVE is the process alone: it is SERVING as long as the process responds. The name SEARCH
is SERVING if searches are answered too.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager

import grpc
import structlog
from grpc_health.v1 import health_pb2 as pb

from store_service.errors import ServiceError, WatchLimit
from store_service.pacing import Signal
from store_service.repeated_failure import RepeatedFailure
from store_service.rpc.call import Context

LIVE = "live"
"""Service name for liveness probes, which restart the process. No gRPC service has this name."""

SEARCH = "search"
"""Service name for the index of searches. It is NOT_SERVING while the index is built or is switched off."""

CHECK_TIMEOUT_SECONDS = 2.0
"""Maximum duration of a check of the database. After it, the status is NOT_SERVING."""

WATCH_INTERVAL_SECONDS = 1.0
"""Time between two checks for health watches. One check serves all of them."""

MAX_WATCHES_PER_CONNECTION = 20
"""Maximum number of health watches on one connection. A client needs one for each of the names."""

_SERVING = pb.HealthCheckResponse.SERVING
_NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING

log = structlog.get_logger("store_service.rpc")


class HealthService:
    """The methods of grpc.health.v1.Health."""

    def __init__(
        self,
        check: Callable[[], Awaitable[None]],
        is_search_ready: Callable[[], Awaitable[bool]],
        service_names: Iterable[str],
        *,
        max_watches: int,
    ) -> None:
        """Takes the check of the database and the limit of watches.

        Args:
            check: Checks the database. Raises an error if it is not healthy.
            is_search_ready: Returns whether searches are answered.
            service_names: Full names of the gRPC services.
            max_watches: Maximum number of open health watches. The first watch of a connection is always
                accepted.
        """
        self._check = check
        self._is_search_ready = is_search_ready
        self._names = {"", *service_names, SEARCH}
        """Names that have the status of the database; SEARCH also that of the index."""
        self._max_watches = max_watches
        self._watches: Counter[str] = Counter()
        """Number of open watches by peer as gRPC names it."""
        self._stopping = False
        self._changed = Signal()
        """Happens when the status may have changed."""
        self._watched: dict[str, pb.HealthCheckResponse.ServingStatus] | None = None
        """The status of the server, "", and of SEARCH for watches; None before the first check."""
        self._watch_count = 0
        """Number of open watches of names that have the status of the database."""
        self._watch_task: asyncio.Task[None] | None = None
        self._failure = RepeatedFailure(log, "not healthy", end_event="healthy again")

    def stop(self) -> None:
        """Changes the status to NOT_SERVING, sends it to all watches, and ends them.

        LIVE stays SERVING, so that a server that drains is not killed.
        """
        self._stopping = True
        self._changed.notify()

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        if request.service not in {LIVE, *self._names}:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return pb.HealthCheckResponse(status=await self._status(request.service))

    async def List(self, request: pb.HealthListRequest, _: Context) -> pb.HealthListResponse:
        server = await self._status("")
        statuses = dict.fromkeys(sorted(self._names), pb.HealthCheckResponse(status=server))
        statuses[SEARCH] = pb.HealthCheckResponse(status=await self._search_status(server))
        statuses[LIVE] = pb.HealthCheckResponse(status=await self._status(LIVE))
        return pb.HealthListResponse(statuses=statuses)

    async def Watch(
        self, request: pb.HealthCheckRequest, context: Context
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """Sends the current status, and then each change.

        Raises:
            WatchLimit: Too many health watches are open.
        """
        with self._watch_slot(context.peer()), self._checked_repeatedly(request.service):
            sent = None
            while True:
                change_count = self._changed.count
                is_last = self._stopping
                status = self._status_for_watch(request.service)
                if status is not None and status != sent:
                    yield pb.HealthCheckResponse(status=status)
                    sent = status
                if is_last:
                    return
                await self._changed.wait(change_count)

    @contextmanager
    def _watch_slot(self, peer: str) -> Iterator[None]:
        of_peer, limit = self._watches[peer], self._max_watches
        # All connections over a Unix socket have the same name, so only the limit of the process applies.
        if of_peer >= MAX_WATCHES_PER_CONNECTION and not peer.startswith("unix:"):
            raise WatchLimit(limit=MAX_WATCHES_PER_CONNECTION, kind="health watches", where="connection")
        # The first watch of a connection is always accepted. Otherwise one client could use up the limit, and
        # the others would take the server for unhealthy.
        if of_peer and self._watches.total() >= limit:
            raise WatchLimit(limit=limit, kind="health watches")
        self._watches[peer] += 1
        try:
            yield
        finally:
            self._watches[peer] -= 1
            if not self._watches[peer]:
                del self._watches[peer]

    @contextmanager
    def _checked_repeatedly(self, name: str) -> Iterator[None]:
        """Checks the database repeatedly until the end of the block, if the name has its status."""
        if name not in self._names:
            yield
            return
        self._watch_count += 1
        if self._watch_task is None:
            self._watch_task = asyncio.create_task(self._watch_database(), name="health")
        try:
            yield
        finally:
            self._watch_count -= 1
            if not self._watch_count:
                self._watch_task.cancel()
                self._watch_task = self._watched = None

    async def _watch_database(self) -> None:
        while not self._stopping:
            server = await self._status("")
            statuses = {"": server, SEARCH: await self._search_status(server)}
            if statuses != self._watched:
                self._watched = statuses
                self._changed.notify()
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)

    def _status_for_watch(self, name: str) -> pb.HealthCheckResponse.ServingStatus | None:
        """Returns the last known status of a name; None before the first check."""
        if name == LIVE:
            return _SERVING
        if name not in self._names:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        if self._stopping:
            return _NOT_SERVING
        return None if self._watched is None else self._watched[SEARCH if name == SEARCH else ""]

    async def _status(self, name: str) -> pb.HealthCheckResponse.ServingStatus:
        if name == LIVE:
            return _SERVING
        if name == SEARCH:
            return await self._search_status(await self._status(""))
        if self._stopping:
            return _NOT_SERVING
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                await self._check()
        except Exception as error:
            # Any error, expected or not, means that the server cannot use its database.
            self._failure.failed(error=type(error).__name__, cause=str(error.__cause__ or error))
            return _NOT_SERVING
        self._failure.ended()
        return _SERVING

    async def _search_status(
        self, server: pb.HealthCheckResponse.ServingStatus
    ) -> pb.HealthCheckResponse.ServingStatus:
        """Returns the status of SEARCH, from that of the server."""
        if server != _SERVING:
            return server
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                return _SERVING if await self._is_search_ready() else _NOT_SERVING
        except (TimeoutError, ServiceError):
            # The next check of the database fails too, and logs the cause.
            return _NOT_SERVING
