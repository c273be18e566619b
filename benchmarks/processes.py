"""Programs that the benchmark starts, measures through /proc, and stops."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from store_service import grpc_core

ROOT = Path(__file__).parent.parent
"""The repository."""

READY = " is serving on "
"""The text that a server prints between its name and its address when it accepts calls."""

READY_SECONDS = 60
STOP_SECONDS = 15

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class StartError(Exception):
    """A program ended, or printed nothing, before it accepted calls."""


@dataclass(frozen=True, slots=True)
class Server:
    """A program that accepts calls."""

    pid: int
    address: str
    """HOST:PORT."""


def environment(**settings: str) -> dict[str, str]:
    """Returns the environment of this process with these settings of the service, and no others."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STORE_", "DATABASE_URL", "DATABASE_DIRECT_URL", "DB_FORCE_ROLL_BACK"))
    }
    # An installed program has compiled modules. Without them, a start would mostly measure the compiler.
    ours.pop("PYTHONDONTWRITEBYTECODE", None)
    # The settings with which the service runs, for all contenders.
    for name, value in grpc_core.ENVIRONMENT.items():
        ours.setdefault(name, value)
    path = os.pathsep.join(filter(None, [str(ROOT), ours.get("PYTHONPATH")]))
    return {**ours, "PYTHONPATH": path, **settings}


def python(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module."""
    return [sys.executable, "-m", module, *arguments]


@contextmanager
def serving(command: Sequence[str], *, folder: Path, settings: Mapping[str, str]) -> Iterator[Server]:
    """Runs a program that accepts calls until the end of the block; its stderr goes to a file in `folder`.

    Raises:
        StartError: It did not accept calls within READY_SECONDS.
    """
    with (folder / "stderr.log").open("ab") as stderr:
        # In its own session, so that Ctrl-C reaches only this process: it ends the load before the servers.
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        yield Server(process.pid, _address(process, folder / "stderr.log"))
    finally:
        stop(process)


def _address(process: subprocess.Popen[bytes], stderr: Path) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], READY_SECONDS)
    line = process.stdout.readline().decode().strip() if readable else ""
    _, ready, address = line.partition(READY)
    if not ready:
        last_lines = "\n".join(stderr.read_text(errors="replace").splitlines()[-5:])
        raise StartError(
            f"{' '.join(map(str, process.args))} does not accept calls; its output:\n{last_lines}"
        )
    return address


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    """Ends a program that leads a session, and its children; kills them if they do not end in time."""
    if process.poll() is None:
        os.killpg(process.pid, number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process and its descendants until now."""
    ticks = 0
    for fields in _tree(pid):
        # utime and stime; of the root process also those of children that have ended.
        ticks += sum(map(int, fields[11:15] if fields[-1] == str(pid) else fields[11:13]))
    return ticks / _TICKS_A_SECOND


def memory_mib(pid: int) -> float:
    """Returns the resident memory of a process and its descendants."""
    pages = sum(int(fields[21]) for fields in _tree(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024


def children(pid: int) -> list[int]:
    """Returns the direct children of a process."""
    return [int(fields[-1]) for fields in _processes() if fields[1] == str(pid)]


def wait_for_child(pid: int, seconds: float = 10) -> int:
    """Returns the first child of a process."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := children(pid):
            return found[0]
        time.sleep(0.01)
    raise StartError(f"process {pid} has no child")


def _tree(pid: int) -> list[list[str]]:
    processes = list(_processes())
    found = {str(pid)}
    size = 0
    while size < len(found):
        size = len(found)
        found |= {fields[-1] for fields in processes if fields[1] in found}
    return [fields for fields in processes if fields[-1] in found]


def _processes() -> Iterator[list[str]]:
    """Returns for each process the fields of /proc/PID/stat after its name, followed by its pid."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        yield [*fields, path.parent.name]
