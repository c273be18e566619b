"""One, two and four workers on one SQLite file."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks import rounds, seed
from benchmarks.lineup import SQLITE, Running, started
from benchmarks.workloads import BY_NAME

COUNTS = (1, 2, 4)
ROUNDS = 5
SECONDS = 1.0

CONNECTIONS = 16
"""The kernel assigns connections to workers by a hash, so few connections would be spread unevenly."""


def workers(
    folder: Path,
    seeded: Path,
    left_out: list[str],
    *,
    counts: Sequence[int] = COUNTS,
    round_count: int = ROUNDS,
    **settings: str,
) -> dict[str, float]:
    """Returns calls per second, CPU time per call and memory for each number of workers.

    The search index is off, because its background work would be part of the CPU time.
    """
    workloads = [
        replace(BY_NAME[name], connections=CONNECTIONS, streams=BY_NAME[name].in_flight // CONNECTIONS)
        for name in ("get_256", "create_256")
    ]
    plan = rounds.Plan(rounds=round_count, seconds=SECONDS, batches=3)
    settings = {"STORE_SEARCH": "false", **settings}
    found: dict[str, float] = {}
    with ExitStack() as stack:
        contenders = []
        for count in counts:
            contender = replace(SQLITE, name=f"workers_{count}", title=f"{count} workers")
            own = folder / contender.name
            url = seed.copied(seeded, own)
            server = stack.enter_context(started(contender, own, url, STORE_WORKERS=str(count), **settings))
            contenders.append(Running(contender, server))
        samples = rounds.measure(contenders, lambda *_: True, workloads, plan, folder, left_out)
        for workload, medians in rounds.medians(samples).items():
            for name, sample in medians.items():
                found[f"{name}_{workload}_calls"] = sample.calls_per_second
                found[f"{name}_{workload}_cpu_us"] = sample.cpu_us
        found |= {f"{it.contender.name}_mib": it.memory_mib() for it in contenders}
    return found
