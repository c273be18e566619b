"""What docs/operations.md tells to do works, and names what exists."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from store_service import cli
from tests.patience import patience
from tests.postgres import new_database
from tests.project.conftest import ROOT
from tests.store import old_application
from tests.store.old_application import query
from tests.support import run_command

PAGE = (ROOT / "docs/operations.md").read_text()
needs_clients = pytest.mark.skipif(
    not (shutil.which("sqlite3") and shutil.which("psql")), reason="sqlite3 and psql are not installed"
)


def test_the_page_names_commands_that_exist() -> None:
    """And every command that keeps data has its place there."""
    code = re.findall(r"```sh\n.*?```|`[^`]+`", PAGE, re.DOTALL)
    named = {name for it in code for name in re.findall(r"store-service (\w+)", it)}

    assert named <= set(cli.main.commands)
    assert {"backup", "restore", "health", "migrate", "check"} <= named


def test_commands_run_as_the_unit_does() -> None:
    """As its user, in its folder, with its file of settings and its database: the program that it runs."""
    unit = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", (ROOT / "deploy/store-service.service").read_text(), re.M):
        unit.setdefault(name, value)  # of Environment the first, which is DATABASE_URL
    (script,) = re.findall(r"<!-- as the unit -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    words = shlex.split(script)

    program = unit["ExecStart"].split()[0]
    assert words[0] == "systemd-run"
    assert words[-2:] == [program, "check"]
    assert f"--uid={unit['User']}" in words
    assert unit["Environment"].startswith("DATABASE_URL=")
    assert f"--setenv={unit['Environment']}" in words
    for name in ("EnvironmentFile", "WorkingDirectory", "UMask"):
        assert f"--property={name}={unit[name]}" in words


def move(folder: Path, target: str) -> subprocess.CompletedProcess[str]:
    """Runs the lines that copy the rows of store.db to PostgreSQL."""
    (script,) = re.findall(r"<!-- move -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    # The command of this environment, whichever one is installed elsewhere.
    (folder / "store-service").write_text('#!/bin/sh\nexec "$PYTHON" -m store_service "$@"\n')
    (folder / "store-service").chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("STORE_")},
        "TARGET": target,
        "PYTHON": sys.executable,
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    return subprocess.run(
        ["sh", "-euc", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
    )


@needs_clients
def test_the_move_stops_at_a_body_that_postgresql_cannot_hold(postgres: str, tmp_path: Path) -> None:
    """A NUL, which would otherwise be the end of the body there; nothing is moved of that table."""
    old_application.make(tmp_path / "store.db", post_rows=[(1, "fine"), (20, "a \0 inside")], comment_rows=[])
    assert run_command("migrate", folder=tmp_path).returncode == 0
    with new_database(postgres) as target:
        assert run_command("migrate", folder=tmp_path, settings={"DATABASE_URL": target}).returncode == 0
        done = move(tmp_path, target)
        with psycopg.connect(target) as connection:
            assert connection.execute("SELECT count(*) FROM posts").fetchall() == [(0,)]

    assert done.returncode != 0
    assert 'null value in column "body"' in done.stderr
    assert "(20," in done.stderr


@needs_clients
def test_the_move_to_postgresql_keeps_ids_times_and_etags(postgres: str, tmp_path: Path) -> None:
    """The lines of the page, run as they stand; ids go on where they were."""
    posts = [(id, body) for id, body in old_application.POSTS if "\0" not in (body or "")]
    path = tmp_path / "store.db"
    old_application.make(path, post_rows=[*posts, (60, 'a "quote", a comma\nand a \\ in a second line')])
    assert run_command("migrate", folder=tmp_path).returncode == 0
    with new_database(postgres) as target:
        assert run_command("migrate", folder=tmp_path, settings={"DATABASE_URL": target}).returncode == 0
        done = move(tmp_path, target)
        assert done.returncode == 0, done.stderr
        with psycopg.connect(target) as connection:
            for table, columns in (("posts", "id, body"), ("comments", "id, body, post_id")):
                rows = f"SELECT {columns}, create_time, update_time, version FROM {table} ORDER BY id"
                moved = connection.execute(rows).fetchall()
                assert moved == query(path, rows)
                assert len(moved) > 3
            new = "INSERT INTO posts (body) VALUES ('new') RETURNING id"
            # Also after ids that only comments of the application before remember.
            assert connection.execute(new).fetchall() == [(91,)]
