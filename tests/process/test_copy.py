"""`store-service copy`: a store moves to another database while it is served."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import psycopg
import pytest
import storeapi

from store_service.database.connect import is_sqlite
from tests.support.copying import (
    Load,
    Watcher,
    all_changes,
    begin_copy,
    empty_database,
    run_copy,
    served,
    stored_rows,
    tables_in,
)
from tests.support.erasure import ANONYMIZE, KEPT, MARKER, create_world, erase, stored_bytes
from tests.support.polling import eventually
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout
from tests.support.unreliable_proxy import UnreliableProxy

WAYS = ("sqlite-postgresql", "postgresql-sqlite", "postgresql-postgresql")
TO_POSTGRESQL = ("sqlite-postgresql", "postgresql-postgresql")


@pytest.fixture(params=WAYS)
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The URLs of a source and of a target, both empty."""
    with ExitStack() as stack:
        urls = [
            stack.enter_context(empty_database(it, tmp_path, request.getfixturevalue("postgres")))
            for it in request.param.split("-")
        ]
        yield urls[0], urls[1]


@pytest.fixture
def source(databases: tuple[str, str], tmp_path: Path) -> Iterator[ServerProcess]:
    """A server on the source."""
    with served(databases[0], tmp_path / "source", STORE_UNDELETE_HOURS="24") as process:
        yield process


async def fill(address: str) -> None:
    """Creates posts, comments, deleted ones, tombstones and revisions."""
    async with grpc.aio.insecure_channel(address) as channel:
        await create_world(Stubs(channel), mode=ANONYMIZE)


@pytest.mark.timeout(240)
async def test_store_moves_while_callers_write_and_watch(
    databases: tuple[str, str], source: ServerProcess, tmp_path: Path
) -> None:
    """Nothing is lost or doubled, no call fails, and a watch receives every change exactly once."""
    await fill(source.address)
    keeps_tokens = not is_sqlite(databases[1])
    async with UnreliableProxy(random.Random(1)).running() as proxy:
        proxy.server_address = source.address
        async with storeapi.connect_async(proxy.address, timeout=scaled_timeout(120)) as client:
            load, watcher = Load(client, per_second=200), Watcher(client)
            with ExitStack() as stack:
                async with load.running(), watcher.running():
                    await eventually(lambda: load.writes > 100 and len(watcher.seen) > 100)
                    copied = await asyncio.to_thread(
                        run_copy, *databases, "--address", source.address, folder=tmp_path
                    )
                    assert copied.returncode == 0, copied.stderr
                    # The copy is complete before a service starts on it.
                    before, after = [stored_rows(it) for it in databases]
                    if not keeps_tokens:
                        before["changes"] = []
                    assert after == before
                    written = load.writes
                    target = stack.enter_context(
                        served(databases[1], tmp_path / "target", STORE_UNDELETE_HOURS="24")
                    )
                    proxy.server_address = target.address
                    proxy.cut()
                    await eventually(lambda: load.writes > written + 100)
                    if not keeps_tokens:
                        with pytest.raises(storeapi.ResumeTokenForeign):
                            await watcher.task
                        watcher.task = asyncio.create_task(asyncio.sleep(0))
                    else:
                        received = len(watcher.seen)
                        await eventually(lambda: len(watcher.seen) > received + 100)
                    await load.stop()
                    if keeps_tokens:
                        mark = await client.posts.create("the last one")
                        await eventually(lambda: watcher.seen[-1][1] == mark.id)

                if keeps_tokens:
                    assert watcher.seen == await all_changes(client, len(watcher.seen))
                    assert len(set(watcher.seen)) == len(watcher.seen)
                stored = {it.id: it.body async for it in client.posts.list()}
                assert {id: stored.get(id) for id in load.bodies} == load.bodies
                loaded = [body for body in stored.values() if body.startswith("load ")]
                assert len(loaded) == len(set(loaded)) == len(load.bodies)
                # A repeated request has no further effect, also if the source has executed it.
                for request_id, (id, arguments) in load.requests.items():
                    post = await client.posts.create(**arguments, request_id=request_id)
                    assert post.id == id
                assert await client.posts.count() == len(stored)


