"""A server for each module, and two ways to call the command: in this process, and as users do."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from storeapi import StoreClient

from tests.support.server_process import ServerProcess
from tests.support.storeapi_command import StoreapiCommand
from tests.support.timeouts import scaled_timeout


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server listens that all tests of a module share."""
    process = ServerProcess(tmp_path_factory.mktemp("server"))
    yield process.start().address
    process.kill()


@pytest.fixture
def storeapi(address: str, tmp_path: Path) -> StoreapiCommand:
    """The command, in a folder of the test's own."""
    return StoreapiCommand(address, tmp_path)


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
def refused_address() -> Iterator[str]:
    """An address that refuses connections: the port is bound but not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(scaled_timeout())
        yield listening
