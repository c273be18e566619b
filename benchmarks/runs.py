"""The two runs: all measurements, and the most important ratios."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import sqlalchemy

from benchmarks import (
    client,
    growth,
    machine,
    metrics_cost,
    once,
    rounds,
    searches,
    seed,
    thread_pages,
    watching,
    workers,
)
from benchmarks.lineup import CEILING, OURS, PLAIN, QUICK, SQLITE, Contender, Running, running
from benchmarks.loads import LoadError
from benchmarks.processes import StartError
from benchmarks.results import Results
from benchmarks.rounds import Plan
from benchmarks.targets import ratios
from benchmarks.workloads import BY_NAME, WORKLOADS, Workload

FULL_SECONDS = 1.0
"""Approximate duration of each load."""
GROWTH_ROUNDS = 5

_FAILURES = (StartError, LoadError, grpc.RpcError, sqlalchemy.exc.SQLAlchemyError)
"""The errors after which the other measurements continue."""

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
    """Returns the ratios of this service on SQLite to the ceiling and to PLAIN, in less than a minute."""

    def wanted(it: Running, workload: Workload) -> bool:
        return it.contender in _QUICK_LOADS[workload.name]

    seeded = seed.sqlite_file(folder)
    left_out: list[str] = []
    workloads = [BY_NAME[name] for name in _QUICK_LOADS]
    with running(QUICK, folder, seeded, left_out) as contenders:
        samples = rounds.measure(contenders, wanted, workloads, QUICK_PLAN, folder, left_out)
    return _results(folder, None, QUICK_PLAN, samples, left_out)


def full(folder: Path, contenders: Sequence[Contender], *, round_count: int, skip_growth: bool) -> Results:
    """Returns all measurements of these contenders; `skip_growth` skips those with many rows."""

    def wanted(it: Running, workload: Workload) -> bool:
        if workload.only_ours:
            return it.contender.module == OURS
        if it.contender.methods is not None and (
            workload.varied or workload.method not in it.contender.methods
        ):
            return False
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
        _measure_once(results, folder, seeded, skip_growth=skip_growth)
    return results


def _measure_once(results: Results, folder: Path, seeded: Path, *, skip_growth: bool) -> None:
    """Makes the measurements that are not loads on several contenders. Each may fail independently."""

    def grow() -> float | None:
        results.growth = growth.measure(folder, GROWTH_ROUNDS, results.left_out)
        return max(growth.factor(results.growth).values(), default=None)

    def pages_of_threads(folder: Path, _: Path, left_out: list[str]) -> dict[str, float]:
        results.thread_pages = thread_pages.measure(folder, left_out)
        return thread_pages.figures(results.thread_pages)

    def searches_of_comments(folder: Path, _: Path, left_out: list[str]) -> dict[str, float]:
        results.searches = searches.measure(folder, left_out)
        return searches.figures(results.searches)

    def numbers_of_workers(folder: Path, seeded: Path, left_out: list[str]) -> dict[str, float]:
        results.workers = workers.measure(folder, seeded, left_out)
        return workers.ratios(results.workers)

    several = [
        numbers_of_workers,
        watching.writes_with_watches,
        watching.latency,
        client.client,
        metrics_cost.metrics,
        searches.creates,
    ]
    measures: dict[str, Callable[[], float | None]] = {
        "start_seconds": lambda: once.start_seconds(folder, seeded),
        "memory_mib": lambda: once.memory_after_calls(folder, seeded),
        "syncs": lambda: once.syncs_for_writes(folder, seeded, results.left_out),
    }
    if not skip_growth:
        measures["growth"] = grow
        several += [pages_of_threads, searches_of_comments]
    for each in several:
        _measure_several(results, each, folder, seeded)
    for name, measure in measures.items():
        print(name, file=sys.stderr, flush=True)
        try:
            figure = measure()
        except _FAILURES as error:
            results.left_out.append(f"{name} was left out: {error}")
        else:
            if figure is not None:
                results.once[name] = figure


def _measure_several(
    results: Results,
    measure: Callable[[Path, Path, list[str]], dict[str, float]],
    folder: Path,
    seeded: Path,
) -> None:
    name = measure.__name__.replace("_", " ")
    print(name, file=sys.stderr, flush=True)
    try:
        results.once |= measure(folder, seeded, results.left_out)
    except _FAILURES as error:
        results.left_out.append(f"{name} was left out: {error}")


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
