"""A server started with `--listen`, for tests that choose where its stderr goes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
