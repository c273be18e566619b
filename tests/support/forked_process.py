"""`store-service` and `storeapi` as child processes that need not import their modules again.

`fork_server.py` explains how. The children differ from new processes only in what happened before the first
line of `__main__`, so the tests of imports and of the interpreter's environment start new ones.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.support import fork_server, processes

_ROOM_FOR_ARGUMENTS = " " * 1000
"""Children show their own arguments there."""

_READ_AFTER_THE_START = (
    "STORE_",
    "STOREAPI_",
    "DATABASE_URL",
    "DB_FORCE_ROLL_BACK",
    "PYTEST_CURRENT_TEST",
    "COLUMNS",
    "LINES",
    "TERM",
    "TMPDIR",
)
"""Beginnings of the variables that neither Python nor a library reads while it is imported."""


class _ForkServer:
    """The process that has imported everything."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        """What the process was started with."""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # It ends when this process does, because `control` is closed then.
            self._process = subprocess.Popen(
                [sys.executable, "-P", fork_server.__file__, str(theirs.fileno()), _ROOM_FOR_ARGUMENTS],
                pass_fds=[theirs.fileno()],
                cwd="/",
            )
        processes.keep_for_session(self._process.pid)


_started = cache(_ForkServer)
_lock = threading.Lock()


def _fork_server() -> _ForkServer:
    """The only fork server. `cache` alone starts several of them if threads call it at the same time."""
    with _lock:
        return _started()


class _ForkedProcess(fork_server.ForkedProcess):
    """A child that the fork server starts."""

    def _execute_child(self, args: list[Any], *rest: Any) -> None:
        self.control = _fork_server().control
        with _lock:
            super()._execute_child(args, *rest)


def start_module(
    module: str, *arguments: str, folder: Path, environment: Mapping[str, str], **streams: Any
) -> subprocess.Popen[Any]:
    """Starts `python -m MODULE` in a folder; `streams` are further arguments of Popen."""
    before = _fork_server().environment.items()
    changed = {name for name, _ in before ^ environment.items()}
    can_fork = all(name.startswith(_READ_AFTER_THE_START) for name in changed)
    kind = _ForkedProcess if can_fork else subprocess.Popen
    command = [sys.executable, "-m", module, *arguments]
    return kind(command, cwd=folder, env=environment, **streams)
