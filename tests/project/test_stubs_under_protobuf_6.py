"""The client works with the oldest libraries that it allows; the tests' own environment has the newest.

Code that one protobuf generated may refuse to load under an older one, and crosses a major version only
once (docs/decisions/0002), so both ends of the range are tried.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import google.protobuf
import grpc
import pytest

from tests.project.conftest import ROOT, Wheels
from tests.support import ServerProcess

pytestmark = pytest.mark.xdist_group("wheels")

REQUIREMENTS = ROOT / "requirements/oldest.txt"
INSTALL_SECONDS = 100


def pinned() -> dict[str, str]:
    """The version of each distribution in the file of the oldest ones."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", REQUIREMENTS.read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory, wheels: Wheels) -> Path:
    """The Python of an environment with the oldest libraries and the client's wheel."""
    environment = tmp_path_factory.mktemp("oldest") / "venv"
    python = environment / "bin/python"

    def run(*command: str | Path) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    run(sys.executable, "-m", "venv", environment)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "--require-hashes", "--only-binary", ":all:", "-r", REQUIREMENTS)
    run(*pip, "install", "--no-deps", wheels.storeapi)
    # The wheel's own demands are met by them, so they are no older than it allows.
    run(*pip, "check")
    return python


@pytest.mark.timeout(300)
def test_the_client_works_with_the_oldest_libraries(old_python: Path, server_process: ServerProcess) -> None:
    """Stubs, client and asyncio client make their calls and read their errors, and nothing warns."""
    server_process.start()

    command = [old_python, "-W", "error", Path(__file__).with_name("old_client.py"), server_process.address]
    run = subprocess.run(
        command, cwd=server_process.folder, capture_output=True, text=True, timeout=60, check=False
    )

    assert run.returncode == 0, run.stderr
    versions = pinned()
    oldest = [versions[name] for name in ("protobuf", "grpcio", "googleapis-common-protos")]
    assert run.stdout.split() == oldest
    assert versions["protobuf"].startswith("6.")


def test_the_pins_are_the_lowest_versions_that_are_declared() -> None:
    """Whoever raises or lowers what the client needs does the same for what is tried."""
    project = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())["project"]

    declared = dict(re.fullmatch(r"([a-z0-9-]+)>=([0-9.]+).*", it).groups() for it in project["dependencies"])
    versions = pinned()
    for name, lowest in declared.items():
        assert re.fullmatch(re.escape(lowest) + r"(\.0)*", versions[name]), name
    assert not re.search(r"://|--index|--find-links", REQUIREMENTS.read_text())


def test_the_newest_libraries_are_those_of_the_other_tests() -> None:
    """Everything else runs with the next major protobuf, so that both are tried."""
    assert int(google.protobuf.__version__.split(".")[0]) == int(pinned()["protobuf"].split(".")[0]) + 1
    assert tuple(map(int, grpc.__version__.split(".")[:2])) > tuple(
        map(int, pinned()["grpcio"].split(".")[:2])
    )
