"""How much callers may ask for at once, and for how long: what keeps one of them from taking the rest down.

gRPC itself limits connections, streams, metadata and messages, by the options in `store_service.server`. Here
is what it has no option for: calls that run at once and the size of their requests, calls of one caller in a
second, and the time of a call. The guard asks before it runs a call, and tells
when it has ended.
"""

import asyncio
import time
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
"""Callers whose rate is remembered; the one who has not called for longest is forgotten first."""


class Call(Protocol):
    """What is asked of a call that wants to begin."""

    @property
    def caller_name(self) -> str:
        """Who makes it; of a caller who is not known, from where."""


@dataclass(eq=False, slots=True)
class InFlightCall:
    """A unary call that runs."""

    task: "asyncio.Task[object]"
    context: "Context"
    start: float
    """When it began, by time.perf_counter."""
    is_overdue: bool = False
    """Whether it is being ended because its time is up."""


class Limits:
    """Lets calls in or refuses them, and ends those that take too long."""

    def __init__(
        self,
        *,
        max_calls: int,
        max_bytes: int,
        calls_per_second: float,
        max_seconds: float,
        pending: Pending,
    ) -> None:
        """Takes the limits, each of which the setting of its name explains.

        Args:
            max_calls: Unary calls that run at once; of streams besides watches as many.
            max_bytes: Of their requests together.
            calls_per_second: Of one caller; 0 for no limit.
            max_seconds: Of a unary call.
            pending: Responses that have not been read.
        """
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._rates = RateLimiter(calls_per_second) if calls_per_second else None
        self._max_seconds = max_seconds
        self.pending = pending
        # In the order of their beginning, so that the first is the first whose time is up.
        self._running: dict[InFlightCall, None] = {}
        self._request_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, request_bytes: int) -> None:
        """Takes the room for a request, before it is decoded; `let_go` gives it back.

        Only large ones are refused: small ones cannot fill the memory.

        Raises:
            Overloaded: As much is held as may be, or what is answered to writers would have no room.
        """
        held = self._request_bytes + request_bytes
        # A write that is done is always answered, and most answers of large writes are as large.
        if request_bytes > LARGE_BYTES and (held > self._max_bytes or self.pending.is_full):
            raise Overloaded
        self._request_bytes = held

    def hold_small(self, request_bytes: int) -> None:
        """The same for a request of at most LARGE_BYTES, which is never refused."""
        self._request_bytes += request_bytes

    def let_go(self, request_bytes: int) -> None:
        """Gives back the room of a request."""
        self._request_bytes -= request_bytes

    def admit(self, context: "Context", call: Call) -> InFlightCall:
        """Lets a unary call of this task begin, or not.

        Raises:
            Overloaded: As many are running as may, or its connection does not read its answers.
            RateLimited: Its caller makes too many.
        """
        self._check(context, call, len(self._running))
        task = asyncio.current_task()
        assert task is not None
        admitted = InFlightCall(task, context, time.perf_counter())
        self._running[admitted] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._max_seconds, self._end_overdue)
        return admitted

    def check_stream(self, context: "Context", call: Call, running: int) -> None:
        """Lets a stream begin when so many are running, or not; raises as `admit` does."""
        self._check(context, call, running)

    def end(self, call: InFlightCall) -> None:
        """Says that a call has ended."""
        self._running.pop(call, None)

    def peers(self) -> set[str]:
        """The connections on which unary calls are running, as gRPC names their other ends."""
        return {call.context.peer() for call in self._running}

    def close(self) -> None:
        """Ends nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self.pending.close()

    def _check(self, context: "Context", call: Call, running: int) -> None:
        if running >= self._max_calls:
            raise Overloaded
        if self.pending.connections:
            # Only then, for the name of a peer is made anew each time.
            self.pending.check(context.peer())
        if self._rates is not None:
            self._rates.take(call.caller_name)

    def _end_overdue(self) -> None:
        now = time.perf_counter()
        self._timer = None
        ended = 0
        while self._running:
            call = next(iter(self._running))
            left = call.start + self._max_seconds - now
            if left > 0 or ended == WAKE_COUNT:
                # One timer for all, which under load is set once in `max_seconds`.
                self._timer = asyncio.get_running_loop().call_later(max(left, 0), self._end_overdue)
                return
            ended += 1
            del self._running[call]
            call.is_overdue = True
            call.task.cancel()


class LargeRequest:
    """The room of a request whose size is known only when it has been decompressed."""

    __slots__ = ("_limits", "_size")

    def __init__(self, limits: Limits) -> None:
        """Takes the limits; no room is taken yet."""
        self._limits = limits
        self._size = 0

    def hold(self, request_bytes: int) -> None:
        """Takes the room; raises as `Limits.hold` does."""
        self._limits.hold(request_bytes)
        self._size = request_bytes

    def let_go(self) -> None:
        """Gives the room back."""
        self._limits.let_go(self._size)
        self._size = 0


@dataclass(slots=True)
class RateLimiter:
    """How many calls each caller has left: a bucket for each, which fills steadily and holds one second's."""

    calls_per_second: float
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    """What was left at which time, of who called last at the end."""

    def take(self, caller: str) -> None:
        """Counts a call.

        Raises:
            RateLimited: The caller has none left.
        """
        now = self.clock()
        most = max(self.calls_per_second, 1.0)
        left, since = self._buckets.pop(caller, (most, now))
        left = min(left + (now - since) * self.calls_per_second, most)
        is_allowed = left >= 1
        self._buckets[caller] = (left - is_allowed, now)
        if len(self._buckets) > MAX_CALLERS:
            del self._buckets[next(iter(self._buckets))]
        if not is_allowed:
            retry_seconds = (1 - left) / self.calls_per_second
            raise RateLimited(calls_per_second=self.calls_per_second, retry_seconds=retry_seconds)
