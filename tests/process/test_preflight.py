"""`store-service check` finds what would keep `serve` from working, and neither changes anything then."""

import asyncio
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from store_service.database import connect, schema
from store_service.errors import SchemaMismatch
from tests.support import legacy_database
from tests.support.postgresql import new_database
from tests.support.server_process import run_command, run_without_privileges


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and when it was written, and the folder's own time."""
    files = {it.name: (it.read_bytes(), it.stat().st_mtime_ns) for it in folder.iterdir() if it.is_file()}
    return files | {".": (b"", folder.stat().st_mtime_ns)}


def read_only_file(folder: Path) -> None:
    (folder / "store.db").chmod(0o444)


def read_only_folder(folder: Path) -> None:
    folder.chmod(0o555)


def log_of_another_user(folder: Path) -> None:
    """As a command leaves it that was run as root once."""
    with closing(sqlite3.connect(folder / "store.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    (folder / "store.db-wal").touch()
    (folder / "store.db-wal").chmod(0o444)


def lock_of_another_user(folder: Path) -> None:
    (folder / "store.db.lock").touch()
    (folder / "store.db.lock").chmod(0o444)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (read_only_file, "cannot write store.db: Permission denied"),
        (read_only_folder, "cannot create files in the folder of the database store.db: Permission denied"),
        (log_of_another_user, "cannot write store.db-wal: Permission denied"),
        (lock_of_another_user, "cannot write store.db.lock: Permission denied"),
    ],
)
def test_check_and_serve_refuse_the_same_databases(
    database_file: Path, harm: Callable[[Path], None], problem: str
) -> None:
    """With the same line, and without changing a file."""
    folder = database_file.parent
    harm(folder)
    before = state(folder)
    for command in (["check"], ["serve", "--listen", "127.0.0.1:0"]):
        done = run_without_privileges(*command, folder=folder, STORE_LISTEN="127.0.0.1:0")
        assert done.returncode == 1
        assert done.stderr == f"store-service: {problem}\n"
    assert state(folder) == before
    folder.chmod(0o755)


def test_check_reports_a_log_that_cannot_grow(database_file: Path) -> None:
    """A file size limit stands for a full disk or a quota."""
    folder = database_file.parent
    before = state(folder)
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -f 1024; exec "$0" -m store_service check', sys.executable],
        cwd=folder,
        env=os.environ | {"STORE_LISTEN": "127.0.0.1:0"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert (
        done.stderr
        == "store-service: cannot create files in the folder of the database store.db: File too large\n"
    )
    assert state(folder) == before


def test_server_starts_on_a_full_disk(database_file: Path) -> None:
    """Reads continue, so a restart must not end them. A file size limit stands for the disk."""
    folder = database_file.parent
    serve = subprocess.Popen(
        ["/bin/sh", "-c", 'ulimit -f 512; exec "$0" -m store_service serve', sys.executable],
        cwd=folder,
        env=os.environ | {"STORE_LISTEN": "127.0.0.1:0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert serve.stdout is not None
        assert serve.stdout.readline().startswith("store-service is serving on ")
    finally:
        serve.kill()
        serve.communicate()


def test_check_reports_an_address_in_use(database_file: Path) -> None:
    """If no service is running, another program uses it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_command("check", folder=database_file.parent, settings={"STORE_LISTEN": address})

    assert (done.returncode, done.stdout) == (1, "settings: fine\n")
    assert done.stderr == f"store-service: cannot listen on {address}: the port is in use\n"


def test_check_does_not_hold_the_lock(database_file: Path) -> None:
    """A server that starts meanwhile waits for a moment."""
    url = f"sqlite:///{database_file}"
    assert connect.is_in_use(url) is False
    with connect.sole_use(url):
        # Of another process; this one may lock it twice.
        settings = {"STORE_LISTEN": "127.0.0.1:0"}
        done = run_command("check", folder=database_file.parent, settings=settings)

        assert done.returncode == 0
        assert "database: in use\n" in done.stdout
    assert connect.is_in_use(url) is False


@asynccontextmanager
async def pooler(port: int) -> AsyncIterator[int]:
    """A pooler that refuses startup parameters as PgBouncer does, and passes everything else on; its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = await reader.readexactly(4)
        message = await reader.readexactly(int.from_bytes(length, "big") - 4)
        if b"application_name" in message:
            text = b"SFATAL\0C08P01\0Munsupported startup parameter: application_name\0\0"
            writer.write(b"E" + (len(text) + 4).to_bytes(4, "big") + text)
            writer.close()
            return
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        server_writer.write(length + message)
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer), return_exceptions=True)

    def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(serve(reader, writer)))

    listener = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_refused_connection_is_found_before_the_upgrade(
    postgres: str, tmp_path: Path, command: str, workers: str
) -> None:
    """An upgrade needs fewer rights than the service and would succeed."""
    with new_database(postgres) as url:
        legacy_database.fill(url)
        direct = make_url(url)
        assert direct.port is not None
        async with pooler(direct.port) as port:
            through = direct.set(port=port).render_as_string(hide_password=False)
            settings = {"DATABASE_URL": through, "STORE_LISTEN": "127.0.0.1:0", "STORE_WORKERS": workers}
            done = await asyncio.to_thread(run_command, command, folder=tmp_path, settings=settings)

        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "unsupported startup parameter: application_name" in line
        with pytest.raises(SchemaMismatch, match="has schema 0001"):
            schema.check(url)
