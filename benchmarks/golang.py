"""Builds the contender in Go."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.postgresql import MissingError
from benchmarks.processes import ROOT

SOURCE = ROOT / "benchmarks" / "contenders" / "grpc_go"
BUILD = ROOT / "build" / "grpc-go"
"""Nothing in it is committed. Go keeps the compiled packages, so further builds take a second."""

BUILD_SECONDS = 600

_MODULE = "contender"
_PLUGINS = {
    "google.golang.org/protobuf/cmd/protoc-gen-go": "protoc-gen-go",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc": "protoc-gen-go-grpc",
}


def built() -> Path:
    """Returns the program, built from the sources and from the stubs of protos/.

    Raises:
        MissingError: Go or a C compiler is not installed, or a module cannot be downloaded.
    """
    for program in ("go", "gcc"):
        if shutil.which(program) is None:
            raise MissingError(f"{program} is not installed")
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("go.mod", "go.sum", "main.go"):
        shutil.copy(SOURCE / name, BUILD)
    _run("go", "build", "-o", "plugins/", *_PLUGINS)
    plugins = [
        {"local": f"plugins/{name}", "out": ".", "opt": f"module={_MODULE}"} for name in _PLUGINS.values()
    ]
    package = [{"file_option": "go_package", "value": f"{_MODULE}/storeapi"}]
    template = {"version": "v2", "managed": {"enabled": True, "override": package}, "plugins": plugins}
    _run("buf", "generate", str(ROOT / "protos"), "--template", json.dumps(template))
    _run("go", "build", "-o", "grpc-go", ".")
    return BUILD / "grpc-go"


def _run(*command: str) -> None:
    path = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "CGO_ENABLED": "1", "GOFLAGS": "-buildvcs=false", "PATH": path}
    try:
        subprocess.run(
            command,
            cwd=BUILD,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        lines = str(error.stderr or error).strip().splitlines()
        raise MissingError(f"{command[0]} failed: {lines[-1] if lines else ''}") from error


def command(commit: str) -> Sequence[str]:
    """Returns the command of the contender that commits writes "each" alone, or as a "group"."""
    return (str(built()), f"-commit={commit}")
