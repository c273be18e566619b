"""Whether an address can be served on, and why not."""

import errno
import os
import socket
import stat
from pathlib import Path

LONGEST_PATH = 107
"""Longest path of a unix socket, in bytes, as Linux has it."""


def check(listen: str) -> None:
    """Makes sure that nobody has an address, as far as that can be said without taking it.

    Args:
        listen: HOST:PORT, or unix:PATH.

    Raises:
        OSError: It is in use, or not of this machine, or no socket can be made there.
    """
    if listen.startswith("unix:"):
        _check_path(Path(listen.removeprefix("unix:")))
        return
    host, _, port = listen.rpartition(":")
    problems = []
    for family, kind, _, _, address in socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM
    ):
        try:
            with socket.socket(family, kind) as probe:
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
    """What an error means to whoever chose the address."""
    if listen.startswith("unix:"):
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
