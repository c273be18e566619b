"""Many callers at once: all are served, few commits serve them, and memory stays where it is."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from storeapi.v1 import comments_pb2, posts_pb2

from tests.support.commits import count_wal_commits
from tests.support.errors import received_error
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

MIB = 1024 * 1024


@pytest.fixture
def server_process(database_file: Path) -> Iterator[ServerProcess]:
    """A server as a child process, not started yet, whose database needs no upgrade."""
    process = ServerProcess(database_file.parent)
    yield process
    process.kill()


@pytest.fixture
def installed_command(server_process: ServerProcess) -> None:
    """Starts the server with the installed command. A forked process has the modules of all commands."""
    server_process.program = (str(Path(sys.executable).with_name("store-service")),)


@pytest.fixture
async def channel(server_process: ServerProcess) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server process that does not log calls."""
    server_process.settings["STORE_LOG_LEVEL"] = "warning"
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        yield channel
    assert server_process.stop() == 0
    assert server_process.stderr() == ""


async def share(calls: int, callers: int, call: Callable[[int], Awaitable[None]]) -> None:
    """Has some callers do many calls together, each the next as soon as it has done one."""
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(caller() for _ in range(callers)))


async def test_posts_of_64_callers_share_commits(
    channel: grpc.aio.Channel, server_process: ServerProcess
) -> None:
    """2000 calls succeed, each with its own id, with fewer commits and fsyncs than calls."""
    stubs = Stubs(channel)
    ids: list[int] = []

    async def create(number: int) -> None:
        post = await stubs.create_post(f"post {number}")
        assert post.body == f"post {number}"
        ids.append(post.id)

    with count_wal_commits(server_process.folder / "store.db") as commits:
        await share(2000, 64, create)

        assert 0 < commits.count() < 2000
    assert sorted(ids) == list(range(1, 2001))


async def test_memory_stays_below_120_mib_after_20000_calls(
    installed_command: None, channel: grpc.aio.Channel, server_process: ServerProcess
) -> None:
    stubs = Stubs(channel)
    first = await stubs.create_post("the first")

    async def call(number: int) -> None:
        if number % 4 == 0:
            await stubs.create_post("x" * 1000)
        else:
            await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=first.id))

    await share(20_000, 200, call)

    assert server_process.rss_bytes < 120 * MIB


@pytest.mark.parametrize("force", [False, True])
async def test_comments_created_during_a_deletion_are_not_orphaned(
    channel: grpc.aio.Channel, server_process: ServerProcess, force: bool
) -> None:
    """50 callers comment while one deletes: each response is true."""
    stubs = Stubs(channel)
    posts_left, comments_left = 0, 0
    reasons: set[str] = set()

    async def comment(post_id: int, after: int) -> int:
        for _ in range(after):
            await asyncio.sleep(0)
        try:
            return (await stubs.create_comment(post_id)).id
        except grpc.aio.AioRpcError as error:
            reasons.add(received_error(error).reason)
            return 0

    async def delete(post_id: int) -> bool:
        for _ in range(10):
            await asyncio.sleep(0)
        try:
            await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=post_id, force=force))
        except grpc.aio.AioRpcError as error:
            reasons.add(received_error(error).reason)
            return False
        return True

    for _ in range(10):
        post = await stubs.create_post()
        answers = await asyncio.gather(delete(post.id), *(comment(post.id, after) for after in range(50)))
        is_deleted, stored = bool(answers[0]), [id for id in answers[1:] if id]
        count = await stubs.comments.CountComments(comments_pb2.CountCommentsRequest(post_ids=[post.id]))
        if is_deleted:
            assert count.counts[post.id] == 0
            assert force or not stored
            with pytest.raises(grpc.aio.AioRpcError):
                await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=post.id))
        else:
            assert not force
            assert count.counts[post.id] == len(stored) == 50
            posts_left, comments_left = posts_left + 1, comments_left + 50

    assert reasons <= {"POST_NOT_FOUND", "POST_HAS_COMMENTS"}
    with closing(
        sqlite3.connect(f"file:{server_process.folder / 'store.db'}?mode=ro", uri=True)
    ) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("SELECT count(*) FROM posts").fetchone() == (posts_left,)
        assert connection.execute("SELECT count(*) FROM comments").fetchone() == (comments_left,)
