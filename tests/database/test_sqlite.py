"""SQLite only: pragmas, paths, the lock file, threads, and errors by their code."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite
import pytest
import sqlalchemy

from store_service.database import batch_runner, connect, schema, sqlite, sqlite_file
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import Statement
from store_service.errors import DatabaseUnavailable, ServiceError, StorageFull
from store_service.model import Deletion, IdempotencyKey, PostDraft, Update
from store_service.service.posts import Posts
from tests.support.database import query
from tests.support.legacy_database import damage
from tests.support.polling import wait_until
from tests.support.server_process import ServerProcess, run_command
from tests.support.timeouts import scaled_timeout

READERS = 3

INSERT = Statement(sqlalchemy.text("INSERT INTO posts (body) VALUES ('lost')"))


@pytest.fixture
async def store(database_file: Path) -> AsyncIterator[Database]:
    """An open database that only this test uses."""
    async with connect.open_database(f"sqlite:///{database_file}", readers=READERS) as store:
        yield store


def sql(text: str) -> BatchOperation[None, list[tuple[object, ...]]]:
    """Returns an operation that runs SQL without parameters."""
    statement = Statement(sqlalchemy.text(text))

    async def run(connection: Connection, asked: Sequence[None]) -> list[list[tuple[object, ...]]]:
        return [list(await connection.fetch(statement)) for _ in asked]

    return BatchOperation(run, single_statement=True)


# Settings of the connections

PRAGMAS_OF_ALL = {"journal_mode": "wal", "busy_timeout": 5000, "mmap_size": 0, "trusted_schema": 0}
PRAGMAS_OF_THE_WRITER = {
    **PRAGMAS_OF_ALL,
    "synchronous": 3,
    "foreign_keys": 1,
    "journal_size_limit": sqlite.MAX_KEPT_LOG_BYTES,
}


@pytest.mark.parametrize(("pragma", "value"), PRAGMAS_OF_THE_WRITER.items())
async def test_writer_is_configured(store: Database, pragma: str, value: object) -> None:
    """synchronous=EXTRA and foreign keys."""
    assert await store.write(sql(f"PRAGMA {pragma}"), None) == [(value,)]


@pytest.mark.parametrize(("pragma", "value"), PRAGMAS_OF_ALL.items())
async def test_every_reader_is_configured(store: Database, pragma: str, value: object) -> None:
    statement = Statement(sqlalchemy.text(f"PRAGMA {pragma}"))
    arrived, everybody_is_here = asyncio.Semaphore(0), asyncio.Event()

    async def run(connection: Connection, asked: Sequence[None]) -> list[tuple[object, ...]]:
        arrived.release()
        await everybody_is_here.wait()
        return list(await connection.fetch(statement))

    answers = []
    for _ in range(READERS):
        answers.append(asyncio.create_task(store.read(BatchOperation(run), None)))
        # A connection runs this job before the next one is queued.
        await arrived.acquire()
    everybody_is_here.set()

    assert await asyncio.gather(*answers) == [(value,)] * READERS


async def test_connection_that_ignores_its_settings_is_refused(
    database_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sqlite._WRITER_PRAGMAS, "foreign_key", 1)

    with pytest.raises(RuntimeError, match="PRAGMA foreign_key "):
        async with connect.open_database(f"sqlite:///{database_file}", readers=1):
            pass


async def test_readers_cannot_write(store: Database, database_file: Path) -> None:
    """SQLite refuses all writes on a connection of a reader."""
    with pytest.raises(DatabaseUnavailable) as caught:
        await store.read(sql("INSERT INTO posts (body) VALUES ('by a reader')"), None)

    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert caught.value.__cause__.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY
    assert query(database_file, "SELECT count(*) FROM posts") == [(0,)]


# Paths

NAMES = [
    "plain.db",
    "with space.db",
    "per%cent.db",
    "100%.db",
    "per%25cent.db",
    "per%41cent.db",
    "ha#sh.db",
    "#.db",
    "ha%23sh.db",
    "question%3Fmark.db",
    "plus+&=;,.db",
    "at@colon:.db",
    "[brackets].db",
    "'quotes\".db",
    "back\\slash.db",
    "grüße-日本-😀.db",
]


@pytest.mark.parametrize("force_roll_back", [False, True])
@pytest.mark.parametrize("name", NAMES)
async def test_every_path_is_one_file(tmp_path: Path, name: str, force_roll_back: bool) -> None:
    """Upgrade, writer and readers use the same file, with any characters in its path."""
    folder = tmp_path / name
    folder.mkdir()
    url = f"sqlite:///{folder}/{name}"
    # %3F in the URL is a ? in the path.
    sqlite_file.database_path(url).parent.mkdir(exist_ok=True)
    schema.upgrade(url)
    async with connect.open_database(url, readers=1, force_roll_back=force_roll_back) as store:
        posts = Posts(store)
        (post,) = await posts.create([PostDraft(body="here")])
        assert await posts.get(post.id) == post

    assert {it.removesuffix("-wal").removesuffix("-shm") for it in files_below(tmp_path)} == {
        str(sqlite_file.database_path(url))
    }


def files_below(folder: Path) -> list[str]:
    """Returns the paths of all files, without folders."""
    return [str(it) for it in folder.rglob("*") if it.is_file()]


async def test_every_path_can_be_a_quoted_url(tmp_path: Path) -> None:
    """A quoted path is unquoted, including a quoted ?."""
    path = tmp_path / "what? 100%25 #1.db"
    url = f"sqlite:///{quote(str(path))}"

    assert sqlite_file.database_path(url) == path
    schema.upgrade(url)
    async with connect.open_database(url, readers=1) as store:
        await Posts(store).create([PostDraft(body="here")])
    assert query(path, "SELECT body FROM posts") == [("here",)]


async def test_relative_path_is_relative_to_the_working_directory(
    database_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sqlite:///store.db` is the file in the working folder."""
    monkeypatch.chdir(database_file.parent)
    async with connect.open_database("sqlite:///store.db", readers=1) as store:
        await Posts(store).create([PostDraft(body="here")])

    assert query(database_file, "SELECT body FROM posts") == [("here",)]


