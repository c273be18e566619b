"""`store-service backup`: whole, of one moment, made while others write, or not there at all."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc
import pytest
from storeapi.v1 import posts_pb2

from store_service.database import backup, copies, schema
from store_service.database.files import COMPANIONS
from tests.support import legacy_database
from tests.support.bulk_data import insert_posts
from tests.support.database import query
from tests.support.forked_process import start_module
from tests.support.polling import wait_until
from tests.support.server_process import ServerProcess, run_command, run_without_privileges
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout


@pytest.fixture
def server_process(database_file: Path) -> Iterator[ServerProcess]:
    """A server as a child process, not started yet, whose database needs no upgrade."""
    process = ServerProcess(database_file.parent)
    yield process
    process.kill()


def quiet(doing: str, done: int, total: int) -> None:
    """Ignores progress."""


def names(folder: Path) -> set[str]:
    """What is in a folder besides the log of a server's process."""
    return {path.name for path in folder.iterdir()} - {"stderr.log"}


def assert_whole(path: Path) -> None:
    """One file, with nothing beside it, in which SQLite finds no fault."""
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert query(path, "PRAGMA foreign_key_check") == []
    assert query(path, "PRAGMA journal_mode") == [("delete",)]
    assert not [end for end in (*COMPANIONS, ".partial") if Path(f"{path}{end}").exists()]


class Load:
    """Posts with a comment each, written all the time by several callers."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.acknowledged: dict[int, str] = {}
        """Every post that was answered."""
        self._more = asyncio.Event()

    async def more(self, count: int = 20) -> None:
        """Waits for more acknowledged writes."""
        enough = len(self.acknowledged) + count
        while len(self.acknowledged) < enough:
            self._more.clear()
            await self._more.wait()

    async def write(self, name: str) -> None:
        """Writes until the server ends or the task is cancelled."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            stubs = Stubs(channel)
            for number in range(1_000_000):
                try:
                    post = await stubs.create_post(f"{name}/{number} ".ljust(2_000, "x"))
                    self.acknowledged[post.id] = post.body
                    self._more.set()
                    await stubs.create_comment(post.id)
                except grpc.RpcError as error:
                    # Whatever the call met, it was the end of the server.
                    if error.code() != grpc.StatusCode.UNAVAILABLE:
                        raise
                    return


@asynccontextmanager
async def load(address: str) -> AsyncIterator[Load]:
    """Writes until the end of the block."""
    writing = Load(address)
    callers = [asyncio.create_task(writing.write(str(number))) for number in range(8)]
    try:
        yield writing
    finally:
        for caller in callers:
            caller.cancel()
        done = await asyncio.gather(*callers, return_exceptions=True)
    assert not [it for it in done if it is not None and not isinstance(it, asyncio.CancelledError)]


