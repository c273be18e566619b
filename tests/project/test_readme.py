"""The commands of README.md and docs/tour.md print what the documents show, against a real server."""

import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from itertools import islice
from pathlib import Path

import pytest

from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ADDRESS = "localhost:50051"
TOURS = {"README.md": 5, "docs/tour.md": 10, "docs/export-import.md": 1}
"""Documents with commands, each for an empty database, and their minimum number."""
SETTINGS = {"docs/tour.md": {"STORE_UNDELETE_HOURS": "24"}}
"""The settings that they name."""
_TIME = re.compile(r'"20\d\d-\d\d-\d\dT[0-9:.]+Z"')
_TOKEN = re.compile(r'"resumeToken": "[A-Za-z0-9_-]+"')


SECTIONS: dict[str, str] = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README.read_text(), re.MULTILINE | re.DOTALL)
)


def tour(document: str) -> list[tuple[str, str]]:
    """Every `$ command` of a document with the output printed below it."""
    text = (ROOT / document).read_text()
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command.partition("\n")[0], command.partition("\n")[2]) for command in commands]


def without_chance(text: str) -> str:
    """Output as it would be at any other time, of any other store."""
    return _TOKEN.sub('"resumeToken": "TOKEN"', _TIME.sub('"TIME"', text)).strip()


def output_of(command: list[str | Path], address: str) -> str:
    """What a command prints to its end."""
    environment = os.environ | {"STOREAPI_TARGET": address}
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=scaled_timeout(), check=False
    )
    return run.stdout + run.stderr


def beginning_of_output_of(command: list[str | Path], line_count: int) -> str:
    """Reads the first output of a command that does not end, and interrupts it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = list(islice(process.stdout, line_count))
        process.send_signal(signal.SIGINT)
    return "".join(lines)


@pytest.mark.parametrize("document", TOURS)
def test_commands_print_the_documented_output(server_process: ServerProcess, document: str) -> None:
    """The commands of a document, executed in order, print what the document shows."""
    server_process.settings |= SETTINGS.get(document, {})
    server_process.start()
    steps = tour(document)

    assert len(steps) >= TOURS[document]
    for command, expected in steps:
        program, *arguments = shlex.split(command.replace(ADDRESS, server_process.address))
        binary = Path(sys.executable).with_name(Path(program).name)
        if expected.endswith("^C\n"):
            expected = expected.removesuffix("^C\n")
            # Ends by itself too, so that a missing line fails the test and does not hang it.
            limited = [binary, "-max-time", str(scaled_timeout()), *arguments]
            printed = beginning_of_output_of(limited, line_count=expected.count("\n"))
        else:
            printed = output_of([binary, *arguments], server_process.address)
        assert without_chance(printed) == without_chance(expected), command


def test_python_example_runs(server_process: ServerProcess, tmp_path: Path) -> None:
    """The README's Python example works as it stands."""
    server_process.start()
    (example,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(example.replace(ADDRESS, server_process.address))

    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=scaled_timeout(), check=False
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["Welcome", "  Thank you", "1", "there is no post 42"]


@pytest.mark.parametrize("command", ["make run", "make test", "make check", "make help", "make grpcurl"])
def test_readme_names_the_commands(command: str) -> None:
    """The commands that people need stand in the README."""
    assert command in README.read_text()


def test_readme_states_the_python_versions() -> None:
    """Those of both distributions."""
    for distribution, section in [("", "Quick start"), ("clients/python", "Quick start")]:
        project = tomllib.loads((ROOT / distribution / "pyproject.toml").read_text())["project"]
        least = project["requires-python"].removeprefix(">=")
        assert f"Python {least} or newer" in SECTIONS[section]


def test_readme_figures_match_the_benchmarks() -> None:
    """Those of docs/benchmarks.md."""
    document = (ROOT / "docs/benchmarks.md").read_text()
    claims = {
        "SQLite: Create, 256 in flight": r"([0-9.]+) times as many creates a second as a gRPC server",
        "SQLite: Get, 256 in flight": r"([0-9.]+) times as many\s+gets",
        "SQLite: Create, 1 in flight": r"single caller gets ([0-9.]+) times as many creates",
    }
    for title, pattern in claims.items():
        measured = re.search(rf"^\| {title}, share of the ceiling +\| +([0-9.]+) ", document, re.MULTILINE)
        claimed = re.search(pattern, README.read_text())
        assert measured, title
        assert claimed, title
        assert claimed[1] == f"{float(measured[1]):.2f}", title


def test_the_readme_is_a_front_page() -> None:
    """It has at most 200 lines; everything else is in docs/."""
    assert len(README.read_text().splitlines()) <= 200


def test_the_index_lists_every_decision() -> None:
    """docs/decisions/README.md has number, title and status of each, in order."""
    folder = ROOT / "docs/decisions"
    headings = [
        (path.name, *re.match(r"# (\d+)\. (.+)\n", path.read_text()).groups())  # type: ignore[union-attr]
        for path in sorted(folder.glob("[0-9]*.md"))
    ]
    rows = re.findall(
        r"^\| (\d+) \| \[(.+)\]\((.+)\) \| (?:accepted|superseded by .+) \|$",
        (folder / "README.md").read_text(),
        re.MULTILINE,
    )

    assert rows == [(number, title, name) for name, number, title in headings]
