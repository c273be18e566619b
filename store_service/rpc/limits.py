"""Limits of calls: calls in flight, bytes of their requests, calls per second of one caller, and duration.

gRPC itself limits connections, streams, metadata and messages (`store_service.channel_options`). The RPC
pipeline applies these limits to each call.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from store_service.errors import Overloaded, RateLimited
from store_service.pacing import WAKE_COUNT
from store_service.rpc.pending import Pending
from store_service.rpc.turns import LARGE_BYTES

if TYPE_CHECKING:
    from store_service.rpc.call import Context

MAX_CALLERS = 10_000
"""Maximum number of callers whose rate is kept. The least recently active caller is dropped first."""

KEPT_REQUESTS = 3
"""Requests of one stream that exist at once: one is executed, one is ready, and one arrives."""


class Call(Protocol):
    """What the limits need to know of a call."""

    @property
    def caller_name(self) -> str:
        """The principal of the caller, or its address if the principal is not known."""


@dataclass(eq=False, slots=True)
class InFlightCall:
    """A unary call in flight."""

    task: "asyncio.Task[object]"
    context: "Context"
    start: float
    """Start, by time.perf_counter."""
    is_overdue: bool = False
    """Whether it is cancelled because it exceeded the maximum duration."""


class Limits:
    """Admits or refuses calls, and cancels calls that take too long."""

    def __init__(
        self,
        *,
        max_calls: int,
        max_bytes: int,
        calls_per_second: float,
        max_seconds: float,
        pending: Pending,
    ) -> None:
        """Takes the limits.

        Args:
            max_calls: Maximum number of unary calls in flight, and of streams that are not watches.
            max_bytes: Maximum number of bytes of all requests in flight.
            calls_per_second: Maximum rate of one caller; 0 for no limit.
            max_seconds: Maximum duration of a unary call.
            pending: Limits of unread responses.
        """
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._rates = RateLimiter(calls_per_second) if calls_per_second else None
        self.max_seconds = max_seconds
        """Maximum duration of a unary call."""
        self.pending = pending
        # In the order of their start, so that the first call expires first.
        self._running: dict[InFlightCall, None] = {}
        self._request_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def reserve(self, request_bytes: int) -> None:
        """Counts the bytes of a request before it is decoded. `release` is the opposite.

        Only large requests are refused: small ones cannot fill the memory.

        Raises:
            Overloaded: The request exceeds the limit, or unread responses have reached theirs.
        """
        held = self._request_bytes + request_bytes
        # An executed write always gets its response, and most responses of large writes are large.
        if request_bytes > LARGE_BYTES and (held > self._max_bytes or self.pending.is_full):
            raise Overloaded
        self._request_bytes = held

    def reserve_small(self, request_bytes: int) -> None:
        """Counts a request of at most LARGE_BYTES, which is never refused."""
        self._request_bytes += request_bytes

    def release(self, request_bytes: int) -> None:
        """Stops counting the bytes of a request."""
        self._request_bytes -= request_bytes

    def admit(self, context: "Context", call: Call) -> InFlightCall:
        """Admits the unary call of the current task.

        Raises:
            Overloaded: Too many calls are in flight, or the connection does not read its responses.
            RateLimited: The caller exceeds its rate.
        """
        self._check(context, call, len(self._running))
        task = asyncio.current_task()
        assert task is not None
        call_in_flight = InFlightCall(task, context, time.perf_counter())
        self._running[call_in_flight] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.max_seconds, self._end_overdue)
        return call_in_flight

    def check_stream(self, context: "Context", call: Call, running: int) -> None:
        """Admits a stream while `running` others are open. Raises the errors of `admit`."""
        self._check(context, call, running)

    def end(self, call: InFlightCall) -> None:
        """Records the end of a call."""
        self._running.pop(call, None)

    def peers(self) -> set[str]:
        """Returns the connections with unary calls in flight, as gRPC names their other ends."""
        return {call.context.peer() for call in self._running}

    def close(self) -> None:
        """Stops cancelling calls."""
        if self._timer is not None:
            self._timer.cancel()
        self.pending.close()

    def _check(self, context: "Context", call: Call, running: int) -> None:
        if running >= self._max_calls:
            raise Overloaded
        if self.pending.connections:
            # Not for every call: gRPC builds the name of a peer each time.
            self.pending.check(context.peer())
        if self._rates is not None:
            self._rates.take(call.caller_name)

    def _end_overdue(self) -> None:
        now = time.perf_counter()
        self._timer = None
        ended = 0
        while self._running:
            call = next(iter(self._running))
            left = call.start + self.max_seconds - now
            if left > 0 or ended == WAKE_COUNT:
                # One timer for all calls. Under load it is set once in `max_seconds`.
                self._timer = asyncio.get_running_loop().call_later(max(left, 0), self._end_overdue)
                return
            ended += 1
            del self._running[call]
            call.is_overdue = True
            call.task.cancel()


class LargeRequest:
    """The counted bytes of a request whose size is known only after decompression."""

    __slots__ = ("_limits", "_size")

    def __init__(self, limits: Limits) -> None:
        """Takes the limits. Counts nothing yet."""
        self._limits = limits
        self._size = 0

    def reserve(self, request_bytes: int) -> None:
        """Counts the request. Raises the errors of `Limits.reserve`."""
        self._limits.reserve(request_bytes)
        self._size = request_bytes

    def release(self) -> None:
        """Stops counting the request."""
        self._limits.release(self._size)
        self._size = 0


class StreamRequests:
    """The counted bytes of the last requests of a stream. The method may hold KEPT_REQUESTS of them."""

    __slots__ = ("_last", "_limits")

    def __init__(self, limits: Limits) -> None:
        """Takes the limits. Counts nothing yet."""
        self._limits = limits
        self._last: deque[LargeRequest] = deque()

    def reserve(self, request_bytes: int) -> None:
        """Counts the next request in place of the oldest one. Raises the errors of `Limits.reserve`."""
        if len(self._last) == KEPT_REQUESTS:
            self._last.popleft().release()
        request = LargeRequest(self._limits)
        request.reserve(request_bytes)
        self._last.append(request)

    def release(self) -> None:
        """Stops counting the requests."""
        while self._last:
            self._last.pop().release()


@dataclass(slots=True)
class RateLimiter:
    """A token bucket for each caller. It holds the calls of one second."""

    calls_per_second: float
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Remaining calls and their time by caller, in the order of the last call."""

    def take(self, caller: str) -> None:
        """Counts a call.

        Raises:
            RateLimited: The caller exceeds its rate.
        """
        now = self.clock()
        maximum = max(self.calls_per_second, 1.0)
        left, since = self._buckets.pop(caller, (maximum, now))
        left = min(left + (now - since) * self.calls_per_second, maximum)
        is_allowed = left >= 1
        self._buckets[caller] = (left - is_allowed, now)
        if len(self._buckets) > MAX_CALLERS:
            del self._buckets[next(iter(self._buckets))]
        if not is_allowed:
            retry_seconds = (1 - left) / self.calls_per_second
            raise RateLimited(calls_per_second=self.calls_per_second, retry_seconds=retry_seconds)
