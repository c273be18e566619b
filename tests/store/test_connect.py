"""How the database is opened: by whom, with what settings, and what is left when it is closed."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest
import sqlalchemy

from store_service import config as settings
from store_service.database import connect, schema, sqlite
from store_service.database.connect import Store
from store_service.database.connection import Connection
from store_service.database.statements import Statement
from store_service.database.workers import Operation
from store_service.errors import (
    CommentNotFound,
    DatabaseBusy,
    DatabaseUnavailable,
    PostNotFound,
    StorageFull,
    StoreError,
)
from store_service.model import CommentDraft, Deletion, PostDraft, Update
from store_service.server import serving
from store_service.store.comments import Comments
from store_service.store.posts import Posts
from tests.store.old_application import damage, query
from tests.support import ServerProcess, Stubs, run_command, wait_until

READERS = 3


@pytest.fixture
async def store(database_file: Path) -> AsyncIterator[Store]:
    """An open database of this test's own."""
    async with connect.open_store(f"sqlite:///{database_file}", readers=READERS) as store:
        yield store


def sql(text: str) -> Operation[None, list[tuple[object, ...]]]:
    """An operation that runs a text as it stands."""
    statement = Statement(sqlalchemy.text(text))

    async def run(connection: Connection, asked: Sequence[None]) -> list[list[tuple[object, ...]]]:
        return [list(await connection.fetch(statement)) for _ in asked]

    return Operation(run, one_statement=True)


# Settings of the connections

PRAGMAS_OF_ALL = {"journal_mode": "wal", "busy_timeout": 5000, "mmap_size": 0, "trusted_schema": 0}
PRAGMAS_OF_THE_WRITER = {**PRAGMAS_OF_ALL, "synchronous": 2, "foreign_keys": 1}


@pytest.mark.parametrize(("pragma", "value"), PRAGMAS_OF_THE_WRITER.items())
async def test_the_writer_is_set_up(store: Store, pragma: str, value: object) -> None:
    """A commit is on disk before it is answered (FULL = 2), and a comment cannot lose its post."""
    assert await store.write(sql(f"PRAGMA {pragma}"), None) == [(value,)]


@pytest.mark.parametrize(("pragma", "value"), PRAGMAS_OF_ALL.items())
async def test_every_reader_is_set_up(store: Store, pragma: str, value: object) -> None:
    """All readers are asked, each by a worker of its own."""
    statement = Statement(sqlalchemy.text(f"PRAGMA {pragma}"))
    arrived, everybody_is_here = asyncio.Semaphore(0), asyncio.Event()

    async def run(connection: Connection, asked: Sequence[None]) -> list[tuple[object, ...]]:
        arrived.release()
        await everybody_is_here.wait()
        return list(await connection.fetch(statement))

    answers = []
    for _ in range(READERS):
        answers.append(asyncio.create_task(store.read(Operation(run), None)))
        # A worker has taken it, and waits in it, before the next one comes.
        await arrived.acquire()
    everybody_is_here.set()

    assert await asyncio.gather(*answers) == [(value,)] * READERS


