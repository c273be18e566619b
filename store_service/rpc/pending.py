"""Responses that their callers have not read: how much of them may be in memory, and for how long.

gRPC keeps a response in memory until the client reads it, for as long as the client likes.
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
"""A smaller response takes no room. It must be read in time like any other."""

CUT_SECONDS = 0.5
"""How long it is at least from one cut to the next, for each looks at all files of the process."""

STALLED_SECONDS = 2.0
"""A connection that has read nothing of its responses for so long may be closed to make room for others."""

PROGRESS_BYTES = 16_384
"""A connection that has taken so much is reading. A few bytes are taken for pings alone."""

MIN_PURGE_LENGTH = 64
"""Ended calls are removed from the list of unread responses when it is at least this long."""

log = structlog.get_logger("store_service.rpc")


@dataclass(slots=True)
class _Connection:
    """What one connection has not read."""

    size: int = 0
    """Bytes of all responses that are being made or sent."""
    sending: int = 0
    """How many of them gRPC has."""
    since: float = 0.0
    """When it last took one or PROGRESS_BYTES, or, if neither since, when gRPC got the first; by
    time.perf_counter."""
    taken: int | None = None
    """Bytes that it had taken in all at `since` or at the first look after it; None before that look."""
    looked: float = 0.0
    """When the last look began."""


class Response:
    """Room that one response takes, from before it is encoded until its caller has read it."""

    __slots__ = ("_pending", "is_sending", "peer", "size")

    def __init__(self, pending: "Pending", peer: str, size: int) -> None:
        """Takes the room."""
        self._pending = pending
        self.peer = peer
        self.size = 0
        self.is_sending = False
        self.resize(size)

    def resize(self, size: int) -> None:
        """Counts the actual size."""
        more = size - self.size
        self.size = size
        self._pending.size += more
        self._pending.of(self.peer).size += more

    def send(self) -> None:
        """Says that gRPC sends it from now on."""
        connection = self._pending.of(self.peer)
        if not connection.sending:
            connection.since = time.perf_counter()
        connection.sending += 1
        self.is_sending = True

    def release(self, *_: object) -> None:
        """Says that it has been read, or will never be sent."""
        self.resize(0)
        connection = self._pending.of(self.peer)
        if self.is_sending:
            self.is_sending = False
            connection.sending -= 1
            connection.since = time.perf_counter()
        self._pending.forget(self.peer)


class Pending:
    """Counts responses that are not read, and closes connections that do not read them."""

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
            max_connection_bytes: Of one connection; a single response is always sent if the process has room.
            max_bytes: Of the process.
            max_seconds: Until a response has been read.
            cut: Closes the connections of peers, given as gRPC names them.
        """
        self._max_connection_bytes = max_connection_bytes
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._cut = cut
        self.size = 0
        """Bytes of all connections."""
        self.connections: dict[str, _Connection] = {}
        """Those that have not read everything, as gRPC names their other ends."""
        # Calls whose responses are being sent, and when that began. Their peers are not kept: their names are
        # made anew each time. Ended calls are removed from time to time, so no call needs a callback.
        self._unread: list[tuple[asyncio.Task[object], float, Context]] = []
        self._purge_length = MIN_PURGE_LENGTH
        self._timer: asyncio.TimerHandle | None = None
        self._next_cut = 0.0
        self._has_closed = False
        self._closed = RepeatedFailure(
            log, "closed connections that do not read", end_event="every response has been read"
        )

    @property
    def is_full(self) -> bool:
        """Whether the process has no room left."""
        return self.size >= self._max_bytes

    def check(self, peer: str) -> None:
        """Accepts or refuses a call, by the unread responses of its connection.

        Raises:
            Overloaded: That is too much.
        """
        if not self._fits(self._held(peer), 0):
            raise Overloaded

    def reserve(self, peer: str, size: int, *, always: bool = False) -> Response:
        """Takes the room for a response, before it is encoded.

        Args:
            peer: The connection, as gRPC names its other end.
            size: Of the response, in bytes.
            always: The response is sent in any case, because the call has been executed.

        Raises:
            Overloaded: The response does not fit.
        """
        if not always and not self.has_room(peer, size):
            raise Overloaded
        return Response(self, peer, size)

    def has_room(self, peer: str, size: int) -> bool:
        """Whether a response may be sent; if only others are in the way, those that do not read are closed.

        No connection may hold more than is left for all others. So many that do not read leave room for
        those that do, and the first ones do not take everything.
        """
        before = self._held(peer)
        if self._fits(before, size):
            return True
        if self.size + before + size > self._max_bytes:
            self._close_stalled()
        return False

    def of(self, peer: str) -> _Connection:
        """What one connection has not read."""
        return self.connections.setdefault(peer, _Connection())

    def watch(self, task: "asyncio.Task[object]", context: "Context") -> None:
        """Closes the connection of a call whose response is not read in time, however small it is."""
        self._unread.append((task, time.perf_counter(), context))
        if len(self._unread) >= self._purge_length:
            # gRPC ends the task when the response has left. The list at least doubles between two purges, so
            # each call is looked at about once.
            self._unread = [it for it in self._unread if not it[0].done()]
            self._purge_length = MIN_PURGE_LENGTH + 2 * len(self._unread)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._max_seconds, self._close_late)

    def looked(self, taken: Mapping[str, int], began: float) -> None:
        """Learns how many bytes each connection has taken in all, of a look that began then."""
        for peer, connection in self.connections.items():
            if (now_taken := taken.get(peer)) is None:
                continue
            if connection.taken is None:
                connection.taken = now_taken
            elif now_taken - connection.taken >= PROGRESS_BYTES:
                connection.taken = now_taken
                connection.since = began
            connection.looked = began

    def forget(self, peer: str) -> None:
        """Counts nothing of a connection that has read everything."""
        connection = self.connections.get(peer)
        if connection is not None and not connection.size and not connection.sending:
            del self.connections[peer]
            self._all_may_be_read()

    def close(self) -> None:
        """Closes no connection any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _all_may_be_read(self) -> None:
        if self._has_closed and not self.connections and all(task.done() for task, _, _ in self._unread):
            self._has_closed = False
            self._closed.ended()

    def _held(self, peer: str) -> int:
        # All connections over a unix socket have one name, so only the limit of the process is theirs.
        connection = None if _is_unix(peer) else self.connections.get(peer)
        return connection.size if connection is not None else 0

    def _fits(self, before: int, size: int) -> bool:
        free = self._max_bytes - self.size
        if not before:
            return not size or size <= free
        return before + size <= min(self._max_connection_bytes, free)

    def _close_stalled(self) -> None:
        """Closes connections that have read nothing for STALLED_SECONDS, those that hold most first."""
        now = time.perf_counter()
        if now < self._next_cut:
            return
        stalled = [
            (connection.size, peer)
            for peer, connection in self.connections.items()
            # Since then, as the last look has seen it: what was taken after that is not known.
            if connection.sending and connection.looked - connection.since >= STALLED_SECONDS
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
            self._all_may_be_read()
        if self._unread:
            # One timer for all. Connections that stopped reading one after another share the next cut.
            wait = max(due, self._next_cut if late else 0.0) - time.perf_counter()
            self._timer = asyncio.get_running_loop().call_later(max(wait, 0.0), self._close_late)

    def _close(self, peers: Collection[str], reason: str) -> None:
        began = time.perf_counter()
        self._cut(peers)
        now = time.perf_counter()
        self._next_cut = now + max(CUT_SECONDS, 10 * (now - began))
        self._has_closed = True
        self._closed.failed(reason=reason)


def _is_unix(peer: str) -> bool:
    return peer.startswith("unix:")
