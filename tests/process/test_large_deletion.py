"""Removal of a post with more comments than one transaction removes, in a child process."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest
from sqlalchemy import text
from storeapi.v1 import posts_pb2

from store_service.database.connect import is_sqlite, sync_engine
from store_service.service.large_deletions import MAX_ROWS
from tests.support.polling import wait_until
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN

COMMENTS = 1_000_000 if IS_LONG_RUN else 3 * MAX_ROWS
"""Comments of the post that is deleted while others write."""


@pytest.fixture
def server_process(server_process: ServerProcess, database_url: str) -> Iterator[ServerProcess]:
    """A server on each engine, not started yet."""
    server_process.settings["DATABASE_URL"] = database_url
    yield server_process
    server_process.kill()


def fill(database_url: str, count: int) -> int:
    """Stores a post with comments past the server, and returns its id."""
    numbers = (
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)"
        if is_sqlite(database_url)
        else "WITH numbers (n) AS (SELECT generate_series(1, :count))"
    )
    engine = sync_engine(database_url)
    with engine.begin() as connection:
        id = connection.scalar(text("INSERT INTO posts (body) VALUES ('a post') RETURNING id"))
        assert isinstance(id, int)
        connection.execute(
            text(
                f"{numbers} INSERT INTO comments (post_id, body)"  # one of two texts
                " SELECT :id, 'a comment as people write them, of about a hundred bytes ' || n FROM numbers"
            ),
            {"count": count, "id": id},
        )
    engine.dispose()
    return id


def rows(database_url: str, statement: str) -> list[tuple[int, ...]]:
    """What a query finds, past the server."""
    engine = sync_engine(database_url)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(statement))]
    engine.dispose()
    return found


def left(database_url: str) -> int:
    """How many comments are stored."""
    return rows(database_url, "SELECT count(*) FROM comments")[0][0]


def is_removed(database_url: str) -> bool:
    """Whether nothing is left to be removed."""
    return rows(database_url, "SELECT count(*) FROM post_deletions") == [(0,)]


def delete(address: str, post_id: int) -> None:
    """Deletes a post with its comments."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/storeapi.v1.PostService/DeletePost",
            request_serializer=posts_pb2.DeletePostRequest.SerializeToString,
            response_deserializer=posts_pb2.Post.FromString,
        )
        call(posts_pb2.DeletePostRequest(id=post_id, force=True), wait_for_ready=True)


def test_removal_continues_after_kill_9(server_process: ServerProcess, database_url: str) -> None:
    """The feed contains every comment once, and nothing is left in the end."""
    count = 20 * MAX_ROWS
    post_id = fill(database_url, count)
    delete(server_process.start().address, post_id)
    wait_until(lambda: left(database_url) < count)
    server_process.kill()
    remaining = left(database_url)
    assert 0 < remaining < count, "it was not in the middle"
    assert rows(database_url, "SELECT count(*) FROM posts") == [(1,)]

    server_process.start()
    wait_until(lambda: is_removed(database_url))

    assert server_process.stop() == 0
    assert left(database_url) == 0
    assert rows(database_url, "SELECT count(*) FROM posts") == [(0,)]
    told = Counter(rows(database_url, "SELECT action, kind, resource_id FROM changes"))
    assert len(told) == count + 1
    assert set(told.values()) == {1}
    assert "Traceback" not in server_process.stderr()


@pytest.mark.timeout(1800 if IS_LONG_RUN else 120)
async def test_writes_succeed_while_a_large_post_is_deleted(
    server_process: ServerProcess, database_url: str
) -> None:
    """Every other write succeeds meanwhile; prints the longest duration."""
    post_id = await asyncio.to_thread(fill, database_url, COMMENTS)
    async with grpc.aio.insecure_channel(server_process.start().address) as channel:
        stubs = Stubs(channel)
        waits: list[float] = []

        async def write() -> None:
            while True:
                began = time.perf_counter()
                await stubs.create_post()
                waits.append(time.perf_counter() - began)

        writing = asyncio.create_task(write())
        began = time.perf_counter()
        await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=post_id, force=True))
        answered = time.perf_counter()
        while not await asyncio.to_thread(is_removed, database_url):
            assert not writing.done(), await writing
            await asyncio.sleep(0.1)
        ended = time.perf_counter()
        writing.cancel()

    print(  # noqa: T201  # for the output of `make torture`
        f"{COMMENTS:,} comments on {'SQLite' if is_sqlite(database_url) else 'PostgreSQL'}:"
        f" DeletePost {answered - began:.3f} s, all removed after {ended - began:.1f} s,"
        f" longest of {len(waits):,} other writes {max(waits):.3f} s"
    )
    assert left(database_url) == 0
    assert rows(database_url, f"SELECT count(*) FROM changes WHERE post_id = {post_id}") == [(COMMENTS + 1,)]