async def test_a_connection_that_does_not_take_its_settings_is_not_used(
    database_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite answers what it does not know with silence; the service then does not start."""
    monkeypatch.setitem(sqlite._WRITER_PRAGMAS, "foreign_key", 1)

    with pytest.raises(RuntimeError, match="PRAGMA foreign_key "):
        async with connect.open_store(f"sqlite:///{database_file}", readers=1):
            pass


async def test_readers_cannot_write(store: Store, database_file: Path) -> None:
    """A reading connection is opened such that SQLite refuses, whatever a statement says."""
    with pytest.raises(DatabaseUnavailable) as caught:
        await store.read(sql("INSERT INTO posts (body) VALUES ('by a reader')"), None)

    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert caught.value.__cause__.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY
    assert query(database_file, "SELECT count(*) FROM posts") == [(0,)]


async def test_foreign_keys_are_enforced(store: Store) -> None:
    """Whatever our own checks let through, SQLite keeps no comment without a post."""
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        await store.write(sql("INSERT INTO comments (body, post_id) VALUES ('orphan', 1)"), None)


async def test_what_was_answered_is_read_by_every_reader(store: Store) -> None:
    """Readers see what was committed before they were asked."""
    posts = Posts(store)
    for number in range(20):
        (post,) = await posts.create_posts([PostDraft(body=str(number))])
        read = await asyncio.gather(*(posts.get_post(post.id) for _ in range(READERS)))
        assert read == [post] * READERS


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
async def test_any_path_is_one_file_for_everybody(tmp_path: Path, name: str, force_roll_back: bool) -> None:
    """Upgrade, writer and readers find the same file, whatever signs its folder and its name have."""
    folder = tmp_path / name
    folder.mkdir()
    url = f"sqlite:///{folder}/{name}"
    # What is written as %3F in the URL is a ? in the path.
    sqlite.path_of(url).parent.mkdir(exist_ok=True)
    schema.upgrade(url)
    async with connect.open_store(url, readers=1, force_roll_back=force_roll_back) as store:
        posts = Posts(store)
        (post,) = await posts.create_posts([PostDraft(body="here")])
        assert await posts.get_post(post.id) == post

    assert {it.removesuffix("-wal").removesuffix("-shm") for it in files_below(tmp_path)} == {
        str(sqlite.path_of(url))
    }


def files_below(folder: Path) -> list[str]:
    """The path of every file, but not of folders."""
    return [str(it) for it in folder.rglob("*") if it.is_file()]


async def test_every_path_can_be_written_as_a_url(tmp_path: Path) -> None:
    """A path that is quoted as in any URL means that path, also with a ? in it."""
    path = tmp_path / "what? 100%25 #1.db"
    url = f"sqlite:///{quote(str(path))}"

    assert sqlite.path_of(url) == path
    schema.upgrade(url)
    async with connect.open_store(url, readers=1) as store:
        await Posts(store).create_posts([PostDraft(body="here")])
    assert query(path, "SELECT body FROM posts") == [("here",)]


async def test_a_relative_path_is_of_the_folder_at_the_start(
    database_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sqlite:///store.db` is the file in the working folder."""
    monkeypatch.chdir(database_file.parent)
    async with connect.open_store("sqlite:///store.db", readers=1) as store:
        await Posts(store).create_posts([PostDraft(body="here")])

    assert query(database_file, "SELECT body FROM posts") == [("here",)]


# One service at a time


def test_a_database_is_of_one_service(database_file: Path) -> None:
    """Who comes second is told, by the path; after the first has left the way is free."""
    url = f"sqlite:///{database_file}"
    with connect.sole_use(url):
        with pytest.raises(sqlite.DatabaseInUse, match=str(database_file)), connect.sole_use(url):
            pass
        with connect.sole_use(f"sqlite:///{database_file.with_name('another.db')}"):
            pass

    with connect.sole_use(url):
        pass


def test_a_second_service_is_refused_until_the_first_is_gone(
    database_file: Path, server_process: ServerProcess
) -> None:
    """Also across processes; and a service that was killed is gone."""
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


# DB_FORCE_ROLL_BACK


async def test_with_force_roll_back_everything_works_and_nothing_stays(database_file: Path) -> None:
    """While it is open it behaves as ever; afterwards the file is as it was."""
    before = query(database_file, "SELECT * FROM sqlite_sequence")
    async with connect.open_store(f"sqlite:///{database_file}", readers=2, force_roll_back=True) as store:
        posts, comments = Posts(store), Comments(store)
        first, second = await posts.create_posts([PostDraft(body="first"), PostDraft(body="second")])
        (comment,) = await comments.create_comments([CommentDraft(body="c", post_id=first.id)])
        changed = await posts.update_post(Update(id=second.id, body="changed", etag="", request_field="post"))
        assert await posts.get_post(second.id) == changed
        assert await comments.get_comment(comment.id) == comment

        # A dry run is undone at once, a failure alone, and neither takes the others' writes along.
        await posts.delete_posts(Deletion(ids=(second.id,)), keep=False)
        outcomes = await asyncio.gather(
            comments.create_comments([CommentDraft(body="fine", post_id=first.id)]),
            comments.create_comments([CommentDraft(body="orphan", post_id=99)]),
            return_exceptions=True,
        )
        assert isinstance(outcomes[1], PostNotFound)
        assert await comments.count_comments([first.id]) == {first.id: 2}
        await posts.delete_posts(Deletion(ids=(first.id,), force=True))
        with pytest.raises(CommentNotFound):
            await comments.get_comment(comment.id)
        assert await posts.get_post(second.id) == changed
        assert query(database_file, "SELECT count(*) FROM posts") == [(0,)]

    assert query(database_file, "SELECT count(*) FROM posts") == [(0,)]
    assert query(database_file, "SELECT * FROM sqlite_sequence") == before


async def test_a_server_with_force_roll_back_keeps_nothing(database_file: Path) -> None:
    """The setting reaches the database; callers notice nothing."""
    config = settings.load(
        DATABASE_URL=f"sqlite:///{database_file}", DB_FORCE_ROLL_BACK="true", listen="127.0.0.1:0"
    )
    for _ in range(2):
        async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
            posts = await asyncio.gather(*(Stubs(channel).create_post("gone") for _ in range(20)))
            assert sorted(post.id for post in posts) == list(range(1, 21))
            comment = await Stubs(channel).create_comment(posts[0].id)
            assert comment.id == 1

    assert query(database_file, "SELECT count(*) FROM posts") == [(0,)]


# Closing


def threads_of_the_driver() -> list[threading.Thread]:
    """aiosqlite has a thread for each connection, which a process waits for at its end."""
    return [it for it in threading.enumerate() if "_connection_worker_thread" in it.name]


@pytest.mark.parametrize("force_roll_back", [False, True])
async def test_no_thread_is_left_when_the_database_is_closed(
    database_file: Path, force_roll_back: bool
) -> None:
    """Also when the block ends with an error; otherwise the process would never end."""

    async def leave_with_an_error() -> None:
        async with connect.open_store(
            f"sqlite:///{database_file}", readers=2, force_roll_back=force_roll_back
        ) as store:
            await Posts(store).create_posts([PostDraft(body="a")])
            assert len(threads_of_the_driver()) == (1 if force_roll_back else 3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await leave_with_an_error()
    wait_until(lambda: not threads_of_the_driver())


@pytest.mark.parametrize("force_roll_back", [False, True])
@pytest.mark.parametrize(
    "content", [b"this is no database, whatever its name says" * 100, None], ids=["text", "folder"]
)
async def test_no_thread_is_left_when_the_database_cannot_be_opened(
    tmp_path: Path, content: bytes | None, force_roll_back: bool
) -> None:
    """A file that is no database is an error with a name, and the process can end."""
    path = tmp_path / "store.db"
    path.mkdir() if content is None else path.write_bytes(content)

    with pytest.raises(DatabaseUnavailable):
        async with connect.open_store(f"sqlite:///{path}", readers=2, force_roll_back=force_roll_back):
            pass
    wait_until(lambda: not threads_of_the_driver())


@pytest.mark.parametrize(
    "ending", ["pass", "raise SystemExit(0)", "asyncio.current_task().cancel(); await asyncio.sleep(1)"]
)
def test_the_process_ends_after_the_database_was_closed(database_file: Path, ending: str) -> None:
    """However the block is left, nothing keeps the process alive."""
    script = f"""
import asyncio
from contextlib import suppress
from store_service.database import connect
from store_service.model import PostDraft
from store_service.store.posts import Posts
async def main():
    async with connect.open_store("sqlite:///store.db", readers=2) as store:
        await Posts(store).create_posts([PostDraft(body="kept")])
        {ending}
with suppress(asyncio.CancelledError):
    asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=database_file.parent, env=os.environ, timeout=30, check=False
    )

    assert done.returncode == 0
    assert query(database_file, "SELECT body FROM posts") == [("kept",)]


# Errors of SQLite, and their names


async def test_a_lock_that_is_held_for_too_long_is_busy(
    database_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller learns that trying again may help; then it does."""
    monkeypatch.setitem(sqlite._WRITER_PRAGMAS, "busy_timeout", 50)
    async with connect.open_store(f"sqlite:///{database_file}", readers=1) as store:
        posts = Posts(store)
        with closing(sqlite3.connect(database_file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseBusy):
                await posts.create_posts([PostDraft(body="refused")])
            with pytest.raises(DatabaseBusy):
                await posts.update_post(Update(id=1, body="refused", etag="", request_field="post"))
            other.execute("ROLLBACK")
        await posts.create_posts([PostDraft(body="kept")])

    assert query(database_file, "SELECT body FROM posts") == [("kept",)]


async def test_a_full_disk_is_storage_full_and_keeps_nothing(store: Store, database_file: Path) -> None:
    """Nothing of the write that did not fit; the next one that fits is stored."""
    posts = Posts(store)
    (post,) = await posts.create_posts([PostDraft(body="kept")])
    await store.write(sql("PRAGMA max_page_count = 1"), None)
    for attempt in (
        posts.create_posts([PostDraft(body="x" * 100_000)]),
        posts.update_post(Update(id=post.id, body="x" * 100_000, etag="", request_field="post")),
    ):
        with pytest.raises(StorageFull):
            await attempt
    await store.write(sql("PRAGMA max_page_count = 1000000"), None)
    await posts.create_posts([PostDraft(body="also kept")])

    assert query(database_file, "SELECT body FROM posts") == [("kept",), ("also kept",)]


async def test_a_transaction_that_sqlite_ended_by_itself_is_not_ended_again(
    store: Store, database_file: Path
) -> None:
    """As it does on a full disk, say: the caller sees the error that was, not one of the tidying up."""
    insert = Statement(sqlalchemy.text("INSERT OR ROLLBACK INTO posts (id, body) VALUES (1, 'a')"))

    async def run(connection: Connection, asked: Sequence[None]) -> list[None]:
        await connection.fetch(insert)
        await connection.fetch(insert)
        return [None for _ in asked]

    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        await store.write(Operation(run), None)
    await Posts(store).create_posts([PostDraft(body="kept")])
    assert query(database_file, "SELECT body FROM posts") == [("kept",)]


async def test_a_damaged_file_is_unavailable_and_the_error_tells_callers_nothing(database_file: Path) -> None:
    """What SQLite says stays in the cause, for the log; the text is for callers."""
    damage(database_file, "posts")
    async with connect.open_store(f"sqlite:///{database_file}", readers=1) as store:
        with pytest.raises(StoreError) as caught:
            await Posts(store).get_post(1)
    assert type(caught.value) is DatabaseUnavailable
    assert str(caught.value) == "the database is not available; call again later"
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
