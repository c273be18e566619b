"""The example client in Rust does what every client must do."""

from pathlib import Path

import pytest

from tests.support.conformance import PATHS, run_scenario, toolchain
from tests.support.example_clients import BUILDS, build, documented_command, run
from tests.support.repository import ROOT
from tests.support.server_process import ServerProcess

# The first build compiles all libraries.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def runner() -> Path:
    """The runner."""
    toolchain("cargo", "Rust")
    return build("rust/debug/examples/conformance")


@pytest.mark.parametrize("path", PATHS)
async def test_rust_client_conforms(runner: Path, path: str, tmp_path: Path) -> None:
    await run_scenario([runner], path, tmp_path)


@pytest.mark.usefixtures("runner")
def test_rust_readme_works_to_the_letter(server_process: ServerProcess) -> None:
    """The command of the page runs the example."""
    command = documented_command("rust").replace("localhost:50051", server_process.start().address)

    output = run(*command.split(), folder=ROOT / "clients/rust", CARGO_TARGET_DIR=BUILDS / "rust")

    assert output.splitlines() == [
        "created: Hello from Rust",
        "listed: true",
        "missing: true",
        "watched: Hello again",
    ]
