"""The sockets of the process are found without a trace."""

import fcntl
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from store_service.rpc.connections import Connections

TRY_TO_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("locked")
"""


async def test_socket_inspection_keeps_file_locks(tmp_path: Path) -> None:
    """Closing any descriptor of a file releases its POSIX locks."""
    path = tmp_path / "file"
    path.touch()
    connections = Connections()
    connections.begin("127.0.0.1:1")
    with path.open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)

        await connections.traffic()
        connections.cut(["ipv4:127.0.0.1:2"])

        tried = subprocess.run(  # noqa: ASYNC221  # the test has its event loop to itself
            [sys.executable, "-c", TRY_TO_LOCK, str(path)], capture_output=True, text=True, check=True
        )
    assert tried.stdout == "locked\n"


@pytest.mark.parametrize("prefix", ["unix:", "unix://"])
def test_unix_socket_connections_are_found_by_both_address_forms(tmp_path: Path, prefix: str) -> None:
    """gRPC accepts unix:PATH and unix:///PATH."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(path)
        listening.listen()
        client.connect(path)
        accepted, _ = listening.accept()
        with accepted:
            connections = Connections()
            connections.begin(prefix + path)

            assert connections.count() == 1
