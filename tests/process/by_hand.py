"""`store-service` started otherwise: with a stderr that tests choose, or without the privileges of root."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.patience import patience


@contextmanager
def served_by_hand(folder: Path, *, stderr: int, **environment: str) -> Iterator[str]:
    """Serves in a folder until the end of the block; gives the address."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STORE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "store_service", "serve", "--listen", "127.0.0.1:0"],
        cwd=folder,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 0


OBEYING_PERMISSIONS = """
import ctypes, os, sys
# Permissions mean nothing to root, unless it gives up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH for good.
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "store_service", *sys.argv[1:]])
"""


def run_without_privileges(
    *arguments: str, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `store-service` such that permissions of files hold, also for root."""
    return subprocess.run(
        [sys.executable, "-c", OBEYING_PERMISSIONS, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
    )
