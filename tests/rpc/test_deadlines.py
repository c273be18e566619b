"""Expired calls leave no state."""

import asyncio
from collections import Counter
from pathlib import Path

import grpc
import psycopg
from storeapi.v1 import posts_pb2

from store_service.database.connect import is_sqlite
from store_service.database.sqlite_file import database_path
from tests.support.database import database_contents
from tests.support.errors import result_or_error
from tests.support.stubs import Stubs

CALL_COUNT = 1500

AT_ONCE = 50


def connections(database_url: str) -> Counter[str]:
    """What the service, which is in this process, has open: files of SQLite, or sessions of PostgreSQL."""
    if is_sqlite(database_url):
        # A connection opens the log only with its first read.
        file = database_path(database_url).resolve()
        opened = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
        return Counter(path.name for path in opened if path == file)
    with psycopg.connect(database_url) as connection:
        sessions = connection.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE application_name = 'store-service' AND datname = current_database()"
        )
        return Counter(f"session {pid}" for (pid,) in sessions)


async def test_deadlines_lose_no_connection(stubs: Stubs, database_url: str) -> None:
    """1,500 calls end before or during their execution; later calls succeed."""

    async def hurried(n: int) -> None:
        seconds = 0.0004 + 0.0026 * (n % 100) / 100
        request = posts_pb2.BatchCreatePostsRequest(
            requests=[posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=f"{n}")) for _ in range(2)]
        )
        outcome = await result_or_error(stubs.posts.BatchCreatePosts(request, timeout=seconds))
        if isinstance(outcome, grpc.RpcError):  # a call that was quick enough is as good
            codes.add(outcome.code())

    codes: set[grpc.StatusCode] = set()
    await stubs.create_post("the first")
    before = connections(database_url)
    assert before

    for start in range(0, CALL_COUNT, AT_ONCE):
        await asyncio.gather(*(hurried(n) for n in range(start, start + AT_ONCE)))
        # It also lets the server catch up, whose event loop is ours. Calls that wait for it are kept although
        # their callers have gone, and when they are more than grpc.server.max_pending_requests (1000), gRPC
        # refuses new ones at random, with CANCELLED, before the service hears of them.
        assert (await stubs.create_post("the next")).body == "the next"

    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert connections(database_url) == before
    stored = Counter(row[1] for row in database_contents(database_url).posts)
    assert (stored.pop("the first"), stored.pop("the next")) == (1, CALL_COUNT / AT_ONCE)
    assert set(stored.values()) <= {2}, "a batch was stored in part"
