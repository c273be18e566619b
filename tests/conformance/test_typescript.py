"""The TypeScript client does what every client must do, on the oldest Node that it supports."""

import re
from pathlib import Path

import pytest

from tests.support.conformance import PATHS, run_scenario
from tests.support.npm_package import SOURCE, Node, built_package, find_node
from tests.support.repository import ROOT
from tests.support.server_process import ServerProcess

# The first run installs the packages.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def node() -> Node:
    """A Node to test with."""
    return find_node()


@pytest.fixture(scope="module")
def package(node: Node) -> Path:
    """The package, compiled."""
    return built_package(node)


@pytest.mark.parametrize("path", PATHS)
async def test_typescript_client_conforms(node: Node, package: Path, path: str, tmp_path: Path) -> None:
    await run_scenario([node.program, package / "dist/src/conformance.js"], path, tmp_path)


def test_typescript_tests_pass(node: Node, package: Path) -> None:
    """The tests of the package: request ids, waiting, lists, silent watches."""
    node.run(package, *node.npm, "test")


def test_typescript_readme_works_to_the_letter(
    node: Node, package: Path, tmp_path: Path, server_process: ServerProcess
) -> None:
    """The program of the page compiles and runs with the packed package."""
    (program,) = re.findall(r"```typescript\n(.*?)```", (ROOT / SOURCE / "README.md").read_text(), re.DOTALL)
    node.run(package, *node.npm, "pack", "--pack-destination", tmp_path)
    node.run(tmp_path, "tar", "-xzf", "storeapi-0.1.0.tgz")
    (tmp_path / "package/node_modules").symlink_to(package / "node_modules")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules/storeapi").symlink_to(tmp_path / "package")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    address = server_process.start().address
    (tmp_path / "example.ts").write_text(program.replace("localhost:50051", address))
    types = package / "node_modules/@types"
    options = [
        "--module",
        "nodenext",
        "--target",
        "es2022",
        "--strict",
        "--skipLibCheck",
        "--typeRoots",
        types,
    ]
    node.run(tmp_path, package / "node_modules/.bin/tsc", *options, "--types", "node", "example.ts")

    printed = node.run(tmp_path, node.program, "example.js")
    assert printed.splitlines() == ["1n Hello", "there is no post 987654", "CREATE 1n"]


def test_typescript_lock_has_hashes_and_no_urls() -> None:
    text = (ROOT / SOURCE / "package-lock.json").read_text()

    assert '"resolved"' not in text
    packages = re.findall(r'^    "node_modules/', text, re.MULTILINE)
    assert len(packages) == len(re.findall(r'^      "integrity": "sha512-', text, re.MULTILINE)) > 10
    assert "registry=" not in (ROOT / SOURCE / ".npmrc").read_text()
