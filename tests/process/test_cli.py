"""The command `store-service`: what it prints, how it ends, and what it leaves on disk."""

import importlib
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import click
import grpc
import pytest
from click.testing import CliRunner, Result

from store_service import cli
from store_service import config as settings
from store_service.database import schema
from tests.support import legacy_database
from tests.support.bash_completion import bash_completions, completion_line
from tests.support.database import query
from tests.support.ports import free_port
from tests.support.server_process import ServerProcess, run_command, serve_with_stderr
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

ROOT = Path(__file__).parents[2]


def in_this_process(*arguments: str) -> Result:
    """Calls `store-service` without starting Python again; only for what ends before logs are set up."""
    return CliRunner().invoke(cli.main, arguments, prog_name="store-service")


# Help


def every_command() -> list[list[str]]:
    names: list[list[str]] = []
    for name, command in cli.main.commands.items():
        names.append([name])
        if isinstance(command, click.Group):
            names.extend([name, under] for under in command.commands)
    return names


def named(names: list[str]) -> click.Command:
    command: click.Command = cli.main
    for name in names:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


@pytest.mark.parametrize("arguments", [[], *every_command()], ids=" ".join)
def test_help_describes_every_command(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """With the sources of settings; nothing is truncated."""
    monkeypatch.setenv("COLUMNS", "80")
    done = in_this_process(*arguments, "--help")
    command = named(arguments)
    words = " ".join(done.stdout.split())

    assert (done.exit_code, done.stderr) == (0, "")
    assert words.startswith(f"Usage: {' '.join(['store-service', *arguments])} ")
    assert command.help is not None
    assert " ".join(command.help.split()) in words
    assert "environment" in words
    assert ".env" in words
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r"[a-z,;]\.\.\.", done.stdout)


