"""Interleaved rounds: contenders are loaded in turn, so that other activity of the machine affects all."""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks import loads
from benchmarks.lineup import Running
from benchmarks.workloads import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One load on one contender, or the median of several."""

    calls_per_second: float
    cpu_us: float
    """CPU time of the server per call, in microseconds."""
    database_cpu_us: float | None
    """The same of PostgreSQL; None without PostgreSQL, or if it cannot be measured."""
    p50_ms: float
    p99_ms: float
    failed_share: float
    """Share of calls that ended with an error; they are not part of `calls_per_second`."""


Samples = dict[str, dict[str, list[Sample]]]
"""Samples by workload name and contender name."""

Medians = dict[str, dict[str, Sample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The duration of the measurements."""

    rounds: int
    seconds: float
    """Approximate duration of each load."""
    batches: int
    """Minimum number of calls of a load, as a multiple of the calls in flight, so that its start and end have
    little effect."""


def measure(
    contenders: Sequence[Running],
    wanted: Callable[[Running, Workload], bool],
    workloads: Sequence[Workload],
    plan: Plan,
    folder: Path,
    left_out: list[str],
) -> Samples:
    """Runs every workload on every contender, round by round.

    A first, short load warms up and determines the number of calls for the duration; it is not a sample.

    Args:
        contenders: The contenders.
        wanted: Whether a contender takes part in a workload.
        workloads: The workloads.
        plan: The duration.
        folder: For the files of the load.
        left_out: Gets a sentence for each load that failed; it is not repeated.
    """
    calls: dict[tuple[str, str], int] = {}
    samples: Samples = {workload.name: {} for workload in workloads}
    for round in range(plan.rounds + 1):
        print(f"round {round} of {plan.rounds}" if round else "warming up", file=sys.stderr, flush=True)
        # Each round begins with another contender, because a heavy load may affect the next one.
        first_of_all = round % max(1, len(contenders))
        order = [*contenders[first_of_all:], *contenders[:first_of_all]]
        for workload, it in (
            (workload, it) for workload in workloads for it in order if wanted(it, workload)
        ):
            pair = (workload.name, it.contender.name)
            if round and pair not in calls:
                continue
            try:
                if not round:
                    first = _sample(it, workload, max(2 * workload.in_flight, 50), folder)
                    fitting = int(first.calls_per_second * plan.seconds)
                    calls[pair] = max(fitting, plan.batches * workload.in_flight, 50)
                else:
                    sample = _sample(it, workload, calls[pair], folder)
                    samples[workload.name].setdefault(it.contender.name, []).append(sample)
            except loads.LoadError as error:
                calls.pop(pair, None)
                samples[workload.name].pop(it.contender.name, None)
                left_out.append(f"{workload.title} was left out for {it.contender.title}: {error}.")
                print(left_out[-1], file=sys.stderr, flush=True)
    return samples


def _sample(it: Running, workload: Workload, calls: int, folder: Path) -> Sample:
    cpu, database_cpu = it.cpu_seconds(), it.database_cpu_seconds()
    load = loads.run(workload, it.server.address, calls, http1=it.contender.http1, folder=folder)
    cpu_us = (it.cpu_seconds() - cpu) / calls * 1e6
    database_cpu_us = None
    if database_cpu is not None:
        database_cpu_us = ((it.database_cpu_seconds() or 0) - database_cpu) / calls * 1e6
    return Sample(
        calls_per_second=load.calls_per_second,
        cpu_us=cpu_us,
        database_cpu_us=database_cpu_us,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        failed_share=load.failed / load.calls,
    )


def medians(samples: Samples) -> Medians:
    """Returns the median of each number independently."""
    return {
        workload: {contender: _median(found) for contender, found in of_workload.items() if found}
        for workload, of_workload in samples.items()
    }


def _median(samples: Sequence[Sample]) -> Sample:
    values: dict[str, float | None] = {}
    for field in fields(Sample):
        known = [value for sample in samples if (value := getattr(sample, field.name)) is not None]
        values[field.name] = statistics.median(known) if known else None
    return Sample(**values)  # type: ignore[arg-type]
