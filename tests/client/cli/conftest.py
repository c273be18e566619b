"""A server for each module, and two ways to call the command: in this process, and as users do."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from storeapi import StoreClient
from storeapi.cli.program import program

from tests.patience import patience
from tests.support import ServerProcess

INSTALLED = Path(sys.executable).with_name("storeapi")


@dataclass
class Command:
    """`storeapi`, pointed at a server."""

    target: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        """Calls it in this process."""
        runner = CliRunner(env=dict.fromkeys(self._own_settings()) | self._settings())
        return runner.invoke(program, arguments, input=stdin, prog_name="storeapi")

    def json(self, *arguments: str, stdin: str | bytes | None = None) -> list[dict[str, Any]]:
        """Calls it with --json, which must succeed, and reads what it prints."""
        done = self("--json", *arguments, stdin=stdin)
        assert (done.exit_code, done.stderr) == (0, ""), done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def start(self, *arguments: str, **keywords: Any) -> subprocess.Popen[bytes]:
        """Starts it as users do; to be ended by the test."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {key: value for key, value in os.environ.items() if key not in self._own_settings()}
        return subprocess.Popen(
            [INSTALLED, *arguments],
            cwd=self.folder,
            env=environment | self._settings(),
            **pipes | keywords,
        )

    def process(self, *arguments: str) -> tuple[int, str, str]:
        """Runs it as users do and returns its exit code, stdout and stderr."""
        process = self.start(*arguments)
        stdout, stderr = process.communicate(timeout=patience())
        return process.returncode, stdout.decode(errors="backslashreplace"), stderr.decode()

    def _settings(self) -> dict[str, str]:
        return {"STOREAPI_TARGET": self.target, **self.environment}

    def _own_settings(self) -> list[str]:
        return [name for name in os.environ if name.startswith("STOREAPI_")]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server listens that all tests of a module share."""
    process = ServerProcess(tmp_path_factory.mktemp("server"))
    yield process.start().address
    process.kill()


@pytest.fixture
def storeapi(address: str, tmp_path: Path) -> Command:
    """The command, in a folder of the test's own."""
    return Command(address, tmp_path)


@pytest.fixture
def store(address: str) -> Iterator[StoreClient]:
    """The client of the same server, to prepare and to look after."""
    with StoreClient(address) as client:
        yield client


@pytest.fixture
def empty_store(store: StoreClient) -> StoreClient:
    """The same, after everything that other tests have left was deleted."""
    for page in store.posts.list(page_size=500).pages():
        if page.items:
            store.posts.delete_many([post.id for post in page.items], force=True)
    return store


@pytest.fixture
def started() -> Iterator[Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]]:
    """Ends processes that a test leaves running."""
    processes: list[subprocess.Popen[bytes]] = []

    def keep(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        processes.append(process)
        return process

    yield keep
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which connections are refused: it is taken, but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(patience())
        yield listening
