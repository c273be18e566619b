"""What the tests themselves keep to, so that they say the same on every machine."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.polling import wait_until
from tests.support.repository import ROOT
from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout

WAITS = {
    "asyncio.timeout": 0,
    "asyncio.to_thread": 1,
    "asyncio.wait_for": 1,
    "subprocess.run": None,
    "communicate": None,
    "create_connection": 1,
    "exception": 0,
    "join": 0,
    "result": 0,
    "settimeout": 0,
    "wait": 0,
    "wait_for": 1,
}
"""Calls that wait, and the position of their limit where it can be positional."""
SHORTEST_SECONDS = 5
"""A shorter limit is one that a test wants to see passed."""

LEAVES_PROCESSES = """
import os
from pathlib import Path
import tests.conftest
from tests.support import processes
from tests.support.polling import wait_until
from tests.support.server_process import ServerProcess

def test_that_hangs(tmp_path):
    server = ServerProcess(tmp_path).start()
    folder = processes.MEMORY / f"{processes.folder_prefix()}left"
    folder.mkdir()
    Path("folder").write_text(str(folder))
    Path("pid.part").write_text(str(server.process.pid))
    Path("pid.part").rename("pid")
    server.process.wait()

def test_that_leaves_it():
    os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "1000")
    # The mark is in its environment only after exec.
    wait_until(processes.running_module_processes)
    # The process never ends, so the wait for its end would take a minute.
    tests.conftest.wait_until = lambda condition: None
"""


def literal_limits(source: str) -> list[str]:
    """Limits that are numbers in the calls that wait, which no load makes longer."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        name = name if name in WAITS else name.rpartition(".")[2]
        if name not in WAITS:
            continue
        position = WAITS[name]
        limits = [it.value for it in call.keywords if it.arg == "timeout"]
        limits += call.args[position : position + 1] if position is not None else []
        found += [
            f"line {call.lineno}: {ast.unparse(call)}"
            for it in limits
            if isinstance(it, ast.Constant)
            and isinstance(it.value, int | float)
            and it.value >= SHORTEST_SECONDS
        ]
    return found


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/**/*.py")), ids=lambda it: str(it.relative_to(ROOT)))
def test_timeouts_scale_with_the_load(path: Path) -> None:
    """Each wait for an expected event has a timeout of `scaled_timeout`."""
    assert literal_limits(path.read_text()) == []


@pytest.mark.parametrize(
    "call",
    [
        "asyncio.timeout(20)",
        "process.wait(30)",
        "subprocess.run([], timeout=60)",
        "asyncio.wait_for(it, 10.0)",
    ],
)
def test_literal_timeout_is_found(call: str) -> None:
    """A fixed number of seconds is wrong on other machines."""
    assert literal_limits(call) == [f"line 1: {call}"]
    assert (
        literal_limits("asyncio.timeout(scaled_timeout(20))\nprocess.wait(0.1)\nposts.get(1, timeout=20)")
        == []
    )


def test_timeout_is_longer_on_a_loaded_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of processes per core."""
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6 * os.cpu_count(), 0, 0))

    assert scaled_timeout(2) == 2e6


def run_pytest(folder: Path, name: str) -> "subprocess.Popen[bytes]":
    """Runs one of the tests above in its own session."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(ROOT), "-p", "tests.conftest", f"test_it.py::{name}"]
    (folder / "test_it.py").write_text(LEAVES_PROCESSES)
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )


def test_servers_end_when_pytest_is_killed(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, "test_that_hangs")
    wait_until(lambda: (tmp_path / "pid").exists() or run.poll() is not None)
    pid = int((tmp_path / "pid").read_text())
    folder = Path((tmp_path / "folder").read_text())
    os.kill(pid, 0)
    assert folder.exists()

    run.kill()
    run.communicate()

    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    # A cluster of PostgreSQL would keep its memory.
    wait_until(lambda: not folder.exists())


def test_server_that_does_not_start_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fixture never receives it, so the fixture cannot stop it."""
    limits = iter([0.01, scaled_timeout()])
    monkeypatch.setattr("tests.support.server_process.scaled_timeout", lambda *_: next(limits))
    server = ServerProcess(tmp_path)
    with pytest.raises(AssertionError):
        server.start()

    assert server.process is not None
    assert server.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("turn", ["first", "second"])
def test_environment_variable_of_a_test_does_not_stay(turn: str) -> None:
    """With another environment, the fork server would start new interpreters for all later tests."""
    assert os.environ.pop("SET_BY_A_TEST", "") == ""
    os.environ["SET_BY_A_TEST"] = turn


def test_module_that_leaves_a_process_fails(tmp_path: Path) -> None:
    """The error names the process, which is killed."""
    run = run_pytest(tmp_path, "test_that_leaves_it")
    output = run.communicate()[0].decode()

    assert run.returncode == 1
    assert "1 passed, 1 error" in output
    assert "sleep 1000" in output
