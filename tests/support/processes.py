"""Tracking of the processes that tests start.

A variable of their environment marks them and whatever they start. After pytest has ended, also by SIGKILL,
a reaper kills all marked processes and deletes their folders in memory. PR_SET_PDEATHSIG is not enough: it
acts when the thread that started a process ends, and a PostgreSQL that `pg_ctl` has started is not a child of
pytest.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = "TESTS_OF"
_SESSION = "TESTS_SESSION"
"""Marks processes that a session starts for all of its modules."""

MEMORY = Path("/dev/shm")
"""A file system in memory, on Linux."""

_reaper: "subprocess.Popen[bytes] | None" = None
_kept: set[int] = set()


def mark_session() -> None:
    """Marks all processes that this one starts from now on, and starts the reaper."""
    mark = os.environ[_NAME] = f"{os.getpid()}-{secrets.token_hex(8)}"
    environment = {name: value for name, value in os.environ.items() if name != _NAME}
    global _reaper
    # The pipe closes when this process ends. A new session keeps Ctrl-C from the reaper.
    _reaper = subprocess.Popen(
        [sys.executable, "-I", __file__, mark],
        stdin=subprocess.PIPE,
        env=environment,
        cwd="/",
        start_new_session=True,
    )


@contextmanager
def session_processes() -> Iterator[None]:
    """Processes started in the block may run until the end of the session."""
    os.environ[_SESSION] = "1"
    try:
        yield
    finally:
        del os.environ[_SESSION]


def folder_prefix() -> str:
    """The beginning of the names of temporary folders that the reaper deletes if they are in MEMORY."""
    return f"store-pg-{os.environ[_NAME]}-"


def keep_for_session(pid: int) -> None:
    """The process may run until the end of the session; its children may not."""
    _kept.add(pid)


def running_module_processes() -> dict[int, str]:
    """Returns running processes of the current module: process id to command."""
    return {
        pid: command
        for pid, command, environment in _marked(os.environ[_NAME])
        if f"{_SESSION}=1".encode() not in environment and pid not in _kept
    }


def kill(mark: str) -> None:
    """Ends all processes of a session. SIGTERM first: a killed PostgreSQL leaks shared memory."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + 5
        while (found := [pid for pid, _, _ in _marked(mark)]) and (
            number == signal.SIGKILL or time.monotonic() < end
        ):
            for pid in found:
                with suppress(OSError):
                    os.kill(pid, number)
            time.sleep(0.1)


def _marked(mark: str) -> Iterator[tuple[int, str, list[bytes]]]:
    wanted = f"{_NAME}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            # It is another user's, or it has just ended.
            with suppress(OSError):
                environment = (folder / "environ").read_bytes().split(b"\0")
                if wanted in environment:
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    yield int(folder.name), command.strip(), environment


if __name__ == "__main__":
    sys.stdin.read()
    kill(sys.argv[1])
    for left in MEMORY.glob(f"store-pg-{sys.argv[1]}-*"):
        shutil.rmtree(left, ignore_errors=True)
