"""The example clients in Java and Rust, which users copy."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from tests.support.timeouts import scaled_timeout

BUILDS = ROOT / "build/clients"
"""Where `make clients` builds them."""


TOO_OLD = ("requires rustc", "release version 17 not supported")
"""What cargo and javac say if they are too old."""


def run(*command: str | Path, folder: Path = ROOT, **variables: str | Path) -> str:
    """Returns the output of a command that must succeed. If the toolchain is too old, the test is skipped."""
    environment = {name: it for name, it in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | {name: str(it) for name, it in variables.items()},
        capture_output=True,
        text=True,
        timeout=scaled_timeout(550),
    )
    output = done.stdout + done.stderr
    for line in output.splitlines():
        if any(it in line for it in TOO_OLD):
            pytest.skip(f"an example client, because of an old toolchain: {line.strip()}")
    assert done.returncode == 0, output
    return done.stdout


def build(name: str) -> Path:
    """Builds a file below BUILDS as `make clients` does, which does nothing if no source has changed."""
    path = BUILDS / name
    run("make", path.relative_to(ROOT))
    return path


def documented_command(language: str) -> str:
    """The command in the README of a client."""
    (command,) = re.findall(r"```sh\n(.*)\n```", (ROOT / "clients" / language / "README.md").read_text())
    return command
