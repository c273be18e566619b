"""`python -m benchmarks`: measures, prints the tables, stores the numbers and draws the chart."""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from benchmarks import loads, machine, report, runs
from benchmarks.lineup import CEILING, LINEUP
from benchmarks.processes import ROOT, StartError
from benchmarks.results import FOLDER, Results

DOCUMENT = ROOT / "docs" / "benchmarks.md"
CHART = ROOT / "docs" / "benchmarks.svg"


def main() -> None:
    """Executes the command line."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("there must be at least one round")
    if arguments.write_docs and (arguments.quick or arguments.only or arguments.skip_growth):
        parser.error("--write-docs needs the whole run")
    if not loads.have_h2load():
        sys.exit(loads.HOW_TO_GET_H2LOAD)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop_once)
    try:
        with tempfile.TemporaryDirectory(prefix="store-bench-", dir=_where()) as name:
            folder = Path(name)
            # PostgreSQL runs as another user and needs access to its folder in this one.
            folder.chmod(0o711)
            if machine.file_system(folder) in machine.MEMORY_ONLY:
                print(
                    f"{folder} is in memory, where an fsync costs nothing; set TMPDIR to a folder on a disk"
                )
            _run(arguments, folder)
    except (StartError, loads.LoadError) as error:
        sys.exit(f"the benchmark cannot continue: {error}")
    except KeyboardInterrupt as signalled:
        sys.exit(f"stopped by {signalled}; all started processes have ended")


def _run(arguments: argparse.Namespace, folder: Path) -> None:
    if arguments.quick:
        results = runs.quick(folder)
        _print(results, "quick")
        return
    wanted = [contender for contender in LINEUP if not arguments.only or contender.name in arguments.only]
    results = runs.full(folder, wanted, round_count=arguments.rounds, skip_growth=arguments.skip_growth)
    whole = not arguments.only and not arguments.skip_growth
    _print(results, "full" if whole else "part")
    if CEILING in wanted and len(wanted) > 1:
        # Imported here, because the quick run does not need it.
        from benchmarks import chart

        path = CHART if whole else FOLDER / "part.svg"
        chart.draw(results, path)
        print(f"The chart is {path}.")
    if arguments.write_docs:
        report.fill(DOCUMENT, results)


def _print(results: Results, name: str) -> None:
    path = results.write(name)
    print(f"\n{report.text(results)}\n\nThe numbers are in {path}.")


def _where() -> str | None:
    """The folder for the databases: TMPDIR, or /var/tmp, which unlike /tmp is always on a disk."""
    if os.environ.get("TMPDIR") or not os.access("/var/tmp", os.W_OK):  # noqa: S108
        return None
    return "/var/tmp"  # noqa: S108  # a new folder in it, not a fixed name


def _stop_once(number: int, _: FrameType | None) -> None:
    """Ends the run as Ctrl-C does. Further signals are ignored, so that all started processes are stopped."""
    for every in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(every, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the service next to other implementations; see docs/benchmarks.md.",
    )
    parser.add_argument("--quick", action="store_true", help="only the most important ratios, in a minute")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="interleaved rounds (5)")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[contender.name for contender in LINEUP],
        help="only this contender (can be repeated): " + ", ".join(contender.name for contender in LINEUP),
    )
    parser.add_argument(
        "--skip-growth", action="store_true", help="skip the measurements on files with many rows"
    )
    parser.add_argument("--write-docs", action="store_true", help="write the tables to docs/benchmarks.md")
    return parser


if __name__ == "__main__":
    main()
