"""The Go client does what every client must do."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.conformance import PATHS, run_scenario, toolchain
from tests.support.repository import ROOT
from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout

SOURCE = ROOT / "clients/go"

# Go downloads its modules into its own cache, once.
pytestmark = pytest.mark.timeout(300)


def go(*arguments: str | Path) -> str:
    """Runs a go command that must succeed in the module of the client. Without Go the test is skipped."""
    done = subprocess.run(
        [toolchain("go", "Go"), *arguments],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        timeout=scaled_timeout(250),
    )
    if "go.mod requires go >=" in done.stderr:
        pytest.skip(f"the client in Go, because of an old Go: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runner, built with the build cache of Go."""
    program = tmp_path_factory.mktemp("go") / "conformance"
    go("build", "-o", program, "./internal/conformance")
    return program


@pytest.mark.parametrize("path", PATHS)
async def test_go_client_conforms(runner: Path, path: str, tmp_path: Path) -> None:
    await run_scenario([runner], path, tmp_path)


def test_go_tests_pass() -> None:
    """The tests of the module: repetitions, deadlines, errors, where a watch continues."""
    go("vet", "./...")
    go("test", "./...")


def test_go_stubs_are_up_to_date(tmp_path: Path) -> None:
    """`make protos` changes nothing."""
    go("list", "-m")
    subprocess.run([ROOT / "tools/generate_go.sh", tmp_path], timeout=scaled_timeout(250), check=True)

    folders = (tmp_path / "storeapiv1", SOURCE / "storeapiv1")
    generated, committed = ({path.name: path.read_text() for path in it.iterdir()} for it in folders)
    assert generated == committed


def test_go_module_needs_no_further_changes() -> None:
    """go.mod and go.sum are complete."""
    assert go("mod", "tidy", "-diff") == ""


def test_go_readme_works_to_the_letter(tmp_path: Path, server_process: ServerProcess) -> None:
    """A new module with a copy of the client, the program and the commands of the page."""
    page = (SOURCE / "README.md").read_text()
    (program,) = re.findall(r"```go\n(.*?)```", page, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    go("list", "-m")
    module = tmp_path / "module"
    shutil.copytree(SOURCE, module / "third_party/storeapi")
    (module / "main.go").write_text(program.replace("localhost:50051", server_process.start().address))
    script = f"go mod init example.com/test && {' && '.join(commands.splitlines())}"
    done = subprocess.run(
        ["sh", "-c", script], cwd=module, capture_output=True, text=True, timeout=scaled_timeout(250)
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 <nil>", "true", "Hello <nil>", "true <nil>"]
