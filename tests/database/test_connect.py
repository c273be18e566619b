"""An open database on each engine: visibility of writes, locks, forced rollback, and closing."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import asyncpg
import grpc
import pytest
import sqlalchemy

from store_service import config as settings
from store_service.database import connect
from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection
from store_service.database.statements import Statement
from store_service.errors import CommentNotFound, DatabaseBusy, PostNotFound, StorageFull
from store_service.model import CommentDraft, Deletion, PostDraft, Update
from store_service.server import serving
from store_service.service.comments import Comments
from store_service.service.posts import Posts
from tests.support.database import query, write_lock
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

READERS = 3


async def test_committed_write_is_visible_to_every_reader(database_url: str) -> None:
    async with connect.open_database(database_url, readers=READERS) as store:
        posts = Posts(store)
        for number in range(20):
            (post,) = await posts.create([PostDraft(body=str(number))])
            read = await asyncio.gather(*(posts.get(post.id) for _ in range(READERS)))
            assert read == [post] * READERS


async def test_foreign_keys_are_enforced(database_url: str) -> None:
    insert = Statement(sqlalchemy.text("INSERT INTO comments (body, post_id) VALUES ('orphan', 1)"))

    async def run(connection: Connection, asked: Sequence[None]) -> list[None]:
        await connection.fetch(insert)
        return [None for _ in asked]

    async with connect.open_database(database_url, readers=1) as store:
        with pytest.raises((sqlite3.IntegrityError, asyncpg.ForeignKeyViolationError)):
            await store.write(BatchOperation(run), None)

    assert query(database_url, "SELECT count(*) FROM comments") == [(0,)]


async def test_long_lock_is_busy(database_url: str) -> None:
    """A retry succeeds later."""
    async with connect.open_database(database_url, readers=1, lock_timeout_seconds=0.05) as store:
        posts = Posts(store)
        with write_lock(database_url):
            with pytest.raises(DatabaseBusy):
                await posts.create([PostDraft(body="refused")])
            with pytest.raises(DatabaseBusy):
                await posts.update([Update(id=1, values={"body": "refused"}, etag="", request_field="post")])
        await posts.create([PostDraft(body="kept")])

    assert query(database_url, "SELECT body FROM posts") == [("kept",)]


async def test_reads_do_not_wait_for_a_writer(database_url: str) -> None:
    """This includes writers of other programs."""
    async with connect.open_database(database_url, readers=1, lock_timeout_seconds=0.05) as store:
        posts = Posts(store)
        (post,) = await posts.create([PostDraft(body="a")])
        with write_lock(database_url):
            assert await posts.get(post.id) == post


# DB_FORCE_ROLL_BACK


async def test_forced_rollback_keeps_nothing(database_url: str) -> None:
    """Reads see earlier writes while the database is open."""
    async with connect.open_database(database_url) as store:
        stored = await Posts(store).create([PostDraft(body="was there")])
    before = query(database_url, "SELECT * FROM posts")
    async with connect.open_database(database_url, readers=2, force_roll_back=True) as store:
        posts, comments = Posts(store), Comments(store)
        first, second = await posts.create([PostDraft(body="first"), PostDraft(body="second")])
        (comment,) = await comments.create([CommentDraft(body="c", post_id=first.id)])
        (changed,) = await posts.update(
            [Update(id=second.id, values={"body": "changed"}, etag="", request_field="post")]
        )
        assert await posts.get(second.id) == changed
        assert await comments.get(comment.id) == comment

        # A dry run and a failed job are rolled back alone. Writes of other jobs stay.
        await posts.delete(Deletion(ids=(second.id,)), dry_run=True)
        outcomes = await asyncio.gather(
            comments.create([CommentDraft(body="fine", post_id=first.id)]),
            comments.create([CommentDraft(body="orphan", post_id=99)]),
            return_exceptions=True,
        )
        assert isinstance(outcomes[1], PostNotFound)
        assert await comments.count([first.id]) == {first.id: 2}
        await posts.delete(Deletion(ids=(first.id,), force=True))
        with pytest.raises(CommentNotFound):
            await comments.get(comment.id)
        assert await posts.get(second.id) == changed
        assert query(database_url, "SELECT * FROM posts") == before
        await posts.delete(Deletion(ids=(stored[0].id,)))

    assert query(database_url, "SELECT * FROM posts") == before
    assert query(database_url, "SELECT count(*) FROM comments") == [(0,)]


@pytest.mark.parametrize("fails", [True, False], ids=["failed", "dry run"])
async def test_forced_rollback_leaves_no_savepoints(database_url: str, fails: bool) -> None:
    """They would slow down PostgreSQL."""
    used: list[Connection] = []

    async def run(connection: Connection, asked: Sequence[None]) -> list[None]:
        used.append(connection)
        if fails:
            raise StorageFull
        return [None] * len(asked)

    async with connect.open_database(database_url, force_roll_back=True) as store:
        with pytest.raises(StorageFull) if fails else nullcontext():
            await store.write(BatchOperation(run), None, dry_run=not fails)
        with pytest.raises((sqlite3.OperationalError, asyncpg.InvalidSavepointSpecificationError)):
            await used[0]._run("RELEASE SAVEPOINT batch")


async def test_server_with_forced_rollback_keeps_nothing(database_url: str) -> None:
    """The setting has no effect on callers."""
    config = settings.load(DATABASE_URL=database_url, DB_FORCE_ROLL_BACK="true", listen="127.0.0.1:0")
    for _ in range(2):
        async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
            posts = await asyncio.gather(*(Stubs(channel).create_post("gone") for _ in range(20)))
            assert len({post.id for post in posts}) == 20
            await Stubs(channel).create_comment(posts[0].id)

    assert query(database_url, "SELECT count(*) FROM posts") == [(0,)]


# Closing


@pytest.mark.parametrize(
    "ending", ["pass", "raise SystemExit(0)", "asyncio.current_task().cancel(); await asyncio.sleep(1)"]
)
def test_process_ends_after_the_database_is_closed(database_url: str, ending: str) -> None:
    script = f"""
import asyncio
from contextlib import suppress
from store_service.database import connect
from store_service.model import PostDraft
from store_service.service.posts import Posts
async def main():
    async with connect.open_database({database_url!r}, readers=2) as store:
        await Posts(store).create([PostDraft(body="kept")])
        {ending}
with suppress(asyncio.CancelledError):
    asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ, timeout=scaled_timeout(), check=False
    )

    assert done.returncode == 0
    assert query(database_url, "SELECT body FROM posts") == [("kept",)]
