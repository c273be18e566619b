"""`store-service` and `storeapi` as child processes that need not import their modules again.

`fork_server.py` explains how. The children differ from new processes only in what happened before the first
line of `__main__`, so the tests of imports and of the interpreter's environment start new ones.
"""

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.support import processes

_PROGRAM = Path(__file__).with_name("fork_server.py")
_PR_SET_CHILD_SUBREAPER = 36

_READ_AFTER_THE_START = (
    "STORE_",
    "STOREAPI_",
    "DATABASE_URL",
    "DB_FORCE_ROLL_BACK",
    "PYTEST_CURRENT_TEST",
    "COLUMNS",
    "LINES",
    "TERM",
)
"""Beginnings of the variables that neither Python nor a library reads while it is imported."""


class _ForkServer:
    """The process that has imported everything."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        """What the process was started with."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # It ends when this process does, because the socket is closed then.
            self._process = subprocess.Popen(
                [sys.executable, "-P", _PROGRAM, str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd="/"
            )
        processes.keep_for_session(self._process.pid)
        self._lock = threading.Lock()
        self._prctl = ctypes.CDLL(None).prctl

    def fork(
        self, arguments: list[str], folder: str, environment: Mapping[str, str], streams: list[int]
    ) -> int:
        """Starts a child of this process and returns its id."""
        request = {"arguments": arguments, "folder": folder, "environment": dict(environment)}
        with self._lock:
            # The child is orphaned by a process between, so that this process becomes its parent.
            self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], streams)
                return int(self._control.recv(32))
            finally:
                self._prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


_started = cache(_ForkServer)
_start_lock = threading.Lock()


def _fork_server() -> _ForkServer:
    """The only fork server. `cache` alone starts several of them if threads call it at the same time."""
    with _start_lock:
        return _started()


class _ForkedProcess(subprocess.Popen[Any]):
    """A child that the fork server starts."""

    def _execute_child(self, args: list[str], *rest: Any) -> None:
        _, _, _, _, folder, environment, _, _, _, *pipes = rest[:15]
        stdin, _, _, stdout, _, stderr = pipes
        streams = [number if given == -1 else given for number, given in enumerate((stdin, stdout, stderr))]
        try:
            self.pid = _fork_server().fork(args[2:], str(folder), environment, streams)
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)


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
