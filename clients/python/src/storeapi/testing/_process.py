"""A real server for the length of a test, in a process and on a database of its own."""

import importlib.util
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

_ANNOUNCEMENT: Final = "store-service is serving on "

# Long enough for a machine that runs many tests at once; a server takes about a second.
_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 120.0


class ServerNotInstalled(ModuleNotFoundError):
    """The Python that runs the tests has no store-service; the text says how to install it."""


class ServerFailed(RuntimeError):
    """store-service did not start or did not stop as it should; the text has its log."""


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server that runs until the end of its `with` block."""

    target: str
    """Its address, for a client."""
    pid: int
    """Its process, for a test that kills it."""
    folder: Path
    """Where its database and its log are; deleted at the end."""

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return (self.folder / "stderr.log").read_text(errors="replace")


@contextmanager
def running_server(settings: Mapping[str, str] | None = None) -> Iterator[RunningServer]:
    """Runs store-service on a new SQLite file, and stops it at the end as an operator would.

        with running_server() as server, StoreClient(server.target) as client:
            client.posts.create(body="Hello")

    It takes about a second to start. The environment's own STORE_* variables and DATABASE_URL, and a file
    `.env`, do not reach it.

    Args:
        settings: The server's settings as environment variables, such as {"STORE_MAX_BODY_BYTES": "100"}.

    Raises:
        ServerNotInstalled: The command store-service is not installed.
        ServerFailed: It did not start, or did not end well.
    """
    if importlib.util.find_spec("store_service") is None:
        raise ServerNotInstalled(
            f"store-service is not installed for {sys.executable}; it comes from where storeapi came from, "
            "and needs Python 3.11 or newer"
        )
    # A folder of its own: the server would read `.env` where the tests run.
    with (
        TemporaryDirectory(prefix="storeapi-testing-") as name,
        _process(folder := Path(name), settings or {}) as process,
    ):
        server = RunningServer(target=_target(process, folder), pid=process.pid, folder=folder)
        yield server
        _stop(process, server)


@contextmanager
def _process(folder: Path, settings: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Starts the server; whatever happens, nothing is running afterwards."""
    environment = {
        **_without_settings(os.environ),
        "STORE_LISTEN": "127.0.0.1:0",
        "DATABASE_URL": f"sqlite:///{folder / 'store.db'}",
        **settings,
    }
    with (
        (folder / "stderr.log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "store_service", "serve"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            # Does nothing to a process that has ended.
            process.kill()


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment without settings of the service, so that tests never use another database."""
    ours = ("STORE_", "DATABASE_URL", "DATABASE_DIRECT_URL", "DB_FORCE_ROLL_BACK")
    return {name: value for name, value in environment.items() if not name.upper().startswith(ours)}


def _target(process: subprocess.Popen[str], folder: Path) -> str:
    """Waits for the line that says where it serves."""
    assert process.stdout is not None
    # The line arrives at once, or the output ends because the server has ended.
    is_ready, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
    line = process.stdout.readline() if is_ready else ""
    if not line.startswith(_ANNOUNCEMENT):
        raise ServerFailed(f"store-service did not start:\n{(folder / 'stderr.log').read_text()}")
    return line.removeprefix(_ANNOUNCEMENT).strip()


def _stop(process: subprocess.Popen[str], server: RunningServer) -> None:
    """Asks it to stop, and sees that it did."""
    process.terminate()
    try:
        code = process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise ServerFailed(f"store-service did not stop within {_STOP_SECONDS:g} seconds") from None
    if code != 0:
        raise ServerFailed(f"store-service ended with exit code {code}:\n{server.log}")
