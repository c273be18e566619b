"""The results of a run, and the file that stores them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.growth import GrowthTable
from benchmarks.rounds import Medians, Samples
from benchmarks.searches import SearchTable
from benchmarks.thread_pages import PageTable
from benchmarks.workers import WorkerTable

FOLDER = Path(__file__).parent / "results"


@dataclass(kw_only=True)
class Results:
    """All measurements; those that were not made are empty."""

    machine: dict[str, str]
    rounds: int
    ratios: dict[str, float]
    """See `targets.ratios`."""
    medians: Medians
    samples: Samples
    memory_mib: dict[str, float] = field(default_factory=dict)
    """The memory of each contender after all rounds."""
    growth: GrowthTable = field(default_factory=dict)
    thread_pages: PageTable = field(default_factory=dict)
    searches: SearchTable = field(default_factory=dict)
    workers: WorkerTable = field(default_factory=dict)
    once: dict[str, float] = field(default_factory=dict)
    """The figures with a target that are not ratios."""
    left_out: list[str] = field(default_factory=list)
    """A sentence for each measurement that was not possible on this machine."""

    @property
    def figures(self) -> dict[str, float]:
        """All figures that can have a target."""
        return {**self.ratios, **self.once}

    def write(self, name: str) -> Path:
        """Stores the results as JSON in FOLDER, and returns the file."""
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{name}.json"
        path.write_text(json.dumps(_rounded(asdict(self)), indent=1) + "\n")
        return path


def _rounded(value: Any) -> Any:
    """Returns the value with five digits of each number, more than the precision of the measurements."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return value
