"""Addresses that a server listens on: parsing, and checks whether an address is free."""

import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_PATH_BYTES = 107
"""Maximum length of the path of a Unix socket on Linux."""

_UNIX = "unix:"


@dataclass(frozen=True, slots=True)
class Address:
    """HOST:PORT, or unix:PATH."""

    host: str = ""
    """A name or an IP address, without brackets; empty for a Unix socket."""
    port: int = 0
    """0 lets the system choose."""
    path: Path | None = None
    """The file of a Unix socket; None for TCP."""

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parses HOST:PORT, with an IPv6 address in brackets, or unix:PATH.

        Raises:
            ValueError: The text is not an address. The message follows the name of a setting or argument.
        """
        if text.startswith(_UNIX):
            path = text.removeprefix(_UNIX)
            if not path.strip("/"):
                raise ValueError("must have a path after unix:, such as unix:/run/store.sock")
            return cls(path=Path(path))
        host, separator, port = text.rpartition(":")
        if not (separator and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
            raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051 or [::]:50051, or unix:PATH")
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
        """Returns the address with another port. An address of a Unix socket is unchanged."""
        return self if self.path is not None else replace(self, port=port)

    def resolved(self) -> list[tuple[socket.AddressFamily, Any]]:
        """Returns the family and the socket address of each IP address of the host.

        Raises:
            OSError: The name cannot be resolved.
        """
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]


def check(listen: str) -> None:
    """Checks that an address is free, as far as that is possible without listening on it.

    Args:
        listen: HOST:PORT, or unix:PATH.

    Raises:
        OSError: The address is in use, or is not an address of this machine, or the socket cannot be created.
    """
    address = Address.parse(listen)
    if address.path is not None:
        _check_path(address.path)
        return
    errors = []
    for family, socket_address in address.resolved():
        try:
            with socket.socket(family) as probe:
                # Otherwise the port could not be bound for a while after the previous server has ended.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(socket_address)
        except OSError as error:
            errors.append(error)
        else:
            # One of the IP addresses of a name is sufficient.
            return
    raise errors[0]


def problem(listen: str, error: OSError) -> str:
    """Returns a message for the operator about an error of `check`."""
    if Address.parse(listen).path is not None:
        return f"the socket cannot be created: {error.strerror or error}"
    if error.errno == errno.EADDRINUSE:
        return "the port is in use"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have the address"
    return str(error.strerror or error)


def parse_networks(text: str) -> tuple[Network, ...]:
    """Parses addresses and networks, separated by commas or white space.

    Raises:
        ValueError: One of them is not valid. The message follows the name of a setting.
    """
    try:
        return tuple(ipaddress.ip_network(it) for it in text.replace(",", " ").split())
    except ValueError:
        raise ValueError(
            "must be addresses or networks such as 10.0.0.7 or 10.1.0.0/16, separated by commas"
        ) from None


def _check_path(path: Path) -> None:
    code = 0
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        code = errno.ENAMETOOLONG
    elif not path.parent.is_dir():
        code = errno.ENOENT
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        code = errno.EACCES
    elif path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        # A server replaces the socket of a previous server, but no other file.
        code = errno.EEXIST
    if code:
        raise OSError(code, os.strerror(code))
