"""The Python client does what every client must do."""

import sys
from pathlib import Path

import pytest

from tests.support.conformance import PATHS, run_scenario
from tests.support.repository import ROOT


@pytest.mark.parametrize("path", PATHS)
async def test_python_client_conforms(path: str, tmp_path: Path) -> None:
    await run_scenario([sys.executable, ROOT / "clients/python/conformance.py"], path, tmp_path)
