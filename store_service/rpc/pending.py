"""Limits of responses that clients have not read: their memory, and the time to read them.

gRPC keeps a response in memory until the client reads it, without a limit of time.
"""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from store_service.errors import Overloaded
from store_service.repeated_failure import RepeatedFailure

if TYPE_CHECKING:
    from store_service.rpc.call import Context

COUNTED_BYTES = 4096
"""Smaller responses are not counted. They must be read in time, too."""

CUT_SECONDS = 0.5
"""Minimum time between two closings of connections: each inspects all descriptors of the process."""

STALLED_SECONDS = 2.0
"""A connection that has read nothing of its responses for this time may be closed if the memory is full."""

PROGRESS_BYTES = 16_384
"""A connection that has received this many bytes is reading. Pings alone need a few bytes."""

MIN_PURGE_LENGTH = 64
"""Ended calls are removed from the list of unread responses when it is at least this long."""

log = structlog.get_logger("store_service.rpc")


@dataclass(slots=True)
class _Connection:
    """The unread responses of one connection."""

    size: int = 0
    """Bytes of all responses that are being encoded or sent."""
    sending: int = 0
    """Number of responses that have been passed to gRPC."""
    since: float = 0.0
    """When it last read a response or PROGRESS_BYTES, or when gRPC got the first response; by
    time.perf_counter."""
    taken: int | None = None
    """Total bytes received at `since`, or at the first inspection after it; None before that inspection."""
    inspected: float = 0.0
    """Start of the last inspection."""


class PendingResponse:
    """The counted bytes of one response, from before it is encoded until the client has read it."""

    __slots__ = ("_pending", "is_sending", "peer", "size")

    def __init__(self, pending: "Pending", peer: str, size: int) -> None:
        """Counts the response."""
        self._pending = pending
        self.peer = peer
        self.size = 0
        self.is_sending = False
        self.resize(size)

    def resize(self, size: int) -> None:
        """Corrects the size."""
        more = size - self.size
        self.size = size
        self._pending.size += more
        self._pending.of(self.peer).size += more

    def send(self) -> None:
        """Records that the response has been passed to gRPC."""
        connection = self._pending.of(self.peer)
        if not connection.sending:
            connection.since = time.perf_counter()
        connection.sending += 1
        self.is_sending = True

    def release(self, *_: object) -> None:
        """Records that the response has been read, or will never be sent."""
        self.resize(0)
        connection = self._pending.of(self.peer)
        if self.is_sending:
            self.is_sending = False
            connection.sending -= 1
            connection.since = time.perf_counter()
        self._pending.forget(self.peer)


