"""Fixtures that every test can ask for: a real server on a real file, in this process or in its own."""

import gc
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
import structlog

from store_service import config as settings
from store_service.config import Config
from store_service.database import schema
from store_service.server import RunningServer, serving
from tests.support import processes
from tests.support.bytecode import share_bytecode
from tests.support.database import kept_engine
from tests.support.polling import wait_until
from tests.support.postgresql import clear_database, new_database, postgres_url
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

# A shell that starts tests in the background lets them ignore Ctrl-C, and so would what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Unbuffered output would hide data that a process leaves in a buffer at its end.
os.environ.pop("PYTHONUNBUFFERED", None)

processes.mark_session()
share_bytecode()

# Modules and collected tests are never garbage. The collector would take half of the CPU time until the first
# test.
gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Starts the collector."""
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """The limit of a test, its own or that of all, is for an idle machine."""
    marker = item.get_closest_marker("timeout")
    option = item.config.getoption("timeout")
    seconds = marker.args[0] if marker else item.config.getini("timeout") if option is None else option
    item.add_marker(pytest.mark.timeout(scaled_timeout(float(seconds))), append=False)
    return (yield)


@pytest.fixture(scope="module", autouse=True)
def no_process_outlives_its_module() -> Iterator[None]:
    """What a module's tests have started has ended, or ends by itself, when they are done."""
    yield
    with suppress(AssertionError):
        wait_until(lambda: not processes.running_module_processes())
    left = processes.running_module_processes()
    for pid in left:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    """Commands that run in this process set up its logs and add environment variables; the next test finds
    both as they were. Child processes of another environment could not be forks."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    variables = set(os.environ)
    yield
    for name in set(os.environ) - variables:
        del os.environ[name]
    if structlog.is_configured():
        structlog.reset_defaults()
        root.handlers, root.level = handlers, level


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with the current schema; tests copy it, for a copy is quicker than an upgrade."""
    path = tmp_path_factory.mktemp("migrated") / "store.db"
    schema.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def database_file(migrated_file: Path, tmp_path: Path) -> Path:
    """A database of this test's own."""
    return Path(shutil.copy(migrated_file, tmp_path / "store.db"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A URL of a PostgreSQL role that may create databases."""
    with ExitStack() as stack:
        with processes.session_processes():
            url = stack.enter_context(postgres_url())
        yield url


@pytest.fixture(scope="session")
def postgres_database(postgres: str) -> Iterator[str]:
    """A PostgreSQL database with the current schema, for one test after the other."""
    with new_database(postgres) as url, kept_engine(url):
        schema.upgrade(url)
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of this test's own, on each engine in turn; override the fixture to have just one."""
    if request.param == "sqlite":
        return f"sqlite:///{request.getfixturevalue('database_file')}"
    url: str = request.getfixturevalue("postgres_database")
    clear_database(url)
    return url


@pytest.fixture(scope="session")
def default_config() -> Config:
    """Settings that differ from the defaults only in the port. To load them takes a quarter of the time of a
    start."""
    return settings.load(listen="127.0.0.1:0")


@pytest.fixture
def config(default_config: Config, database_url: str) -> Config:
    """Settings of a server of this test's own; override the fixture in a module to change them."""
    return default_config.model_copy(update={"DATABASE_URL": database_url})


@pytest.fixture
async def server(config: Config) -> AsyncIterator[RunningServer]:
    """A server in this process."""
    async with serving(config) as running:
        yield running


@pytest.fixture
async def channel(server: RunningServer) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the server in this process."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def stubs(channel: grpc.aio.Channel) -> Stubs:
    """The generated stubs on that channel."""
    return Stubs(channel)


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server as users start it, as a child process with an empty directory; not started yet."""
    process = ServerProcess(tmp_path)
    yield process
    process.kill()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names in the last lines what was left out, so that no run looks more complete than it was."""
    skipped = terminalreporter.getreports("skipped")
    reasons = {str(it.longrepr[2] if isinstance(it.longrepr, tuple) else it.longrepr) for it in skipped}
    for reason in sorted(reasons):
        terminalreporter.write_line(f"left out: {reason.removeprefix('Skipped: ')}")
