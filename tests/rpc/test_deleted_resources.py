"""Deleted posts and comments that can be restored, and tombstones, rule by rule."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import grpc
import pytest
from storeapi.v1.filters_pb2 import CommentFilter, PostFilter

from store_service.config import Config
from store_service.service import background_steps, comment_removal, large_deletions, restoration
from tests.support.database import query
from tests.support.direct_server import ManualSteps
from tests.support.engines import POSTGRESQL_ONLY
from tests.support.errors import expect_error
from tests.support.resource_api import ResourceApi
from tests.support.running_server import server_with
from tests.support.watches import DELETE, SNAPSHOT, open_watch, watch_from_now

HOUR = 3_600_000_000
BUDGET = 5
ORDERS = ("id", "id desc", "create_time", "create_time desc", "thread", "thread desc")


@pytest.fixture
def config(config: Config) -> Config:
    """Deleted resources can be restored for a day."""
    return config.model_copy(update={"undelete_hours": 24.0})


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> ManualSteps:
    """Background work runs only when the test says so, and each transaction removes or restores few comments.
    Named before `stubs`."""
    for module in (comment_removal, large_deletions, background_steps, restoration):
        monkeypatch.setattr(module, "MAX_ROWS", BUDGET)
    for module in (comment_removal, large_deletions, restoration):
        monkeypatch.setattr(module, "FETCH_ROWS", 2)
    return ManualSteps(monkeypatch)


def undelete(api: ResourceApi, id: int, **options: Any) -> Any:
    return api.call(f"Undelete{api.name}", id=id, **options)


def shown(api: ResourceApi, **options: Any) -> Any:
    """The filter of a list or count that also has deleted resources."""
    return (PostFilter if api.name == "Post" else CommentFilter)(show_deleted=True, **options)


async def ids_of(api: ResourceApi, **options: Any) -> list[int]:
    return [it.id for page in await api.all_pages(**options) for it in page]


async def thread(comments: ResourceApi, *parents: int, **fields: Any) -> list[Any]:
    """Creates comments. Each number is the index of the comment that is replied to; -1: none."""
    found: list[Any] = []
    for parent in parents:
        reply_to_id = found[parent].id if parent >= 0 else 0
        found.append(await comments.create(comments.draft(reply_to_id=reply_to_id, **fields)))
    return found


async def count(comments: ResourceApi, **filter: Any) -> int:
    fields = {"filter": CommentFilter(**filter)} if filter else {}
    response = await comments.call("CountComments", post_ids=[comments.post_id], **fields)
    return int(response.total)


def strip(message: Any, *names: str) -> Any:
    """A copy without some fields."""
    copy = type(message)()
    copy.CopyFrom(message)
    for name in names:
        copy.ClearField(name)
    return copy


# Delete and undelete


async def test_deleted_resource_is_found_only_with_show_deleted(api: ResourceApi) -> None:
    """By id, by external id, in batches, lists and counts; with content and both times."""
    created = await api.create(api.draft(external_id="x", author="a", labels={"k": "v"}))
    deleted = await api.delete(created.id)

    assert strip(deleted, "delete_time", "purge_time") == created
    assert deleted.purge_time.ToMicroseconds() - deleted.delete_time.ToMicroseconds() == 24 * HOUR
    for refused in (api.get(created.id), api.get(external_id="x"), api.batch_get([created.id])):
        assert (await expect_error(refused)).reason == api.not_found
    assert (await expect_error(api.batch_get([], external_ids=["x"]))).reason == api.not_found
    assert await ids_of(api) == []
    for found in (api.get(created.id, show_deleted=True), api.get(external_id="x", show_deleted=True)):
        assert await found == deleted
    both = await api.batch_get([created.id], external_ids=["x"], show_deleted=True)
    assert api.resources_in(both) == [deleted, deleted]
    assert api.resources_in(await api.page(filter=shown(api))) == [deleted]


async def test_undelete_restores_the_resource(api: ResourceApi) -> None:
    """With all its fields and a new etag."""
    created = await api.create(api.draft(external_id="x", author="a", labels={"k": "v"}))
    await api.delete(created.id)

    restored = await undelete(api, created.id)

    assert restored.etag != created.etag
    assert strip(restored, "etag") == strip(created, "etag")
    assert await api.get(external_id="x") == restored
    assert api.resources_in(await api.page(filter=type(shown(api))(author="a", labels={"k": "v"}))) == [
        restored
    ]
    assert (await expect_error(api.get(0, external_id="y", show_deleted=True))).reason == api.not_found


async def test_undelete_errors(api: ResourceApi) -> None:
    """Of a resource that is not deleted, that never was, and of one whose external id is taken."""
    first = await api.create(api.draft(external_id="x"))

    error = await expect_error(undelete(api, first.id))
    assert (error.reason, error.code) == ("NOT_DELETED", grpc.StatusCode.FAILED_PRECONDITION)
    error = await expect_error(undelete(api, 10**15))
    assert (error.reason, error.code) == (api.not_found, grpc.StatusCode.NOT_FOUND)
    await api.delete(first.id)
    second = await api.create(api.draft(external_id="x"))
    error = await expect_error(undelete(api, first.id))
    assert (error.reason, error.metadata["id"]) == ("EXTERNAL_ID_TAKEN", str(second.id))
    assert "return_existing" not in error.message, "undelete has no such field"
    assert (await api.get(first.id, show_deleted=True)).external_id == "x"
    assert await api.get(external_id="x", show_deleted=True) == second

    await api.delete(second.id)
    assert (await api.get(external_id="x", show_deleted=True)).id == second.id
    assert (await undelete(api, first.id)).external_id == "x"
    for bad in ({"id": 0}, {"id": -1}, {"id": 1, "request_id": "no UUID"}):
        assert (await expect_error(api.call(f"Undelete{api.name}", **bad))).reason == "FIELD_INVALID"


async def test_purged_resource_cannot_be_restored(steps: ManualSteps, api: ResourceApi) -> None:
    """From its purge_time on, and not before."""
    created = await api.create_one()
    purge_time = (await api.delete(created.id)).purge_time.ToMicroseconds()

    await steps.purge(purge_time)
    assert (await undelete(api, created.id)).id == created.id
    purge_time = (await api.delete(created.id)).purge_time.ToMicroseconds()
    await steps.purge(purge_time + 1)

    assert (await expect_error(undelete(api, created.id))).reason == api.not_found
    assert (await expect_error(api.get(created.id, show_deleted=True))).reason == api.not_found
    assert await ids_of(api, filter=shown(api)) == []


async def test_undelete_with_request_id_is_executed_once(api: ResourceApi) -> None:
    """A replay gets the first response, also if the resource was deleted again."""
    created = await api.create_one()
    key = str(uuid4())
    delete_key = str(uuid4())
    deleted = await api.delete(created.id, request_id=delete_key)
    restored = await undelete(api, created.id, request_id=key)

    assert await api.delete(created.id, request_id=delete_key) == deleted
    assert await undelete(api, created.id, request_id=key) == restored
    again = await api.delete(created.id)
    assert again.etag == restored.etag
    assert await undelete(api, created.id, request_id=key) == restored
    assert (await expect_error(api.get(created.id))).reason == api.not_found
    assert (await expect_error(undelete(api, created.id + 1, request_id=key))).reason == "REQUEST_ID_REUSED"


async def test_dry_run_changes_nothing(api: ResourceApi) -> None:
    """The response of an undelete with validate_only has no etag."""
    created = await api.create_one()
    dry = await api.delete(created.id, validate_only=True)
    assert strip(dry, "delete_time", "purge_time") == created
    assert await api.get(created.id) == created
    await api.delete(created.id)

    restored = await undelete(api, created.id, validate_only=True)
    assert restored == strip(created, "etag")
    assert (await expect_error(api.get(created.id))).reason == api.not_found
    assert (await expect_error(undelete(api, 10**15, validate_only=True))).reason == api.not_found


async def test_etag_of_a_deleted_resource(api: ResourceApi) -> None:
    """A delete with an etag of before an undelete is refused."""
    created = await api.create_one()
    await api.delete(created.id, etag=created.etag)
    restored = await undelete(api, created.id)

    assert (await expect_error(api.delete(created.id, etag=created.etag))).reason == "ETAG_MISMATCH"
    assert (await api.delete(created.id, etag=restored.etag)).etag == restored.etag
    update = api.resource(id=created.id, body="b")
    assert (await expect_error(api.update(update))).reason == api.not_found


async def test_post_is_restored_with_the_comments_that_went_with_it(
    posts: ResourceApi, comments: ResourceApi
) -> None:
    """Not with those that had been deleted before; a comment alone cannot be restored before its post."""
    first, second, reply = await thread(comments, -1, -1, 0)
    await comments.delete(second.id)
    assert (await expect_error(posts.delete(comments.post_id))).reason == "POST_HAS_COMMENTS"
    await posts.delete(comments.post_id, force=True)

    for id in (first.id, second.id):
        error = await expect_error(undelete(comments, id))
        assert (error.reason, error.code) == ("POST_NOT_FOUND", grpc.StatusCode.NOT_FOUND)
    listed = await ids_of(comments, post_id=comments.post_id, filter=shown(comments))
    assert listed == [first.id, second.id, reply.id]
    assert (await expect_error(comments.page(post_id=comments.post_id))).reason == "POST_NOT_FOUND"
    assert (await count(comments), await count(comments, show_deleted=True)) == (0, 3)
    await undelete(posts, comments.post_id)
    assert await ids_of(comments, post_id=comments.post_id) == [first.id, reply.id]
    await undelete(comments, second.id)
    assert await ids_of(comments, post_id=comments.post_id) == [first.id, second.id, reply.id]


# Tombstones


async def test_deleted_comment_with_replies_becomes_a_tombstone(comments: ResourceApi) -> None:
    """In every order, with and without deleted comments; the tombstones vanish with the last reply."""
    first, second, third = await thread(comments, -1, 0, 1, author="a", labels={"k": "v"})
    await comments.delete(second.id)
    deleted = await comments.delete(first.id)

    content = ("body", "author", "labels", "external_id")
    for order in ORDERS:
        page = await comments.page(post_id=comments.post_id, order_by=order)
        by_id = {it.id: it for it in page.comments}
        assert by_id.keys() == {first.id, second.id, third.id}
        assert strip(by_id[first.id], "etag") == strip(deleted, *content, "etag")
        assert by_id[first.id].etag != deleted.etag, "or caches by etag would return the deleted text"
        page = await comments.page(post_id=comments.post_id, order_by=order, filter=shown(comments))
        by_id = {it.id: it for it in page.comments}
        assert by_id[first.id] == deleted
    assert await count(comments) == 1
    assert await count(comments, show_deleted=True) == 3
    replies = await comments.call("CountReplies", comment_ids=[first.id, second.id, third.id])
    assert dict(replies.counts) == {first.id: 0, second.id: 1, third.id: 0}
    for refused in (comments.get(first.id), comments.delete(first.id)):
        assert (await expect_error(refused)).reason == "COMMENT_NOT_FOUND"
    for filter in (CommentFilter(author="a"), CommentFilter(labels={"k": "v"})):
        assert await ids_of(comments, post_id=comments.post_id, filter=filter) == [third.id]

    await comments.delete(third.id)
    assert await ids_of(comments, post_id=comments.post_id) == []
    assert len(await ids_of(comments, filter=shown(comments))) == 3
    await undelete(comments, third.id)
    assert await ids_of(comments, post_id=comments.post_id) == [first.id, second.id, third.id]
    assert (await comments.get(third.id)).depth == 2


async def test_no_reply_to_a_deleted_comment(comments: ResourceApi) -> None:
    """Neither to a tombstone nor to another deleted comment."""
    first, _, third = await thread(comments, -1, 0, -1)
    await comments.delete(first.id)
    await comments.delete(third.id)

    for id in (first.id, third.id):
        error = await expect_error(comments.create(comments.draft(reply_to_id=id)))
        assert (error.reason, error.metadata["comment_id"]) == ("COMMENT_NOT_FOUND", str(id))


async def test_purge_of_a_tombstone_keeps_the_thread(steps: ManualSteps, comments: ResourceApi) -> None:
    """It loses its purge_time. So does one that only connects a reply that is restored later."""
    first, second, third = await thread(comments, -1, 0, 1)
    first_purge = (await comments.delete(first.id)).purge_time.ToMicroseconds()
    second_purge = (await comments.delete(second.id)).purge_time.ToMicroseconds()
    await steps.purge(first_purge + 1)

    listed = (await comments.page(post_id=comments.post_id)).comments
    assert [it.HasField("purge_time") for it in listed] == [False, True, False]
    assert [it.HasField("delete_time") for it in listed] == [True, True, False]
    with_deleted = (await comments.page(post_id=comments.post_id, filter=shown(comments))).comments
    assert [it.body for it in with_deleted] == ["", "a body", "a body"]
    assert await count(comments, show_deleted=True) == 3
    await comments.delete(third.id)
    await steps.purge(second_purge + 1)
    assert await ids_of(comments, filter=shown(comments)) == [third.id]
    await undelete(comments, third.id)
    listed = (await comments.page(post_id=comments.post_id)).comments
    assert [(it.id, it.depth, it.body) for it in listed] == [
        (first.id, 0, ""),
        (second.id, 1, ""),
        (third.id, 2, "a body"),
    ]


async def test_forced_deletion_takes_the_replies(comments: ResourceApi) -> None:
    """And an undelete restores exactly these."""
    first, second, third, other = await thread(comments, -1, 0, 1, 0)
    await comments.delete(other.id)
    await comments.delete(first.id, force=True)

    assert await ids_of(comments, post_id=comments.post_id) == []
    await undelete(comments, first.id)
    assert await ids_of(comments, post_id=comments.post_id) == [first.id, second.id, third.id]
    await comments.delete(first.id, force=True)
    await undelete(comments, third.id)
    assert [bool(it.body) for it in (await comments.page(post_id=comments.post_id)).comments] == [
        False,
        False,
        True,
    ]
    await undelete(comments, first.id)
    assert [bool(it.body) for it in (await comments.page(post_id=comments.post_id)).comments] == [True] * 3


async def test_nothing_is_left_of_purged_threads(
    steps: ManualSteps, comments: ResourceApi, database_url: str
) -> None:
    """Also of a comment that was purged, and connected a reply which was restored and deleted again."""
    first, second, third = await thread(comments, -1, 0, 1)
    deleted = [await comments.delete(it.id) for it in (first, second, third)]
    await steps.purge(deleted[0].purge_time.ToMicroseconds() + 1)
    await undelete(comments, third.id)
    assert await ids_of(comments, post_id=comments.post_id) == [first.id, second.id, third.id]
    again = await comments.delete(third.id)
    await steps.purge(again.purge_time.ToMicroseconds() + 1)

    for table in ("comments", "deleted_comments"):
        assert query(database_url, f"SELECT id FROM {table}") == []


# Lists that read both tables


async def test_lists_merge_deleted_comments_in_every_order(comments: ResourceApi) -> None:
    """With each filter, on pages of any size."""
    made = await thread(comments, -1, 0, -1, 1, 2, 0, -1, 6, author="a", labels={"k": "v"})
    for n in (1, 2, 7):
        await comments.delete(made[n].id)
    ids = [it.id for it in made]
    in_threads = [ids[n] for n in (0, 1, 3, 5, 2, 4, 6, 7)]
    newest = [ids[n] for n in (6, 7, 2, 4, 0, 1, 3, 5)]
    expected = [ids, ids[::-1], ids, ids[::-1], in_threads, newest]

    for page_size in (1, 2, 3, 50):
        for order, wanted in zip(ORDERS, expected, strict=True):
            for condition in ({}, {"author": "a"}, {"labels": {"k": "v"}}):
                query = {
                    "post_id": comments.post_id,
                    "order_by": order,
                    "filter": shown(comments, **condition),
                }
                pages = await comments.all_pages(page_size=page_size, **query)
                assert [it.id for page in pages for it in page] == wanted, (page_size, query)
                assert all(len(page) <= page_size for page in pages)
        filter = shown(comments, reply_to_id=ids[0])
        assert await ids_of(comments, filter=filter, page_size=page_size) == [ids[1], ids[5]]


async def test_page_token_is_bound_to_show_deleted(api: ResourceApi) -> None:
    """A token of a list without deleted resources is refused by one with them, and the reverse."""
    await api.create_many(3)
    plain = await api.page(page_size=1)
    with_deleted = await api.page(page_size=1, filter=shown(api))

    for refused in (
        api.page(page_token=plain.next_page_token, filter=shown(api)),
        api.page(page_token=with_deleted.next_page_token),
    ):
        assert (await expect_error(refused)).reason == "PAGE_TOKEN_MISMATCH"


async def test_initial_state_with_deleted_posts(
    channel: grpc.aio.Channel, posts: ResourceApi, comments: ResourceApi
) -> None:
    """Of all posts, and of some posts."""
    (comment,) = await thread(comments, -1)
    await posts.delete(comments.post_id, force=True)
    live = await posts.create_one()

    for post_ids in ([], [comments.post_id, live.id]):
        async with open_watch(
            channel,
            initial_state=True,
            post_ids=post_ids,
            post_filter=PostFilter(show_deleted=True),
            comment_filter=CommentFilter(show_deleted=True),
        ) as watch:
            found = await watch.initial_state()
        assert [it.id for it in found] == [comments.post_id, live.id, comment.id]
        assert {it.action for it in found} == {SNAPSHOT}
        assert found[0].post.HasField("purge_time")
        async with open_watch(channel, initial_state=True, post_ids=post_ids) as watch:
            assert [it.id for it in await watch.initial_state()] == [live.id]


# Without undelete


async def test_without_undelete_hours_responses_are_as_before(config: Config) -> None:
    """No times in the response and in the change; nothing is kept; a tombstone has its delete_time."""
    async with server_with(config, undelete_hours=0) as (server, stubs):
        channel = grpc.aio.insecure_channel(server.address)
        post = await stubs.create_post()
        comments = ResourceApi("Comment", stubs, post_id=post.id)
        posts = ResourceApi("Post", stubs)
        first, reply = await thread(comments, -1, 0)
        async with watch_from_now(channel) as watch:
            await comments.delete(first.id)
            (tombstone,) = (it for it in (await comments.page()).comments if not it.body)
            assert tombstone.HasField("delete_time")
            assert not tombstone.HasField("purge_time")
            deleted = await comments.delete(reply.id)
            assert not deleted.HasField("delete_time")
            assert deleted == reply
            gone = await posts.delete(post.id)
            assert gone == post
            changes = await watch.changes(3)
        await channel.close()
        assert [(it.id, it.action) for it in changes] == [
            (first.id, DELETE),
            (reply.id, DELETE),
            (post.id, DELETE),
        ]
        assert [it.comment.HasField("delete_time") for it in changes[:2]] == [True, False]
        assert not changes[2].post.HasField("delete_time")
        for api, id in ((comments, first.id), (comments, reply.id), (posts, post.id)):
            assert (await expect_error(undelete(api, id))).reason == api.not_found
            assert (await expect_error(api.get(id, show_deleted=True))).reason == api.not_found
        assert await ids_of(comments, filter=shown(comments)) == []


async def test_thread_stays_connected_after_the_setting_is_0(config: Config) -> None:
    """A reply that can still be restored is restored below the tombstones of its parents."""
    async with server_with(config) as (_, stubs):
        comments = ResourceApi("Comment", stubs, post_id=(await stubs.create_post()).id)
        first, second, third = await thread(comments, -1, 0, 1)
        await comments.delete(third.id)
    async with server_with(config, undelete_hours=0) as (_, stubs):
        comments = ResourceApi("Comment", stubs, post_id=comments.post_id)
        await comments.delete(second.id)
        await comments.delete(first.id)
        assert await ids_of(comments) == []

        await undelete(comments, third.id)

        listed = (await comments.page(post_id=comments.post_id)).comments
    assert [(it.id, it.body, it.HasField("delete_time")) for it in listed] == [
        (first.id, "", True),
        (second.id, "", True),
        (third.id, "a body", False),
    ]


async def test_thread_deleted_with_force_stays_connected_after_the_setting_is_0(config: Config) -> None:
    """A reply is restored below comments that were removed together, only the last of which it replies to."""
    async with server_with(config) as (_, stubs):
        comments = ResourceApi("Comment", stubs, post_id=(await stubs.create_post()).id)
        first, second, third = await thread(comments, -1, 0, 1)
        await comments.delete(third.id)
    async with server_with(config, undelete_hours=0) as (_, stubs):
        comments = ResourceApi("Comment", stubs, post_id=comments.post_id)
        await comments.delete(first.id, force=True)

        await undelete(comments, third.id)

        listed = (await comments.page(post_id=comments.post_id, order_by="thread")).comments
    assert [(it.id, bool(it.body)) for it in listed] == [
        (first.id, False),
        (second.id, False),
        (third.id, True),
    ]


async def test_page_with_deleted_comments_has_each_comment_once(comments: ResourceApi) -> None:
    """Also while they are deleted and restored."""
    ids = [it.id for it in await thread(comments, *[-1] * 5)]
    flipped = ids[2]
    is_done = False

    async def flip() -> None:
        while not is_done:
            await comments.delete(flipped)
            await undelete(comments, flipped)

    flipping = asyncio.create_task(flip())
    pages = [await ids_of(comments, filter=shown(comments)) for _ in range(150)]
    is_done = True
    await flipping

    assert {tuple(it) for it in pages} == {tuple(ids)}


async def test_concurrent_watches_of_deleted_posts_have_only_their_posts(
    channel: grpc.aio.Channel, posts: ResourceApi
) -> None:
    """Their posts are read together."""
    ids = [(await posts.create(posts.draft())).id for _ in range(20)]
    for id in ids:
        await posts.delete(id)

    async def received(id: int) -> list[int]:
        filter = PostFilter(show_deleted=True)
        async with open_watch(channel, initial_state=True, post_ids=[id], post_filter=filter) as watch:
            return [it.id for it in await watch.initial_state()]

    assert await asyncio.gather(*map(received, ids)) == [[id] for id in ids]


# Large deletions and restorations


async def large_thread(comments: ResourceApi, size: int = 3 * BUDGET) -> tuple[int, list[int]]:
    """A comment, and replies to it. The first two have external ids."""
    (root,) = await thread(comments, -1)
    drafts = [
        comments.draft(reply_to_id=root.id, external_id=f"reply {n}" if n < 2 else "") for n in range(size)
    ]
    return root.id, [it.id for it in comments.resources_in(await comments.batch_create(drafts))]


async def check_hidden(comments: ResourceApi, ids: Sequence[int]) -> None:
    """No call finds these comments."""
    assert not set(await ids_of(comments)) & set(ids)
    assert await count(comments) == 0
    assert (await comments.batch_get(ids, allow_missing=True)).missing_ids == ids
    for refused in (
        comments.get(ids[-1]),
        comments.get(external_id="reply 1"),
        comments.update(comments.resource(id=ids[-1], body="b")),
        comments.delete(ids[-1]),
        comments.create(comments.draft(reply_to_id=ids[-1])),
    ):
        assert (await expect_error(refused)).reason == "COMMENT_NOT_FOUND"
    replies = await comments.call("CountReplies", comment_ids=[ids[0]])
    assert dict(replies.counts) == {ids[0]: 0}


async def test_large_thread_is_deleted_restored_and_deleted_again(
    steps: ManualSteps, comments: ResourceApi, database_url: str
) -> None:
    """In the middle of each of these."""
    root, replies = await large_thread(comments)
    await comments.delete(root, force=True)
    await check_hidden(comments, [root, *replies])
    await steps.step()
    await check_hidden(comments, [root, *replies])
    for id in (root, replies[-1]):
        error = await expect_error(undelete(comments, id))
        assert (error.reason, error.code) == ("DATABASE_BUSY", grpc.StatusCode.UNAVAILABLE)
    await steps.finish()

    await undelete(comments, root)
    await steps.step()
    await comments.delete(root, force=True)
    await check_hidden(comments, [root, *replies])
    await steps.finish()
    await check_hidden(comments, [root, *replies])

    await undelete(comments, root)
    await steps.step()
    await comments.delete(root)
    await undelete(comments, root)
    await steps.finish()
    assert await ids_of(comments) == [root, *replies]
    assert (await comments.get(external_id="reply 1")).id == replies[1]
    for table in ("deleted_comments", "thread_deletions", "restorations"):
        assert query(database_url, f"SELECT count(*) FROM {table}") == [(0,)]


async def test_post_without_force_while_its_comments_are_removed(
    steps: ManualSteps, posts: ResourceApi, comments: ResourceApi
) -> None:
    """The error counts visible comments only. Without visible comments, the call can be retried."""
    root, _ = await large_thread(comments)
    other = await comments.create_one()
    await comments.delete(root, force=True)
    error = await expect_error(posts.delete(comments.post_id))
    assert (error.reason, error.metadata["comment_count"]) == ("POST_HAS_COMMENTS", "1")

    await comments.delete(other.id)
    for options in ({}, {"validate_only": True}):
        error = await expect_error(posts.delete(comments.post_id, **options))
        assert (error.reason, error.code) == ("DATABASE_BUSY", grpc.StatusCode.UNAVAILABLE)
    await steps.finish()
    assert (await posts.delete(comments.post_id)).id == comments.post_id


async def test_post_is_not_restored_before_its_deletion_is_finished(
    steps: ManualSteps, posts: ResourceApi, comments: ResourceApi
) -> None:
    """Otherwise consumers of the feed would not learn of the comments that were not removed yet."""
    root, replies = await large_thread(comments)
    await posts.delete(comments.post_id, force=True)
    await steps.step()
    error = await expect_error(undelete(posts, comments.post_id))
    assert (error.reason, error.code) == ("DATABASE_BUSY", grpc.StatusCode.UNAVAILABLE)

    await steps.finish()
    await undelete(posts, comments.post_id)
    await steps.finish()

    assert await ids_of(comments) == [root, *replies]


async def test_one_step_removes_many_marked_threads(
    steps: ManualSteps, comments: ResourceApi, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """Threads that did not fit into the transaction of their deletion, with few replies each."""
    monkeypatch.setattr(comment_removal, "MAX_THREADS", 0)
    roots = await thread(comments, *[-1] * 4)
    for it in roots:
        await comments.create(comments.draft(reply_to_id=it.id))
    await comments.batch_delete([it.id for it in roots], force=True)
    assert query(database_url, "SELECT count(*) FROM thread_deletions") == [(4,)]

    await steps.step()

    assert query(database_url, "SELECT count(*) FROM thread_deletions") == [(0,)]
    assert query(database_url, "SELECT count(*) FROM comments") == [(0,)]


async def test_large_post_is_deleted_again_while_it_is_restored(
    steps: ManualSteps, posts: ResourceApi, comments: ResourceApi
) -> None:
    """And while a thread of it is restored: a later undelete restores everything."""
    root, replies = await large_thread(comments)
    first_purge = (await comments.delete(root, force=True)).purge_time.ToMicroseconds()
    await steps.finish()
    await undelete(comments, root)
    await steps.step()
    await posts.delete(comments.post_id, force=True)
    await steps.finish()
    await steps.purge(first_purge + 1)

    await undelete(posts, comments.post_id)
    await steps.step()
    await posts.delete(comments.post_id, force=True)
    await steps.finish()
    assert await ids_of(comments) == []
    await undelete(posts, comments.post_id)
    await steps.finish()
    assert await ids_of(comments) == [root, *replies]


async def test_deletion_takes_replies_that_are_not_restored_yet(
    steps: ManualSteps, posts: ResourceApi, comments: ResourceApi
) -> None:
    """A thread that is deleted while its post is restored stays deleted."""
    root, replies = await large_thread(comments)
    (other,) = await thread(comments, -1)
    await posts.delete(comments.post_id, force=True)
    await steps.finish()
    await undelete(posts, comments.post_id)
    await steps.step()
    assert 0 < len(await ids_of(comments)) < len(replies)
    await comments.delete(root, force=True)
    assert not set(await ids_of(comments)) & {root, *replies}
    await steps.finish()

    assert await ids_of(comments) == [other.id]
    await undelete(comments, root)
    await steps.finish()
    assert await ids_of(comments) == [root, *replies, other.id]


async def test_replies_deleted_before_stay_deleted_with_their_comment(
    steps: ManualSteps, comments: ResourceApi
) -> None:
    """Also if the comment above them is deleted before they are removed."""
    (top,) = await thread(comments, -1)
    root = await comments.create(comments.draft(reply_to_id=top.id))
    drafts = [comments.draft(reply_to_id=root.id) for _ in range(2 * BUDGET)]
    replies = [it.id for it in comments.resources_in(await comments.batch_create(drafts))]
    await comments.delete(root.id, force=True)
    await comments.delete(top.id, force=True)
    await steps.finish()

    await undelete(comments, top.id)
    await steps.finish()
    assert await ids_of(comments) == [top.id]
    await undelete(comments, root.id)
    await steps.finish()
    assert await ids_of(comments) == [top.id, root.id, *replies]


async def test_restored_replies_do_not_take_one_external_id_twice(
    steps: ManualSteps, posts: ResourceApi, comments: ResourceApi
) -> None:
    """Two deleted comments with one external id are restored; the later one keeps it."""
    root, replies = await large_thread(comments, BUDGET + 2)
    await posts.delete(comments.post_id, force=True)
    await steps.finish()
    await undelete(posts, comments.post_id)
    later = await comments.create(comments.draft(external_id="reply 1"))
    await posts.delete(comments.post_id, force=True)
    await steps.finish()
    await undelete(posts, comments.post_id)
    await steps.finish()

    assert await ids_of(comments) == [root, *replies, later.id]
    found = [(await comments.get(id)).external_id for id in (replies[1], later.id)]
    assert sorted(found) == ["", "reply 1"]


@POSTGRESQL_ONLY
async def test_two_processes_agree(steps: ManualSteps, config: Config, comments: ResourceApi) -> None:
    """What one deletes is hidden in the other, which restores it."""
    root, replies = await large_thread(comments)
    async with server_with(config) as (_, stubs):
        other = ResourceApi("Comment", stubs, post_id=comments.post_id)
        await comments.delete(root, force=True)
        await check_hidden(other, [root, *replies])
        await steps.finish()
        await undelete(other, root)
        await steps.finish()
        assert await ids_of(comments) == await ids_of(other) == [root, *replies]
