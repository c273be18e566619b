"""TCP ports for servers that tests start."""

import random
import socket
from contextlib import suppress


def free_port() -> int:
    """Returns an unused port of 127.0.0.1, for servers that must restart on the same port.

    It is below 32768, so the system does not assign it to a socket bound to port 0.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def listens(port: int) -> bool:
    """Whether a port of 127.0.0.1 accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
