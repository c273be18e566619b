"""The server's own TCP connections, closed in a way that gRPC has no call for.

When gRPC closes a server, calls that arrive in that moment are answered CANCELLED, which no client may take
for a reason to try again. A connection whose server says that it will send nothing more (a FIN) makes the
client fail what it has not heard of with UNAVAILABLE, and that is tried again elsewhere. So before gRPC
closes anything, the sockets are told: first the one that listens, then each connection on which nothing runs.
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

LOOK_COUNT = 32
"""Files that are looked at in one round of the event loop; each takes about 10 microseconds."""

_DESCRIPTORS = Path("/dev/fd")

_BYTES_ACKED = 120
"""Where Linux has tcpi_bytes_acked in its struct tcp_info, and after it tcpi_bytes_received."""


class Traffic(NamedTuple):
    """Bytes of one connection since it began; 0 where the system does not tell."""

    taken: int = 0
    """What its other end has acknowledged."""
    received: int = 0


class Connections:
    """The sockets of one server, found among the files that this process has open."""

    def __init__(self) -> None:
        """Knows no address yet, and so no socket."""
        self._address = Address()

    def begin(self, address: str) -> None:
        """Takes what the server listens on: HOST:PORT, unix:PATH or unix:///PATH."""
        self._address = Address.parse(address)

    def stop_listening(self) -> None:
        """Refuses new connections, which other processes on the same port then get."""
        for listening, peer in self._sockets():
            if peer is None:
                _shut(listening, socket.SHUT_RD)

    def finish(self, *, but: Collection[str] = ()) -> None:
        """Says on every connection that nothing more comes, after what was sent; except on those to `but`."""
        for connection, peer in self._sockets():
            # Two connections over a unix socket cannot be told apart.
            if peer is not None and peer not in but:
                _shut(connection, socket.SHUT_WR)

    def cut(self, peers: Collection[str]) -> None:
        """Closes the connections to these now, with everything that is on its way."""
        for connection, peer in self._sockets():
            if peer in peers:
                _shut(connection, socket.SHUT_RDWR)

    def count(self) -> int:
        """How many connections there are."""
        return sum(peer is not None for _, peer in self._sockets())

    async def traffic(self) -> dict[str, Traffic]:
        """What each connection has transported, by its other end as gRPC names it. Connections over a unix
        socket, which have no names, get a number.

        Raises:
            OSError: The process cannot open another file.
        """
        found: dict[str, Traffic] = {}
        descriptors = _descriptors()
        for start in range(0, len(descriptors), LOOK_COUNT):
            for connection, peer in self._sockets(descriptors[start : start + LOOK_COUNT]):
                if peer is not None:
                    found[f"unix:{len(found)}" if peer == "unix:" else peer] = _traffic(connection)
            await asyncio.sleep(0)
        return found

    def _sockets(
        self, descriptors: Iterable[str] | None = None
    ) -> Iterator[tuple[socket.socket, str | None]]:
        """Each socket of the server, and its other end as gRPC names it; None for one that listens."""
        for descriptor in _descriptors() if descriptors is None else descriptors:
            try:
                with _borrowed(int(descriptor)) as found:
                    if self._is_ours(found):
                        yield found, _peer_name(found)
            except OSError as error:
                # Most are files of another kind. Without a descriptor for the look, everything would be.
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise

    def _is_ours(self, found: socket.socket) -> bool:
        if found.type != socket.SOCK_STREAM:
            return False
        if found.family == socket.AF_UNIX:
            return Path(os.fsdecode(found.getsockname())) == self._address.path
        if found.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        # A client in this process has our port at its other end.
        return bool(found.getsockname()[1] == self._address.port)


def _descriptors() -> list[str]:
    return [path.name for path in _DESCRIPTORS.iterdir()]


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """A socket by its file's number; raises OSError if that is a file of another kind.

    Nothing is duplicated and closed: closing any descriptor of a file gives up the locks that the process has
    on it, and other processes would then write into an SQLite database that is in use.
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


def _shut(found: socket.socket, how: int) -> None:
    with suppress(OSError):  # the other end was quicker
        found.shutdown(how)
