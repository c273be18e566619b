"""The example clients in Java and Rust, which users copy."""

import os
import re
import subprocess
from pathlib import Path

from tests.support.repository import ROOT
from tests.support.timeouts import scaled_timeout

BUILDS = ROOT / "build/clients"
"""Where `make clients` builds them."""


def run(*command: str | Path, folder: Path = ROOT, **variables: str | Path) -> str:
    """Returns the output of a command that must succeed."""
    environment = {name: it for name, it in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | {name: str(it) for name, it in variables.items()},
        capture_output=True,
        text=True,
        timeout=scaled_timeout(550),
    )
    assert done.returncode == 0, done.stdout + done.stderr
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
