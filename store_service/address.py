"""Addresses that a server listens on, and checks whether one is free."""

import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

LONGEST_PATH = 107
"""Longest path of a unix socket, in bytes, as Linux has it."""


_UNIX = "unix:"


@dataclass(frozen=True, slots=True)
class Address:
    """HOST:PORT, or unix:PATH."""

    host: str = ""
    """A name or an IP address, without brackets; empty for a unix socket."""
    port: int = 0
    """0 lets the system choose."""
    path: Path | None = None
    """The file of a unix socket; None for TCP."""

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parses HOST:PORT, with an IPv6 address in brackets, or unix:PATH.

        Raises:
            ValueError: The text is something else.
        """
        if text.startswith(_UNIX):
            path = text.removeprefix(_UNIX)
            if not path.strip("/"):
                raise ValueError("must name a file after unix:, as unix:/run/store.sock")
            return cls(path=Path(path))
        host, separator, port = text.rpartition(":")
        if not (separator and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
            raise ValueError("must be HOST:PORT, as 127.0.0.1:50051 or [::]:50051, or unix:PATH")
        return cls(host=host.strip("[]"), port=int(port))

    def __str__(self) -> str:
        if self.path is not None:
            return f"{_UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_port(self, port: int) -> "Address":
        """The same address with another port; a unix socket has none and stays as it is."""
        return self if self.path is not None else replace(self, port=port)

    def resolved(self) -> list[tuple[socket.AddressFamily, Any]]:
        """The family and the socket address of each IP address of the host.

        Raises:
            OSError: The name cannot be resolved.
        """
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]


def check(listen: str) -> None:
    """Checks that an address is free, as far as that is possible without taking it.

    Args:
        listen: HOST:PORT, or unix:PATH.

    Raises:
        OSError: The address is in use, or not of this machine, or no socket can be made there.
    """
    wanted = Address.parse(listen)
    if wanted.path is not None:
        _check_path(wanted.path)
        return
    problems = []
    for family, address in wanted.resolved():
        try:
            with socket.socket(family) as probe:
                # A server that has just ended does not keep the port from the next.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            problems.append(error)
        else:
            # One of the addresses of a name is enough.
            return
    raise problems[0]


def problem(listen: str, error: OSError) -> str:
    """Explains an error of `check` to the operator."""
    if Address.parse(listen).path is not None:
        return f"the socket cannot be made there: {error.strerror or error}"
    if error.errno == errno.EADDRINUSE:
        return "the port is in use"
    if error.errno == errno.EADDRNOTAVAIL:
        return "the address is not of this machine"
    return str(error.strerror or error)


def _check_path(path: Path) -> None:
    code = 0
    if len(os.fsencode(path)) > LONGEST_PATH:
        code = errno.ENAMETOOLONG
    elif not path.parent.is_dir():
        code = errno.ENOENT
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        code = errno.EACCES
    elif path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        # The socket of a server before is replaced, and nothing else.
        code = errno.EEXIST
    if code:
        raise OSError(code, os.strerror(code))
