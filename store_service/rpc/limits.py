"""How much callers may ask for at once, and for how long: what keeps one of them from taking the rest down.

gRPC itself limits connections, streams, metadata and messages, by the options in `store_service.server`. Here
is what it has no option for: calls that run at once and the size of their requests, calls of one caller in a
second, the time of a call, and answers that are not read. The guard asks before it runs a call, and tells
when it has ended.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from store_service.errors import Overloaded, RateLimited

if TYPE_CHECKING:
    from store_service.rpc.call import Context

LARGE_BYTES = 65_536
"""A request that is larger may be refused for the sake of memory, and an answer is watched until it is on its
way; smaller ones cannot fill the memory."""

CUT_SECONDS = 0.5
"""How long it is at least from one cut to the next, for each looks at all files of the process."""

MAX_CALLERS = 10_000
"""Callers whose rate is remembered; the one who has not called for longest is forgotten first."""


class Call(Protocol):
    """What is asked of a call that wants to begin."""

    @property
    def caller_name(self) -> str:
        """Who makes it; of a caller who is not known, from where."""


@dataclass(eq=False, slots=True)
class Admitted:
    """A unary call that runs."""

    task: "asyncio.Task[object]"
    context: "Context"
    request_bytes: int
    start: float
    """When it began, by time.perf_counter."""
    is_overdue: bool = False
    """Whether it is being ended because its time is up."""


@dataclass(eq=False, slots=True)
class Unsent:
    """A large answer that its caller has not read."""

    peer: str
    since: float
    """When gRPC got it to send, by time.perf_counter."""


class Limits:
    """Lets calls in or refuses them, and ends those that take too long."""

    def __init__(
        self,
        *,
        max_calls: int,
        max_bytes: int,
        calls_per_second: float,
        max_seconds: float,
        max_unsent_bytes: int,
        cut: Callable[[Collection[str]], None],
    ) -> None:
        """Takes the limits, each of which the setting of its name explains.

        Args:
            max_calls: Unary calls that run at once; of streams besides watches as many.
            max_bytes: Of their requests together.
            calls_per_second: Of one caller; 0 for no limit.
            max_seconds: Of a unary call, and for an answer to be taken by its caller.
            max_unsent_bytes: Large answers that one connection has not read; a single one is always sent.
            cut: Closes the connections of peers, given as gRPC names them.
        """
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._rates = Rates(calls_per_second) if calls_per_second else None
        self._max_seconds = max_seconds
        self._max_unsent_bytes = max_unsent_bytes
        self._cut = cut
        # In the order of their beginning, so that the first is the first whose time is up.
        self._running: dict[Admitted, None] = {}
        self._running_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unsent: dict[str, int] = {}
        # Those answers, in the order of their beginning too.
        self._unread: dict[Unsent, None] = {}
        self._cut_timer: asyncio.TimerHandle | None = None

    def admit(self, context: "Context", call: Call, request_bytes: int) -> Admitted:
        """Lets a unary call of this task begin, or not.

        Raises:
            Overloaded: As many or as much is running as may, or its connection does not read its answers.
            RateLimited: Its caller makes too many.
        """
        running_bytes = self._running_bytes + request_bytes
        if running_bytes > self._max_bytes and request_bytes > LARGE_BYTES:
            raise Overloaded
        self._check(context, call, len(self._running))
        task = asyncio.current_task()
        assert task is not None
        admitted = Admitted(task, context, request_bytes, time.perf_counter())
        self._running[admitted] = None
        self._running_bytes = running_bytes
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._max_seconds, self._end_overdue)
        return admitted

    def check_stream(self, context: "Context", call: Call, running: int) -> None:
        """Lets a stream begin when so many are running, or not; raises as `admit` does."""
        self._check(context, call, running)

    def check_answer(self, context: "Context", answer_bytes: int) -> None:
        """Lets a large answer leave, or not; other calls that began with it may have used the room.

        Only for a call that has changed nothing: a read, a write that was only tried or had been done before.

        Raises:
            Overloaded: Its connection has not read what it was sent before.
        """
        if self._unsent:
            before = self._unsent.get(context.peer(), 0)
            if before and before + answer_bytes > self._max_unsent_bytes:
                raise Overloaded

    def end(self, call: Admitted, answer_bytes: int) -> None:
        """Says that a call has ended, and how long the answer is that gRPC is to send now."""
        self._running.pop(call, None)
        self._running_bytes -= call.request_bytes
        if answer_bytes > LARGE_BYTES:
            self._watch_answer(call, answer_bytes)

    def peers(self) -> set[str]:
        """The connections on which unary calls are running, as gRPC names their other ends."""
        return {call.context.peer() for call in self._running}

    def close(self) -> None:
        """Ends nothing any more."""
        for timer in (self._timer, self._cut_timer):
            if timer is not None:
                timer.cancel()

    def _check(self, context: "Context", call: Call, running: int) -> None:
        if running >= self._max_calls:
            raise Overloaded
        if self._unsent and self._unsent.get(context.peer(), 0) > self._max_unsent_bytes:
            raise Overloaded
        if self._rates is not None:
            self._rates.take(call.caller_name)

    def _end_overdue(self) -> None:
        now = time.perf_counter()
        self._timer = None
        while self._running:
            call = next(iter(self._running))
            left = call.start + self._max_seconds - now
            if left > 0:
                # One timer for all, which under load is set once in `max_seconds`.
                self._timer = asyncio.get_running_loop().call_later(left, self._end_overdue)
                return
            del self._running[call]
            call.is_overdue = True
            call.task.cancel()

    def _watch_answer(self, call: Admitted, answer_bytes: int) -> None:
        """Counts an answer as unsent until the call's task ends; cuts off who does not take it in time."""
        peer = call.context.peer()
        if peer.startswith("unix:"):
            # All connections over a socket have this one name: who does not read cannot be told from others.
            return
        self._unsent[peer] = self._unsent.get(peer, 0) + answer_bytes
        answer = Unsent(peer, time.perf_counter())
        self._unread[answer] = None
        if self._cut_timer is None:
            self._cut_timer = asyncio.get_running_loop().call_later(self._max_seconds, self._cut_unread)

        def on_sent(_: object) -> None:
            self._unread.pop(answer, None)
            self._unsent[peer] -= answer_bytes
            if not self._unsent[peer]:
                del self._unsent[peer]

        call.task.add_done_callback(on_sent)

    def _cut_unread(self) -> None:
        began = time.perf_counter()
        due: set[str] = set()
        while self._unread:
            answer = next(iter(self._unread))
            if answer.since + self._max_seconds > began:
                break
            del self._unread[answer]
            due.add(answer.peer)
        least = 0.0
        if due:
            self._cut(due)
            # Those who stopped reading one after another share the next cut.
            least = max(CUT_SECONDS, 10 * (time.perf_counter() - began))
        self._cut_timer = None
        if self._unread:
            # One timer for all, as for calls.
            left = next(iter(self._unread)).since + self._max_seconds - time.perf_counter()
            self._cut_timer = asyncio.get_running_loop().call_later(max(left, least), self._cut_unread)


@dataclass(slots=True)
class Rates:
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
