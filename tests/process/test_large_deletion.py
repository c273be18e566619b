"""Deletions and purges of more comments than one transaction removes, in a child process."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import grpc
import pytest
from sqlalchemy import text
from storeapi.v1 import comments_pb2, posts_pb2

from store_service.database.connect import is_sqlite
from store_service.database.engines import sync_engine
from store_service.service.comment_removal import MAX_ROWS
from tests.support.polling import wait_until
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN

COMMENTS = 1_000_000 if IS_LONG_RUN else 3 * MAX_ROWS
"""Comments that are deleted or purged while others write."""


@pytest.fixture
def server_process(server_process: ServerProcess, database_url: str) -> Iterator[ServerProcess]:
    """A server on each engine, not started yet."""
    server_process.settings["DATABASE_URL"] = database_url
    yield server_process
    server_process.kill()


def engine_of(database_url: str) -> str:
    """The name of the engine, for the output."""
    return "SQLite" if is_sqlite(database_url) else "PostgreSQL"


def add_rows(database_url: str, insert: str, count: int) -> None:
    """Runs an insert that selects from the table `numbers`, with the column `n` from 1 to `count`."""
    numbers = (
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)"
        if is_sqlite(database_url)
        else "WITH numbers (n) AS (SELECT generate_series(1, :count))"
    )
    engine = sync_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text(f"{numbers} {insert}"), {"count": count})
    engine.dispose()


def fill(database_url: str, count: int) -> int:
    """Stores a post with comments past the server, and returns its id."""
    engine = sync_engine(database_url)
    with engine.begin() as connection:
        id = connection.scalar(text("INSERT INTO posts (body) VALUES ('a post') RETURNING id"))
    engine.dispose()
    assert isinstance(id, int)
    add_rows(
        database_url,
        "INSERT INTO comments (post_id, body)"
        f" SELECT {id}, 'a comment as people write them, of about a hundred bytes ' || n FROM numbers",
        count,
    )
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


async def longest_wait(
    address: str, delete: Callable[[Stubs], Awaitable[object]], is_done: Callable[[], bool], label: str
) -> None:
    """Creates posts while a deletion runs, and prints how long the slowest one took. Every one succeeds."""
    async with grpc.aio.insecure_channel(address) as channel:
        stubs = Stubs(channel)
        waits: list[float] = []

        async def write() -> None:
            while True:
                began = time.perf_counter()
                await stubs.create_post()
                waits.append(time.perf_counter() - began)

        writing = asyncio.create_task(write())
        began = time.perf_counter()
        await delete(stubs)
        answered = time.perf_counter()
        while not await asyncio.to_thread(is_done):
            assert not writing.done(), writing.exception()
            await asyncio.sleep(0.1)
        ended = time.perf_counter()
        writing.cancel()
    print(  # noqa: T201  # for the output of `make torture`
        f"{label}: answered after {answered - began:.3f} s, done after {ended - began:.1f} s, longest of"
        f" {len(waits):,} other writes {max(waits):.3f} s"
    )


@pytest.mark.timeout(1800 if IS_LONG_RUN else 120)
async def test_writes_succeed_while_a_large_post_is_deleted(
    server_process: ServerProcess, database_url: str
) -> None:
    post_id = await asyncio.to_thread(fill, database_url, COMMENTS)
    request = posts_pb2.DeletePostRequest(id=post_id, force=True)

    await longest_wait(
        server_process.start().address,
        lambda stubs: stubs.posts.DeletePost(request),
        lambda: is_removed(database_url),
        f"post of {COMMENTS:,} comments on {engine_of(database_url)}",
    )

    assert left(database_url) == 0
    assert rows(database_url, f"SELECT count(*) FROM changes WHERE post_id = {post_id}") == [(COMMENTS + 1,)]


@pytest.mark.timeout(1800 if IS_LONG_RUN else 120)
async def test_writes_succeed_while_a_large_thread_is_deleted(
    server_process: ServerProcess, database_url: str
) -> None:
    """The thread can be restored, so its rows are copied."""
    server_process.settings["STORE_UNDELETE_HOURS"] = "1"
    post_id = await asyncio.to_thread(fill, database_url, 1)
    ((root_id,),) = rows(database_url, "SELECT id FROM comments")
    replies = COMMENTS // 10 if IS_LONG_RUN else COMMENTS
    add_rows(
        database_url,
        "INSERT INTO comments (post_id, body, reply_to_id, path)"
        f" SELECT {post_id}, 'a reply of about fifty bytes, as people write ' || n, {root_id},"
        f" '{root_id:016x}' FROM numbers",
        replies,
    )
    request = comments_pb2.DeleteCommentRequest(id=root_id, force=True)

    await longest_wait(
        server_process.start().address,
        lambda stubs: stubs.comments.DeleteComment(request),
        lambda: rows(database_url, "SELECT count(*) FROM thread_deletions") == [(0,)],
        f"thread of {replies:,} replies on {engine_of(database_url)}",
    )

    assert left(database_url) == 0
    assert rows(database_url, "SELECT count(*) FROM deleted_comments") == [(replies + 1,)]


@pytest.mark.timeout(1800 if IS_LONG_RUN else 120)
async def test_writes_succeed_while_deleted_comments_are_purged(
    server_process: ServerProcess, database_url: str
) -> None:
    await asyncio.to_thread(
        add_rows,
        database_url,
        "INSERT INTO deleted_comments (id, post_id, body, delete_time, purge_time)"
        " SELECT n, 1, 'a comment as people write them, of about a hundred bytes ' || n, 1, 2 FROM numbers",
        COMMENTS,
    )

    async def nothing(_: Stubs) -> None:
        """The purge starts with the server."""

    await longest_wait(
        server_process.start().address,
        nothing,
        lambda: rows(database_url, "SELECT id FROM deleted_comments LIMIT 1") == [],
        f"purge of {COMMENTS:,} comments on {engine_of(database_url)}",
    )

    assert rows(database_url, "SELECT count(*) FROM changes WHERE kind = 2") == [(0,)]
