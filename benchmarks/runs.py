"""The two runs: everything, and the ratios that matter most."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import growth, machine, once, rounds, seed
from benchmarks.lineup import CEILING, PLAIN, QUICK, SQLITE, Contender, Running, running
from benchmarks.loads import LoadError
from benchmarks.processes import StartError
from benchmarks.results import Results
from benchmarks.rounds import Plan
from benchmarks.targets import ratios
from benchmarks.workloads import BY_NAME, WORKLOADS, Workload

FULL_SECONDS = 1.0
"""About how long each load takes."""
GROWTH_ROUNDS = 5

QUICK_PLAN = Plan(rounds=3, seconds=0.7, batches=2)
_QUICK_LOADS = {
    "get_256": {CEILING, SQLITE, PLAIN},
    "create_256": {CEILING, SQLITE, PLAIN},
    "get_1": {CEILING, SQLITE},
    "create_1": {CEILING, SQLITE},
    "batch_get_100": {SQLITE},
    "batch_create_100": {SQLITE},
}


def quick(folder: Path) -> Results:
    """The ratios of this service on SQLite to the ceiling and to the plain way, in less than a minute."""

    def wanted(it: Running, workload: Workload) -> bool:
        return it.contender in _QUICK_LOADS[workload.name]

    seeded = seed.sqlite_file(folder)
    left_out: list[str] = []
    workloads = [BY_NAME[name] for name in _QUICK_LOADS]
    with running(QUICK, folder, seeded, left_out) as contenders:
        samples = rounds.measure(contenders, wanted, workloads, QUICK_PLAN, folder, left_out)
    return _results(folder, None, QUICK_PLAN, samples, left_out)


def full(folder: Path, contenders: Sequence[Contender], *, round_count: int, skip_growth: bool) -> Results:
    """Everything of these contenders."""

    def wanted(it: Running, workload: Workload) -> bool:
        return workload.over_http or not it.contender.http1

    seeded = seed.sqlite_file(folder)
    left_out: list[str] = []
    plan = Plan(rounds=round_count, seconds=FULL_SECONDS, batches=3)
    with running(contenders, folder, seeded, left_out) as started:
        samples = rounds.measure(started, wanted, WORKLOADS, plan, folder, left_out)
        memory = {it.contender.name: it.memory_mib() for it in started}
        version = next((it.postgresql.version for it in started if it.postgresql), None)
    results = _results(folder, version, plan, samples, left_out)
    results.memory_mib = memory
    if SQLITE in contenders:
        _once(results, folder, seeded)
        if not skip_growth:
            results.growth = growth.measure(folder, GROWTH_ROUNDS, left_out)
            results.once["growth"] = max(growth.factor(results.growth).values())
    return results


def _once(results: Results, folder: Path, seeded: Path) -> None:
    results.once["start_seconds"] = once.start_seconds(folder, seeded)
    results.once["memory_mib"] = once.memory_after_calls(folder, seeded)
    try:
        syncs = once.syncs_for_writes(folder, seeded, results.left_out)
    except (StartError, LoadError) as error:
        results.left_out.append(f"fsyncs were not counted, for under strace the service failed: {error}")
    else:
        if syncs is not None:
            results.once["syncs"] = syncs


def _results(
    folder: Path, version: str | None, plan: Plan, samples: rounds.Samples, left_out: list[str]
) -> Results:
    medians = rounds.medians(samples)
    return Results(
        machine=machine.describe(folder, version),
        rounds=plan.rounds,
        ratios=ratios(medians),
        medians=medians,
        samples=samples,
        left_out=left_out,
    )
