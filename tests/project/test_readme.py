"""The README's tour, run line by line against a real server."""

import re
import shlex
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.patience import patience
from tests.support import ServerProcess

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "localhost:50051"
_TIME = re.compile(r'"20\d\d-\d\d-\d\dT[0-9:.]+Z"')
_TOKEN = re.compile(r'"resumeToken": "[A-Za-z0-9_-]+"')


def tour() -> list[tuple[str, str]]:
    """Every `$ command` of the README with the output printed below it."""
    blocks = re.findall(r"^```console\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    commands = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command.partition("\n")[0], command.partition("\n")[2]) for command in commands]


def without_chance(text: str) -> str:
    """Output as it would be at any other time, of any other store."""
    return _TOKEN.sub('"resumeToken": "TOKEN"', _TIME.sub('"TIME"', text)).strip()


def output_of(command: list[str | Path]) -> str:
    """What a command prints to its end."""
    run = subprocess.run(command, capture_output=True, text=True, timeout=patience(), check=False)
    return run.stdout + run.stderr


def beginning_of_output_of(command: list[str | Path], line_count: int) -> str:
    """What a command that does not end prints first; then it gets the Ctrl-C of whoever looks at it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = list(islice(process.stdout, line_count))
        process.send_signal(signal.SIGINT)
    return "".join(lines)


def test_the_tour_prints_what_the_readme_says(server_process: ServerProcess) -> None:
    """Whoever types the grpcurl lines in their order sees what stands below them."""
    server_process.start()
    steps = tour()

    assert len(steps) >= 10
    for command, expected in steps:
        program, *arguments = shlex.split(command.replace(ADDRESS, server_process.address))
        binary = Path(sys.executable).with_name(program)
        if expected.endswith("^C\n"):
            expected = expected.removesuffix("^C\n")
            # Ends by itself too, so that a missing line fails the test and does not hang it.
            limited = [binary, "-max-time", "30", *arguments]
            printed = beginning_of_output_of(limited, line_count=expected.count("\n"))
        else:
            printed = output_of([binary, *arguments])
        assert without_chance(printed) == without_chance(expected), command


def test_the_python_example_runs(server_process: ServerProcess, tmp_path: Path) -> None:
    """The README's Python example works as it stands."""
    server_process.start()
    (example,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(example.replace(ADDRESS, server_process.address))

    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=patience(), check=False
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["Welcome", "there is no post 42"]


@pytest.mark.parametrize("command", ["make run", "make test", "make check", "make help"])
def test_the_readme_names_the_commands(command: str) -> None:
    """The commands that people need stand in the README."""
    assert command in README.read_text()
