"""Measures the cost of metrics: the service with metrics next to the service without."""

import statistics
from pathlib import Path

from benchmarks import loads, seed
from benchmarks.lineup import SQLITE, started
from benchmarks.workloads import BY_NAME

CALLS = 8_000
"""GetPost of a load, 256 in flight."""
STARTS = 4
"""Two processes of the same program may differ by some percent during their whole life."""
PAIRS = 5


def metrics(folder: Path, seeded: Path, _: list[str]) -> dict[str, float]:
    """Returns the ratio of GetPost per second with metrics to that without, as median of all pairs."""
    shares: list[float] = []
    for number in range(STARTS):
        shares += _shares(folder / f"metrics-{number}", seeded)
    return {"metrics_get_256": statistics.median(shares)}


def _shares(folder: Path, seeded: Path) -> list[float]:
    without, counting = folder / "without", folder / "with"
    folder.mkdir()
    with (
        started(SQLITE, without, seed.copied(seeded, without)) as silent,
        started(
            SQLITE, counting, seed.copied(seeded, counting), STORE_METRICS_LISTEN="127.0.0.1:0"
        ) as counted,
    ):

        def rate(address: str) -> float:
            return loads.run(BY_NAME["get_256"], address, CALLS, http1=False, folder=folder).calls_per_second

        shares = []
        for number in range(PAIRS + 1):
            # The first load of a pair may affect the second.
            if number % 2:
                below = rate(silent.address)
                shares.append(rate(counted.address) / below)
            else:
                above = rate(counted.address)
                shares.append(above / rate(silent.address))
    # The first pair warms up.
    return shares[1:]
