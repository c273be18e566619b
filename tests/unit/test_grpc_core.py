"""The settings of gRPC's core."""

import os
import subprocess
import sys

import pytest

from store_service import grpc_core


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without these variables."""
    for name in grpc_core.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def test_configure_sets_unset_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of the operator is kept."""
    monkeypatch.setenv("GRPC_VERBOSITY", "DEBUG")
    monkeypatch.setenv("GRPC_EXPERIMENTS", "")
    monkeypatch.delenv("GRPC_EXPERIMENTS")

    grpc_core.configure()

    assert os.environ["GRPC_VERBOSITY"] == "DEBUG"
    assert os.environ["GRPC_EXPERIMENTS"] == "-event_engine_listener"


_AT_IMPORT = """
import os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_EXPERIMENTS"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Finder())
sys.argv = ["store-service", "serve"]
from store_service.__main__ import main
main()
"""


def test_serve_sets_them_before_grpc_is_imported() -> None:
    """The core of gRPC reads them when it is loaded."""
    process = subprocess.run([sys.executable, "-c", _AT_IMPORT], capture_output=True, text=True, check=True)

    assert process.stdout.strip() == "-event_engine_listener"
