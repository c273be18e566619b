"""Measures the overhead of the client's methods over its raw stubs, and the time of its import."""

import json
import statistics
import subprocess
from pathlib import Path

from benchmarks import seed
from benchmarks.lineup import SQLITE, started
from benchmarks.processes import environment, python

RUNS = 5
"""Processes. Each returns a median, and the result is the median of these."""

POST_ID = 1


def client(folder: Path, seeded: Path, _: list[str]) -> dict[str, float]:
    """Returns the ratio of the time of a method to that of the stub, and the milliseconds of the import."""
    own = folder / "client"
    with started(SQLITE, own, seed.copied(seeded, own)) as server:
        command = python("benchmarks.client_calls", server.address, str(POST_ID))
        found = [
            json.loads(
                subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
            )
            for _ in range(RUNS)
        ]
    return {
        f"client_{name}": statistics.median(run[name] for run in found)
        for name in ("sync", "async", "import_ms")
    }
