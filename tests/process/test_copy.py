"""`store-service copy`: a store moves to another database while it is served."""

import asyncio
import random
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import storeapi
from sqlalchemy import text
from storeapi.v1 import changes_pb2

from store_service.database import schema
from store_service.database.connect import is_missing, is_sqlite
from tests.support import legacy_database
from tests.support.copying import (
    Load,
    Watcher,
    add_many_rows,
    all_changes,
    empty_database,
    fill,
    run_copy,
    schema_in,
    served,
    stored_rows,
    tables_in,
)
from tests.support.database import database_connection, query
from tests.support.polling import eventually
from tests.support.postgresql import new_database
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout
from tests.support.unreliable_proxy import UnreliableProxy


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


async def test_stopped_store_moves(
    databases: tuple[str, str], source: ServerProcess, postgres: str, tmp_path: Path
) -> None:
    """Without a service the command works on the database itself. The target has the schema of a new one."""
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
    engine = "sqlite" if is_sqlite(databases[1]) else "postgresql"
    with empty_database(engine, tmp_path, postgres) as new:
        schema.upgrade(new)
        assert schema_in(databases[1]) == schema_in(new)


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


async def first_token(stubs: Stubs, **start: bool) -> str:
    """The token of the first response of a watch."""
    watch: Any = stubs.changes.Watch(changes_pb2.WatchRequest(**start))
    response = await watch.read()
    watch.cancel()
    return str(response.resume_token)


@pytest.mark.parametrize("databases", ["sqlite-postgresql"], indirect=True)
async def test_tokens_of_former_stores(
    databases: tuple[str, str], source: ServerProcess, postgres: str, tmp_path: Path
) -> None:
    """Also after a second copy. A token of a change that was not copied is refused."""
    async with grpc.aio.insecure_channel(source.address) as channel:
        stubs = Stubs(channel)
        begin = await first_token(stubs)
        for _ in range(2):
            await stubs.create_post()
        middle = await first_token(stubs)
        for _ in range(3):
            await stubs.create_post()
        initial = await first_token(stubs, initial_state=True)
        options = ("--address", source.address)
        copied = await asyncio.to_thread(run_copy, *databases, *options, folder=tmp_path)
        assert copied.returncode == 0, copied.stderr
        await asyncio.to_thread(run_copy, *databases, "--undo", *options, folder=tmp_path)
        await stubs.create_post()
        fork = await first_token(stubs)

    async def check(address: str, added: list[int]) -> None:
        async with storeapi.connect_async(address) as client:
            for token, ids in ((begin, [1, 2, 3, 4, 5]), (middle, [3, 4, 5])):
                expected = [*ids, *added]
                async with client.changes.watch(resume_token=token) as watch:
                    assert [(await anext(watch)).id for _ in expected] == expected
            async with client.changes.watch(resume_token=initial) as watch:
                batches = watch.batches()
                rest = [await anext(batches), await anext(batches)]
                assert any(it.initial_state_complete for it in rest)
            with pytest.raises(storeapi.ResumeTokenForeign):
                await anext(client.changes.watch(resume_token=fork))
            client.read_at_least(middle)
            assert await client.posts.count() == 5 + len(added)

    with new_database(postgres) as second:
        with served(databases[1], tmp_path / "first") as process:
            await check(process.address, [])
            async with storeapi.connect_async(process.address) as client:
                post = await client.posts.create("on the first copy")
            await check(process.address, [post.id])
        copied = await asyncio.to_thread(run_copy, databases[1], second, folder=tmp_path)
        assert copied.returncode == 0, copied.stderr
        with served(second, tmp_path / "second") as process:
            await check(process.address, [post.id])


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
