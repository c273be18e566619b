"""The two installed wheels are a working service and client."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.repository import ROOT, Wheels
from tests.support.timeouts import scaled_timeout

# Installing takes most of the time, so all tests share one environment.
pytestmark = pytest.mark.timeout(300)

README = ROOT / "clients/python/README.md"
ADDRESS = "localhost:50051"
VERSION = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())["project"]["version"]
OURS = ("PYTHON", "STORE", "DATABASE_", "DB_FORCE_ROLL_BACK", "COVERAGE", "VIRTUAL_ENV")
"""Variables that lead to these sources, or to somebody's own service or database."""


@dataclass(frozen=True)
class Installed:
    """An environment of a user, and an empty folder to work in."""

    programs: Path
    folder: Path

    def environment(self, **variables: str) -> dict[str, str]:
        """What a user has set, and no lines of gRPC's core about connections that end."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        return kept | {"GRPC_VERBOSITY": "NONE"} | variables

    def run(self, program: str, *arguments: str | Path, **variables: str) -> str:
        """What a program prints; it must end well, and say nothing on stderr."""
        done = subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.folder,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=scaled_timeout(),
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Runs the service as users start it, but on a free port, and gives its address."""
        with (
            (self.folder / "stderr.log").open("wb") as stderr,
            subprocess.Popen(
                [self.programs / "store-service", "serve"],
                cwd=self.folder,
                env=self.environment(STORE_LISTEN="127.0.0.1:0"),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            ) as process,
        ):
            try:
                assert process.stdout is not None
                # Comes at once, or the output ends because the service did.
                line = process.stdout.readline()
                prefix = "store-service is serving on "
                assert line.startswith(prefix), (self.folder / "stderr.log").read_text()
                yield line.removeprefix(prefix).strip()
                process.terminate()
                assert process.wait(scaled_timeout()) == 0
            finally:
                process.kill()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheels: Wheels) -> Installed:
    """Both wheels with all that they need, in an environment that was empty before."""
    folder = tmp_path_factory.mktemp("first_example")
    environment = folder / "venv"
    # The versions of the other tests: what is released tomorrow is not what this is about.
    constraints = folder / "constraints.txt"
    pins = re.findall(r"^[a-z0-9-]+==[^ ;\n]+", (ROOT / "requirements/dev.txt").read_text(), re.MULTILINE)
    constraints.write_text("\n".join(pins))

    def run(*command: str | Path) -> None:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=scaled_timeout(200), check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run(sys.executable, "-m", "venv", "--without-pip", environment)
    # uv takes a tenth of the CPU time of pip.
    uv, python = (sys.executable, ROOT / "tools/uv_pip.py"), environment / "bin/python"
    packages = (f"{wheels.storeapi}[cli]", wheels.store_service)
    run(*uv, "install", "--python", python, "-c", constraints, *packages)
    run(sys.executable, "-m", "uv", "pip", "check", "--python", python)
    work = folder / "work"
    work.mkdir()
    return Installed(programs=environment / "bin", folder=work)


def first_example() -> str:
    """The first program of the client's README."""
    found = re.search(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_first_example_runs(installed: Installed) -> None:
    """Install, start the service, copy the example, and it prints what was stored."""
    with installed.serving() as address:
        example = first_example().replace(ADDRESS, address)
        # An example that names no address looks for it there.
        printed = installed.run("python", "-c", example, STOREAPI_TARGET=address)

    assert "Hello yourself" in printed


def test_only_installed_packages_are_used(installed: Installed) -> None:
    """Client and service come from the wheels, not from the sources."""
    program = "import storeapi, store_service; print(storeapi.__file__, store_service.__file__)"

    places = installed.run("python", "-c", program).split()

    assert len(places) == 2
    for place in places:
        assert Path(place).is_relative_to(installed.programs.parent)


@pytest.mark.parametrize("command", ["storeapi", "store-service"])
def test_commands_print_their_version(installed: Installed, command: str) -> None:
    """Both commands are there, and are of the version that was built."""
    assert VERSION in installed.run(command, "--version")


def test_command_and_client_reach_the_same_service(installed: Installed) -> None:
    program = "import storeapi; print([post.body for post in storeapi.connect().posts.list()])"

    with installed.serving() as address:
        installed.run("storeapi", "posts", "create", "by hand", STOREAPI_TARGET=address)
        printed = installed.run("python", "-c", program, STOREAPI_TARGET=address)

    assert "'by hand'" in printed