@pytest.mark.parametrize("arguments", [[], *every_command()], ids=" ".join)
def test_help_examples_are_valid_calls(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """Each example is accepted by the command."""
    examples = [
        line.strip()
        for line in in_this_process(*arguments, "--help").stdout.partition("Example")[2].splitlines()
        if line.strip().startswith("store-service ") and "_COMPLETE" not in line
    ]
    taken: list[dict[str, object]] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("STORE_LOG_LEVEL", "error")
    for each in every_command():
        if not isinstance(named(each), click.Group):
            monkeypatch.setattr(named(each), "callback", lambda *_, **given: taken.append(given))
    monkeypatch.setattr(click.Path, "convert", lambda *given: given[1])
    monkeypatch.setattr(cli.keys, "callback", lambda: None)

    assert examples
    for example in examples:
        assert " ".join(arguments) in example
        done = in_this_process(*shlex.split(example)[1:])
        assert (done.exit_code, done.output) == (0, "")
    assert len(taken) == len(examples)


@pytest.mark.parametrize("arguments", [[], ["keys"]], ids=" ".join)
def test_group_alone_prints_help_and_fails(tmp_path: Path, arguments: list[str]) -> None:
    """On stderr, with the exit code of a usage error, so that a script notices a missing command."""
    done = run_command(*arguments, folder=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == run_command(*arguments, "--help", folder=tmp_path).stdout


def test_bash_completes_commands() -> None:
    """With the setup line from the help. zsh and fish have one too."""
    help = in_this_process("--help").stdout
    line = completion_line("bash", help)

    assert bash_completions(line, "store-service", "ke") == ["keys"]
    assert bash_completions(line, "store-service", "keys", "") == ["list", "new", "remove"]
    assert "--tls-ca" in bash_completions(line, "store-service", "health", "--")
    for shell in ("zsh", "fish"):
        assert f"_STORE_SERVICE_COMPLETE={shell}_source store-service" in completion_line(shell, help)


def test_help_lists_the_exit_codes() -> None:
    """Every one that a command of this program ends with."""
    _, _, told = in_this_process("--help").stdout.partition("Exit codes:")

    assert [line.split()[0] for line in told.splitlines()[1:4]] == ["0", "1", "2"]


def test_main_help_lists_every_command() -> None:
    """With what each does."""
    done = in_this_process("-h")

    commands = "serve migrate check keys backup restore copy erase reindex health status"
    assert set(cli.main.commands) == set(commands.split())
    for name in cli.main.commands:
        assert any(line.split()[:1] == [name] and len(line.split()) > 2 for line in done.stdout.splitlines())


def run_as_new_process(*command: str | Path, folder: Path, **environment: str) -> tuple[int, str, str]:
    """Runs a program; unlike `run_command`, without modules that were imported before. Returns its exit code,
    stdout and stderr.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=scaled_timeout(),
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


INSTALLED = Path(sys.executable).with_name("store-service")


def test_module_and_installed_command_are_the_same(tmp_path: Path) -> None:
    """`python -m store_service` is `store-service`, which is installed beside Python."""
    by_name = run_as_new_process(INSTALLED, "--help", folder=tmp_path)
    by_module = run_as_new_process(sys.executable, "-m", "store_service", "--help", folder=tmp_path)

    assert by_name[1].startswith("Usage: store-service ")
    assert by_name == by_module
    assert list(tmp_path.iterdir()) == []


def test_settings_import_no_sqlalchemy(tmp_path: Path) -> None:
    """Commands that need no database, such as health checks, start quickly."""
    code = "import sys; from store_service import cli, config; config.load(); print(*sys.modules)"
    for url in ("sqlite:///store.db", "postgresql://user@host/store"):
        exit_code, loaded, _ = run_as_new_process(
            sys.executable, "-c", code, folder=tmp_path, DATABASE_URL=url
        )
        assert exit_code == 0
        assert "store_service.config" in loaded.split()
        assert "sqlalchemy" not in loaded.split()


def test_command_imports_rich_only_to_print_with_it(tmp_path: Path) -> None:
    """structlog would import it in every process."""
    code = (
        "import sys; import store_service.__main__; from store_service import lifecycle; print(*sys.modules)"
    )
    exit_code, loaded, _ = run_as_new_process(sys.executable, "-c", code, folder=tmp_path)

    assert exit_code == 0
    assert {"structlog", "sqlalchemy", "grpc"} <= set(loaded.split())
    assert "rich" not in loaded.split()


def test_every_command_imports_what_it_needs(tmp_path: Path) -> None:
    """Commands of other tests start with everything imported."""
    metrics = f"127.0.0.1:{free_port()}"
    with serve_with_stderr(tmp_path, stderr=subprocess.DEVNULL, STORE_METRICS_LISTEN=metrics) as address:
        while_it_serves = [
            ["health", address],
            ["status", metrics, "--once", "--every", "0.1"],
            ["reindex", "--address", address],
        ]
        done = [run_as_new_process(INSTALLED, *it, folder=tmp_path) for it in while_it_serves]
    afterwards = [
        ["migrate"],
        ["keys", "new", "billing", "--permissions", "read"],
        ["check"],
        ["keys", "list"],
        ["keys", "remove", "billing", "--all"],
        ["backup", "copy.db"],
        ["restore", "copy.db"],
        ["erase", "ann", "--mode", "delete", "--yes"],
        ["copy", "sqlite:///store.db", "sqlite:///other.db", "--undo"],
    ]
    settings = {"STORE_API_KEYS_FILE": "keys", "STORE_LISTEN": "127.0.0.1:0", "STORE_LOG_LEVEL": "error"}
    done += [run_as_new_process(INSTALLED, *it, folder=tmp_path, **settings) for it in afterwards]

    assert [(code, stderr) for code, _, stderr in done] == [(0, "")] * len(done)
    assert {"serve", *(it[0] for it in while_it_serves + afterwards)} == set(cli.main.commands)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(["sever"], "sever"), (["serve", "--listne", "a:1"], "--listne"), (["migrate", "now"], "now")],
)
def test_unknown_command_exits_with_2(arguments: list[str], problem: str) -> None:
    """The line names the unknown word."""
    done = in_this_process(*arguments)

    assert_bad_call(done, problem)


@pytest.mark.parametrize(
    ("arguments", "problem", "command"),
    [
        (["backup"], "Missing argument 'FILE'", "store-service backup"),
        (["restore", "a", "b"], "unexpected extra argument", "store-service restore"),
        (["keys", "remove"], "Missing argument 'NAME_OR_HASH'", "store-service keys remove"),
        (["status", "somewhere"], "ADDRESS must be HOST:PORT", "store-service status"),
        (["health", "somewhere"], "ADDRESS must be HOST:PORT", "store-service health"),
        (["keys", "new", "a"], "Missing option '--permissions'", "store-service keys new"),
        (["status", "--once", "--every", "0"], "--every", "store-service status"),
        (["health", "--tls-cert", "pyproject.toml"], "must be given together", "store-service health"),
    ],
)
def test_usage_error_names_the_help_option(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str, command: str
) -> None:
    """In one line, without the usage text."""
    monkeypatch.chdir(ROOT)
    done = in_this_process(*arguments)

    assert_bad_call(done, problem)
    assert done.stderr.endswith(f" (see '{command} --help')\n")


def assert_bad_call(done: Result, problem: str) -> None:
    """It ended with exit code 2 and one line that says what was wrong."""
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("store-service: ")
    assert problem in line


def test_interrupted_command_prints_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Exit code 1."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    # The package has the command under this name, not the module.
    module = importlib.import_module("store_service.cli.serve")
    monkeypatch.setattr(module, "settings_or_exit", interrupted)
    done = in_this_process("check")

    # What the terminal shows of Ctrl-C stays on a line of its own.
    assert (done.exit_code, done.stderr) == (1, "\nstore-service: interrupted\n")


# Settings

BAD_VALUES: dict[str, list[str]] = {
    "DATABASE_URL": [
        "mysql://me:secret@host/store",
        "postgresql://me:secret@host/store?sslmode=perhaps",
        "postgresql://me:secret@host/store?pool_size=3",
        "postgresql://me:secret@host",
        "",
        "nonsense",
        "postgres://me:secret@host/store",
        "postgresql://me:my@secret@host/store",
        "postgresql://me:secret@host:port/store",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file.db?mode=memory",
        "sqlite:///store.db?timeout=1",
        "sqlite+aiosqlite:///store.db",
    ],
    "DB_FORCE_ROLL_BACK": ["perhaps"],
    "STORE_LISTEN": [
        "50051",
        ":50051",
        "127.0.0.1:",
        "127.0.0.1:port",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "unix:",
    ],
    "STORE_ALLOW_INSECURE": ["perhaps"],
    "STORE_TLS_CERT": ["missing.pem", "."],
    "STORE_TLS_KEY": ["missing.pem", "-----BEGIN secret KEY-----"],
    "STORE_TLS_CLIENT_CA": ["missing.pem"],
    "STORE_API_KEYS_FILE": ["no folder/secret"],
    "STORE_JWT_PUBLIC_KEYS_FILE": ["missing.pem"],
    "STORE_JWT_SECRET_FILE": ["missing", "secret"],
    "STORE_JWT_AUDIENCE": [" storeapi"],
    "STORE_JWT_ISSUER": ["https://issuer.example "],
    "STORE_JWT_LEEWAY_SECONDS": ["some", "-1", "601"],
    "STORE_JWT_SCOPE_CLAIM": [" scope"],
    "STORE_REFLECTION": ["perhaps"],
    "STORE_AUTO_MIGRATE": ["sometimes"],
    "STORE_SHUTDOWN_GRACE_SECONDS": ["soon", "-1", "3601", "nan", "inf"],
    "STORE_SHUTDOWN_DELAY_SECONDS": ["soon", "-1", "3601"],
    "STORE_READ_ONLY": ["perhaps"],
    "STORE_SEARCH": ["perhaps"],
    "STORE_MAX_CONCURRENT_CALLS": ["many", "0", "100001"],
    "STORE_MAX_CONCURRENT_BYTES": ["many", "1023", "4194303"],
    "STORE_RATE_LIMIT_PER_CALLER": ["many", "-1", "nan"],
    "STORE_MAX_CALL_SECONDS": ["some", "0", "3601"],
    "STORE_MAX_REQUEST_BYTES": ["many", "1023", "67108865"],
    "STORE_MAX_METADATA_BYTES": ["many", "1023", "1048577"],
    "STORE_MAX_BATCH_SIZE": ["many", "0", "1001"],
    "STORE_MAX_PAGE_SIZE": ["many", "0", "1001"],
    "STORE_MAX_REPLY_DEPTH": ["many", "-1", "129"],
    "STORE_MAX_PENDING_RESPONSE_BYTES_PER_CONNECTION": ["many", "-1"],
    "STORE_MAX_CONNECTIONS_PER_ADDRESS": ["many", "0"],
    "STORE_MAX_PENDING_RESPONSE_BYTES": ["much", "4194303"],
    "STORE_MAX_CONNECTIONS": ["many", "0", "1000001"],
    "STORE_MAX_STREAMS_PER_CONNECTION": ["many", "0", "1000001"],
    "STORE_MAX_CONNECTION_SECONDS": ["some", "0", "2000001"],
    "STORE_MAX_CONNECTION_GRACE_SECONDS": ["some", "0", "2000001"],
    "STORE_MAX_IDLE_SECONDS": ["some", "0", "2000001"],
    "STORE_HANDSHAKE_TIMEOUT_SECONDS": ["some", "0", "3601"],
    "STORE_MAX_BODY_BYTES": ["many", "0", "-5", "1048577", "1.5"],
    "STORE_READ_CONNECTIONS": ["two", "0", "17"],
    "STORE_WORKERS": ["many", "0", "257"],
    "STORE_LOCK_TIMEOUT_SECONDS": ["0", "61"],
    "STORE_STATEMENT_TIMEOUT_SECONDS": ["0", "never"],
    "STORE_CONNECT_TIMEOUT_SECONDS": ["0", "61"],
    "STORE_MAX_REPLICA_LAG_SECONDS": ["some", "0", "86401"],
    "STORE_STATEMENT_CACHE_SIZE": ["many", "-2", "10001"],
    "STORE_TRUSTED_PROXIES": ["proxy", "10.0.0.0/33", "10.0.0.1/8"],
    # Another scheme, and the replicas of SQLite.
    "DATABASE_READ_URL": [
        "sqlite:///replica.db",
        "postgresql://a,postgresql://b",
        "postgresql://replica/store",
    ],
    "DATABASE_DIRECT_URL": ["sqlite:///store.db", "postgresql://database/store"],
    "STORE_REQUEST_ID_RETENTION_HOURS": ["a day", "0", "-1", "8761", "nan"],
    "STORE_CHANGE_RETENTION_HOURS": ["a week", "0", "-1", "87601", "inf"],
    "STORE_MAX_CHANGE_ROWS": ["many", "0", "-1", "1.5"],
    "STORE_UNDELETE_HOURS": ["a day", "-1", "87601", "nan"],
    "STORE_REVISIONS": ["many", "-1", "101", "1.5"],
    "STORE_MAX_WATCHES": ["many", "-1", "10001"],
    "STORE_KEEPALIVE_SECONDS": ["often", "0", "0.5", "3601"],
    "STORE_KEEPALIVE_TIMEOUT_SECONDS": ["soon", "0", "3601"],
    "STORE_METRICS_LISTEN": ["9464", ":9464", "127.0.0.1:", "127.0.0.1:65536"],
    "STORE_TRACING": ["perhaps"],
    "STORE_CHANNELZ": ["perhaps"],
    "STORE_LOG_LEVEL": ["loud", "INFO!"],
    "STORE_LOG_FORMAT": ["xml"],
}
"""For every variable, values that are not allowed."""


def assert_bad_setting(exit_code: int, stdout: str, stderr: str, *variables: str) -> None:
    """It ended with exit code 2 and one line that names the variables, and repeats no value."""
    assert (exit_code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("store-service: ")
    for variable in variables:
        assert f"{variable}: " in line
    assert "secret" not in line
    assert not re.search(r"Input should|Errno|Value error", line)


def test_every_setting_is_in_the_table_of_invalid_values() -> None:
    """A new setting gets its bad values here."""
    assert set(BAD_VALUES) == {settings.environment_variable(name) for name in settings.Config.model_fields}


@pytest.mark.parametrize(
    ("variable", "value"), [(variable, value) for variable, values in BAD_VALUES.items() for value in values]
)
def test_invalid_setting_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str
) -> None:
    """Nothing is created, and the value, which may be a password, is not printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, value)
    done = in_this_process("serve")

    assert_bad_setting(done.exit_code, done.stdout, done.stderr, variable)
    assert list(tmp_path.iterdir()) == []


def test_all_invalid_settings_are_named_at_once(tmp_path: Path) -> None:
    """So that one try is enough to mend them."""
    bad = {variable: values[0] for variable, values in BAD_VALUES.items()}
    done = run_command("check", folder=tmp_path, settings=bad)

    assert_bad_setting(done.returncode, done.stdout, done.stderr, *bad)


NEEDED = {
    "keys": ["list"],
    "backup": ["to.db"],
    "restore": ["from.db"],
    "erase": ["ann", "--mode", "delete"],
    "copy": ["sqlite:///a.db", "sqlite:///b.db"],
}
"""What a command must be told."""


@pytest.mark.parametrize("command", cli.main.commands)
def test_every_command_validates_all_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    """Including settings that the command does not use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STORE_READ_CONNECTIONS", "0")
    done = in_this_process(command, *NEEDED.get(command, []))

    assert_bad_setting(done.exit_code, done.stdout, done.stderr, "STORE_READ_CONNECTIONS")
    assert list(tmp_path.iterdir()) == []


def test_invalid_listen_option_is_an_invalid_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is the same setting, given in another way."""
    monkeypatch.chdir(tmp_path)
    done = in_this_process("serve", "--listen", "nowhere")

    assert_bad_setting(done.exit_code, done.stdout, done.stderr, "STORE_LISTEN")


def test_invalid_settings_are_described_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not in those of pydantic."""
    bad = {
        "STORE_WORKERS": ("x", "must be a whole number"),
        "STORE_READ_CONNECTIONS": ("17", "must be at most 16"),
        "STORE_MAX_CONNECTIONS": ("2000000", "must be at most 1,000,000"),
        "STORE_LOCK_TIMEOUT_SECONDS": ("0", "must be more than 0"),
        "STORE_SHUTDOWN_GRACE_SECONDS": ("-1", "must be at least 0"),
        "STORE_STATEMENT_TIMEOUT_SECONDS": ("never", "must be a number"),
        "STORE_CHANGE_RETENTION_HOURS": ("inf", "must be at most 87,600"),
        "STORE_CHANNELZ": ("perhaps", "must be true or false"),
        "STORE_LOG_LEVEL": ("loud", "must be debug, info, warning or error"),
    }
    monkeypatch.chdir(tmp_path)
    for variable, (value, _) in bad.items():
        monkeypatch.setenv(variable, value)
    done = in_this_process("serve")

    assert sorted(done.stderr.removeprefix("store-service: ").strip().split("; ")) == sorted(
        f"{variable}: {words}" for variable, (_, words) in bad.items()
    )


def test_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    """As in env files of Docker and systemd; but not for the database, which would be another one."""
    done = run_command(
        "migrate", folder=tmp_path, settings=dict.fromkeys(BAD_VALUES.keys() - {"DATABASE_URL"}, "")
    )

    assert done.returncode == 0
    assert (tmp_path / "store.db").exists()


def test_unknown_variable_is_warned_about(tmp_path: Path) -> None:
    """It is probably misspelt."""
    settings = {"STORE_LISTEM": "0.0.0.0:1", "STORE_BOGUS": "", "STOREHOUSE": "full"}
    done = run_command("migrate", folder=tmp_path, settings={**settings, "STORE_LOG_LEVEL": "warning"})

    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "store-service: STORE_BOGUS is not a setting and is ignored",
        "store-service: STORE_LISTEM is not a setting and is ignored",
    ]


def test_unknown_variable_in_the_env_file_is_warned_about(tmp_path: Path) -> None:
    """The warning names the file."""
    (tmp_path / ".env").write_text("STORE_LISTEM=0.0.0.0:1\nSTORE_LOG_LEVEL=warning\nOTHER=1\n")
    done = run_command("migrate", folder=tmp_path, settings={"STORE_BOGUS": "1"})

    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "store-service: STORE_BOGUS is not a setting and is ignored",
        "store-service: .env: STORE_LISTEM is not a setting and is ignored",
    ]


@pytest.mark.parametrize(
    "content", [b"STORE_READ_CONNECTIONS=1\nSTORE_READERS 2 secret\n", b"\nSTORE_LISTEN=\xff secret"]
)
def test_unreadable_env_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    """The server does not start with defaults instead."""
    (tmp_path / ".env").write_bytes(content)
    done = run_command("migrate", folder=tmp_path)

    assert_bad_setting(done.returncode, done.stdout, done.stderr, ".env")
    assert ".env: line 2 is not " in done.stderr
    assert [it.name for it in tmp_path.iterdir()] == [".env"]


def test_settings_are_read_from_the_env_file(tmp_path: Path) -> None:
    """.env in the working directory, for variables that the environment does not set."""
    (tmp_path / ".env").write_text('DATABASE_URL="sqlite:///from-file.db"\nSTORE_LOG_LEVEL=warning\n')
    done = run_command("migrate", folder=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "from-file.db").exists()


def test_invalid_setting_in_the_env_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wherever it comes from."""
    (tmp_path / ".env").write_text("STORE_READ_CONNECTIONS=0\n")
    monkeypatch.chdir(tmp_path)
    done = in_this_process("migrate")

    assert_bad_setting(done.exit_code, done.stdout, done.stderr, "STORE_READ_CONNECTIONS")


def test_environment_overrides_the_env_file(tmp_path: Path) -> None:
    """Also if the value in the file is invalid."""
    (tmp_path / ".env").write_text('DATABASE_URL="sqlite:///from-file.db"\nSTORE_READERS=0\n')
    both = {"STORE_READ_CONNECTIONS": "1", "DATABASE_URL": "sqlite:///from-environment.db"}
    done = run_command("migrate", folder=tmp_path, settings=both)

    assert done.returncode == 0
    assert sorted(it.name for it in tmp_path.glob("*.db")) == ["from-environment.db"]


async def test_listen_option_overrides_the_environment(tmp_path: Path) -> None:
    """Also if the variable is invalid."""
    with serve_with_stderr(tmp_path, stderr=subprocess.DEVNULL, STORE_LISTEN="nonsense") as address:
        async with grpc.aio.insecure_channel(address) as channel:
            assert (await Stubs(channel).create_post()).id == 1


# Databases in every condition


def empty_file(path: Path) -> None:
    path.touch()


def current(path: Path) -> None:
    schema.upgrade(f"sqlite:///{path}")


def newer(path: Path) -> None:
    current(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT)")


def no_database(path: Path) -> None:
    path.write_text("no database at all\n" * 100)


def old(path: Path) -> None:
    legacy_database.create_file(path)


def interrupted(path: Path) -> None:
    """A database with the hot journal of a killed program."""
    current(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA cache_size = 1")
        # More than is kept in memory, so that some of it is in the file already.
        connection.execute("CREATE TABLE x AS SELECT hex(zeroblob(1000000))")
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("CREATE TABLE y AS SELECT hex(zeroblob(1000000))")
        left = contents(path.parent)
    for name, content in left.items():
        (path.parent / name).write_bytes(content)


def nothing(path: Path) -> None:
    assert not path.exists()


Make = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder with store.db in the condition that the test asks for."""
    make: Make = request.param
    make(tmp_path / "store.db")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, with its bytes."""
    return {it.name: it.read_bytes() for it in folder.iterdir()}


@pytest.mark.parametrize("folder", [current], indirect=True)
@pytest.mark.parametrize("arguments", [["migrate"], ["backup", "copy.db"], ["keys", "list"]], ids=" ".join)
def test_commands_that_need_no_server_do_not_import_grpc(folder: Path, arguments: list[str]) -> None:
    """Scripts call them often, and imports dominate their run time."""
    (folder / "keys").touch(mode=0o600)
    done = run_command(
        *arguments,
        folder=folder,
        settings={"PYTHONPROFILEIMPORTTIME": "1", "STORE_API_KEYS_FILE": "keys"},
    )
    loaded = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))

    assert done.returncode == 0
    assert "store_service.cli" in loaded
    assert not {"store_service.server", "grpc", "alembic"} & loaded


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `store-service check` with an unused address."""
    return run_command("check", folder=folder, settings={"STORE_LISTEN": "127.0.0.1:0"})


@pytest.mark.parametrize(
    ("folder", "problem"),
    [
        (nothing, "the database store.db does not exist; `store-service migrate` creates it"),
        (empty_file, "the database store.db is empty; `store-service migrate` creates its tables"),
        (old, f"the database has schema 0001, this program needs {schema.HEAD}; run `store-service migrate`"),
        (
            newer,
            f"the database has schema 9999, this program needs {schema.HEAD}; this program does not know it: "
            "a newer store-service made it, or another application",
        ),
        (
            foreign,
            "the database was not made by storeapi: table posts has the columns id, title, "
            "where body, id were expected",
        ),
        (no_database, "cannot use the database store.db: file is not a database"),
        (
            interrupted,
            "a write to the database store.db was interrupted; run `store-service migrate` to undo it",
        ),
    ],
    indirect=["folder"],
)
def test_check_reports_problems_and_changes_nothing(folder: Path, problem: str) -> None:
    """Exit code 1 and one line; every byte and file is unchanged."""
    before = contents(folder)
    done = checked(folder)

    told = [line for line in done.stdout.splitlines() if not line.startswith("upgrade: ")]
    assert (done.returncode, told) == (1, ["settings: fine", "address: fine"])
    assert done.stderr == f"store-service: {problem}\n"
    assert contents(folder) == before


def in_wal_mode(path: Path) -> None:
    """As a server leaves a database that was stopped: no log, but the file says that there may be one."""
    current(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


@pytest.mark.parametrize("folder", [current, in_wal_mode], indirect=True)
def test_check_reports_success_and_changes_nothing(folder: Path) -> None:
    """Exit code 0 and one line per check."""
    before = contents(folder)
    done = checked(folder)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"settings: fine\naddress: fine\ndatabase: fine\nschema: {schema.HEAD}, fine\n"
        "search index: empty; the service builds it after its start\n"
    )
    assert contents(folder) == before


def with_a_log(path: Path) -> None:
    """As a server leaves a database that was killed: what was written last is in the log only."""
    in_wal_mode(path)
    with closing(sqlite3.connect(path)) as connection:
        with connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        left = contents(path.parent)
    for name, content in left.items():
        (path.parent / name).write_bytes(content)


def with_a_log_alone(path: Path) -> None:
    """The same, without the shared-memory file, which SQLite creates from the log."""
    with_a_log(path)
    Path(f"{path}-shm").unlink()


@pytest.mark.parametrize("folder", [with_a_log, with_a_log_alone], indirect=True)
def test_check_reads_the_log_of_a_killed_server_without_changing_it(folder: Path) -> None:
    """A checkpoint would need the lock, which a server may take at any time."""
    before = contents(folder)
    done = checked(folder)

    assert done.returncode == 1
    assert "the database has schema 9999" in done.stderr
    after = contents(folder)
    assert before["store.db-wal"]
    for name in ("store.db", "store.db-wal"):
        assert after[name] == before[name]


def test_check_creates_no_directory(tmp_path: Path) -> None:
    """Not even a folder."""
    done = run_command("check", folder=tmp_path, settings={"DATABASE_URL": "sqlite:///not/there/store.db"})

    assert done.returncode == 1
    assert "not/there/store.db" in done.stderr
    assert list(tmp_path.iterdir()) == []


async def test_check_works_while_the_server_runs(server_process: ServerProcess) -> None:
    """Looking is not using: the server does not notice."""
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        await Stubs(channel).create_post()
        settings = {"STORE_LISTEN": server_process.address}
        done = run_command("check", folder=server_process.folder, settings=settings)

        assert (done.returncode, done.stderr) == (0, "")
        assert "address: in use\ndatabase: in use\n" in done.stdout
        assert (await Stubs(channel).create_post()).id == 2
    assert server_process.stop() == 0


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        (nothing, f"schema {schema.HEAD} (was none)"),
        (empty_file, f"schema {schema.HEAD} (was none)"),
        (old, f"schema {schema.HEAD} (was 0001)"),
        (current, f"schema {schema.HEAD} is up to date"),
        (interrupted, f"schema {schema.HEAD} is up to date"),
    ],
    indirect=["folder"],
)
def test_migrate_upgrades_the_schema_and_prints_the_old_revision(folder: Path, line: str) -> None:
    """Exit code 0 and one line on stdout."""
    done = run_command("migrate", folder=folder)

    assert (done.returncode, done.stdout) == (0, f"{line}\n")
    assert "Traceback" not in done.stderr
    schema.check(f"sqlite:///{folder / 'store.db'}")
    if line.endswith("(was 0001)"):
        kept = query(folder / "store.db", "SELECT id, body FROM posts ORDER BY id")
        assert kept == [(id, body or "") for id, body in legacy_database.POSTS]


@pytest.mark.parametrize("folder", [newer, foreign, no_database], indirect=True)
def test_migrate_refuses_an_unknown_schema(folder: Path) -> None:
    """Exit code 1, one line, and an unchanged file."""
    before = (folder / "store.db").read_bytes()
    done = run_command("migrate", folder=folder)

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("store-service: ")
    assert (folder / "store.db").read_bytes() == before


async def test_server_upgrades_a_legacy_database_and_serves_it(
    server_process: ServerProcess,
) -> None:
    """Start the new program on the old file: that is the whole move."""
    legacy_database.create_file(server_process.folder / "store.db")
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        new = await Stubs(channel).create_post("new")
    assert server_process.stop() == 0

    assert new.id == 91
    assert query(server_process.folder / "store.db", "SELECT id, body FROM posts ORDER BY id") == [
        *((id, body or "") for id, body in legacy_database.POSTS),
        (new.id, "new"),
    ]


async def test_server_without_auto_migrate_needs_migrate(
    server_process: ServerProcess,
) -> None:
    """With STORE_AUTO_MIGRATE=false the operator runs `store-service migrate`."""
    legacy_database.create_file(server_process.folder / "store.db")
    server_process.settings["STORE_AUTO_MIGRATE"] = "false"
    run_command("migrate", folder=server_process.folder)
    server_process.start()
    assert server_process.stop() == 0