# One service at a time


def test_database_has_one_service(database_file: Path) -> None:
    """The second one gets an error with the path."""
    url = f"sqlite:///{database_file}"
    with connect.sole_use(url):
        with pytest.raises(sqlite_file.DatabaseInUse, match=str(database_file)), connect.sole_use(url):
            pass
        with connect.sole_use(f"sqlite:///{database_file.with_name('another.db')}"):
            pass

    with connect.sole_use(url):
        pass


def test_linked_database_has_one_service(database_file: Path, tmp_path: Path) -> None:
    """This includes a link to the file."""
    link = tmp_path / "link.db"
    link.symlink_to(database_file)

    with (
        connect.sole_use(f"sqlite:///{database_file}"),
        pytest.raises(sqlite_file.DatabaseInUse),
        connect.sole_use(f"sqlite:///{link}"),
    ):
        pass


def test_second_process_is_refused_until_the_first_ends(
    database_file: Path, server_process: ServerProcess
) -> None:
    """A killed process releases the database."""
    server_process.start()
    listen = {"STORE_LISTEN": "127.0.0.1:0"}
    refused = [
        run_command(command, folder=server_process.folder, settings=listen)
        for command in ("serve", "migrate")
    ]
    server_process.kill()
    server_process.start()

    for done in refused:
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "store-service: another store-service is using store.db\n"
    assert server_process.stop() == 0


# Rolled-back ids


async def test_dry_run_uses_no_id(store: Database, database_file: Path) -> None:
    """The SQLite counter is rolled back; a PostgreSQL sequence is not."""
    posts = Posts(store)
    await posts.create([PostDraft(body="tried")], dry_run=True)
    (post,) = await posts.create([PostDraft(body="kept")])

    assert post.id == 1
    assert query(database_file, "SELECT seq FROM sqlite_sequence WHERE name = 'posts'") == [(1,)]


async def test_forced_rollback_uses_no_id(database_file: Path) -> None:
    """The counters of ids in the file are rolled back, so each run of a test has the same ids."""
    before = query(database_file, "SELECT * FROM sqlite_sequence")
    for _ in range(2):
        async with connect.open_database(f"sqlite:///{database_file}", force_roll_back=True) as store:
            (post,) = await Posts(store).create([PostDraft(body="gone")])
            assert post.id == 1

    assert query(database_file, "SELECT * FROM sqlite_sequence") == before


COUNT_TO_A_MILLION = """
WITH RECURSIVE n(x) AS (SELECT begin() UNION ALL SELECT x + 1 FROM n WHERE x < 1000000)
INSERT INTO posts (body) SELECT CAST(count(*) AS TEXT) FROM n RETURNING id
"""