async def test_source_refuses_writes_until_the_copy_is_undone(
    databases: tuple[str, str], source: ServerProcess, tmp_path: Path
) -> None:
    """Also after a restart. Reads and watches continue."""
    await fill(source.address)
    options = ("--address", source.address)
    copied = await asyncio.to_thread(run_copy, *databases, *options, folder=tmp_path)
    assert copied.returncode == 0, copied.stderr
    assert "TARGET is complete" in copied.stdout
    source.stop()
    source.start()
    options = ("--address", source.address)
    async with storeapi.connect_async(source.address, retries=False) as client:
        with pytest.raises(storeapi.StoreMoving) as raised:
            await client.posts.create("a")
        assert raised.value.retry_after
        assert await client.posts.count()
        again = await asyncio.to_thread(run_copy, *databases, *options, folder=tmp_path)
        undone = await asyncio.to_thread(run_copy, *databases, "--undo", *options, folder=tmp_path)
        assert (undone.returncode, undone.stdout) == (0, "SOURCE accepts writes\n")
        await client.posts.create("a")

    assert again.returncode == 0
    assert "TARGET is complete" in again.stdout
    assert not {it for it in tables_in(databases[0]) if it.startswith("copy_")}
    refused = await asyncio.to_thread(run_copy, *databases, *options, folder=tmp_path)
    assert (refused.returncode, "TARGET is not empty" in refused.stderr) == (1, True)


async def test_stopped_store_moves(databases: tuple[str, str], source: ServerProcess, tmp_path: Path) -> None:
    """Without a service the command works on the database itself."""
    await fill(source.address)
    source.stop()

    planned = await asyncio.to_thread(run_copy, *databases, "--dry-run", folder=tmp_path)
    copied = await asyncio.to_thread(run_copy, *databases, folder=tmp_path)

    assert planned.returncode == copied.returncode == 0, planned.stderr + copied.stderr
    assert planned.stdout.splitlines()[:3] == copied.stdout.splitlines()[:3]
    before, after = [stored_rows(it) for it in databases]
    if is_sqlite(databases[1]):
        before["changes"] = []
    assert after == before
    assert before["deleted_posts"]
    assert before["deleted_comments"]
    assert before["revisions"]
    assert before["labels"]


