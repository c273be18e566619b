"""AdminService.SetWriteMode: what writes do while a store is copied."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from sqlalchemy import text
from storeapi.v1 import admin_pb2, posts_pb2
from structlog.testing import capture_logs

from store_service.config import Config
from store_service.database import connect
from store_service.errors import StoreMoving
from store_service.service import retention
from store_service.service.retention import Retention
from tests.support.database import database_connection, execute
from tests.support.errors import expect_error
from tests.support.polling import eventually
from tests.support.stubs import Stubs
from tests.support.write_requests import WRITES, all_rows, build_request, create_dataset, new_request_id, send

NORMAL, RECORDED, REFUSED = (
    admin_pb2.WRITE_MODE_NORMAL,
    admin_pb2.WRITE_MODE_RECORDED,
    admin_pb2.WRITE_MODE_REFUSED,
)


@pytest.fixture(autouse=True)
def normal_mode(database_url: str) -> Iterator[None]:
    """Tests of PostgreSQL share a database."""
    yield
    if not connect.is_sqlite(database_url):
        execute(
            database_url,
            "DROP FUNCTION IF EXISTS copy_write CASCADE",
            "DROP TABLE IF EXISTS copy_source, copy_log",
        )


@pytest.fixture
def config(config: Config) -> Config:
    """Deleted resources can be restored."""
    return config.model_copy(update={"undelete_hours": 24})


async def set_mode(stubs: Stubs, mode: Any) -> None:
    await stubs.admin.SetWriteMode(admin_pb2.SetWriteModeRequest(mode=mode))


async def test_every_write_is_refused(channel: grpc.aio.Channel, stubs: Stubs, database_url: str) -> None:
    """With an error that clients retry. What a repeated request has done is still answered."""
    for method in WRITES:
        world = await create_dataset(stubs)
        request_id = new_request_id()
        post = posts_pb2.CreatePostRequest(post={"body": "once"}, request_id=request_id)
        created = await stubs.posts.CreatePost(post)
        await set_mode(stubs, REFUSED)
        before = all_rows(database_url)

        error = await expect_error(send(channel, method, build_request(method, world, new_request_id())))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_MOVING"), method.name

        assert all_rows(database_url) == before, method.name
        assert await stubs.posts.CreatePost(post) == created
        await set_mode(stubs, NORMAL)
        await send(channel, method, build_request(method, world, new_request_id()))


def recorded(database_url: str) -> list[tuple[Any, ...]]:
    """The tables and keys that were recorded, in order."""
    is_sqlite = connect.is_sqlite(database_url)
    columns = "name, key1, key2, key3" if is_sqlite else "name, key"
    with database_connection(database_url) as connection:
        rows = connection.execute(text(f"SELECT {columns} FROM copy_log ORDER BY {columns}")).all()
    if is_sqlite:
        return [(name, [it for it in key if it is not None]) for name, *key in rows]
    return [(name, json.loads(key)) for name, key in rows]


async def test_keys_of_written_rows_are_recorded(stubs: Stubs, database_url: str) -> None:
    """Of all tables, also of rows that are deleted, and only from the call on."""
    await stubs.create_post()
    await set_mode(stubs, RECORDED)
    request_id = new_request_id()
    post = await stubs.posts.CreatePost(
        posts_pb2.CreatePostRequest(post={"body": "a"}, request_id=request_id)
    )
    await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=post.id))
    await set_mode(stubs, RECORDED)

    found = recorded(database_url)

    assert [it for it in found if it[0] not in ("changes", "deleted_posts")] == [
        ("posts", [post.id]),
        ("posts", [post.id]),
        ("requests", [request_id]),
    ]
    assert len([it for it in found if it[0] == "changes"]) == 2


async def test_mode_is_required(stubs: Stubs) -> None:
    """A request without a mode changes nothing."""
    error = await expect_error(stubs.admin.SetWriteMode(admin_pb2.SetWriteModeRequest()))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    await stubs.create_post()


class CountedRetention(Retention):
    """Counts its refused steps."""

    refused = 0

    async def step(self) -> bool:
        """Makes a step."""
        try:
            return await super().step()
        except StoreMoving:
            self.refused += 1
            raise


async def test_retention_waits_silently(
    stubs: Stubs, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store refuses for good must not fill the log."""
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0.001)
    for _ in range(3):
        await stubs.create_post()
    await set_mode(stubs, REFUSED)
    with capture_logs() as logs:
        async with connect.open_database(config.DATABASE_URL, readers=1) as database:
            task_of = CountedRetention(
                database, change_retention_hours=1e6, max_change_rows=1, request_id_retention_hours=1e6
            )
            task = asyncio.create_task(task_of.run())
            await eventually(lambda: task_of.refused > 2)
            task.cancel()
            await asyncio.wait([task])

    assert [it for it in logs if it["event"] == "cannot delete expired rows"] == []