async def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `store-service` in the background."""
    return await asyncio.to_thread(run_command, *arguments, folder=folder)


# While a server writes


async def test_backup_contains_everything_acknowledged_before_its_start(
    server_process: ServerProcess,
) -> None:
    """Five times under the writes of eight callers: complete, consistent, and a restored copy is
    served.
    """
    server_process.start()
    folder = server_process.folder
    async with load(server_process.address) as writing:
        for number in range(5):
            await writing.more()
            before = dict(writing.acknowledged)
            done = await command("backup", f"{number}.db", folder=folder)

            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.startswith(f"{number}.db: ")
            assert_whole(folder / f"{number}.db")
            stored = dict(query(folder / f"{number}.db", "SELECT id, body FROM posts"))
            assert before.items() <= stored.items()
            # A post and its change are one transaction, so a copy of one moment has both or neither.
            changes = query(folder / f"{number}.db", "SELECT resource_id FROM changes WHERE kind = 1")
            assert {id for (id,) in changes} == stored.keys()
    server_process.stop()
    assert run_command("restore", "4.db", folder=folder).returncode == 0
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        for id, body in list(before.items())[-50:]:
            got = await Stubs(channel).posts.GetPost(posts_pb2.GetPostRequest(id=id))
            assert got.body == body
    assert server_process.stop() == 0


async def test_backup_ends_despite_concurrent_writes(server_process: ServerProcess) -> None:
    """It is a snapshot of its start: concurrent writes neither restart it nor appear in it."""
    path = server_process.folder / "store.db"
    insert_posts(path, 600)
    address = server_process.start().address
    seen: list[int] = []
    async with grpc.aio.insecure_channel(address) as channel, load(address) as writing:
        stubs = Stubs(channel)
        await writing.more()
        loop = asyncio.get_running_loop()

        def write_between(doing: str, done: int, total: int) -> None:
            if doing == "copying":
                created = asyncio.run_coroutine_threadsafe(stubs.create_post("between"), loop)
                seen.append(created.result(scaled_timeout()).id)

        url = f"sqlite:///{path}"
        target = server_process.folder / "copy.db"
        await asyncio.to_thread(backup.back_up, url, target, force=False, progress=write_between)

    assert len(seen) >= 4
    assert query(target, "SELECT count(*) FROM posts WHERE body = 'between'") == [(0,)]
    assert_whole(target)


async def test_backup_needs_no_server_and_no_lock(server_process: ServerProcess) -> None:
    """After kill -9 the last writes are only in the log; the backup has them and leaves the log
    unchanged.
    """
    server_process.start()
    folder = server_process.folder
    async with load(server_process.address) as writing:
        await writing.more(50)
        server_process.kill()
    log = (folder / "store.db-wal").read_bytes()
    data = (folder / "store.db").read_bytes()
    done = run_command("backup", "copy.db", folder=folder)

    assert (done.returncode, done.stderr) == (0, "")
    assert (
        writing.acknowledged.items() <= dict(query(folder / "copy.db", "SELECT id, body FROM posts")).items()
    )
    assert log
    assert (folder / "store.db-wal").read_bytes() == log
    assert (folder / "store.db").read_bytes() == data


async def test_server_kill_during_backup_loses_nothing(
    server_process: ServerProcess,
) -> None:
    """Neither the backup nor the writes of the server, which restarts meanwhile."""
    path = server_process.folder / "store.db"
    insert_posts(path, 600)
    address = server_process.start().address
    killed = False
    target = server_process.folder / "copy.db"

    def kill_between(doing: str, done: int, total: int) -> None:
        nonlocal killed
        if not killed:
            killed = True
            server_process.kill()
            server_process.start()

    async with load(address) as writing:
        await writing.more(50)
        before = dict(writing.acknowledged)
        url = f"sqlite:///{path}"
        await asyncio.to_thread(backup.back_up, url, target, force=False, progress=kill_between)
    async with load(server_process.address) as writing_again:
        await writing_again.more()
    assert server_process.stop() == 0

    assert killed
    assert before.items() <= dict(query(target, "SELECT id, body FROM posts")).items()
    assert_whole(target)
    stored = dict(query(path, "SELECT id, body FROM posts")).items()
    assert writing.acknowledged.items() | writing_again.acknowledged.items() <= stored
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def backing_up(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """A backup that is being made."""
    return start_module("store_service", "backup", *arguments, folder=folder, environment=os.environ)


def test_killed_backup_leaves_no_target_file(database_file: Path) -> None:
    """The next backup overwrites its temporary file."""
    folder = database_file.parent
    insert_posts(database_file, 3_000)
    process = backing_up(folder, "copy.db")
    partial = folder / "copy.db.partial"
    wait_until(lambda: partial.exists() and partial.stat().st_size > 0)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    assert not (folder / "copy.db").exists()
    assert partial.exists()
    assert run_command("backup", "copy.db", folder=folder).returncode == 0
    assert_whole(folder / "copy.db")


# What is refused


def test_existing_file_is_not_overwritten_without_force(database_file: Path) -> None:
    """It may be the only good backup."""
    folder = database_file.parent
    (folder / "copy.db").write_text("precious")
    refused = run_command("backup", "copy.db", folder=folder)

    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "store-service: copy.db already exists; --force replaces it\n"
    assert (folder / "copy.db").read_text() == "precious"
    assert run_command("backup", "--force", "copy.db", folder=folder).returncode == 0
    assert_whole(folder / "copy.db")


@pytest.mark.parametrize(
    "file", ["store.db", "store.db-wal", "store.db.lock", "store.db.restoring", "link.db", "hard.db"]
)
def test_database_is_refused_as_its_own_backup_target(database_file: Path, file: str) -> None:
    """With --force too, and under every path to it."""
    folder = database_file.parent
    (folder / "link.db").symlink_to(database_file)
    os.link(database_file, folder / "hard.db")
    before = database_file.read_bytes()
    done = run_command("backup", "--force", file, folder=folder)

    assert done.returncode == 1
    assert done.stderr == f"store-service: {file} belongs to the database itself\n"
    assert database_file.read_bytes() == before


@pytest.mark.parametrize("file", ["not/there.db", "folder"])
def test_impossible_target_is_refused(database_file: Path, file: str) -> None:
    """Nothing is created."""
    (database_file.parent / "folder").mkdir()
    before = names(database_file.parent)
    done = run_command("backup", "--force", file, folder=database_file.parent)

    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert names(database_file.parent) == before


def test_full_disk_leaves_no_files(database_file: Path) -> None:
    """Exit code 1 and one line. The next backup, with enough space, succeeds."""
    folder = database_file.parent
    insert_posts(database_file, 10)

    # Set by the process itself: what runs between fork and exec in a process that uses gRPC may crash.
    limited = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'store_service', 'backup', 'copy.db'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=scaled_timeout(),
    )

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line == "store-service: cannot write copy.db.partial: the disk is full or failed"
    assert not [name for name in names(folder) if name.startswith("copy")]
    assert run_command("backup", "copy.db", folder=folder).returncode == 0


def test_free_space_is_checked_before_the_copy(database_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may share the disk."""
    told: list[str] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))

    with pytest.raises(copies.CopyFailed, match="has 1 bytes left"):
        backup.back_up(
            f"sqlite:///{database_file}",
            database_file.with_name("copy.db"),
            force=False,
            progress=lambda doing, *_: told.append(doing),
        )

    assert told == []
    assert not list(database_file.parent.glob("copy*"))


