"""Profiles of hypothesis, and one server for each module and engine.

The profile is chosen by HYPOTHESIS_PROFILE. `ci` runs the same few examples every time, for `make test`: an
example costs 5 ms to 2 s of CPU time. `search` looks for new ones, 1,000 in each test, for `make torture`.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.postgresql import new_database
from tests.support.property_server import LiveServer, running_server
from tests.support.server_process import ServerProcess

settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=16,
    stateful_step_count=30,
    # How long examples take says something of the machine, nothing of the rule.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "search", settings.get_profile("ci"), derandomize=False, max_examples=1000, stateful_step_count=60
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    """Environment variables of a module's server; override the fixture to change them."""
    return {}


@pytest.fixture(scope="module")
def server_program() -> tuple[str, ...]:
    """What Python runs to serve; override the fixture for a server with other constants."""
    return ServerProcess.program


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> str:
    """The engine that a module's server keeps its data in, each in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def database_url(engine: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database that is not there yet, or without tables: the server makes what is missing."""
    if engine == "sqlite":
        yield "sqlite:///store.db"
        return
    with new_database(request.getfixturevalue("postgres")) as url:
        yield url


@pytest.fixture(scope="module")
def live(
    tmp_path_factory: pytest.TempPathFactory,
    database_url: str,
    server_settings: dict[str, str],
    server_program: tuple[str, ...],
) -> Iterator[LiveServer]:
    """A server as a child process, so that a crash is detected."""
    database = {"DATABASE_URL": database_url, "DB_FORCE_ROLL_BACK": "false"}
    logs = {"STORE_LOG_LEVEL": "warning", "STORE_LOG_FORMAT": "json"}
    environment = {**database, **logs, **server_settings}
    process = ServerProcess(tmp_path_factory.mktemp("server"), environment, program=server_program)
    try:
        with running_server(process) as live:
            yield live
    finally:
        process.kill()
