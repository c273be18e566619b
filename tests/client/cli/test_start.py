"""How the command is found and started."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from storeapi import StoreClient, __version__
from storeapi.cli import help as client_help
from storeapi.cli.program import program

from store_service.cli import help as service_help
from tests.client.cli.conftest import INSTALLED, Command
from tests.completion import completed_by_bash, line_for
from tests.patience import patience


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=patience(), check=False)


def test_the_module_and_the_installed_command_are_the_same() -> None:
    """`python -m storeapi` is `storeapi`."""
    by_name = run(str(INSTALLED), "--version")
    as_module = run(sys.executable, "-m", "storeapi", "--version")

    assert by_name.stdout == as_module.stdout == f"storeapi {__version__}\n"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_libraries_the_command_says_what_to_install(missing: str) -> None:
    """In one line, and fails."""
    code = f"import sys; sys.modules[{missing!r}] = None; from storeapi.cli import main; main()"
    done = run(sys.executable, "-c", code)

    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "storeapi: the command needs the extra storeapi[cli], which is not installed\n",
    )


def test_a_broken_library_is_not_taken_for_a_missing_one() -> None:
    """Then to install the extra would not help."""
    code = "import sys; sys.modules['click.core'] = None; from storeapi.cli import main; main()"
    done = run(sys.executable, "-c", code)

    assert done.returncode == 1
    assert "is not installed" not in done.stderr


def test_help_loads_nothing_that_is_slow() -> None:
    """Tables and progress bars are loaded when there is one to draw."""
    code = (
        "import atexit, sys; sys.argv = ['storeapi', '--help']\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from storeapi.cli import main; main()"
    )

    loaded = run(sys.executable, "-c", code).stderr.split()

    assert "storeapi.cli.program" in loaded
    assert "rich.console" not in loaded


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]
"""How a shell starts a command without stdin, stdout, stderr, and without any of them."""


@pytest.mark.parametrize("closed", CLOSED)
def test_without_a_stream_the_command_does_what_it_is_to_do(
    storeapi: Command, store: StoreClient, closed: str
) -> None:
    """What is not printed, nobody wanted to see: a post that was stored is no failure."""
    body = f"created with {closed}"
    for arguments in (["posts", "create", body], ["posts", "list"], ["--json", "posts", "list"]):
        done = run_in_shell(storeapi, closed, *arguments)
        assert (done.returncode, done.stderr) == (0, "")

    assert [it.body for it in store.posts.list() if it.body == body] == [body]


@pytest.mark.parametrize("closed", CLOSED)
def test_without_a_stream_a_failure_has_its_exit_code(storeapi: Command, closed: str) -> None:
    """Also if there is nowhere to tell it; where there is, it is told."""
    done = run_in_shell(storeapi, closed, "posts", "get", "987654321")

    assert (done.returncode, done.stdout) == (3, "")
    assert ("POST_NOT_FOUND" in done.stderr) == ("2>&-" not in closed)


def run_in_shell(storeapi: Command, closed: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command with streams closed, as only a shell can do it."""
    words = ["--target", storeapi.target, *arguments]
    return run("sh", "-c", f'exec "$0" "$@" {closed}', str(INSTALLED), *words)


def every_command() -> list[list[str]]:
    names: list[list[str]] = []
    for name, command in program.commands.items():
        names.append([name])
        if isinstance(command, click.Group):
            names.extend([name, under] for under in command.commands)
    return names


def named(names: list[str]) -> click.Command:
    command: click.Command = program
    for name in names:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


@pytest.mark.parametrize("names", [[], *every_command()], ids=" ".join)
def test_every_command_has_help(storeapi: Command, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    """And its options do too; nothing of it is cut off or wider than a terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    done = storeapi(*names, "-h")
    command = named(names)

    assert (done.exit_code, done.stderr) == (0, "")
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r"[a-z,;]\.\.\.", done.stdout)


@pytest.mark.parametrize("names", [[], ["posts"], ["comments"]], ids=" ".join)
def test_group_alone_shows_its_help_and_fails(storeapi: Command, names: list[str]) -> None:
    """On stderr, with the exit code of a wrong call: a script that leaves out the command notices."""
    code, stdout, stderr = storeapi.process(*names)

    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"Usage: {' '.join(['storeapi', *names])} [OPTIONS] COMMAND")
    assert stderr == storeapi.process(*names, "--help")[1]


@pytest.mark.parametrize(
    "names", [it for it in [[], *every_command()] if it not in (["posts"], ["comments"])], ids=" ".join
)
def test_help_has_examples_that_can_be_typed(
    storeapi: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, names: list[str]
) -> None:
    """Each is a call that the command takes."""
    examples = [
        part.strip()
        for line in storeapi(*names, "--help").stdout.partition("Example")[2].splitlines()
        for part in re.split("[|<>]", line)
        if part.strip().startswith("storeapi ") and "_COMPLETE" not in line
    ]
    (tmp_path / "all.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    taken: list[dict[str, object]] = []
    for each in every_command():
        if not isinstance(named(each), click.Group):
            monkeypatch.setattr(named(each), "callback", lambda **given: taken.append(given))

    assert examples
    for example in examples:
        assert " ".join(names) in example
        assert storeapi(*shlex.split(example)[1:], stdin="").exit_code == 0
    assert len(taken) == len(examples)


def test_commands_and_choices_are_completed_by_bash(storeapi: Command) -> None:
    """With the line that the help gives."""
    line = line_for("bash", storeapi("--help").stdout)

    assert completed_by_bash(line, "storeapi", "po") == ["posts"]
    assert completed_by_bash(line, "storeapi", "posts", "list", "--order-by", "") == ["id", "id-desc"]
    assert "--resume-token" in completed_by_bash(line, "storeapi", "watch", "--")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_other_shells_has_a_line_too(storeapi: Command, shell: str) -> None:
    """What the line runs prints the script for the shell."""
    line = line_for(shell, storeapi("--help").stdout)
    storeapi.environment["_STOREAPI_COMPLETE"] = f"{shell}_source"
    code, script, stderr = storeapi.process()

    assert f"_STOREAPI_COMPLETE={shell}_source storeapi" in line
    assert (code, stderr) == (0, "")
    assert "_storeapi_completion" in script


def test_both_commands_have_the_same_help_layout() -> None:
    """The code exists twice: to import the client would make `store-service` load gRPC for its help."""
    for name in ("Group", "lines_of"):
        assert inspect.getsource(getattr(service_help, name)) == inspect.getsource(getattr(client_help, name))
