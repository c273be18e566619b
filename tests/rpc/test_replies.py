"""Replies: their place in a thread, which never changes, and the rules for the comment that is replied to."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import pytest
from storeapi.v1 import posts_pb2

from store_service import config as settings
from store_service.config import Config
from store_service.server import serving
from store_service.service import background_steps, comment_removal, large_deletions
from tests.support.database import database_connection, execute, query
from tests.support.engines import POSTGRESQL_ONLY
from tests.support.errors import expect_error, received_error, result_or_error
from tests.support.polling import eventually
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs
from tests.support.watches import COMMENT, DELETE, watch_from_now

Serve = Callable[[int], AbstractAsyncContextManager[ResourceApi]]


@pytest.fixture
def serve(config: Config) -> Serve:
    """Starts a server with a maximum depth. Returns CommentService with a new post."""

    @asynccontextmanager
    async def run(max_reply_depth: int) -> AsyncIterator[ResourceApi]:
        changed = config.model_copy(update={"max_reply_depth": max_reply_depth})
        async with serving(changed) as server, grpc.aio.insecure_channel(server.address) as channel:
            stubs = Stubs(channel)
            yield ResourceApi("Comment", stubs, post_id=(await stubs.create_post()).id)

    return run


async def reply(comments: ResourceApi, parent: Any, **fields: Any) -> Any:
    return await comments.create(comments.draft(reply_to_id=parent.id, **fields))


async def chain(comments: ResourceApi, depth: int) -> list[Any]:
    """Creates a comment, a reply to it, and so on, down to a depth."""
    found = [await comments.create_one()]
    for _ in range(depth):
        found.append(await reply(comments, found[-1]))
    return found


async def test_reply_has_the_depth_of_its_place(comments: ResourceApi) -> None:
    """0 at the top level. Every read returns the same."""
    first, second, third = await chain(comments, 2)
    sibling = await reply(comments, first)

    assert [(it.reply_to_id, it.depth) for it in (first, second, third, sibling)] == [
        (0, 0),
        (first.id, 1),
        (second.id, 2),
        (first.id, 1),
    ]
    assert await comments.get(third.id) == third
    assert comments.resources_in(await comments.page(post_id=comments.post_id)) == [
        first,
        second,
        third,
        sibling,
    ]


async def test_depth_is_set_by_the_server(comments: ResourceApi) -> None:
    """A create with it, and with a negative id of a comment, is refused."""
    error = await expect_error(comments.create(comments.draft(depth=1)))
    assert (error.reason, error.fields) == ("FIELD_INVALID", ["comment.depth"])

    error = await expect_error(comments.create(comments.draft(reply_to_id=-1)))
    assert (error.reason, error.fields) == ("FIELD_INVALID", ["comment.reply_to_id"])


async def test_reply_to_a_missing_comment_is_refused(comments: ResourceApi, database_url: str) -> None:
    """Nothing is stored. A comment that was deleted is missing too."""
    deleted = await comments.create_one()
    await comments.delete(deleted.id)
    for id in (deleted.id, 2**62):
        error = await expect_error(comments.create(comments.draft(reply_to_id=id)))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "COMMENT_NOT_FOUND")
        assert error.metadata["comment_id"] == str(id)
        drafts = [comments.draft(), comments.draft(reply_to_id=id), comments.draft()]
        error = await expect_error(comments.batch_create(drafts))
        assert error.reason == "COMMENT_NOT_FOUND"
        assert "requests[1].comment.reply_to_id" in error.message
    assert query(database_url, "SELECT count(*) FROM comments") == [(0,)]


async def test_reply_to_a_comment_of_another_post_is_refused(comments: ResourceApi, stubs: Stubs) -> None:
    """A batch with one such reply stores nothing."""
    parent = await comments.create_one()
    other = await stubs.create_post()

    for call in (
        comments.create(comments.draft(post_id=other.id, reply_to_id=parent.id)),
        comments.batch_create([comments.draft(post_id=other.id, reply_to_id=it) for it in (0, parent.id, 0)]),
    ):
        error = await expect_error(call)
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REPLY_POST_MISMATCH")
        assert error.metadata == {"reply_to_id": str(parent.id), "post_id": str(comments.post_id)}
    assert not comments.resources_in(await comments.page(post_id=other.id))


async def test_reply_to_a_comment_of_the_same_batch_is_refused(comments: ResourceApi) -> None:
    """Its id is not known before, so it is missing, whatever id it will get."""
    first = await comments.create_one()
    drafts = [comments.draft(), comments.draft(reply_to_id=first.id + 1)]

    assert (await expect_error(comments.batch_create(drafts))).reason == "COMMENT_NOT_FOUND"


@pytest.mark.parametrize("max_depth", [0, 1, 2, 64])
async def test_depth_is_limited(serve: Serve, max_depth: int) -> None:
    """A comment with the maximum depth takes no replies."""
    async with serve(max_depth) as comments:
        *_, last = await chain(comments, max_depth)
        assert last.depth == max_depth

        for call in (
            comments.create(comments.draft(reply_to_id=last.id)),
            comments.create(comments.draft(reply_to_id=last.id), validate_only=True),
            comments.batch_create([comments.draft(), comments.draft(reply_to_id=last.id)]),
        ):
            error = await expect_error(call)
            assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REPLY_TOO_DEEP")
            assert error.metadata == {"reply_to_id": str(last.id), "max_depth": str(max_depth)}


def large_ids(database_url: str) -> None:
    """Makes the next ids of comments large, and different in every byte, so that no index compresses them."""
    if database_url.startswith("sqlite"):
        execute(
            database_url,
            "DELETE FROM sqlite_sequence WHERE name = 'comments'",
            "INSERT INTO sqlite_sequence (name, seq) VALUES ('comments', 8613303245920329199)",
        )
    else:
        execute(
            database_url,
            "ALTER TABLE comments ALTER id RESTART WITH 8613303245920329199",
            "ALTER TABLE comments ALTER id SET INCREMENT BY 4660046610375530",
        )


async def test_largest_depth_with_large_ids_fits_into_the_indexes(serve: Serve, database_url: str) -> None:
    """128 is the largest maximum. The next reply is refused, and is not an error of the database."""
    large_ids(database_url)
    try:
        async with serve(128) as comments:
            replies = await chain(comments, 128)
            assert replies[0].id > 2**62
            assert replies[-1].depth == 128
            assert (await expect_error(reply(comments, replies[-1]))).reason == "REPLY_TOO_DEEP"
            thread = comments.resources_in(
                await comments.page(post_id=comments.post_id, order_by="thread", page_size=1000)
            )
            assert thread == replies
    finally:
        if not database_url.startswith("sqlite"):
            execute(database_url, "ALTER TABLE comments ALTER id SET INCREMENT BY 1 RESTART WITH 1")


@pytest.mark.parametrize("depth", ["-1", "129", "10000"])
def test_other_maximum_depths_are_refused(depth: str) -> None:
    """A path of more comments might not fit into an index of PostgreSQL."""
    with pytest.raises(Exception, match="STORE_MAX_REPLY_DEPTH"):
        settings.load(max_reply_depth=depth)


async def test_deeper_replies_stay_after_the_maximum_was_lowered(serve: Serve) -> None:
    """They can be read, updated and deleted. Replies within the new maximum are possible."""
    async with serve(5) as comments:
        replies = await chain(comments, 5)
        post_id = comments.post_id
    async with serve(1) as comments:
        comments.post_id = post_id
        assert [it.depth for it in comments.resources_in(await comments.page(post_id=post_id))] == [*range(6)]
        changed = await comments.update(comments.resource(id=replies[5].id, body="changed"))
        assert (changed.depth, changed.reply_to_id) == (5, replies[4].id)
        assert (await expect_error(reply(comments, replies[1]))).reason == "REPLY_TOO_DEEP"
        assert (await reply(comments, replies[0])).depth == 1
        await comments.delete(replies[5].id)


async def test_place_of_a_comment_is_immutable(comments: ResourceApi, stubs: Stubs) -> None:
    """Also to a comment that does not exist, to itself, and to the top level."""
    first, second, third = await chain(comments, 2)
    other = await stubs.create_post()

    for fields, paths in (
        ({"reply_to_id": third.id}, ["reply_to_id"]),
        ({"reply_to_id": first.id}, ["reply_to_id"]),
        ({"reply_to_id": 0}, ["reply_to_id"]),
        ({"reply_to_id": third.id, "body": "x"}, []),
        ({"reply_to_id": 999, "body": "x"}, ["*"]),
    ):
        error = await expect_error(comments.update(comments.resource(id=third.id, **fields), paths))
        assert (error.reason, error.fields) == ("FIELD_IMMUTABLE", ["comment.reply_to_id"])
    error = await expect_error(comments.update(comments.resource(id=third.id, post_id=other.id), ["post_id"]))
    assert error.fields == ["comment.post_id"]
    error = await expect_error(comments.update(comments.resource(id=third.id, depth=9), ["depth"]))
    assert error.reason == "FIELD_MASK_INVALID"

    third.body = "changed"
    changed = await comments.update(third)
    assert changed.reply_to_id == second.id
    assert (await comments.update(changed, ["body", "reply_to_id", "post_id", "external_id"])).depth == 2


async def test_replies_stay_when_a_comment_above_them_is_deleted(comments: ResourceApi) -> None:
    """They keep their place and depth, and take replies themselves. Tombstones keep the thread connected."""
    first, second, third = await chain(comments, 2)
    await comments.delete(second.id)
    new = await reply(comments, third)

    async def listed(order_by: str) -> list[tuple[int, bool]]:
        page = await comments.page(post_id=comments.post_id, order_by=order_by)
        return [(it.id, bool(it.body)) for it in comments.resources_in(page)]

    assert (third.reply_to_id, third.depth, new.depth) == (second.id, 2, 3)
    for order in ("id", "thread"):
        assert await listed(order) == [(first.id, True), (second.id, False), (third.id, True), (new.id, True)]
    await comments.delete(first.id)
    assert await listed("id") == [(first.id, False), (second.id, False), (third.id, True), (new.id, True)]


async def test_deleted_post_takes_all_replies_with_it(
    comments: ResourceApi, stubs: Stubs, channel: grpc.aio.Channel, database_url: str, monkeypatch: Any
) -> None:
    """In steps too. The feed has each of them once, with its place."""
    for module in (comment_removal, large_deletions, background_steps):
        monkeypatch.setattr(module, "MAX_ROWS", 10)
    monkeypatch.setattr(background_steps, "STEP_SECONDS", 0.001)
    monkeypatch.setattr(background_steps, "TAKEOVER_SECONDS", 0.01)
    replies = await chain(comments, 30)
    bush = comments.resources_in(
        await comments.batch_create([comments.draft(reply_to_id=replies[0].id)] * 30)
    )
    stored = {it.id: it for it in [*replies, *bush]}

    async with watch_from_now(channel) as watch:
        await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=comments.post_id, force=True))
        await eventually(lambda: query(database_url, "SELECT count(*) FROM posts") == [(0,)])
        other = await stubs.create_post()
        deleted = [it for it in await watch.until(other.id) if (it.action, it.kind) == (DELETE, COMMENT)]

    assert sorted(it.id for it in deleted) == sorted(stored)
    assert all(it.comment == stored[it.id] for it in deleted)


@POSTGRESQL_ONLY
async def test_reply_and_deletion_of_its_parent_by_two_servers(
    comments: ResourceApi, config: Config, database_url: str
) -> None:
    """In many rounds: either the reply is refused, or it was created before the deletion in the feed."""
    async with serving(config) as running, grpc.aio.insecure_channel(running.address) as channel:
        other = ResourceApi("Comment", Stubs(channel), post_id=comments.post_id)
        for _ in range(30):
            parent = await comments.create_one()
            outcome, _ = await asyncio.gather(
                result_or_error(reply(comments, parent)), other.delete(parent.id)
            )
            if isinstance(outcome, grpc.RpcError):
                assert received_error(outcome).reason == "COMMENT_NOT_FOUND"
                continue
            with database_connection(database_url) as connection:
                order = connection.exec_driver_sql(
                    "SELECT resource_id, action FROM changes WHERE kind = 2 AND resource_id IN (%s, %s)"
                    " ORDER BY xid, seq",
                    (parent.id, outcome.id),
                ).all()
            assert [tuple(it) for it in order] == [(parent.id, 2), (outcome.id, 2), (parent.id, 4)]