async def test_abandoned_write_with_forced_rollback_keeps_earlier_writes(
    database_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "ABANDONED_WRITE_SECONDS", 0)
    loop = asyncio.get_running_loop()
    begun, gone = asyncio.Event(), threading.Event()
    connections: list[Connection] = []

    def begin() -> int:
        loop.call_soon_threadsafe(begun.set)
        gone.wait(scaled_timeout())
        return 1

    async def count(connection: Connection, _: Sequence[None]) -> Sequence[Any]:
        connections.append(connection)
        connection._raw._conn.create_function("begin", 0, begin)
        return [await connection.fetch(Statement(sqlalchemy.text(COUNT_TO_A_MILLION)))]

    async with connect.open_database(f"sqlite:///{database_file}", force_roll_back=True) as store:
        posts = Posts(store)
        (before,) = await posts.create([PostDraft(body="before")])
        call = asyncio.create_task(store.write(BatchOperation(count), None))
        await begun.wait()
        call.cancel()
        await asyncio.to_thread(wait_until, lambda: connections[0].is_cancelled)
        gone.set()

        assert await posts.get(before.id) == before
        await posts.create([PostDraft(body="after")])

    assert query(database_file, "SELECT body FROM posts") == []


# Closing


def threads_of_the_driver() -> list[threading.Thread]:
    """aiosqlite has a thread for each connection, and a process waits for it before it exits."""
    return [it for it in threading.enumerate() if "_connection_worker_thread" in it.name]


