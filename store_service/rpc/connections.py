"""The TCP connections of the server. They are closed with system calls, because gRPC has no function for it.

When a gRPC server stops, it ends calls that arrive at that moment with CANCELLED, which clients must not
retry. If the server shuts down its sending side of a connection instead (a FIN), the client ends calls that
have no response with UNAVAILABLE and retries them elsewhere. Therefore, before gRPC closes anything, this
module shuts down the listening socket and then each connection without running calls.
"""

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from store_service.address import Address

DESCRIPTORS_PER_STEP = 32
"""Descriptors that are inspected between two rounds of the event loop. Each takes about 10 microseconds."""

_DESCRIPTORS = Path("/dev/fd")

_BYTES_ACKED = 120
"""Offset of tcpi_bytes_acked in the struct tcp_info of Linux. tcpi_bytes_received follows it."""


class Traffic(NamedTuple):
    """Bytes of one connection since it was opened; 0 if the system does not report them."""

    acknowledged: int = 0
    """Bytes that were sent and that the peer has acknowledged."""
    received: int = 0


class Connections:
    """The sockets of one server, found among the open files of the process."""

    def __init__(self) -> None:
        """Finds no socket until `begin` sets the address."""
        self._address = Address()

    def begin(self, address: str) -> None:
        """Sets the address of the server: HOST:PORT, unix:PATH or unix:///PATH."""
        self._address = Address.parse(address)

    def stop_listening(self) -> None:
        """Stops accepting connections. Other processes on the same port still accept them."""
        for listening, peer in self._sockets():
            if peer is None:
                _shut_down(listening, socket.SHUT_RD)

    def finish(self, *, but: Collection[str] = ()) -> None:
        """Shuts down the sending side of all connections, except those to `but`, after what was sent."""
        for connection, peer in self._sockets():
            # All connections over a Unix socket have the same name.
            if peer is not None and peer not in but:
                _shut_down(connection, socket.SHUT_WR)

    def cut(self, peers: Collection[str]) -> None:
        """Closes the connections to these peers at once. Data that was not delivered is lost."""
        for connection, peer in self._sockets():
            if peer in peers:
                _shut_down(connection, socket.SHUT_RDWR)

    def count(self) -> int:
        """Returns the number of open connections."""
        return sum(peer is not None for _, peer in self._sockets())

    async def traffic(self) -> dict[str, Traffic]:
        """Returns the traffic of each connection by its peer as gRPC names it. Connections over a Unix socket
        have no names and get numbers.

        Raises:
            OSError: The process cannot open another file.
        """
        found: dict[str, Traffic] = {}
        descriptors = _descriptors()
        for start in range(0, len(descriptors), DESCRIPTORS_PER_STEP):
            for connection, peer in self._sockets(descriptors[start : start + DESCRIPTORS_PER_STEP]):
                if peer is not None:
                    found[f"unix:{len(found)}" if peer == "unix:" else peer] = _traffic(connection)
            await asyncio.sleep(0)
        return found

    def _sockets(
        self, descriptors: Iterable[str] | None = None
    ) -> Iterator[tuple[socket.socket, str | None]]:
        """Yields each socket of the server with its peer as gRPC names it; None for the listening socket."""
        for descriptor in _descriptors() if descriptors is None else descriptors:
            try:
                with _borrowed(int(descriptor)) as found:
                    if self._is_ours(found):
                        yield found, _peer_name(found)
            except OSError as error:
                # Most descriptors are not sockets. If the process has no free descriptor, every inspection
                # fails, so this error is raised.
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise

    def _is_ours(self, found: socket.socket) -> bool:
        if found.type != socket.SOCK_STREAM:
            return False
        if found.family == socket.AF_UNIX:
            return Path(os.fsdecode(found.getsockname())) == self._address.path
        if found.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        # A client in this process has this port at its peer, not at its own end.
        return bool(found.getsockname()[1] == self._address.port)


def _descriptors() -> list[str]:
    return [path.name for path in _DESCRIPTORS.iterdir()]


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Yields the socket of a descriptor, without a duplicate that would be closed.

    Closing any descriptor of a file releases the locks of the process on it. Then other processes could write
    to an SQLite database that is in use.

    Raises:
        OSError: The descriptor is not a socket.
    """
    found = socket.socket(fileno=descriptor)
    try:
        yield found
    finally:
        found.detach()


def _peer_name(found: socket.socket) -> str | None:
    try:
        peer = found.getpeername()
    except OSError:
        return None
    if found.family == socket.AF_INET:
        return f"ipv4:{peer[0]}:{peer[1]}"
    if found.family == socket.AF_INET6:
        mapped = peer[0].removeprefix("::ffff:")
        return f"ipv4:{mapped}:{peer[1]}" if "." in mapped else f"ipv6:%5B{peer[0]}%5D:{peer[1]}"
    return "unix:"


def _traffic(found: socket.socket) -> Traffic:
    if found.family == socket.AF_UNIX or not hasattr(socket, "TCP_INFO"):
        return Traffic()
    try:
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 16)
        return Traffic(*struct.unpack_from("=QQ", info, _BYTES_ACKED))
    except (OSError, struct.error):
        return Traffic()


def _shut_down(found: socket.socket, how: int) -> None:
    with suppress(OSError):  # The peer may already have closed the connection.
        found.shutdown(how)
