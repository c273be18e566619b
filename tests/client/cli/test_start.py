"""How the command is found and started."""

import subprocess
import sys

import click
import pytest
from storeapi import StoreClient, __version__
from storeapi.cli.program import program

from tests.client.cli.conftest import INSTALLED, Command
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


@pytest.mark.parametrize("names", every_command(), ids=" ".join)
def test_every_command_has_help(storeapi: Command, names: list[str]) -> None:
    """And its options do too; the first line of it fits into the list of commands."""
    done = storeapi(*names, "-h")
    command: click.Command = program
    for name in names:
        assert isinstance(command, click.Group)
        command = command.commands[name]

    assert (done.exit_code, done.stderr) == (0, "")
    assert command.help
    assert not command.get_short_help_str(limit=70).endswith("...")
    assert all(option.help for option in command.params if isinstance(option, click.Option))