async def test_dry_run_writes_nothing(
    databases: tuple[str, str], source: ServerProcess, tmp_path: Path
) -> None:
    """Neither to the source nor to the target."""
    await fill(source.address)
    before = tables_in(databases[0])

    done = await asyncio.to_thread(
        run_copy, *databases, "--dry-run", "--address", source.address, folder=tmp_path
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert tables_in(databases[0]) == before
    if is_sqlite(databases[1]):
        assert not Path(databases[1].removeprefix("sqlite:///")).exists()  # noqa: ASYNC240
    else:
        assert not tables_in(databases[1])


SMALL_PAGES = "from store_service.database import copy_rows; copy_rows.PAGE_ROWS = 5"


@pytest.mark.timeout(240)
async def test_copy_continues_after_kill_9(
    databases: tuple[str, str], source: ServerProcess, tmp_path: Path
) -> None:
    """At random moments, while callers write. A service does not start on an unfinished copy."""
    chance = random.Random(56)
    options = ("--address", source.address)
    await fill(source.address)
    async with storeapi.connect_async(source.address, timeout=scaled_timeout(120)) as client:
        load = Load(client, per_second=100)
        async with load.running():
            await eventually(lambda: load.writes > 200)
            for _ in range(20 if IS_LONG_RUN else 4):
                process = begin_copy(*databases, *options, folder=tmp_path, program=SMALL_PAGES)
                await eventually(lambda: has_unfinished_copy(databases[1]))
                await asyncio.sleep(chance.random())
                process.kill()
                process.communicate()
            unfinished = ServerProcess(tmp_path / "source", {"DATABASE_URL": databases[1]})
            unfinished.begin()
            assert unfinished.wait() == 1
            assert "unfinished copy" in unfinished.stderr()
            await load.stop()

    copied = await asyncio.to_thread(run_copy, *databases, *options, folder=tmp_path)

    assert copied.returncode == 0, copied.stderr
    before, after = [stored_rows(it) for it in databases]
    if is_sqlite(databases[1]):
        before["changes"] = []
    assert after == before


def has_unfinished_copy(database_url: str) -> bool:
    """Whether the state of a copy is stored in a database."""
    try:
        return "copy_target" in tables_in(database_url)
    except Exception:
        # The file is being created, or is locked.
        return False


async def test_erased_texts_are_not_in_the_target(
    databases: tuple[str, str], source: ServerProcess, tmp_path: Path
) -> None:
    """An erasure between two parts of a copy removes what the first part has copied."""
    await fill(source.address)
    process = begin_copy(*databases, "--address", source.address, folder=tmp_path, program=SLOW_INDEXES)
    assert process.stdout is not None
    assert (await asyncio.to_thread(process.stdout.readline)).strip() == "copied"
    async with grpc.aio.insecure_channel(source.address) as channel:
        assert (await erase(Stubs(channel), ANONYMIZE))[-1].complete
    _, stderr = await asyncio.to_thread(process.communicate, "go\n")

    assert process.returncode == 0, stderr
    content = stored_bytes(databases[1])
    assert content.count(MARKER.encode()) == 0
    assert content.count(KEPT.encode()) > 100


SLOW_INDEXES = """
from store_service.database import copying
catch_up = copying._Copy._catch_up
def wait(copy):
    if not copy._compared:
        copying._Copy._catch_up = catch_up
        print("copied", flush=True)
        input()
    catch_up(copy)
copying._Copy._catch_up = wait
"""
"""Waits for a line on stdin when all pages are copied."""


@pytest.mark.parametrize("databases", ["sqlite-postgresql"], indirect=True)
async def test_target_must_be_empty_or_an_unfinished_copy_of_the_source(
    databases: tuple[str, str], source: ServerProcess, tmp_path: Path
) -> None:
    """Nothing is written to another database, or to the source."""
    await fill(source.address)
    options = ("--address", source.address)
    file = f"sqlite:///{tmp_path / 'other.db'}"

    same_engine = await asyncio.to_thread(run_copy, databases[0], file, *options, folder=tmp_path)
    process = begin_copy(*databases, *options, folder=tmp_path, program=SLOW_INDEXES)
    assert process.stdout is not None
    await asyncio.to_thread(process.stdout.readline)
    second = await asyncio.to_thread(run_copy, *databases, *options, folder=tmp_path)
    process.kill()
    process.communicate()
    await asyncio.to_thread(run_copy, *databases, "--undo", *options, folder=tmp_path)
    before = stored_rows(databases[1])
    undone = await asyncio.to_thread(run_copy, *databases, *options, folder=tmp_path)

    assert "SOURCE and TARGET are SQLite files" in same_engine.stderr
    assert "another copy to TARGET is running" in second.stderr
    assert "cannot be continued" in undone.stderr
    assert {it.returncode for it in (same_engine, second, undone)} == {1}
    assert stored_rows(databases[1]) == before
    assert not {it for it in tables_in(databases[0]) if it.startswith("copy_")}


@pytest.mark.parametrize("databases", ["sqlite-postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("UPDATE posts SET body = 'other' WHERE id = 1", "posts 1 differs"),
        ("DELETE FROM revisions WHERE resource_id = 1", "revisions 1 1 1 differs or is missing"),
        ("INSERT INTO posts (body) VALUES ('more')", "posts has"),
        ("UPDATE changes SET commit_time = 1 WHERE seq = 2", "changes 2 differs"),
    ],
)
async def test_copy_that_differs_is_undone(
    databases: tuple[str, str], source: ServerProcess, tmp_path: Path, damage: str, problem: str
) -> None:
    """The command fails, and the source accepts writes."""
    await fill(source.address)
    process = begin_copy(*databases, "--address", source.address, folder=tmp_path, program=SLOW_INDEXES)
    assert process.stdout is not None
    await asyncio.to_thread(process.stdout.readline)
    with psycopg.connect(databases[1], autocommit=True) as connection:
        connection.execute(damage)

    _, stderr = await asyncio.to_thread(process.communicate, "go\n")

    assert process.returncode == 1
    assert problem in stderr
    async with storeapi.connect_async(source.address, retries=False) as client:
        await client.posts.create("a")
    assert not {it for it in tables_in(databases[0]) if it.startswith("copy_")}
