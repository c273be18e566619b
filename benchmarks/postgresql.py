"""A PostgreSQL server, started here or given, with a database that is dropped at the end."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.processes import stop

GIVEN = "BENCH_POSTGRES_URL"
"""The environment variable with the URL of a server to use; its database is not changed."""

START_SECONDS = 60

# The settings for durability, explicitly, although both are the default.
_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
}


class MissingError(Exception):
    """PostgreSQL cannot be measured. The text has the reason."""


@dataclass(frozen=True, slots=True)
class Postgresql:
    """A database on a running server."""

    url: str
    version: str
    pid: int | None
    """The first process of the server; None if the benchmark has not started it."""


@contextmanager
def empty_database(folder: Path) -> Iterator[Postgresql]:
    """An empty database until the end of the block.

    Raises:
        MissingError: No server is available, and none can be started.
    """
    if given := os.environ.get(GIVEN):
        with _database_on(given, pid=None) as found:
            yield found
    else:
        with _server(folder) as (url, pid), _database_on(url, pid=pid) as found:
            yield found


@contextmanager
def _database_on(server_url: str, *, pid: int | None) -> Iterator[Postgresql]:
    name = f"store_bench_{secrets.token_hex(4)}"
    try:
        connection = psycopg.connect(server_url, autocommit=True, connect_timeout=10)
    except psycopg.Error as error:
        raise MissingError(f"PostgreSQL cannot be reached: {str(error).splitlines()[0]}") from error
    with connection:
        try:
            connection.execute(f"CREATE DATABASE {name}")
        except psycopg.Error as error:
            raise MissingError(f"no database can be created on the given PostgreSQL: {error}") from error
        try:
            before, mark, options = server_url.partition("?")
            url = f"{before.rpartition('/')[0]}/{name}{mark}{options}"
            yield Postgresql(url, connection.info.parameter_status("server_version") or "", pid)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def _server(folder: Path) -> Iterator[tuple[str, int]]:
    """Starts a server and returns the URL of its database `postgres`."""
    programs = _programs()
    as_user = _as_other_user(folder)
    data = folder / "data"
    made = subprocess.run(
        [
            *as_user,
            programs / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    if made.returncode:
        raise MissingError(f"initdb failed: {made.stderr.strip()}")
    port = _free_port()
    options = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
    with (folder / "postgresql.log").open("ab") as log:
        process = subprocess.Popen(
            [*as_user, programs / "postgres", "-D", data, "-p", str(port), *options],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        _wait(process, url, folder / "postgresql.log")
        yield url, process.pid
    finally:
        # A fast shutdown: PostgreSQL ends the connections and closes its files.
        stop(process, signal.SIGINT)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise MissingError(f"PostgreSQL did not start: {log.read_text(errors='replace').strip()}")


def _programs() -> Path:
    """Returns the folder of the newest PostgreSQL of the system, or of the one in PATH."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda it: _number(it.parent.name), reverse=True
    )
    if tool := shutil.which("pg_config"):
        found = subprocess.run([tool, "--bindir"], capture_output=True, text=True, timeout=10, check=False)
        folders.append(Path(found.stdout.strip()))
    for folder in folders:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    raise MissingError(f"PostgreSQL is not installed; Debian's package is postgresql, or set {GIVEN}")


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _as_other_user(folder: Path) -> list[str | Path]:
    """Returns the start of a command that runs as another user: PostgreSQL refuses to run as root."""
    if os.geteuid():
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise MissingError(
            "PostgreSQL does not run as root, and there is no setpriv to start it as another user"
        )
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, user.pw_uid, user.pw_gid)
        return [setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    raise MissingError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
