"""Programs that the benchmark starts, watches through /proc, and stops."""

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

ROOT = Path(__file__).parent.parent
"""The repository."""

READY = " is serving on "
"""What a server prints, between its name and its address, when it takes calls."""

READY_SECONDS = 60
STOP_SECONDS = 15

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class StartError(Exception):
    """A program ended, or said nothing, before it served."""


@dataclass(frozen=True, slots=True)
class Server:
    """A program that takes calls."""

    pid: int
    address: str
    """HOST:PORT."""


def environment(**settings: str) -> dict[str, str]:
    """The environment of a program: ours, without settings of the service but these."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STORE_", "DATABASE_URL", "DB_FORCE_ROLL_BACK"))
    }
    # An installed program has compiled modules; without them a start would mostly measure the compiler.
    ours.pop("PYTHONDONTWRITEBYTECODE", None)
    path = os.pathsep.join(filter(None, [str(ROOT), ours.get("PYTHONPATH")]))
    return {**ours, "PYTHONPATH": path, **settings}


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module."""
    return [sys.executable, "-m", module, *arguments]


@contextmanager
def serving(command: Sequence[str], *, folder: Path, settings: Mapping[str, str]) -> Iterator[Server]:
    """A program that takes calls until the end of the block; its stderr goes to a file in `folder`.

    Raises:
        StartError: It did not say within READY_SECONDS that it serves.
    """
    with (folder / "stderr.log").open("ab") as stderr:
        # In a session of its own, for Ctrl-C is ours to handle: the load ends before the servers.
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
        raise StartError(f"{' '.join(map(str, process.args))} does not serve; it said:\n{last_lines}")
    return address


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    """Ends a program that leads a session, and what it has started; kills it when it takes too long."""
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
    """CPU time of a process and of everything that it has started, from its start until now."""
    ticks = 0
    for fields in _tree(pid):
        # utime, stime; of the root also those of children that have ended.
        ticks += sum(map(int, fields[11:15] if fields[-1] == str(pid) else fields[11:13]))
    return ticks / _TICKS_A_SECOND


def memory_mib(pid: int) -> float:
    """Resident memory of a process and of everything that it has started."""
    pages = sum(int(fields[21]) for fields in _tree(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024


def children(pid: int) -> list[int]:
    """What a process has started itself."""
    return [int(fields[-1]) for fields in _processes() if fields[1] == str(pid)]


def wait_for_child(pid: int, seconds: float = 10) -> int:
    """The first program that a process starts."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := children(pid):
            return found[0]
        time.sleep(0.01)
    raise StartError(f"process {pid} has started nothing")


def _tree(pid: int) -> list[list[str]]:
    processes = list(_processes())
    found = {str(pid)}
    size = 0
    while size < len(found):
        size = len(found)
        found |= {fields[-1] for fields in processes if fields[1] in found}
    return [fields for fields in processes if fields[-1] in found]


def _processes() -> Iterator[list[str]]:
    """Each process: the fields of /proc/PID/stat behind its name, from its state on, and at last its pid."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        yield [*fields, path.parent.name]
