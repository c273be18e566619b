"""Mutation testing of a random sample: `make mutants`, `make mutants COUNT=60 SEED=2`.

cosmic-ray changes one expression of a copy of the repository and runs the tests of its area. A mutant that
passes all of them has survived: the tests do not detect the change. Prints the difference of each survivor,
and exits with 1 if there is one.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkItem

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "mutants"
TREE = BUILD / "tree"

AREAS = {
    "store_service/rpc/validation": (
        "tests/unit/test_validation.py tests/rpc/test_bad_input.py tests/rpc/test_updates.py"
        " tests/rpc/test_batches.py tests/rpc/test_pages.py tests/rpc/test_watch.py"
        " tests/rpc/test_external_ids.py tests/rpc/test_labels_and_authors.py tests/rpc/test_filters.py"
    ),
    "store_service/service": "tests/unit tests/rpc tests/database",
    "store_service/database": "tests/database tests/unit tests/rpc",
}
"""Each module or package, with the tests that run for its mutants."""

LEFT_OUT = ["*/migrations/*", "*/legacy_preflight.py"]
"""Modules that are not mutated, because only the slow tests of upgrades cover them."""

TIMEOUT_SECONDS = 300
"""A mutant whose tests take longer counts as killed, because it blocks something."""

# The text of a log line or an error is not a rule, and a decorator or a type is checked by other tools.
OPERATORS_LEFT_OUT = ("core/RemoveDecorator", "core/ExceptionReplacer", "core/NumberReplacer")


def copy_tree() -> None:
    """Copies the files that are in git, or that the next `git add` would add."""
    shutil.rmtree(BUILD, ignore_errors=True)
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)


def session(number: int, area: str, tests: str) -> Path:
    """Creates the configuration and the session of an area. Returns the path of both without a suffix."""
    module = area if (TREE / area).is_dir() else f"{area}.py"
    pytest = f"{ROOT}/.venv/bin/python -m pytest {tests}"
    options = "-n 2 -x -q --no-header -p no:cacheprovider -k 'not postgresql'"
    path = BUILD / f"area{number}"
    path.with_suffix(".toml").write_text(
        f"""[cosmic-ray]
module-path = "{module}"
timeout = {TIMEOUT_SECONDS}
excluded-modules = {LEFT_OUT}
test-command = "{pytest} {options}"
[cosmic-ray.distributor]
name = "local"
"""
    )
    cosmic_ray("init", path)
    return path


def cosmic_ray(command: str, path: Path) -> None:
    """Runs a command of cosmic-ray in the copy. The tests import the packages of the copy."""
    subprocess.run(
        [Path(sys.executable).with_name("cosmic-ray"), command, f"{path}.toml", f"{path}.sqlite"],
        cwd=TREE,
        env=os.environ
        | {
            "PYTHONPATH": f"{TREE}:{TREE}/clients/python/src",
            "PYTHONPYCACHEPREFIX": str(TREE / "build" / "pycache"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        check=True,
    )


def is_wanted(item: WorkItem) -> bool:
    """Returns whether a mutation is useful."""
    return not any(it.operator_name.startswith(OPERATORS_LEFT_OUT) for it in item.mutations)


def main() -> int:
    """Runs the sample."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=30, help="number of mutants")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample")
    given = parser.parse_args()
    started = time.monotonic()
    copy_tree()
    sessions = [session(number, area, tests) for number, (area, tests) in enumerate(AREAS.items())]
    found: list[tuple[Path, WorkItem]] = []
    for path in sessions:
        with use_db(f"{path}.sqlite", WorkDB.Mode.open) as database:
            found += [(path, item) for item in database.work_items if is_wanted(item)]
    found.sort(key=lambda it: (it[0], str(it[1].mutations)))
    sample = random.Random(given.seed).sample(found, min(given.count, len(found)))  # noqa: S311  # no secret
    print(f"{len(sample)} of {len(found)} mutants, seed {given.seed}", flush=True)
    survivors = 0
    for path in sessions:
        items = [item for it, item in sample if it == path]
        with use_db(f"{path}.sqlite", WorkDB.Mode.open) as database:
            database.clear()
            database.add_work_items(items)
        cosmic_ray("exec", path)
        with use_db(f"{path}.sqlite", WorkDB.Mode.open) as database:
            for _, result in database.completed_work_items:
                if result.test_outcome == TestOutcome.SURVIVED:
                    survivors += 1
                    print(result.diff, flush=True)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(sample) - survivors} killed, {survivors} survived, in {minutes:.0f} min")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
