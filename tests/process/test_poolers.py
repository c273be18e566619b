"""PgBouncer between the service and PostgreSQL: session mode works, the others are refused by name."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.engine import make_url

from store_service.database import connect
from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection
from store_service.database.statements import Statement
from store_service.model import PostDraft
from store_service.service.posts import Posts
from tests.support.polling import wait_until
from tests.support.ports import free_port, listens
from tests.support.postgresql import clear_database
from tests.support.proxies import binary
from tests.support.server_process import run_command

CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
server_round_robin = {round_robin}
"""


@pytest.fixture
def database_url(postgres_database: str) -> str:
    """PostgreSQL alone."""
    clear_database(postgres_database)
    return postgres_database


@contextmanager
def pgbouncer(database_url: str, mode: str, round_robin: int = 0) -> Iterator[str]:
    """The URL of the same database through PgBouncer."""
    # Not in pytest's folder: only root can look there.
    with (
        tempfile.TemporaryDirectory() as folder,
        _pgbouncer(database_url, Path(folder), mode, round_robin) as url,
    ):
        yield url


@contextmanager
def _pgbouncer(database_url: str, folder: Path, mode: str, round_robin: int) -> Iterator[str]:
    program = binary("pgbouncer")
    url = make_url(database_url)
    port = free_port()
    (folder / "users").write_text(f'"{url.username}" "{url.password or ""}"\n')
    configuration = CONFIGURATION.format(
        host=url.host, port=url.port, listen_port=port, folder=folder, mode=mode, round_robin=round_robin
    )
    (folder / "pgbouncer.ini").write_text(configuration)
    command = [program, "pgbouncer.ini"]
    if os.geteuid() == 0:
        # It refuses to run as root.
        command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]
        shutil.chown(folder, "nobody", "nogroup")
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(port))
        yield url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize("round_robin", [0, 1])
def test_pgbouncer_transaction_mode_is_refused(
    database_url: str, tmp_path: Path, command: str, round_robin: int
) -> None:
    """One line at the start, instead of failing calls later."""
    with pgbouncer(database_url, "transaction", round_robin) as url:
        settings = {"DATABASE_URL": url, "STORE_LISTEN": "127.0.0.1:0"}
        done = run_command(command, folder=tmp_path, settings=settings)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "a pooler in transaction mode" in line


def test_pgbouncer_statement_mode_is_refused(database_url: str, tmp_path: Path) -> None:
    """PgBouncer itself reports why."""
    with pgbouncer(database_url, "statement") as url:
        done = run_command("check", folder=tmp_path, settings={"DATABASE_URL": url})

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "statement pooling" in line


async def test_pgbouncer_session_mode_keeps_the_timeouts(database_url: str, tmp_path: Path) -> None:
    """Without `ignore_startup_parameters`, because timeouts are set in each session."""
    show = Statement(sqlalchemy.text("SHOW statement_timeout"))

    async def run(connection: Connection, asked: Sequence[None]) -> list[Any]:
        ((value,),) = await connection.fetch(show)
        return [value] * len(asked)

    with pgbouncer(database_url, "session") as url:
        async with connect.open_database(url, statement_timeout_seconds=2.5) as store:
            (post,) = await Posts(store).create([PostDraft(body="a")])
            assert await Posts(store).get(post.id) == post
            assert await store.write(BatchOperation(run), None) == "2500ms"
            assert await store.read(BatchOperation(run), None) == "2500ms"
