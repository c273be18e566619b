"""A program that has imported both distributions and forks a child for each command.

The imports take most of the CPU time of a command, and the tests run more than a thousand of them. The child
runs `python -m MODULE` from there on: with its own arguments, environment, folder and descriptors. If it will
start workers, these are forks too, of a copy of this program whose parent it is. `forked_process.py` starts
this program.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

MAX_REQUEST_BYTES = 65_536
MAX_DESCRIPTORS = 32

FIRST_FREE_DESCRIPTOR = 100
"""Received descriptors are moved to numbers from here on, before they get those that the child expects."""

PR_SET_CHILD_SUBREAPER = 36

MORE_MODULES = (
    "aiosqlite",
    "alembic.command",
    "alembic.config",
    "asyncpg",
    "databases.backends.sqlite",
    "grpc.aio",
    "psycopg",
    "rich.progress",
    "uvloop",
)
"""What commands import late, besides the modules of both distributions."""


def import_everything() -> None:
    """Imports what any command needs, without starting a thread or creating an object of gRPC."""
    os.environ["GRPC_VERBOSITY"] = "NONE"
    for name in ("store_service", "storeapi"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__") and ".migrations." not in module.name:
                importlib.import_module(module.name)
    for name in MORE_MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def fork(control: socket.socket, request: Mapping[str, Any], descriptors: Mapping[int, int]) -> int:
    """Starts a child of this process and returns its id. Called by one thread at a time.

    Args:
        control: The socket to the program, which is a child of this process.
        request: `arguments`, `folder`, `environment` and `new_session` of the child.
        descriptors: Those of the child: its number, and that of this process.
    """
    prctl = ctypes.CDLL(None).prctl
    message = json.dumps({**request, "numbers": list(descriptors)}).encode()
    # The child is orphaned by a process between, so that this process becomes its parent.
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        socket.send_fds(control, [message], list(descriptors.values()))
        return int(control.recv(32))
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class ForkedProcess(subprocess.Popen[Any]):
    """`python -m MODULE` as a fork of the program."""

    control: socket.socket
    """The socket to the program."""

    def _execute_child(self, args: list[Any], *rest: Any) -> None:
        _, _, _, pass_fds, folder, environment, _, _, _, *pipes = rest[:15]
        stdin, _, _, stdout, _, stderr = pipes
        streams = {number: number if it == -1 else it for number, it in enumerate((stdin, stdout, stderr))}
        request = {
            "arguments": [os.fspath(it) for it in args[2:]],
            "folder": os.fspath(folder or Path.cwd()),
            "environment": dict(environment),
            "new_session": rest[20],
        }
        try:
            self.pid = fork(self.control, request, streams | {it: it for it in pass_fds})
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


class _WorkerProcess(ForkedProcess):
    """A process that a supervisor starts: a fork if it is a worker or the writer."""

    def _execute_child(self, args: list[Any], *rest: Any) -> None:
        if list(args[:3]) == [sys.executable, "-m", "store_service"]:
            super()._execute_child(args, *rest)
        else:
            subprocess.Popen._execute_child(self, args, *rest)  # type: ignore[attr-defined]


def serve(control: socket.socket) -> None:
    """Forks for each request, and returns in the children, which have become what was requested.

    Ends when the process at the other end of `control` has ended.
    """
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, MAX_DESCRIPTORS)
        if not message:
            os._exit(0)
        pid = fork_orphan()
        if pid:
            close_all(descriptors)
            control.send(str(pid).encode())
            continue
        control.close()
        request = json.loads(message)
        if request["arguments"] == ["store_service", "serve"] and "STORE_WORKERS" in request["environment"]:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if not os.fork():
                # The copy that forks for the supervisor.
                ours.close()
                close_all(descriptors)
                control = theirs
                continue
            theirs.close()
            _WorkerProcess.control = ours
            subprocess.Popen = _WorkerProcess  # type: ignore[misc]
        become(request, descriptors)
        return


def close_all(descriptors: Iterable[int]) -> None:
    """Closes descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


def fork_orphan() -> int:
    """Forks a child whose parent becomes the process that has started this one, if that is a subreaper."""
    ours, theirs = os.pipe()
    between = os.fork()
    if between == 0:
        if pid := os.fork():
            os.write(theirs, str(pid).encode())
            os._exit(0)
        os.close(ours)
        os.close(theirs)
        return 0
    os.waitpid(between, 0)
    pid = int(os.read(ours, 32))
    os.close(ours)
    os.close(theirs)
    return pid


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Makes this process what Python is after its start."""
    if request["new_session"]:
        os.setsid()
    moved = [fcntl.fcntl(it, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_DESCRIPTOR) for it in descriptors]
    for number, descriptor in zip(request["numbers"], moved, strict=True):
        os.dup2(descriptor, number)
    close_all({*descriptors, *moved} - set(request["numbers"]))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["", *request["arguments"]]
    show_arguments([sys.executable, "-m", *request["arguments"]])
    sys.path.insert(0, request["folder"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, f"__{name}__")
        stream = io.TextIOWrapper(
            open(number, "wb" if number else "rb", closefd=False),  # noqa: SIM115  # as Python does
            encoding=before.encoding,
            errors=before.errors,
            line_buffering=name == "stderr" or os.isatty(number),
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def show_arguments(arguments: list[str]) -> None:
    """Replaces the command line that other processes see, as far as there is room."""
    start, end = (int(it) for it in Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[45:47])
    shown = b"\0".join(it.encode() for it in arguments)[: end - start - 1]
    ctypes.memmove(start, shown.ljust(end - start, b"\0"), end - start)


def leave_shared_memory(modules: dict[str, ModuleType]) -> None:
    """Keeps modules from being cleared at the exit of a child, which would copy the memory of all of them."""
    for name, module in modules.items():
        if sys.modules.pop(name, None) is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(module))


if __name__ == "__main__":
    imported: dict[str, ModuleType] = {}
    if "coverage" not in sys.modules:
        # Functions run in reverse order, so this is the last one.
        atexit.register(leave_shared_memory, imported)
    gc.disable()
    import_everything()
    gc.freeze()
    gc.enable()
    imported |= {name: it for name, it in sys.modules.items() if name not in ("builtins", "sys", "__main__")}
    # Neither Python nor gRPC supports a fork of several threads.
    assert len(list(Path("/proc/self/task").iterdir())) == 1
    serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