class Pending:
    """Counts unread responses, and closes connections that do not read."""

    def __init__(
        self,
        *,
        max_connection_bytes: int,
        max_bytes: int,
        max_seconds: float,
        cut: Callable[[Collection[str]], None],
    ) -> None:
        """Takes the limits.

        Args:
            max_connection_bytes: Maximum for one connection. A single response may exceed it.
            max_bytes: Maximum for the process.
            max_seconds: Maximum time for a client to read a response.
            cut: Closes the connections of peers, which are named as by gRPC.
        """
        self._max_connection_bytes = max_connection_bytes
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._cut = cut
        self.size = 0
        """Bytes of all connections."""
        self.connections: dict[str, _Connection] = {}
        """Connections with unread responses, by peer as gRPC names it."""
        # Calls whose responses are being sent, with the start of sending. Peers are not stored: gRPC builds a
        # new string each time. Ended calls are removed in bulk, so no call needs a callback.
        self._unread: list[tuple[asyncio.Task[object], float, Context]] = []
        self._purge_length = MIN_PURGE_LENGTH
        self._timer: asyncio.TimerHandle | None = None
        self._next_cut = 0.0
        self._reports_closing = False
        self._closed = RepeatedFailure(
            log, "closed connections that do not read", end_event="every response has been read"
        )

    @property
    def is_full(self) -> bool:
        """Whether the process has reached its limit."""
        return self.size >= self._max_bytes

    def check(self, peer: str) -> None:
        """Checks the unread responses of the connection of a new call.

        Raises:
            Overloaded: They exceed the limit.
        """
        if not self._fits(self._held(peer), 0):
            raise Overloaded

    def reserve(self, peer: str, size: int, *, always: bool = False) -> PendingResponse:
        """Counts a response before it is encoded.

        Args:
            peer: The connection, as gRPC names its other end.
            size: Bytes of the response.
            always: The response is sent in any case, because the call has been executed.

        Raises:
            Overloaded: The response exceeds the limits.
        """
        if not always and not self.has_room(peer, size):
            raise Overloaded
        return PendingResponse(self, peer, size)

    def has_room(self, peer: str, size: int) -> bool:
        """Whether a response fits into the limits. If memory is full, closes connections that do not read.

        No connection may use more than what remains for all others. So clients that do not read leave memory
        for clients that do.
        """
        before = self._held(peer)
        if self._fits(before, size):
            return True
        if self.size + before + size > self._max_bytes:
            self._close_stalled()
        return False

    def of(self, peer: str) -> _Connection:
        """Returns the unread responses of one connection."""
        return self.connections.setdefault(peer, _Connection())

    def watch(self, task: "asyncio.Task[object]", context: "Context") -> None:
        """Closes the connection of a call if its response, of any size, is not read in time."""
        self._unread.append((task, time.perf_counter(), context))
        if len(self._unread) >= self._purge_length:
            # gRPC ends the task when the response has been sent. The list at least doubles between two
            # purges, so each call is checked about once.
            self._unread = [it for it in self._unread if not it[0].done()]
            self._purge_length = MIN_PURGE_LENGTH + 2 * len(self._unread)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._max_seconds, self._close_late)

    def inspected(self, taken: Mapping[str, int], began: float) -> None:
        """Takes the total bytes that each connection has received, and the start of the inspection."""
        for peer, connection in self.connections.items():
            if (now_taken := taken.get(peer)) is None:
                continue
            if connection.taken is None:
                connection.taken = now_taken
            elif now_taken - connection.taken >= PROGRESS_BYTES:
                connection.taken = now_taken
                connection.since = began
            connection.inspected = began

    def forget(self, peer: str) -> None:
        """Removes a connection that has read all its responses."""
        connection = self.connections.get(peer)
        if connection is not None and not connection.size and not connection.sending:
            del self.connections[peer]
            self._check_all_read()

    def close(self) -> None:
        """Stops closing connections."""
        if self._timer is not None:
            self._timer.cancel()

    def _check_all_read(self) -> None:
        if self._reports_closing and not self.connections and all(task.done() for task, _, _ in self._unread):
            self._reports_closing = False
            self._closed.ended()

    def _held(self, peer: str) -> int:
        # All connections to a Unix socket have the same name, so only the limit of the process applies.
        connection = None if _is_unix(peer) else self.connections.get(peer)
        return connection.size if connection is not None else 0

    def _fits(self, before: int, size: int) -> bool:
        free = self._max_bytes - self.size
        if not before:
            return not size or size <= free
        return before + size <= min(self._max_connection_bytes, free)

    def _close_stalled(self) -> None:
        """Closes connections that have read nothing for STALLED_SECONDS, the largest first."""
        now = time.perf_counter()
        if now < self._next_cut:
            return
        stalled = [
            (connection.size, peer)
            for peer, connection in self.connections.items()
            # Up to the last inspection: bytes received after it are not known.
            if connection.sending and connection.inspected - connection.since >= STALLED_SECONDS
        ]
        chosen: set[str] = set()
        held = self.size
        for size, peer in sorted(stalled, reverse=True):
            if held <= self._max_bytes // 2:
                break
            chosen.add(peer)
            held -= size
        if chosen:
            self._close(chosen, "their responses fill the memory")

    def _close_late(self) -> None:
        now = time.perf_counter()
        self._timer = None
        late: set[str] = set()
        due = math.inf
        unread, self._unread = self._unread, []
        for task, since, context in unread:
            if task.done():
                continue
            if since + self._max_seconds > now:
                self._unread.append((task, since, context))
                due = min(due, since + self._max_seconds)
            elif not _is_unix(peer := context.peer()):
                late.add(peer)
        if late:
            self._close(late, "their responses are too old")
        else:
            self._check_all_read()
        if self._unread:
            # One timer for all calls. Connections that stop reading one after the other are closed together.
            wait = max(due, self._next_cut if late else 0.0) - time.perf_counter()
            self._timer = asyncio.get_running_loop().call_later(max(wait, 0.0), self._close_late)

    def _close(self, peers: Collection[str], reason: str) -> None:
        began = time.perf_counter()
        self._cut(peers)
        now = time.perf_counter()
        self._next_cut = now + max(CUT_SECONDS, 10 * (now - began))
        self._reports_closing = True
        self._closed.failed(reason=reason)


def _is_unix(peer: str) -> bool:
    return peer.startswith("unix:")
