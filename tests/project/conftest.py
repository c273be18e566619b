"""The two distributions, built as a release would build them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import ROOT, Wheels
from tests.support.timeouts import scaled_timeout


def _built(source: Path, target: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target]
    run = subprocess.run(
        command, cwd=source, capture_output=True, text=True, timeout=scaled_timeout(100), check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """Both wheels, fresh from the sources."""
    return Wheels(
        storeapi=_built(ROOT / "clients/python", tmp_path_factory.mktemp("storeapi")),
        store_service=_built(ROOT, tmp_path_factory.mktemp("store_service")),
    )
