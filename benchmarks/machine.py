"""The machine on which the numbers were measured."""

import os
import platform
import sqlite3
import subprocess
from importlib import metadata
from pathlib import Path

LIBRARIES = (
    "grpcio",
    "protobuf",
    "uvloop",
    "sqlalchemy",
    "databases",
    "aiosqlite",
    "asyncpg",
    "fastapi",
    "uvicorn",
)

MEMORY_ONLY = ("tmpfs", "ramfs")
"""File systems on which an fsync costs nothing."""


def describe(folder: Path, postgresql_version: str | None) -> dict[str, str]:
    """Returns the machine and the versions of its software.

    Args:
        folder: The folder of the databases.
        postgresql_version: The version of the measured server, if there was one.
    """
    described = {
        "CPU": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{_system()}, Linux {platform.release()}",
        "databases on": file_system(folder),
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "h2load": _h2load_version(),
    }
    if postgresql_version:
        described["PostgreSQL"] = postgresql_version
    for name in LIBRARIES:
        try:
            described[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not every run needs every library
    return described


def in_one_line(described: dict[str, str]) -> str:
    """Returns the description as one line."""
    return "; ".join(f"{name} {value}" for name, value in described.items()).replace("CPU ", "", 1)


def file_system(folder: Path) -> str:
    """Returns the type of the file system of a folder."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mounted_on, its_kind, *_ = line.split()
        if folder.resolve().is_relative_to(mounted_on) and len(mounted_on) >= len(best):
            best, kind = mounted_on, its_kind
    return kind


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _h2load_version() -> str:
    said = subprocess.run(["h2load", "--version"], capture_output=True, text=True, timeout=10, check=False)
    return said.stdout.strip().rpartition("/")[2]
