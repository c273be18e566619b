"""The example client in Java does what every client must do."""

from pathlib import Path

import pytest

from tests.support.conformance import PATHS, run_scenario, toolchain
from tests.support.example_clients import BUILDS, build, documented_command, run
from tests.support.repository import ROOT
from tests.support.server_process import ServerProcess

# Maven downloads its plugins and the libraries once.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def runner() -> list[str | Path]:
    """The command of the runner."""
    java = toolchain("java", "Java")
    toolchain("mvn", "Java")
    classpath = build("java/classpath")
    folders = [classpath.parent / "classes", classpath.parent / "test-classes"]
    return [java, "-cp", ":".join([*map(str, folders), classpath.read_text()]), "storeapi.client.Conformance"]


@pytest.mark.parametrize("path", PATHS)
async def test_java_client_conforms(runner: list[str | Path], path: str, tmp_path: Path) -> None:
    await run_scenario(runner, path, tmp_path)


@pytest.mark.usefixtures("runner")
def test_java_readme_works_to_the_letter(server_process: ServerProcess) -> None:
    """The command of the page runs the example."""
    command = documented_command("java").replace("localhost:50051", server_process.start().address)

    output = run(*command.split(), f"-Dbuild.folder={BUILDS / 'java'}", folder=ROOT / "clients/java")

    # Maven resets the colors of the terminal.
    assert output.replace("\x1b[0m", "").splitlines() == [
        "created: Hello from Java",
        "listed: true",
        "missing: true",
        "watched: Hello again",
    ]
