"""One, two and four workers on one SQLite file."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks import rounds, seed
from benchmarks.lineup import SQLITE, Running, started
from benchmarks.workloads import BY_NAME

COUNTS = (1, 2, 4)
PLAN = rounds.Plan(rounds=5, seconds=1.0, batches=3)

CONNECTIONS = 16
"""The kernel assigns connections to workers by a hash, so few connections would be spread unevenly."""

LOADS = {"get_256": "GetPost", "create_256": "CreatePost"}
ONE, TWO = "1 process", "2 workers"

WorkerTable = dict[str, dict[str, float]]
"""Figures by the number of workers: calls per second, CPU time per call, and memory."""


def measure(folder: Path, seeded: Path, left_out: list[str]) -> WorkerTable:
    """Measures each number of workers with 256 calls in flight, in interleaved rounds.

    The search index is off, because its background work would be part of the CPU time.
    """
    workloads = [
        replace(BY_NAME[name], connections=CONNECTIONS, streams=BY_NAME[name].in_flight // CONNECTIONS)
        for name in LOADS
    ]
    found: WorkerTable = {}
    with ExitStack() as stack:
        contenders = []
        for count in COUNTS:
            title = ONE if count == 1 else f"{count} workers"
            contender = replace(SQLITE, name=title, title=title)
            own = folder / f"workers-{count}"
            url = seed.copied(seeded, own)
            settings = {"STORE_WORKERS": str(count), "STORE_SEARCH": "false"}
            contenders.append(
                Running(contender, stack.enter_context(started(contender, own, url, **settings)))
            )
        samples = rounds.measure(contenders, lambda *_: True, workloads, PLAN, folder, left_out)
        medians = rounds.medians(samples)
        for it in contenders:
            figures = found[it.contender.name] = {}
            for name, title in LOADS.items():
                if it.contender.name in medians[name]:
                    sample = medians[name][it.contender.name]
                    figures[f"{title} per second"] = sample.calls_per_second
                    figures[f"{title}, CPU µs"] = sample.cpu_us
            figures["MiB"] = it.memory_mib()
    return found


def ratios(found: WorkerTable) -> dict[str, float]:
    """Returns the figures of two workers as ratios to one process, where both were measured."""
    compared: dict[str, float] = {}
    for name, title in LOADS.items():
        for suffix, figure in (("", f"{title} per second"), ("_cpu", f"{title}, CPU µs")):
            one, two = found.get(ONE, {}).get(figure), found.get(TWO, {}).get(figure)
            if one and two:
                compared[f"workers_{name}{suffix}"] = two / one
    return compared
