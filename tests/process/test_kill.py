"""kill -9: acknowledged writes survive."""

import asyncio
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from storeapi.v1 import posts_pb2

from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN

ROUNDS = 100 if IS_LONG_RUN else 20
CALLERS = 16


@pytest.fixture
def server_process(database_file: Path) -> Iterator[ServerProcess]:
    """A server as a child process, not started yet, whose database needs no upgrade."""
    process = ServerProcess(database_file.parent)
    yield process
    process.kill()


@pytest.mark.timeout(120 + 20 * ROUNDS)  # one start more, also on a machine that has other things to do
async def test_acknowledged_posts_survive_kill_9(server_process: ServerProcess) -> None:
    """20 times during the writes of 16 callers; nothing acknowledged is lost, duplicated or changed."""
    chance = random.Random(9)
    acknowledged: dict[int, str] = {}
    just_now: list[int] = []
    for number in range(ROUNDS):
        server_process.start()
        async with grpc.aio.insecure_channel(server_process.address) as channel:
            await assert_stored(Stubs(channel), acknowledged, just_now)
            before = set(acknowledged)
            enough = len(before) + chance.randrange(1, 200)
            reached = asyncio.Event()
            callers = [
                asyncio.create_task(
                    write(Stubs(channel), f"{number}/{caller}", acknowledged, enough, reached)
                )
                for caller in range(CALLERS)
            ]
            await reached.wait()
            await asyncio.sleep(chance.random() * 0.01)
            server_process.kill()
            attempts = sum(await asyncio.gather(*callers))
        just_now = [id for id in acknowledged if id not in before]
        assert 0 < len(just_now) <= attempts

    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        await assert_stored(Stubs(channel), acknowledged, list(acknowledged))
    assert server_process.stop() == 0
    with closing(sqlite3.connect(server_process.folder / "store.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) - count(DISTINCT body) FROM posts").fetchall() == [(0,)]
    assert "Traceback" not in server_process.stderr()


async def write(
    stubs: Stubs, name: str, acknowledged: dict[int, str], enough: int, reached: asyncio.Event
) -> int:
    """Creates posts until the server ends. Returns the number of attempts."""
    for attempt in range(1_000_000):
        # From some bytes to many pages, so that transactions and checkpoints of all sizes are interrupted.
        body = f"{name}/{attempt} ".ljust(40 * 4 ** (attempt % 5), "x")
        try:
            post = await stubs.create_post(body)
        except grpc.RpcError as error:
            # Whatever the call met, it was the end of the server.
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            return attempt + 1
        assert post.id not in acknowledged, "an id was given twice"
        acknowledged[post.id] = post.body
        if len(acknowledged) >= enough:
            reached.set()
    raise AssertionError("the server was never killed")


async def assert_stored(stubs: Stubs, acknowledged: dict[int, str], ids: list[int]) -> None:
    """Reads what was acknowledged."""
    # 200 of the largest bodies are less than a message may be.
    for start in range(0, len(ids), 200):
        asked = ids[start : start + 200]
        answer = await stubs.posts.BatchGetPosts(posts_pb2.BatchGetPostsRequest(ids=asked))
        assert [(post.id, post.body) for post in answer.posts] == [(id, acknowledged[id]) for id in asked]
