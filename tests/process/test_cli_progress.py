"""What commands of `store-service` show on a terminal while they work and wait."""

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import legacy_database
from tests.support.bulk_data import insert_posts
from tests.support.forked_process import start_module
from tests.support.server_process import run_command
from tests.support.timeouts import scaled_timeout


def on_terminal(*arguments: str, folder: Path, code: int = 0, **settings: str) -> tuple[str, str]:
    """Runs `store-service` with stderr on a terminal; returns stdout and what the terminal got."""
    ours, theirs = os.openpty()
    with start_module(
        "store_service",
        *arguments,
        folder=folder,
        environment=os.environ | {"TERM": "xterm", "COLUMNS": "150", **settings},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the end of a terminal whose other side was closed
                break
            shown += piece
        os.close(ours)
        assert process.stdout is not None
        stdout = process.stdout.read()
        assert process.wait(scaled_timeout()) == code, shown
    return stdout, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_backup_and_restore_show_progress(database_file: Path) -> None:
    """Percentage, size, rate and remaining time; without a bar if the end is unknown."""
    folder = database_file.parent
    insert_posts(database_file, 600)
    for arguments in (["backup", "copy.db"], ["restore", "copy.db"]):
        stdout, shown = on_terminal(*arguments, folder=folder)

        copying, _, rest = shown.partition("checking")
        amounts = r"copying [━╸╺]+ +\d+% [\d.]+ MB( [\d.]+ [kMG]?B/s)?"
        assert re.search(amounts + r" \d:\d\d:\d\d ETA \d:\d\d:\d\d", copying)
        assert "━" not in rest
        assert "%" not in rest
        assert "writing to disk" in rest
        assert stdout.count(" posts, ") == 1
        # It is erased at the end.
        assert shown.endswith("\r")


def test_migrate_shows_progress_on_a_terminal(tmp_path: Path) -> None:
    """With the name of the database, the step, and a bar while rows are counted."""
    legacy_database.create_file(tmp_path / "store.db")
    stdout, shown = on_terminal("migrate", folder=tmp_path, STORE_LOG_LEVEL="error")

    assert stdout.startswith("schema ")
    assert re.search(r"migrating store\.db +\d:\d\d:\d\d", shown)
    assert re.search(r"checking bodies of posts ━+ +\d+% ", shown)
    assert re.search(r"creating the index of comments +\d:\d\d:\d\d", shown)


def test_progress_is_not_written_to_a_pipe(database_file: Path) -> None:
    """stderr in a pipe is for errors."""
    for arguments in (["backup", "copy.db"], ["restore", "copy.db"], ["migrate"]):
        done = run_command(*arguments, folder=database_file.parent)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_terminal_shows_what_a_command_waits_for(tmp_path: Path, silent: str) -> None:
    """After a second without a response."""
    for arguments in (["health", silent], ["status", silent]):
        _, shown = on_terminal(*arguments, folder=tmp_path, code=1)
        assert f"waiting for {silent} (no response yet)" in shown
        assert "waiting" not in run_command(*arguments, folder=tmp_path).stderr
    url = f"postgresql://me:secret@{silent}/store"
    _, shown = on_terminal("check", folder=tmp_path, code=1, DATABASE_URL=url)
    assert f"waiting for the database postgresql://me:***@{silent}/store" in shown