@pytest.mark.parametrize("table", ["posts", "changes"])
def test_damaged_database_fails_the_backup(database_file: Path, table: str) -> None:
    """Pages are copied unchanged, so the copy is checked before it gets its name."""
    insert_posts(database_file, 1)
    legacy_database.damage(database_file, table)
    done = run_command("backup", "copy.db", folder=database_file.parent)

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "store.db is damaged: " in line
    assert not list(database_file.parent.glob("copy*"))


def test_foreign_key_violation_fails_the_backup(database_file: Path) -> None:
    """A comment without its post, which the integrity check does not find."""
    with closing(sqlite3.connect(database_file)) as connection, connection:
        connection.execute("INSERT INTO comments (body, post_id) VALUES ('stray', 99)")
    done = run_command("backup", "copy.db", folder=database_file.parent)

    assert done.returncode == 1
    assert done.stderr == (
        "store-service: store.db is damaged: a row of comments refers to a missing row of posts\n"
    )


def test_concurrent_backups_into_one_file_do_not_mix(database_file: Path) -> None:
    """The second is refused and the first continues."""
    target = database_file.with_name("copy.db")
    refused: list[str] = []

    def another(doing: str, done: int, total: int) -> None:
        if not refused:
            refused.append(run_command("backup", "copy.db", folder=database_file.parent).stderr)

    backup.back_up(f"sqlite:///{database_file}", target, force=False, progress=another)

    assert refused == [f"store-service: another command is writing {target.name}.partial\n"]
    assert_whole(target)


def test_backup_of_missing_database_creates_nothing(tmp_path: Path) -> None:
    """Not even an empty database."""
    done = run_command("backup", "copy.db", folder=tmp_path)

    assert done.returncode == 1
    assert done.stderr.startswith("store-service: the database store.db does not exist")
    assert names(tmp_path) == set()


@pytest.mark.parametrize(("command", "instead"), [("backup", "pg_dump"), ("restore", "pg_restore")])
def test_backup_of_postgresql_names_its_tools(tmp_path: Path, command: str, instead: str) -> None:
    """Exit code 2 and one line with the command to use, without the password."""
    settings = {"DATABASE_URL": "postgresql://me:secret@host/store"}
    done = run_command(command, "copy.db", folder=tmp_path, settings=settings)

    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert instead in line
    assert "secret" not in line


# What it looks like


def test_backup_is_readable_by_its_owner_only(database_file: Path) -> None:
    """It holds everything that the database holds, wherever it is put."""
    done = run_command("backup", "copy.db", folder=database_file.parent)

    assert done.returncode == 0
    assert (database_file.parent / "copy.db").stat().st_mode & 0o777 == 0o600


def test_backup_prints_its_contents(database_file: Path) -> None:
    """Size, rows, schema and time, on stdout."""
    insert_posts(database_file, 1234, "short")
    done = run_command("backup", "copy.db", folder=database_file.parent)

    size = (database_file.parent / "copy.db").stat().st_size
    assert done.stdout.startswith(f"copy.db: {size:,} bytes, 1,234 posts, 0 comments, schema {schema.HEAD}, ")


def test_legacy_database_is_backed_up_unchanged(tmp_path: Path) -> None:
    """A backup is needed before the upgrade; orphaned comments are not damage."""
    legacy_database.create_file(tmp_path / "store.db")
    before = legacy_database.dump(tmp_path / "store.db")
    done = run_command("backup", "copy.db", folder=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert "schema 0001" in done.stdout
    assert legacy_database.dump(tmp_path / "copy.db") == before


def test_database_on_a_read_only_mount_is_backed_up(database_file: Path, tmp_path: Path) -> None:
    """It was closed, so there is no log, and SQLite cannot create one."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    with closing(sqlite3.connect(database_file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO posts (body) VALUES ('a post')")
        connection.commit()
    database_file.rename(folder / "store.db")
    (folder / "store.db").chmod(0o444)
    folder.chmod(0o555)
    before = {it.name: it.read_bytes() for it in folder.iterdir()}
    done = run_without_privileges(
        "backup", "copy.db", folder=tmp_path, DATABASE_URL="sqlite:///mounted/store.db"
    )
    folder.chmod(0o755)

    assert (done.returncode, done.stderr) == (0, "")
    assert query(tmp_path / "copy.db", "SELECT body FROM posts") == [("a post",)]
    assert {it.name: it.read_bytes() for it in folder.iterdir()} == before


def test_backup_of_a_file_that_another_user_writes_fails(database_file: Path, tmp_path: Path) -> None:
    """Without write permission the copy could mix pages of two states."""
    with closing(sqlite3.connect(database_file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")

    def write(doing: str, done: int, total: int) -> None:
        if doing == "copying":
            with closing(sqlite3.connect(database_file)) as connection, connection:
                connection.execute("INSERT INTO posts (body) VALUES ('meanwhile')")

    with pytest.raises(copies.CopyFailed, match="was written during the copy"):
        copies.copy_database(database_file, tmp_path / "copy.db", write, in_use=False)
    assert not (tmp_path / "copy.db").exists()
