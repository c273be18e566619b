"""`store-service erase`, and an erasure that is interrupted by kill -9."""

import asyncio
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from storeapi.v1 import admin_pb2, posts_pb2

from store_service.database.connect import is_sqlite
from tests.support.erasure import (
    ANONYMIZE,
    AUTHOR,
    DELETE,
    KEPT,
    MARKER,
    add_small_rows,
    childless_tombstones,
    counts,
    create_world,
    erase,
    stored_bytes,
    unconnected,
)
from tests.support.server_process import ServerProcess, run_command
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN

ROUNDS = 30 if IS_LONG_RUN else 4


@pytest.fixture
def server_process(server_process: ServerProcess, database_url: str) -> Iterator[ServerProcess]:
    """A server on each engine, not started yet."""
    server_process.settings |= {"DATABASE_URL": database_url, "STORE_UNDELETE_HOURS": "24"}
    yield server_process
    server_process.kill()


@pytest.mark.timeout(120 + 30 * ROUNDS)
@pytest.mark.parametrize("mode", [ANONYMIZE, DELETE], ids=["anonymize", "delete"])
async def test_erasure_continues_after_kill_9(
    server_process: ServerProcess, database_url: str, mode: int
) -> None:
    """At random moments, also during the rewrite: threads are connected, and a further call finishes."""
    chance = random.Random(48)
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        for _ in range(3):
            # External ids are unique.
            world, ids = await create_world(Stubs(channel), mode=mode, suffix=str(chance.random()))
        await add_small_rows(world, 100)
        kept = await Stubs(channel).posts.GetPost(posts_pb2.GetPostRequest(id=ids.kept_post))
    for _ in range(ROUNDS):
        async with grpc.aio.insecure_channel(server_process.address) as channel:
            request = admin_pb2.EraseAuthorRequest(author=AUTHOR, mode=mode)
            call = Stubs(channel).admin.EraseAuthor(request)
            for _ in range(chance.randrange(1, 8)):
                if not await call.read():
                    break
            await asyncio.sleep(chance.random() * 0.05)
            server_process.kill()
        server_process.start()
        assert unconnected(database_url) == set()

    async with grpc.aio.insecure_channel(server_process.address) as channel:
        stubs = Stubs(channel)
        assert (await erase(stubs, mode))[-1].complete
        after = stored_bytes(database_url)
        again = (await erase(stubs, mode))[-1]
        assert await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=ids.kept_post)) == kept

    assert after.count(MARKER.encode()) == 0
    assert after.count(KEPT.encode()) > 100
    assert counts(again) == dict.fromkeys(counts(again), 0)
    assert childless_tombstones(database_url) == []
    assert server_process.stop() == 0
    if is_sqlite(database_url):
        with closing(sqlite3.connect(Path(database_url.removeprefix("sqlite:///")))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def printed(response: admin_pb2.EraseAuthorResponse) -> str:
    """What the command prints."""
    return "".join(f"{name.replace('_', ' ')}: {count}\n" for name, count in counts(response).items())


async def test_command_calls_the_running_service(
    server_process: ServerProcess, database_url: str, tmp_path: Path
) -> None:
    """With the key of an administrator; the output has the numbers."""
    keys = {"STORE_API_KEYS_FILE": str(tmp_path / "keys")}
    writer, admin = [
        run_command("keys", "new", "me", "--permissions", it, folder=tmp_path, settings=keys).stdout.strip()
        for it in ("read,write,watch", "admin")
    ]
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        await create_world(Stubs(channel), mode=DELETE)
        planned = (await erase(Stubs(channel), DELETE, validate_only=True))[-1]
    server_process.stop()
    server_process.settings |= keys
    server_process.start()
    command = ("erase", AUTHOR, "--mode", "delete", "--address", server_process.address)

    def run(*options: str, key: str) -> tuple[int, str, str]:
        done = run_command(*command, *options, folder=tmp_path, settings={"STOREAPI_API_KEY": key})
        return done.returncode, done.stdout, done.stderr

    refused = await asyncio.to_thread(run, "--yes", key=writer)
    counted = await asyncio.to_thread(run, "--dry-run", key=admin)
    unconfirmed = await asyncio.to_thread(run, key=admin)
    erased = await asyncio.to_thread(run, "--yes", key=admin)

    assert refused[0] == 1
    assert "the caller does not have the permission admin" in refused[2]
    assert counted == (0, printed(planned), "")
    assert unconfirmed[0] == 1
    assert erased == (0, printed(planned), "")
    assert stored_bytes(database_url).count(MARKER.encode()) == 0
    assert MARKER not in server_process.stderr()


async def test_command_works_on_a_database_without_a_service(
    server_process: ServerProcess, database_url: str, tmp_path: Path
) -> None:
    """While a service uses the SQLite file, the command refuses to."""
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        await create_world(Stubs(channel), mode=ANONYMIZE)
        planned = (await erase(Stubs(channel), ANONYMIZE, validate_only=True))[-1]
    settings = server_process.settings | {"STORE_LISTEN": "127.0.0.1:0"}
    command = ("erase", AUTHOR, "--mode", "anonymize", "--yes")
    if is_sqlite(database_url):
        done = await asyncio.to_thread(run_command, *command, folder=tmp_path, settings=settings)
        assert done.returncode == 1
        assert "another store-service is using" in done.stderr
    server_process.stop()

    done = await asyncio.to_thread(run_command, *command, folder=tmp_path, settings=settings)

    assert (done.returncode, done.stdout) == (0, printed(planned))
    assert MARKER not in done.stderr
    assert stored_bytes(database_url).count(MARKER.encode()) == 0
