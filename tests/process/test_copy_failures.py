"""A copy to another database that is killed, refused, or not equal."""

import asyncio
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import storeapi
from storeapi.v1 import admin_pb2, admin_pb2_grpc, posts_pb2, posts_pb2_grpc

from store_service.database import copy_target, copying
from store_service.database.connect import is_sqlite
from store_service.model import WriteMode
from tests.support.copying import (
    Load,
    begin_copy,
    fill,
    run_copy,
    stored_rows,
    tables_in,
)
from tests.support.erasure import ANONYMIZE, KEPT, MARKER, erase, stored_bytes
from tests.support.polling import eventually
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout

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
    counts = [chance.randrange(1, 20) for _ in range(20 if IS_LONG_RUN else 2)]
    programs = [KILLED.format(method="_save", count=count) for count in counts]
    programs.append(KILLED.format(method="_set_last_number", count=1))
    await fill(source.address)
    async with storeapi.connect_async(source.address, timeout=scaled_timeout(120)) as client:
        load = Load(client, per_second=50)
        async with load.running():
            await eventually(lambda: load.writes > 100)
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


def copy_in_process(databases: tuple[str, str], set_mode: Callable[[WriteMode], None]) -> copying.Copied:
    """Copies in this process, where a test can change a step."""
    return copying.copy(
        *databases, set_mode=set_mode, report=lambda *_: None, connect_timeout_seconds=scaled_timeout()
    )


@pytest.mark.parametrize("databases", ["sqlite-postgresql"], indirect=True)
async def test_last_step_that_differs_is_undone(
    databases: tuple[str, str], source: ServerProcess, tmp_path: Path
) -> None:
    """The rows of the last step are compared too, while writes are refused."""
    await fill(source.address)
    modes = []

    def set_mode(mode: WriteMode) -> None:
        with grpc.insecure_channel(source.address) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            if mode is WriteMode.REFUSED:
                posts_pb2_grpc.PostServiceStub(channel).CreatePost(
                    posts_pb2.CreatePostRequest(post={"body": "the last one"})
                )
                with psycopg.connect(databases[1], autocommit=True) as connection:
                    connection.execute(DAMAGE)
            stub.SetWriteMode(admin_pb2.SetWriteModeRequest(mode=admin_pb2.WriteMode.ValueType(mode)))
        modes.append(mode)

    with pytest.raises(copy_target.CopyDiffers, match="posts"):
        await asyncio.to_thread(copy_in_process, databases, set_mode)

    assert modes == [WriteMode.RECORDED, WriteMode.REFUSED, WriteMode.NORMAL]
    async with storeapi.connect_async(source.address, retries=False) as client:
        await client.posts.create("a")


DAMAGE = """
CREATE FUNCTION damage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.body := 'another one'; RETURN NEW; END $$;
CREATE TRIGGER damage BEFORE INSERT ON posts FOR EACH ROW EXECUTE FUNCTION damage();
"""
"""Changes each row that is added to the target."""


@pytest.mark.parametrize("databases", ["postgresql-postgresql"], indirect=True)
@pytest.mark.parametrize("is_committed", [False, True])
async def test_last_step_whose_connection_is_lost(
    databases: tuple[str, str],
    source: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_committed: bool,
) -> None:
    """The source accepts writes again only if the target is not complete. The command can be run again."""
    await fill(source.address)
    finish = copy_target.Target.finish

    def lose(target: copy_target.Target, snapshot: Any) -> None:
        if is_committed:
            finish(target, snapshot)
        raise ConnectionResetError("lost")

    monkeypatch.setattr(copy_target.Target, "finish", lose)
    modes = []

    def set_mode(mode: WriteMode) -> None:
        with grpc.insecure_channel(source.address) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            stub.SetWriteMode(admin_pb2.SetWriteModeRequest(mode=admin_pb2.WriteMode.ValueType(mode)))
        modes.append(mode)

    with pytest.raises(copying.CopyInterrupted, match="lost"):
        await asyncio.to_thread(copy_in_process, databases, set_mode)

    end = [WriteMode.REFUSED] if is_committed else [WriteMode.REFUSED, WriteMode.RECORDED]
    assert modes == [WriteMode.RECORDED, *end]
    again = await asyncio.to_thread(run_copy, *databases, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert ("compared" in again.stdout) != is_committed
    before, after = [stored_rows(it) for it in databases]
    assert after == before
