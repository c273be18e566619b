"""The tables for the terminal and for docs/benchmarks.md."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import machine, searches, targets, thread_pages
from benchmarks.lineup import LINEUP
from benchmarks.results import Results
from benchmarks.rounds import Sample
from benchmarks.workloads import BY_NAME

_PLACE = re.compile(r"(<!-- table -->\n).*?(<!-- /table -->)", re.DOTALL)


def text(results: Results) -> str:
    """Returns all results in Markdown."""
    parts = [_targets(results)]
    if results.medians:
        parts += [
            f"Calls per second (share of the ceiling); medians over {results.rounds} interleaved rounds:",
            _matrix(results, _rate),
            "CPU of the server for each call in microseconds (+ of PostgreSQL):",
            _matrix(results, _cpu),
            "p50 / p99 in milliseconds:",
            _matrix(results, _times),
        ]
    if results.memory_mib:
        rows = [[_title(name), f"{mib:.0f}"] for name, mib in results.memory_mib.items()]
        parts += ["Memory after all rounds in MiB:", table(["", "MiB"], rows)]
    if results.growth:
        sizes = sorted(next(iter(results.growth.values())))
        rows = [[title, *(f"{times[size]:.2f}" for size in sizes)] for title, times in results.growth.items()]
        heads = [f"{size:,} rows" for size in sizes]
        parts += ["Growth: p50 in milliseconds, one call in flight:", table(["", *heads], rows)]
    if results.thread_pages:
        names = list(next(iter(results.thread_pages.values())))
        rows = [
            [title, *(f"{times[name]:.2f}" for name in names)]
            for title, times in results.thread_pages.items()
        ]
        parts += [
            f"Pages of 50 comments of one post with {thread_pages.COMMENTS:,} comments in"
            f" {thread_pages.THREADS:,} threads: p50 in milliseconds, one call in flight:",
            table(["", *map(_title, names)], rows),
        ]
    if results.searches:
        names = list(next(iter(results.searches.values())))
        rows = [
            [title, *(" / ".join(map(_short, times[name])) for name in names)]
            for title, times in results.searches.items()
        ]
        parts += [
            f"Searches of 50 among {searches.COMMENTS:,} comments of {searches.WORDS} words: p50 / p99 in"
            " milliseconds, one call in flight:",
            table(["", *map(_title, names)], rows),
        ]
    if results.workers:
        names = list(next(iter(results.workers.values())))
        rows = [
            [title, *(f"{figures[name]:,.0f}" if name in figures else "-" for name in names)]
            for title, figures in results.workers.items()
        ]
        parts += [
            "Workers on SQLite, 256 calls in flight on 16 connections, without the search index:",
            table(["", *names], rows),
        ]
    parts += [f"- {sentence}" for sentence in results.left_out]
    parts.append(f"Machine: {machine.in_one_line(results.machine)}.")
    return "\n\n".join(part for part in parts if part)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table that is also aligned in a terminal; all columns but the first to the right."""
    widths = [max(3, *(len(row[column]) for row in (heads, *rows))) for column in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return (
            " | ".join(["| " + first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])
            + " |"
        )

    rule = "|".join(["|" + "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(heads), rule, *map(line, rows)])


def fill(document: Path, results: Results) -> None:
    """Writes the tables between the markers of a document."""
    before = document.read_text()
    after, places = _PLACE.subn(lambda found: f"{found[1]}\n{text(results)}\n\n{found[2]}", before)
    if places != 1:
        raise ValueError(f"{document} has {places} markers for the tables, not one")
    document.write_text(after)


def _targets(results: Results) -> str:
    rows = []
    for target, figure in targets.judged(results.figures):
        sign = "≥" if target.sense == "least" else "≤"
        bounds = [target.must] if target.aim is None else [target.must, target.aim]
        rows.append(
            [
                target.title,
                f"{_short(figure)}{target.unit}",
                *(f"{sign} {_short(bound)}{target.unit}" for bound in bounds),
                *([""] if target.aim is None else []),
                target.verdict(figure),
            ]
        )
    return table(["", "measured", "must be", "aim", ""], rows) if rows else ""


def _matrix(results: Results, cell: Callable[[Sample, Sample | None], str]) -> str:
    """Returns a table with a row for each load and a column for each contender."""
    present = {name for of_workload in results.medians.values() for name in of_workload}
    names = [contender.name for contender in LINEUP if contender.name in present]
    rows = []
    for workload, of_workload in results.medians.items():
        ceiling = of_workload.get("ceiling")
        cells = [cell(of_workload[name], ceiling) if name in of_workload else "-" for name in names]
        rows.append([BY_NAME[workload].title, *cells])
    return table(["", *map(_title, names)], rows)


def _rate(sample: Sample, ceiling: Sample | None) -> str:
    share = f" ({sample.calls_per_second / ceiling.calls_per_second:.2f})" if ceiling else ""
    failed = f", {sample.failed_share:.0%} failed" if sample.failed_share else ""
    return f"{sample.calls_per_second:,.0f}{share}{failed}"


def _cpu(sample: Sample, _: Sample | None) -> str:
    database = f" + {sample.database_cpu_us:,.0f}" if sample.database_cpu_us is not None else ""
    return f"{sample.cpu_us:,.0f}{database}"


def _times(sample: Sample, _: Sample | None) -> str:
    return f"{_short(sample.p50_ms)} / {_short(sample.p99_ms)}"


def _title(name: str) -> str:
    return next(contender.title for contender in LINEUP if contender.name == name)


def _short(number: float) -> str:
    """Returns a number with three significant digits."""
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.3g}"
