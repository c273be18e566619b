"""A program that has imported both distributions and forks a child for each command.

The imports take most of the CPU time of a command, and the tests run more than a thousand of them. The child
runs `python -m MODULE` from there on: with its own arguments, environment, folder and streams.
`forked_process.py` is the other side.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

MAX_REQUEST_BYTES = 65_536

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


def serve(control: socket.socket) -> None:
    """Forks for each request, and returns in the children, which have become what was requested."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, 3)
        if not message:
            os._exit(0)
        pid = fork_orphan()
        if not pid:
            control.close()
            become(json.loads(message), descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(str(pid).encode())


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
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["", *request["arguments"]]
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
