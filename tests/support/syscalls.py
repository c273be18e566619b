"""Runs a program and reports what a power cut after its end could undo.

    python -m tests.support.syscalls FOLDER PROGRAM ARGUMENT...

The program's system calls are followed with ptrace, whatever library makes them. The disk is taken to be as
unhelpful as POSIX allows: what was written to a file is on disk after fsync of the file, and a name that was
made, changed or removed after fsync of its folder. Prints a JSON object: `exit_code`, and `unsynced`, what
was done in FOLDER last and not synced.
"""

import ctypes
import json
import os
import platform
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NUMBERS = {
    "x86_64": {
        1: "write",
        2: "open",
        18: "pwrite64",
        20: "writev",
        74: "fsync",
        75: "fdatasync",
        76: "truncate",
        77: "ftruncate",
        82: "rename",
        85: "creat",
        87: "unlink",
        90: "chmod",
        91: "fchmod",
        92: "chown",
        93: "fchown",
        257: "openat",
        260: "fchownat",
        263: "unlinkat",
        264: "renameat",
        268: "fchmodat",
        316: "renameat2",
    },
    "aarch64": {
        35: "unlinkat",
        38: "renameat",
        45: "truncate",
        46: "ftruncate",
        52: "fchmod",
        53: "fchmodat",
        54: "fchownat",
        55: "fchown",
        56: "openat",
        64: "write",
        66: "writev",
        68: "pwrite64",
        82: "fsync",
        83: "fdatasync",
        276: "renameat2",
    },
}

_TRACEME, _SETOPTIONS, _SYSCALL, _GET_SYSCALL_INFO = 0, 0x4200, 24, 0x420E
# Stops at system calls are told from signals; threads and children are followed; none outlives the tracer.
_OPTIONS = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x100000
_AT_SYSCALL, _ALL_THREADS = 0x80 | 5, 0x40000000
_ENTRY, _EXIT = 1, 2

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, address: Any = None, data: Any = None) -> int:
    """The system call, whose failure is an OSError."""
    result: int = libc.ptrace(request, pid, address, data)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


@dataclass
class Disk:
    """The changes of the files of a directory since their last sync."""

    folder: str
    unsynced: dict[str, str] = field(default_factory=dict)
    """What a power cut would undo: the last operation by name."""

    def done(self, name: str, arguments: list[int], pid: int, existed: bool) -> None:
        """Records a successful system call."""
        if name in ("fsync", "fdatasync"):
            path = _of_descriptor(pid, arguments[0])
            if path == self.folder:
                self.unsynced = {it: what for it, what in self.unsynced.items() if not it.startswith("name ")}
            self.unsynced.pop(f"file {path}", None)
        elif name in ("write", "pwrite64", "writev", "ftruncate", "fchmod", "fchown"):
            self._file(name, _of_descriptor(pid, arguments[0]))
        elif name in ("truncate", "chmod", "chown"):
            self._file(name, _path(pid, arguments[0]))
        elif name in ("fchmodat", "fchownat"):
            self._file(name, _path(pid, arguments[1], arguments[0]))
        elif name in ("open", "creat", "openat"):
            path = _opened(name, arguments, pid)
            if not existed:
                self._name("made", path)
        elif name in ("unlink", "unlinkat"):
            path = _path(pid, arguments[0]) if name == "unlink" else _path(pid, arguments[1], arguments[0])
            self.unsynced.pop(f"file {path}", None)
            self._name("removed", path)
        else:
            old, new = (
                (_path(pid, arguments[0]), _path(pid, arguments[1]))
                if name == "rename"
                else (_path(pid, arguments[1], arguments[0]), _path(pid, arguments[3], arguments[2]))
            )
            if (what := self.unsynced.pop(f"file {old}", None)) is not None:
                self.unsynced[f"file {new}"] = what
            self._name("renamed", old)
            self._name("renamed", new)

    def _file(self, what: str, path: str) -> None:
        if str(Path(path).parent) == self.folder:
            self.unsynced[f"file {path}"] = what

    def _name(self, what: str, path: str) -> None:
        if str(Path(path).parent) == self.folder:
            self.unsynced[f"name {path}"] = what


def _of_descriptor(pid: int, descriptor: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/fd/{ctypes.c_int(descriptor).value}").readlink())
    except OSError:
        return ""


def _path(pid: int, address: int, folder: int = -100) -> str:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        text = b""
        while b"\0" not in text:
            memory.seek(address + len(text))
            # Not beyond the page, where there may be nothing.
            text += memory.read(4096 - (address + len(text)) % 4096)
    name = os.fsdecode(text.partition(b"\0")[0])
    # AT_FDCWD
    is_working_folder = ctypes.c_int(folder).value == -100
    at = str(Path(f"/proc/{pid}/cwd").readlink()) if is_working_folder else _of_descriptor(pid, folder)
    return os.path.normpath(Path(at) / name)


def _opened(name: str, arguments: list[int], pid: int) -> str:
    return _path(pid, arguments[1], arguments[0]) if name == "openat" else _path(pid, arguments[0])


def follow(folder: str, program: list[str]) -> dict[str, Any]:
    """Runs the program to its end."""
    numbers = _NUMBERS[platform.machine()]
    first = os.fork()
    if not first:
        ptrace(_TRACEME, 0)
        os.execv(program[0], program)
    os.waitpid(first, 0)
    ptrace(_SETOPTIONS, first, None, _OPTIONS)
    ptrace(_SYSCALL, first)
    disk, exit_code, inside = Disk(folder), None, dict[int, tuple[str, list[int], bool]]()
    info = ctypes.create_string_buffer(88)
    while exit_code is None:
        pid, status = os.waitpid(-1, _ALL_THREADS)
        if not os.WIFSTOPPED(status):
            if pid == first:
                exit_code = os.waitstatus_to_exitcode(status)
            continue
        number = os.WSTOPSIG(status)
        if number == _AT_SYSCALL:
            number = 0
            ptrace(_GET_SYSCALL_INFO, pid, len(info), info)
            if info.raw[0] == _ENTRY:
                call, *arguments = struct.unpack_from("<7Q", info.raw, 24)
                name = numbers.get(call)
                if name is not None:
                    is_open = name in ("open", "creat", "openat")
                    existed = is_open and Path(_opened(name, arguments, pid)).exists()
                    inside[pid] = name, arguments, existed
            elif info.raw[0] == _EXIT and pid in inside:
                (result,) = struct.unpack_from("<q", info.raw, 24)
                name, arguments, existed = inside.pop(pid)
                if result >= 0:
                    disk.done(name, arguments, pid, existed)
        elif status >> 16 or number in (5, 19):  # an event of ptrace, or the first stop of a thread
            number = 0
        ptrace(_SYSCALL, pid, None, number)
    return {"exit_code": exit_code, "unsynced": [f"{it}: {what}" for it, what in disk.unsynced.items()]}


def unsynced_after(*arguments: str, folder: Path, settings: dict[str, str] | None = None) -> list[str]:
    """Runs `store-service`, which must succeed, and returns what a power cut could undo.

    The lock file and the shared-memory file of the log are ignored.
    """
    program = [sys.executable, "-m", "store_service", *arguments]
    done = subprocess.run(
        [sys.executable, __file__, str(folder.resolve()), *program],
        cwd=folder,
        env=os.environ | (settings or {}),
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["exit_code"] == 0, done.stdout + done.stderr
    return [it for it in found["unsynced"] if not it.partition(":")[0].endswith((".lock", "-shm"))]


if __name__ == "__main__":
    print(json.dumps(follow(sys.argv[1], sys.argv[2:])))  # noqa: T201  # the output of this program
