"""Builds the contender in Go, which uses the stubs of clients/go."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.postgresql import MissingError
from benchmarks.processes import ROOT

SOURCE = ROOT / "benchmarks" / "contenders" / "grpc_go"
PROGRAM = ROOT / "build" / "grpc-go"

BUILD_SECONDS = 600
"""The first build compiles SQLite. Go keeps the compiled packages, so further builds take a second."""


def built() -> Path:
    """Returns the program.

    Raises:
        MissingError: Go or a C compiler is not installed, or a module cannot be downloaded.
    """
    for program in ("go", "gcc"):
        if shutil.which(program) is None:
            raise MissingError(f"{program} is not installed")
    PROGRAM.parent.mkdir(exist_ok=True)
    try:
        subprocess.run(
            ["go", "build", "-buildvcs=false", "-o", str(PROGRAM), "."],
            cwd=SOURCE,
            env={**os.environ, "CGO_ENABLED": "1"},
            check=True,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        lines = str(error.stderr or error).strip().splitlines()
        raise MissingError(f"it could not be built: {lines[-1] if lines else ''}") from error
    return PROGRAM


def command(commit: str) -> Sequence[str]:
    """Returns the command of the contender that commits writes "each" alone, or as a "group"."""
    return (str(built()), f"-commit={commit}")
