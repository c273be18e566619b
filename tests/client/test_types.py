"""Programs that use the client right pass the type checkers of users, and mistakes do not.

Both checkers are asked in their strictest mode, as for the oldest Python of the client and for a new one.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import storeapi

from tests.support.timeouts import scaled_timeout

pytestmark = pytest.mark.timeout(200)

PROGRAMS = Path(__file__).with_name("typing")
GOOD, BAD = PROGRAMS / "good.py", PROGRAMS / "bad.py"
PACKAGE = Path(storeapi.__file__).parent
ROOT = Path(__file__).parents[2]
OLDEST, NEW = "3.10", "3.13"

LENIENCIES = {
    "reportMissingTypeStubs": "the messages of google.rpc come without types",
    "reportUnusedImport": "ruff tells, and knows the reasons",
    "reportDeprecated": "Iterator is what a contextmanager is declared with everywhere here",
    "reportUnnecessaryIsInstance": "not every caller asks a type checker",
    "reportUnnecessaryComparison": "not every caller asks a type checker",
}
"""What pyright's strict mode wants and the package does not do, and why."""

UNTYPED_INPUT = {
    "cli": "JSON of the user holds anything until it was looked at",
    "formats": "what a file of another system has was not looked at yet",
    "testing": "gRPC's generic handlers and channels pass anything on",
}
"""Where values come from that have no type until they were looked at."""

GENERATED = tuple(
    f"storeapi.v1.{name}_pb2_grpc." for name in ("admin", "changes", "comments", "posts", "transfer")
)
"""Where the context that a server is handed has no types inside; callers of the client do not use it."""


@dataclass(frozen=True)
class Finding:
    """Something that a checker does not like."""

    path: Path
    line: int
    rule: str
    message: str


Check: TypeAlias = Callable[..., list[Finding]]


def output_of(*command: str | Path, folder: Path) -> str:
    """What a checker prints, whether it found something or not."""
    # --verifytypes looks at the packages of the first python3 of the path, whatever --pythonpath says.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    run = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=scaled_timeout(150),
        check=False,
    )
    # Anything above 1 is no finding but a checker that could not do its work.
    assert run.returncode in (0, 1), run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def mypy(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Asks mypy, by default with no settings but --strict."""
    folder = tmp_path_factory.mktemp("mypy")

    def check(*paths: Path, python: str, config: str | Path = "") -> list[Finding]:
        command = [sys.executable, "-m", "mypy", "--strict", f"--config-file={config}", "--output", "json"]
        options = ["--python-version", python, "--cache-dir", str(folder / "cache")]
        lines = output_of(*command, *options, *paths, folder=folder if not config else ROOT).splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        assert len(found) >= len(lines) - 1, lines
        return [
            Finding((folder / it["file"]).resolve(), it["line"], it["code"], it["message"])
            for it in found
            if it["severity"] == "error"
        ]

    return check


@pytest.fixture(scope="module")
def pyright(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Runs basedpyright in strict mode, which brings its own Node.js."""
    folder = tmp_path_factory.mktemp("pyright")

    def check(*paths: Path, python: str, **settings: object) -> list[Finding]:
        config = {
            "include": [str(path) for path in paths],
            "typeCheckingMode": "strict",
            "pythonVersion": python,
            "pythonPlatform": "Linux",
            **settings,
        }
        (folder / "pyrightconfig.json").write_text(json.dumps(config))
        printed = output_of(
            *(sys.executable, "-m", "basedpyright", "-p", folder, "--outputjson"),
            *("--pythonpath", sys.executable),
            folder=folder,
        )
        answer = json.loads(printed)
        assert answer["summary"]["filesAnalyzed"] > 0, "it saw nothing"
        return [
            Finding(
                Path(it["file"]), it["range"]["start"]["line"] + 1, it.get("rule", "syntax"), it["message"]
            )
            for it in answer["generalDiagnostics"]
        ]

    return check


@pytest.fixture(scope="module")
def programs(mypy: Check, pyright: Check) -> dict[tuple[str, str], list[Finding]]:
    """What each checker finds in the programs, by checker and Python; one run for good and bad together.

    Pyright also checks the client in the run for the oldest Python.
    """
    return {
        ("mypy", OLDEST): mypy(GOOD, BAD, python=OLDEST),
        ("mypy", NEW): mypy(GOOD, BAD, python=NEW),
        ("pyright", OLDEST): pyright(GOOD, BAD, PACKAGE, python=OLDEST, exclude=[str(PACKAGE / "v1")]),
        ("pyright", NEW): pyright(GOOD, BAD, python=NEW),
    }


def expected() -> dict[int, str]:
    """The lines of the bad programs that are marked, with mypy's code."""
    found = {}
    for number, line in enumerate(BAD.read_text().splitlines(), 1):
        if mark := re.search(r"# expect: ([a-z-]+)$", line):
            found[number] = mark[1]
    return found


@pytest.mark.parametrize("python", [OLDEST, NEW])
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_correct_programs_type_check(programs: Any, checker: str, python: str) -> None:
    """In strict mode, without Any."""
    assert [it for it in programs[checker, python] if it.path == GOOD] == []


@pytest.mark.parametrize("python", [OLDEST, NEW])
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_errors_are_found_at_their_lines(programs: Any, checker: str, python: str) -> None:
    """Every marked line is refused, and no other."""
    found = {it.line for it in programs[checker, python] if it.path == BAD}

    assert len(expected()) >= 30
    assert found == set(expected())


def test_type_errors_have_the_expected_cause(programs: Any) -> None:
    found = {(it.line, it.rule) for it in programs["mypy", OLDEST] if it.path == BAD}

    assert set(expected().items()) - found == set()


def test_client_passes_mypy_for_the_oldest_python(mypy: Check) -> None:
    """`make check` uses the version of the service; the client supports an older one."""
    found = mypy(PACKAGE, python=OLDEST, config=ROOT / "pyproject.toml")

    assert [it for it in found if "v1" not in it.path.parts] == []


def test_client_passes_pyright(programs: Any) -> None:
    """The code itself is what users see when they follow a definition in an editor that runs pyright."""
    found = [it for it in programs["pyright", OLDEST] if it.path.is_relative_to(PACKAGE)]

    assert [it for it in found if not _is_excused(it)] == []


def _is_excused(finding: Finding) -> bool:
    place = finding.path.relative_to(PACKAGE).parts[0]
    # Stubs are asked about where they are imported; the generated code is not checked.
    is_untyped_input = finding.rule.startswith("reportUnknown") and place in UNTYPED_INPUT
    return place == "v1" or is_untyped_input or finding.rule in LENIENCIES


def test_every_public_type_is_known(tmp_path: Path) -> None:
    """No public name has an unknown type or an implicit Any."""
    printed = output_of(
        *(sys.executable, "-m", "basedpyright", "--verifytypes", "storeapi", "--ignoreexternal"),
        "--outputjson",
        folder=tmp_path,
    )
    symbols = json.loads(printed)["typeCompleteness"]["symbols"]

    # A name that only uses another with such a type says "partially unknown"; the cause is what counts.
    causes = {
        f"{it['name']}: {diagnostic['message']}"
        for it in symbols
        for diagnostic in it["diagnostics"]
        if re.search(r"missing|Unknown|(has|is) unknown", diagnostic["message"])
    }
    contexts = {it for it in causes if it.startswith(GENERATED) and "ServicerContext" in it}
    assert len(symbols) > 500
    assert causes - contexts == set()