@pytest.mark.parametrize("force_roll_back", [False, True])
async def test_closed_database_leaves_no_thread(database_file: Path, force_roll_back: bool) -> None:
    """Also after an error."""

    async def leave_with_an_error() -> None:
        async with connect.open_database(
            f"sqlite:///{database_file}", readers=2, force_roll_back=force_roll_back
        ) as store:
            await Posts(store).create([PostDraft(body="a")])
            assert len(threads_of_the_driver()) == (1 if force_roll_back else 3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await leave_with_an_error()
    wait_until(lambda: not threads_of_the_driver())


@pytest.mark.parametrize("force_roll_back", [False, True])
@pytest.mark.parametrize(
    "content", [b"this is no database, whatever its name says" * 100, None], ids=["text", "folder"]
)
async def test_failed_open_leaves_no_thread(
    tmp_path: Path, content: bytes | None, force_roll_back: bool
) -> None:
    path = tmp_path / "store.db"
    path.mkdir() if content is None else path.write_bytes(content)

    with pytest.raises(DatabaseUnavailable):
        async with connect.open_database(f"sqlite:///{path}", readers=2, force_roll_back=force_roll_back):
            pass
    wait_until(lambda: not threads_of_the_driver())


# Batches, which run in the connection's thread


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Records the calls to threads of connections."""
    seen: list[object] = []
    execute: Any = aiosqlite.Connection._execute

    async def watched(connection: aiosqlite.Connection, job: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(job)
        return await execute(connection, job, *args, **kwargs)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", watched)
    return seen


async def test_batch_is_one_trip_to_the_connection_thread(store: Database, trips: list[object]) -> None:
    posts = Posts(store)
    first, second = await posts.create([PostDraft(body="a"), PostDraft(body="b")])
    trips.clear()
    await asyncio.gather(
        posts.create([PostDraft(body="c")], key=IdempotencyKey(id="c", fingerprint="c")),
        posts.update([Update(id=first.id, values={"body": "A"}, etag="", request_field="post")]),
        posts.delete(Deletion(ids=(second.id,))),
    )
    assert len(trips) == 1

    await posts.create([PostDraft(body="tried")], dry_run=True)
    assert len(trips) == 2


async def test_refused_batch_is_one_trip_to_the_connection_thread(
    store: Database, trips: list[object]
) -> None:
    """An error is raised in the caller, and the transaction is rolled back in the same thread call."""

    async def refuse(connection: Connection, _: Sequence[None]) -> list[None]:
        await connection.fetch(INSERT)
        raise StorageFull

    trips.clear()
    with pytest.raises(StorageFull):
        await store.write(BatchOperation(refuse), None)

    assert len(trips) == 1


@pytest.mark.parametrize("what", ["the next round of the loop", "a while", "somebody else"])
async def test_write_that_awaits_something_else_is_an_error(
    store: Database, database_file: Path, what: str
) -> None:
    nobody: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    told: list[type[BaseException]] = []

    async def wait(connection: Connection, asked: Sequence[str]) -> list[str]:
        await connection.fetch(INSERT)
        try:
            if what == "somebody else":
                await nobody
            else:
                await asyncio.sleep(60 if what == "a while" else 0)
        except BaseException as error:
            told.append(type(error))
            raise
        return list(asked)

    waits = BatchOperation(wait)
    posts = Posts(store)
    async with asyncio.timeout(scaled_timeout()):
        answers = await asyncio.gather(
            store.write(waits, "a"),
            posts.create([PostDraft(body="rides along")]),
            store.write(waits, "b"),
            return_exceptions=True,
        )
        await posts.create([PostDraft(body="comes later")])

    assert [type(it) for it in answers] == [RuntimeError, tuple, RuntimeError]
    # As a batch, and then one by one.
    assert told == [RuntimeError] * 3
    assert query(database_file, "SELECT body FROM posts") == [("rides along",), ("comes later",)]


# The log


def log_bytes(database_file: Path) -> int:
    """Returns the size of the log in bytes."""
    return Path(f"{database_file}-wal").stat().st_size


async def test_log_of_a_large_transaction_is_truncated(store: Database, database_file: Path) -> None:
    """The next write truncates the log."""
    await store.write(
        sql("INSERT INTO posts (body) SELECT hex(zeroblob(20000000)) UNION ALL SELECT 'x'"), None
    )
    assert log_bytes(database_file) > 2 * sqlite.MAX_KEPT_LOG_BYTES

    await Posts(store).create([PostDraft(body="x")])

    assert log_bytes(database_file) == sqlite.MAX_KEPT_LOG_BYTES


async def test_log_that_grew_during_a_read_is_truncated(store: Database, database_file: Path) -> None:
    """The log is truncated two writes after the end of the read."""
    with closing(sqlite3.connect(f"file:{database_file}?mode=ro", uri=True, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM posts").fetchone()
        for _ in range(2 * sqlite.MAX_KEPT_LOG_BYTES // 1_000_000 + 1):
            await store.write(sql("INSERT INTO posts (body) VALUES (hex(zeroblob(500000)))"), None)
    assert log_bytes(database_file) > 2 * sqlite.MAX_KEPT_LOG_BYTES

    for _ in range(2):
        await Posts(store).create([PostDraft(body="x")])

    assert log_bytes(database_file) == sqlite.MAX_KEPT_LOG_BYTES


# Errors of SQLite


async def test_full_disk_is_storage_full_and_stores_nothing(store: Database, database_file: Path) -> None:
    """A write that does not fit changes nothing. A later write that fits succeeds."""
    posts = Posts(store)
    (post,) = await posts.create([PostDraft(body="kept")])
    await store.write(sql("PRAGMA max_page_count = 1"), None)
    for attempt in (
        posts.create([PostDraft(body="x" * 100_000)]),
        posts.update([Update(id=post.id, values={"body": "x" * 100_000}, etag="", request_field="post")]),
    ):
        with pytest.raises(StorageFull):
            await attempt
    await store.write(sql("PRAGMA max_page_count = 1000000"), None)
    await posts.create([PostDraft(body="also kept")])

    assert query(database_file, "SELECT body FROM posts") == [("kept",), ("also kept",)]


async def test_transaction_ended_by_sqlite_is_not_ended_again(store: Database, database_file: Path) -> None:
    """The original error is raised."""
    insert = Statement(sqlalchemy.text("INSERT OR ROLLBACK INTO posts (id, body) VALUES (1, 'a')"))

    async def run(connection: Connection, asked: Sequence[None]) -> list[None]:
        await connection.fetch(insert)
        await connection.fetch(insert)
        return [None for _ in asked]

    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        await store.write(BatchOperation(run), None)
    await Posts(store).create([PostDraft(body="kept")])
    assert query(database_file, "SELECT body FROM posts") == [("kept",)]


async def test_damaged_file_is_unavailable(database_file: Path) -> None:
    """The text of SQLite is only in the cause."""
    damage(database_file, "posts")
    async with connect.open_database(f"sqlite:///{database_file}", readers=1) as store:
        with pytest.raises(ServiceError) as caught:
            await Posts(store).get(1)
    assert type(caught.value) is DatabaseUnavailable
    assert str(caught.value) == "the database is unavailable; retry later"
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
