"""Limits of connections that gRPC does not keep: how many an address may have, how long one may be silent
while others are refused, and how much it may send that does not become a request.

gRPC does not expose its connections, so the sockets of the process are inspected (docs/security.md).
"""

import asyncio
import ipaddress
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

import structlog

from store_service.auth.authentication import peer_address
from store_service.repeated_failure import RepeatedFailure
from store_service.rpc.connections import Connections
from store_service.rpc.delivered_bytes import Delivered

LOOK_SECONDS = 0.5
"""Time between two inspections of the sockets; longer if an inspection takes long."""

CROWDED_SHARE = 0.9
"""When so much of the allowed connections is there, those that have never made a call are closed."""

FORGOTTEN_SHARE = 0.03
"""So much of what became no request is forgotten each second: calls are cancelled while they are sent."""

log = structlog.get_logger("store_service.rpc")


@dataclass(slots=True)
class _Seen:
    """A connection at the last inspection."""

    since: float
    """When it was first seen."""
    received: int = 0
    """Bytes that it had received."""
    delivered: int = 0
    """Bytes of them that had become requests."""
    pending: float = 0.0
    """Bytes that it has received and that have become no request, as far as they are not forgotten."""


class ConnectionLimits:
    """Closes connections of one server that take the place or the memory of others."""

    def __init__(
        self,
        connections: Connections,
        *,
        max_connections: int,
        max_per_address: int,
        max_pending_bytes: int,
        silent_seconds: float,
        busy: Callable[[], Collection[str]],
        looked: Callable[[Mapping[str, int], float], None] = lambda _taken, _began: None,
    ) -> None:
        """Takes the limits.

        Args:
            connections: Finds the sockets.
            max_connections: Maximum number of connections that gRPC accepts.
            max_per_address: Maximum number of connections from one address.
            max_pending_bytes: Of requests that have not arrived as a whole, of all connections together.
            silent_seconds: How long one may be there without a call while the server is crowded.
            busy: The peers of running calls, as gRPC names them.
            looked: Learns at each look what each connection has taken, and when the look began.
        """
        self._connections = connections
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._max_pending_bytes = max_pending_bytes
        self._silent_seconds = silent_seconds
        self._busy = busy
        self._looked = looked
        self.delivered = Delivered()
        """Bytes of the calls of each peer that has made one."""
        self._seen: dict[str, _Seen] = {}
        self._absent: set[str] = set()
        self._looks_above = 0
        self._full = _repeated("refusing connections", "accepting connections again")
        self._crowd = _repeated(
            "closed connections above the limit of an address", "addresses are below their limit"
        )
        self._silent = _repeated(
            "closed connections without calls", "the number of connections is below its limit"
        )
        self._sending = _repeated(
            "closed connections with incomplete requests", "incomplete requests are below their limit"
        )
        self._unseen = _repeated("cannot inspect connections", "inspecting connections again")

    async def keep_looking(self) -> None:
        """Inspects the sockets repeatedly, until it is cancelled."""
        while True:
            began = time.monotonic()
            try:
                at = time.perf_counter()
                found = await self._connections.traffic()
                self._looked({peer: it.taken for peer, it in found.items()}, at)
                unwanted = self.judge({peer: it.received for peer, it in found.items()}, time.monotonic())
                if unwanted:
                    self._connections.cut(unwanted)
                self._unseen.ended()
            except OSError as error:
                # Most likely there is no file descriptor left, and so none for a new connection either.
                self._unseen.failed(cause=error.strerror)
            except Exception as error:
                self._unseen.failed(exc_info=error)
            await asyncio.sleep(max(LOOK_SECONDS, 10 * (time.monotonic() - began)))

    def judge(self, found: Mapping[str, int], now: float) -> set[str]:
        """Which of the connections are to be closed.

        Args:
            found: What each has received; its key is its peer as gRPC names it.
            now: Seconds since any time.
        """
        self._note(found, now)
        callers = {*self.delivered, *self._busy()}
        unwanted = self._too_many(found, callers) | self._too_much()
        if len(found) >= CROWDED_SHARE * self._max_connections:
            unwanted |= self._without_a_call(found, callers, now)
        else:
            self._silent.ended()
        if len(found) >= self._max_connections:
            self._full.failed(limit=self._max_connections)
        else:
            self._full.ended()
        return unwanted

    def _note(self, found: Mapping[str, int], now: float) -> None:
        seen = {}
        for peer, received in found.items():
            it = seen[peer] = self._seen.get(peer) or _Seen(since=now)
            delivered = self.delivered.get(peer, 0)
            more = received - it.received - (delivered - it.delivered)
            it.pending = max(it.pending * (1 - FORGOTTEN_SHARE * LOOK_SECONDS) + more, 0.0)
            it.received, it.delivered = received, delivered
        self._seen = seen
        # All others together hold at most half of the limit, so their metadata need not be counted.
        share = self._max_pending_bytes / 2 / max(len(seen), 1)
        self.delivered.closely = {peer for peer, it in seen.items() if it.pending > share}
        # Absent twice: a call may use a connection that was opened after the inspection.
        absent = self.delivered.keys() - found.keys()
        for peer in absent & self._absent:
            del self.delivered[peer]
        self._absent = absent

    def _too_many(self, found: Mapping[str, int], callers: Collection[str]) -> set[str]:
        by_address: defaultdict[str, list[str]] = defaultdict(list)
        for peer in found:
            by_address[_network(peer)].append(peer)
        unwanted: set[str] = set()
        for peers in by_address.values():
            if len(peers) > self._max_per_address:
                # Those with calls stay, then those that came first.
                peers.sort(key=lambda peer: (not _has_call(peer, callers), self._seen[peer].since))
                unwanted.update(peers[self._max_per_address :])
        if unwanted:
            self._crowd.failed(limit=self._max_per_address)
        else:
            self._crowd.ended()
        return unwanted

    def _without_a_call(self, found: Mapping[str, int], callers: Collection[str], now: float) -> set[str]:
        unwanted = {
            peer
            for peer in found
            if not _has_call(peer, callers) and now - self._seen[peer].since >= self._silent_seconds
        }
        if unwanted:
            self._silent.failed()
        return unwanted

    def _too_much(self) -> set[str]:
        pending = sorted(((it.pending, peer) for peer, it in self._seen.items()), reverse=True)
        total = sum(size for size, _ in pending)
        if total <= self._max_pending_bytes:
            self._looks_above = 0
            self._sending.ended()
            return set()
        self._looks_above += 1
        unwanted: set[str] = set()
        # Not at the first inspection: complete requests may be waiting for the event loop.
        if self._looks_above > 1:
            self._sending.failed(limit=self._max_pending_bytes)
            for size, peer in pending:
                if total <= self._max_pending_bytes / 2:
                    break
                total -= size
                unwanted.add(peer)
        return unwanted


def _repeated(event: str, end_event: str) -> RepeatedFailure:
    return RepeatedFailure(log, event, end_event=end_event)


def _has_call(peer: str, callers: Collection[str]) -> bool:
    # The connection of a call over a unix socket is not known.
    return peer in callers or peer.startswith("unix:")


def _network(peer: str) -> str:
    """The address of a peer; of IPv6 the first half, for one host has all addresses of a network."""
    address = peer_address(peer)
    if not address.startswith("ipv6:"):
        return address
    host = unquote(address).removeprefix("ipv6:[").removesuffix("]").partition("%")[0]
    return str(ipaddress.ip_network((host, 64), strict=False))
