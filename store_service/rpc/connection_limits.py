"""Connection limits that gRPC does not have: connections of one address, connections without calls, and bytes
of incomplete requests.

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

INSPECTION_SECONDS = 0.5
"""Time between two inspections of the sockets; longer if an inspection takes long."""

CROWDED_SHARE = 0.9
"""Share of the maximum number of connections from which those without a call are closed."""

FORGOTTEN_SHARE = 0.03
"""Share of the undelivered bytes that is forgotten each second, because callers may also cancel calls while
they send them."""

log = structlog.get_logger("store_service.rpc")


@dataclass(slots=True)
class _Connection:
    """A connection at the last inspection."""

    since: float
    """Time of the first inspection that found it."""
    received: int = 0
    """Bytes received on it."""
    delivered: int = 0
    """Bytes received on it and delivered as requests."""
    pending: float = 0.0
    """Bytes received on it, not delivered, and not forgotten."""


class ConnectionLimits:
    """Closes connections of one server that exceed the limits."""

    def __init__(
        self,
        connections: Connections,
        *,
        max_connections: int,
        max_per_address: int,
        max_pending_bytes: int,
        silent_seconds: float,
        busy: Callable[[], Collection[str]],
        on_inspection: Callable[[Mapping[str, int], float], None] = lambda _acknowledged, _began: None,
    ) -> None:
        """Takes the limits.

        Args:
            connections: Finds the sockets.
            max_connections: Maximum number of connections that gRPC accepts.
            max_per_address: Maximum number of connections from one address.
            max_pending_bytes: Maximum size of the incomplete requests of all connections.
            silent_seconds: Maximum time without a call of a connection while the server is crowded.
            busy: Returns the peers of running calls, as gRPC names them.
            on_inspection: Called with the bytes that each peer has acknowledged, and the start of the
                inspection by perf_counter.
        """
        self._connections = connections
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._max_pending_bytes = max_pending_bytes
        self._silent_seconds = silent_seconds
        self._busy = busy
        self._on_inspection = on_inspection
        self.delivered = Delivered()
        """Bytes of the calls of each peer that has made one."""
        self._known: dict[str, _Connection] = {}
        self._absent: set[str] = set()
        self._inspections_above_limit = 0
        self._full = _repeated("refusing connections", "accepting connections again")
        self._above_address_limit = _repeated(
            "closed connections above the limit of an address", "addresses are below their limit"
        )
        self._silent = _repeated(
            "closed connections without calls", "the number of connections is below its limit"
        )
        self._incomplete = _repeated(
            "closed connections with incomplete requests", "incomplete requests are below their limit"
        )
        self._inspection_failed = _repeated("cannot inspect connections", "inspecting connections again")

    async def run(self) -> None:
        """Inspects the sockets repeatedly, until it is cancelled."""
        while True:
            began = time.monotonic()
            try:
                began_precisely = time.perf_counter()
                traffic = await self._connections.traffic()
                self._on_inspection({peer: it.acknowledged for peer, it in traffic.items()}, began_precisely)
                received = {peer: it.received for peer, it in traffic.items()}
                excess = self.connections_to_close(received, time.monotonic())
                if excess:
                    self._connections.cut(excess)
                self._inspection_failed.ended()
            except OSError as error:
                # Most likely no file descriptor is left. Then new connections cannot be accepted either.
                self._inspection_failed.failed(cause=error.strerror)
            except Exception as error:
                self._inspection_failed.failed(exc_info=error)
            await asyncio.sleep(max(INSPECTION_SECONDS, 10 * (time.monotonic() - began)))

    def connections_to_close(self, received: Mapping[str, int], now: float) -> set[str]:
        """Returns the peers whose connections exceed the limits.

        Args:
            received: Bytes received on each connection, by its peer as gRPC names it.
            now: Seconds since any time.
        """
        self._update(received, now)
        callers = {*self.delivered, *self._busy()}
        excess = self._above_limit_of_address(received, callers) | self._above_limit_of_bytes()
        if len(received) >= CROWDED_SHARE * self._max_connections:
            excess |= self._without_call(received, callers, now)
        else:
            self._silent.ended()
        if len(received) >= self._max_connections:
            self._full.failed(limit=self._max_connections)
        else:
            self._full.ended()
        return excess

    def _update(self, found: Mapping[str, int], now: float) -> None:
        known = {}
        for peer, received in found.items():
            it = known[peer] = self._known.get(peer) or _Connection(since=now)
            delivered = self.delivered.get(peer, 0)
            added = received - it.received - (delivered - it.delivered)
            it.pending = max(it.pending * (1 - FORGOTTEN_SHARE * INSPECTION_SECONDS) + added, 0.0)
            it.received, it.delivered = received, delivered
        self._known = known
        # All others together hold at most half of the limit, so their metadata need not be counted.
        share = self._max_pending_bytes / 2 / max(len(known), 1)
        self.delivered.closely = {peer for peer, it in known.items() if it.pending > share}
        # Absent twice: a call may use a connection that was opened after the inspection.
        absent = self.delivered.keys() - found.keys()
        for peer in absent & self._absent:
            del self.delivered[peer]
        self._absent = absent

    def _above_limit_of_address(self, found: Mapping[str, int], callers: Collection[str]) -> set[str]:
        by_address: defaultdict[str, list[str]] = defaultdict(list)
        for peer in found:
            by_address[_network(peer)].append(peer)
        excess: set[str] = set()
        for peers in by_address.values():
            if len(peers) > self._max_per_address:
                # Connections with calls stay, then the oldest.
                peers.sort(key=lambda peer: (not _has_call(peer, callers), self._known[peer].since))
                excess.update(peers[self._max_per_address :])
        if excess:
            self._above_address_limit.failed(limit=self._max_per_address)
        else:
            self._above_address_limit.ended()
        return excess

    def _without_call(self, found: Mapping[str, int], callers: Collection[str], now: float) -> set[str]:
        excess = {
            peer
            for peer in found
            if not _has_call(peer, callers) and now - self._known[peer].since >= self._silent_seconds
        }
        if excess:
            self._silent.failed()
        return excess

    def _above_limit_of_bytes(self) -> set[str]:
        pending = sorted(((it.pending, peer) for peer, it in self._known.items()), reverse=True)
        total = sum(size for size, _ in pending)
        if total <= self._max_pending_bytes:
            self._inspections_above_limit = 0
            self._incomplete.ended()
            return set()
        self._inspections_above_limit += 1
        excess: set[str] = set()
        # Not at the first inspection, because complete requests may be waiting for the event loop.
        if self._inspections_above_limit > 1:
            self._incomplete.failed(limit=self._max_pending_bytes)
            for size, peer in pending:
                if total <= self._max_pending_bytes / 2:
                    break
                total -= size
                excess.add(peer)
        return excess


def _repeated(event: str, end_event: str) -> RepeatedFailure:
    return RepeatedFailure(log, event, end_event=end_event)


def _has_call(peer: str, callers: Collection[str]) -> bool:
    # The connection of a call over a Unix socket is unknown, so all of these count as having made one.
    return peer in callers or peer.startswith("unix:")


def _network(peer: str) -> str:
    """Returns the address of a peer; for IPv6 its /64 network, because one host has all addresses of it."""
    address = peer_address(peer)
    if not address.startswith("ipv6:"):
        return address
    host = unquote(address).removeprefix("ipv6:[").removesuffix("]").partition("%")[0]
    return str(ipaddress.ip_network((host, 64), strict=False))
