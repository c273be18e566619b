"""`store-service copy`: a store moves to another database while it is served."""

import asyncio
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import psycopg
import pytest
import storeapi
from sqlalchemy import text
from storeapi.v1 import admin_pb2

from store_service.database import schema
from store_service.database.connect import is_missing, is_sqlite
from tests.support import legacy_database
from tests.support.copying import (
    Load,
    Watcher,
    add_many_rows,
    all_changes,
    begin_copy,
    empty_database,
    run_copy,
    served,
    stored_rows,
    tables_in,
)
from tests.support.database import database_connection, query
from tests.support.erasure import ANONYMIZE, KEPT, MARKER, create_world, erase, stored_bytes
from tests.support.polling import eventually
from tests.support.postgresql import new_database
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
        assert is_missing(databases[1])
    else:
        assert not tables_in(databases[1])


KILLED = """
import os, signal
from store_service.database import copy_rows
from store_service.database.copy_target import Target
copy_rows.PAGE_ROWS = 5
left = {count}
called = Target.{method}
def killed(*arguments):
    global left
    called(*arguments)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
Target.{method} = killed
"""
"""Kills itself after some calls of a method."""


@pytest.mark.timeout(240)
async def test_copy_continues_after_kill_9(
    databases: tuple[str, str], source: ServerProcess, tmp_path: Path
) -> None:
    """At any moment, also in the last step, while callers write. No service starts on an unfinished copy."""
    chance = random.Random(56)
    options = ("--address", source.address)
    # `_save` ends each transaction before the last one, which calls `_set_last_number`.
    counts = [chance.randrange(1, 50) for _ in range(20 if IS_LONG_RUN else 4)]
    programs = [KILLED.format(method="_save", count=count) for count in counts]
    programs.append(KILLED.format(method="_set_last_number", count=1))
    await fill(source.address)
    async with storeapi.connect_async(source.address, timeout=scaled_timeout(120)) as client:
        load = Load(client, per_second=100)
        async with load.running():
            await eventually(lambda: load.writes > 200)
            for program in programs:
                process = begin_copy(*databases, *options, folder=tmp_path, program=program)
                await asyncio.to_thread(process.communicate)
                assert process.returncode == -signal.SIGKILL
            unfinished = ServerProcess(tmp_path / "source", {"DATABASE_URL": databases[1]})
            unfinished.begin()
            assert await asyncio.to_thread(unfinished.wait) == 1
            assert "unfinished copy" in unfinished.stderr()
            # The source has refused writes since the last kill.
            undo = await asyncio.to_thread(run_copy, *databases, "--dry-run", folder=tmp_path)
            assert "will be continued" in undo.stdout, undo.stderr
            set_mode = admin_pb2.SetWriteModeRequest(mode=admin_pb2.WRITE_MODE_RECORDED)
            async with grpc.aio.insecure_channel(source.address) as channel:
                await Stubs(channel).admin.SetWriteMode(set_mode)
            await load.stop()

    copied = await asyncio.to_thread(run_copy, *databases, *options, folder=tmp_path)

    assert copied.returncode == 0, copied.stderr
    before, after = [stored_rows(it) for it in databases]
    if is_sqlite(databases[1]):
        before["changes"] = []
    assert after == before


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
        ("INSERT INTO posts (id, body) VALUES (999999, 'more')", "posts has"),
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


ROWS = 500_000


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not IS_LONG_RUN, reason="the copy of 500,000 rows runs with STORE_TEST_LONG=1")
async def test_copy_of_many_rows(
    databases: tuple[str, str], source: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lost with 200 writes per second. Prints the figures of the command."""
    source.stop()
    with database_connection(databases[0]) as connection:
        add_many_rows(connection, ROWS)
    source.start()
    async with storeapi.connect_async(source.address, timeout=scaled_timeout(300)) as client:
        load = Load(client, per_second=200)
        async with load.running():
            await eventually(lambda: load.writes > 200)
            started, written = time.monotonic(), load.writes
            copied = await asyncio.to_thread(
                run_copy, *databases, "--address", source.address, folder=tmp_path
            )
            seconds, written = time.monotonic() - started, load.writes - written
            undone = await asyncio.to_thread(
                run_copy, *databases, "--undo", "--address", source.address, folder=tmp_path
            )
            after = stored_rows(databases[1])
            await load.stop()

    assert copied.returncode == undone.returncode == 0, copied.stderr
    rows = sum(map(len, after.values()))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{rows:,} rows in {seconds:.1f} s, {rows / seconds:,.0f}/s; {written / seconds:.0f} writes/s\n"
            f"{copied.stdout}"
        )
    posts = {id: body for id, body, *_ in after["posts"]}
    assert len(posts) >= ROWS // 2


async def test_legacy_database_is_copied(postgres: str, tmp_path: Path) -> None:
    """With what its upgrade has kept, and without giving an id twice. A body with NUL stops the copy."""
    path = tmp_path / "store.db"
    source = legacy_database.create_file(path)
    with database_connection(source) as connection:
        connection.execute(text("INSERT INTO posts (id, body) VALUES (60, CAST(x'61ff' AS TEXT))"))
    schema.upgrade(source)
    with new_database(postgres) as target:
        stopped = await asyncio.to_thread(run_copy, source, target, folder=tmp_path)
        with database_connection(source) as connection:
            connection.execute(text("UPDATE posts SET body = 'without' WHERE id = 20"))
        copied = await asyncio.to_thread(run_copy, source, target, folder=tmp_path)
        before, after = stored_rows(source), stored_rows(target)
        with database_connection(target) as connection:
            new = connection.execute(text("INSERT INTO posts (body) VALUES ('new') RETURNING id")).scalar()

    assert stopped.returncode == 1
    assert "posts 20 has NUL in a text" in stopped.stderr
    assert copied.returncode == 0, copied.stderr
    assert after == before
    assert before["orphaned_comments"]
    assert before["undecodable_bodies"]
    assert new == query(path, "SELECT seq + 1 FROM sqlite_sequence WHERE name = 'posts'")[0][0]
