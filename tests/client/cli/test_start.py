"""How the command is found and started."""

import inspect
import os
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
from tests.support.bash_completion import bash_completions, completion_line
from tests.support.storeapi_command import INSTALLED_COMMAND, StoreapiCommand
from tests.support.timeouts import scaled_timeout


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=scaled_timeout(), check=False)


def test_module_and_installed_command_are_the_same() -> None:
    """`python -m storeapi` is `storeapi`."""
    by_name = run(str(INSTALLED_COMMAND), "--version")
    as_module = run(sys.executable, "-m", "storeapi", "--version")

    assert by_name.stdout == as_module.stdout == f"storeapi {__version__}\n"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_missing_libraries_message_names_the_extra(missing: str) -> None:
    """In one line, with a failure."""
    code = f"import sys; sys.modules[{missing!r}] = None; from storeapi.cli import main; main()"
    done = run(sys.executable, "-c", code)

    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "storeapi: the command needs the extra storeapi[cli], which is not installed\n",
    )


def test_broken_library_is_not_reported_as_missing() -> None:
    """Installing the extra would not help."""
    code = "import sys; sys.modules['click.core'] = None; from storeapi.cli import main; main()"
    done = run(sys.executable, "-c", code)

    assert done.returncode == 1
    assert "is not installed" not in done.stderr


def test_help_imports_no_slow_modules() -> None:
    """Tables and progress bars are imported only when one is drawn."""
    code = (
        "import atexit, sys; sys.argv = ['storeapi', '--help']\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from storeapi.cli import main; main()"
    )

    loaded = run(sys.executable, "-c", code).stderr.split()

    assert "storeapi.cli.program" in loaded
    assert "rich.console" not in loaded


def test_every_command_imports_what_it_needs(storeapi: StoreapiCommand, store: StoreClient) -> None:
    """On a terminal, which needs the most. Commands of other tests start with everything imported."""
    post = store.posts.create(body="a")
    calls = [
        ["posts", "list"],
        ["comments", "create", str(post.id), "b"],
        ["watch", "--from", "earliest", "--exit-after", "1"],
        ["export", "all.jsonl"],
        ["import", "all.jsonl"],
    ]
    for arguments in calls:
        ours, theirs = os.openpty()
        command = [INSTALLED_COMMAND, "--target", storeapi.target, *arguments]
        done = subprocess.run(
            command, cwd=storeapi.folder, stdout=theirs, stderr=theirs, timeout=scaled_timeout(), check=False
        )
        os.close(theirs)
        assert done.returncode == 0, os.read(ours, 65536)
        os.close(ours)

    assert {it[0] for it in calls} == set(program.commands)


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]
"""How a shell starts a command without stdin, stdout, stderr, and without any of them."""


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_stdout_does_not_fail_a_write(
    storeapi: StoreapiCommand, store: StoreClient, closed: str
) -> None:
    """A stored post is a success even if it cannot be printed."""
    body = f"created with {closed}"
    for arguments in (["posts", "create", body], ["posts", "list"], ["--json", "posts", "list"]):
        done = run_in_shell(storeapi, closed, *arguments)
        assert (done.returncode, done.stderr) == (0, "")

    assert [it.body for it in store.posts.list() if it.body == body] == [body]


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_streams_keep_the_exit_code_of_a_failure(storeapi: StoreapiCommand, closed: str) -> None:
    """The error is printed if stderr is open."""
    done = run_in_shell(storeapi, closed, "posts", "get", "987654321")

    assert (done.returncode, done.stdout) == (3, "")
    assert ("POST_NOT_FOUND" in done.stderr) == ("2>&-" not in closed)


def run_in_shell(storeapi: StoreapiCommand, closed: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command with streams closed, as only a shell can do it."""
    words = ["--target", storeapi.target, *arguments]
    return run("sh", "-c", f'exec "$0" "$@" {closed}', str(INSTALLED_COMMAND), *words)


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
def test_every_command_has_help(
    storeapi: StoreapiCommand, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    """Every option too. No text is truncated or wider than the terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    done = storeapi(*names, "-h")
    command = named(names)

    assert (done.exit_code, done.stderr) == (0, "")
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r"[a-z,;]\.\.\.", done.stdout)


@pytest.mark.parametrize("names", [[], ["posts"], ["comments"]], ids=" ".join)
def test_group_alone_prints_help_and_fails(storeapi: StoreapiCommand, names: list[str]) -> None:
    """On stderr, with the exit code of a usage error, so that a script notices a missing command."""
    code, stdout, stderr = storeapi.process(*names)

    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"Usage: {' '.join(['storeapi', *names])} [OPTIONS] COMMAND")
    assert stderr == storeapi.process(*names, "--help")[1]


@pytest.mark.parametrize(
    "names", [it for it in [[], *every_command()] if it not in (["posts"], ["comments"])], ids=" ".join
)
def test_help_examples_are_valid_calls(
    storeapi: StoreapiCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, names: list[str]
) -> None:
    """Each example is accepted by the command."""
    examples = [
        part.strip()
        for line in storeapi(*names, "--help").stdout.partition("Example")[2].splitlines()
        for part in re.split("[|<>]", line)
        if part.strip().startswith("storeapi ") and "_COMPLETE" not in line
    ]
    for name in ("all.jsonl", "export.xml"):
        (tmp_path / name).touch()
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


def test_bash_completes_commands_and_choices(storeapi: StoreapiCommand) -> None:
    """With the setup line from the help."""
    line = completion_line("bash", storeapi("--help").stdout)

    assert bash_completions(line, "storeapi", "po") == ["posts"]
    assert bash_completions(line, "storeapi", "posts", "list", "--order-by", "") == [
        "id",
        "id-desc",
        "create-time",
        "create-time-desc",
    ]
    assert "--resume-token" in bash_completions(line, "storeapi", "watch", "--")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_help_has_a_completion_line_for_every_shell(storeapi: StoreapiCommand, shell: str) -> None:
    """The line prints the script of the shell."""
    line = completion_line(shell, storeapi("--help").stdout)
    storeapi.environment["_STOREAPI_COMPLETE"] = f"{shell}_source"
    code, script, stderr = storeapi.process()

    assert f"_STOREAPI_COMPLETE={shell}_source storeapi" in line
    assert (code, stderr) == (0, "")
    assert "_storeapi_completion" in script


def test_both_commands_have_the_same_help_layout() -> None:
    """The code exists twice: to import the client would make `store-service` load gRPC for its help."""
    for name in ("Group", "help_section"):
        assert inspect.getsource(getattr(service_help, name)) == inspect.getsource(getattr(client_help, name))
