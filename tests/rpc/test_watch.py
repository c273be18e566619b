"""The contents and the start of a watch."""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import text
from storeapi.v1 import changes_pb2 as pb
from storeapi.v1 import comments_pb2, posts_pb2

from store_service import config as settings
from store_service.config import Config
from store_service.database import connect
from store_service.database.connect import is_sqlite
from store_service.rpc.validation import watch as watch_validation
from store_service.server import RunningServer, serving
from store_service.service import changes as store_changes
from store_service.service import retention, snapshot
from store_service.service.retention import Retention
from tests.support.database import database_connection, query
from tests.support.engines import POSTGRESQL_ONLY, SQLITE_ONLY
from tests.support.errors import ReceivedError, expect_error, received_error, result_or_error
from tests.support.polling import eventually
from tests.support.postgresql import new_database
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs
from tests.support.watches import (
    COMMENT,
    CREATE,
    DELETE,
    POST,
    SNAPSHOT,
    UPDATE,
    Replica,
    change_key,
    changed_resource,
    current_token,
    list_everything,
    open_watch,
    summaries,
    token_position,
    watch_error,
    watch_from_now,
)
from tests.support.write_queue import WriteQueue, run_in_one_batch

FOREVER = 10**6
"""A limit that nothing reaches."""


def update(post: posts_pb2.Post, body: str) -> posts_pb2.UpdatePostRequest:
    return posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=post.id, body=body))


def batch(bodies: list[str]) -> posts_pb2.BatchCreatePostsRequest:
    requests = [posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body)) for body in bodies]
    return posts_pb2.BatchCreatePostsRequest(requests=requests)


@asynccontextmanager
async def keeper(database_url: str, **limits: Any) -> AsyncIterator[Retention]:
    """What deletes old changes, at the test's command."""
    kept = {
        "change_retention_hours": FOREVER,
        "max_change_rows": FOREVER,
        "request_id_retention_hours": FOREVER,
    }
    async with connect.open_database(database_url, readers=1) as store:
        yield Retention(store, **kept | limits)


# Changes


async def test_every_action_is_reported_with_the_whole_resource(
    api: ResourceApi, channel: grpc.aio.Channel
) -> None:
    """The resource is that of the response; for a delete, the last state."""
    async with watch_from_now(channel) as watch:
        created = await api.create_one("first")
        updated = await api.update(api.resource(id=created.id, body="second"))
        deleted = await api.delete(created.id)
        changes = await watch.changes(3)

    kind = POST if api.name == "Post" else COMMENT
    assert summaries(changes) == [(action, kind, created.id) for action in (CREATE, UPDATE, DELETE)]
    assert [changed_resource(it) for it in changes] == [created, updated, deleted]
    assert deleted == updated
    assert {it.post_id for it in changes} == {created.id if kind == POST else created.post_id}
    assert {it.request_id for it in changes} == {""}
    assert [it.commit_time for it in changes[:2]] == [created.create_time, updated.update_time]
    assert changes[2].commit_time.ToNanoseconds() >= updated.update_time.ToNanoseconds()


async def test_update_without_effect_is_no_change(comments: ResourceApi, channel: grpc.aio.Channel) -> None:
    """The etag stays."""
    one = await comments.create_one("before")
    async with watch_from_now(channel, resume_token=await current_token(channel)) as watch:
        assert await comments.update(comments.resource(id=one.id, post_id=one.post_id), ["post_id"]) == one
        changed = await comments.update(comments.resource(id=one.id, body="after"))
        (told,) = (await watch.response()).changes

    assert changed_resource(told) == changed


async def test_forced_deletion_reports_comments_first(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Both are in one response, so no consumer sees a comment without its post."""
    post, other = await stubs.create_post("a"), await stubs.create_post("b")
    comments = [await stubs.create_comment(post.id, f"comment {n}") for n in range(3)]
    await stubs.create_comment(other.id)
    async with watch_from_now(channel, resume_token=await current_token(channel)) as watch:
        await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=post.id, force=True))
        response = await watch.response()

    assert [(it.action, changed_resource(it)) for it in response.changes] == [
        *((DELETE, comment) for comment in comments),
        (DELETE, post),
    ]
    assert {it.post_id for it in response.changes} == {post.id}


async def test_change_has_its_request_id(api: ResourceApi, channel: grpc.aio.Channel) -> None:
    """Each change of a batch; a replay is reported once."""
    ids = [str(uuid.uuid4()) for _ in range(4)]
    async with watch_from_now(channel) as watch:
        for _ in range(2):
            one = await api.create(api.draft("one"), request_id=ids[0])
            await api.update(api.resource(id=one.id, body="two"), request_id=ids[1])
            await api.delete(one.id, request_id=ids[2])
            await api.batch_create([api.draft("three"), api.draft("four")], request_id=ids[3])
        last = await api.create_one("without")
        told = await watch.until(last.id, kind=POST if api.name == "Post" else COMMENT)

    assert [it.request_id for it in told] == [*ids[:3], ids[3], ids[3], ""]


async def test_forced_deletion_has_one_request_id(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """The changes of the comments have the request id of the deletion."""
    id = str(uuid.uuid4())
    post = await stubs.create_post()
    await stubs.create_comment(post.id)
    async with watch_from_now(channel, resume_token=await current_token(channel)) as watch:
        await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=post.id, force=True, request_id=id))
        changes = await watch.changes(2)

    assert [(it.kind, it.request_id) for it in changes] == [(COMMENT, id), (POST, id)]


async def test_failed_requests_and_dry_runs_are_not_reported(
    api: ResourceApi, stubs: Stubs, channel: grpc.aio.Channel
) -> None:
    one = await api.create_one("one")
    changed = api.resource(id=one.id, body="changed", etag="v9")
    async with watch_from_now(channel, resume_token=await current_token(channel)) as watch:
        await api.create(api.draft(), validate_only=True)
        await api.update(api.resource(id=one.id, body="checked"), validate_only=True)
        await api.delete(one.id, validate_only=True)
        assert (await expect_error(api.update(changed))).reason == "ETAG_MISMATCH"
        assert (await expect_error(api.delete(one.id, etag="v9"))).reason == "ETAG_MISMATCH"
        assert (await expect_error(api.delete(987))).reason == api.not_found
        assert (await expect_error(api.batch_delete([one.id, 987]))).reason == api.not_found
        assert (await expect_error(api.create(api.draft("")))).reason == "FIELD_INVALID"
        await api.delete(987, allow_missing=True)
        last = await api.create_one("last")
        told = await watch.until(last.id, kind=POST if api.name == "Post" else COMMENT)

    assert [changed_resource(it) for it in told] == [last]


async def test_filters_select_posts_and_kinds(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """A post id selects the post and its comments; both filters must match."""
    one, two = await stubs.create_post(), await stubs.create_post()
    token = await current_token(channel)
    await stubs.posts.UpdatePost(update(one, "changed"))
    await stubs.create_comment(one.id)
    await stubs.posts.UpdatePost(update(two, "changed"))
    await stubs.create_comment(two.id)
    last = await stubs.create_post()

    async def told(kinds: Sequence[int], post_ids: Sequence[int]) -> list[tuple[int, int]]:
        # The last post shows that all changes were sent. A watch of comments only counts them.
        post_ids = post_ids and [*post_ids, last.id]
        async with open_watch(channel, resume_token=token, kinds=kinds, post_ids=post_ids) as watch:
            changes = await (watch.changes(2) if kinds == [COMMENT] else watch.until(last.id))
        return [(it.kind, it.post_id) for it in changes if it.post_id != last.id]

    everything = [(POST, one.id), (COMMENT, one.id), (POST, two.id), (COMMENT, two.id)]
    assert (
        await told([], [])
        == await told([POST, COMMENT], [])
        == await told([], [one.id, two.id])
        == everything
    )
    assert await told([POST], []) == [(POST, one.id), (POST, two.id)]
    assert await told([COMMENT], []) == [(COMMENT, one.id), (COMMENT, two.id)]
    assert await told([], [one.id]) == [(POST, one.id), (COMMENT, one.id)]
    assert await told([POST, POST], [two.id, two.id]) == [(POST, two.id)]
    assert await told([], [987]) == []


# Transactions and responses


async def test_every_change_of_a_commit_is_reported(
    api: ResourceApi, channel: grpc.aio.Channel, write_queue: WriteQueue, database_url: str
) -> None:
    """Also if the next job in the batch overwrites the change."""
    one = await api.create_one("body 0")
    async with watch_from_now(channel, resume_token=await current_token(channel)) as watch:

        def change(n: int) -> Callable[[], Any]:
            return lambda: api.update(api.resource(id=one.id, body=f"body {n}"))

        answers = await run_in_one_batch(write_queue, api, database_url, [change(n) for n in (1, 2, 3)])
        response = await watch.response()

    assert [changed_resource(it).body for it in response.changes] == ["body 1", "body 2", "body 3"]
    assert [changed_resource(it) for it in response.changes] == sorted(answers, key=lambda it: it.etag)


async def test_batch_request_is_one_response(
    api: ResourceApi, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is larger than BATCH_BYTES."""
    monkeypatch.setattr(store_changes, "BATCH_BYTES", 1000)
    async with watch_from_now(channel) as watch:
        await api.create_one("before")
        many = await api.create_many(300)
        await api.batch_delete([it.id for it in many])
        last = await api.create_one("after")
        responses: list[pb.WatchResponse] = []
        while not responses or responses[-1].changes[-1].id != last.id:
            responses.append(await watch.response())

    batches = [it for it in responses if len(it.changes) > 1]
    assert [[change.action for change in it.changes] for it in batches] == [[CREATE] * 300, [DELETE] * 300]
    assert [changed_resource(it) for it in batches[0].changes] == many
    assert not any(it.partial for it in responses)


async def test_batch_of_exactly_the_read_limit_is_not_partial(
    posts: ResourceApi, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response is partial only if more changes of the transaction follow."""
    monkeypatch.setattr(store_changes, "BATCH_ROWS", 5)
    async with watch_from_now(channel) as watch:
        await posts.create_many(5)
        response = await watch.response()

    assert (len(response.changes), response.partial) == (5, False)


async def test_forced_deletion_is_one_response_or_partial(
    stubs: Stubs, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_changes, "BATCH_BYTES", 1000)
    post = await stubs.create_post()
    for _ in range(8):
        await stubs.create_comment(post.id, "x" * 300)
    async with watch_from_now(channel, resume_token=await current_token(channel)) as watch:
        await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=post.id, force=True))
        responses = [await watch.response()]
        while responses[-1].changes[-1].kind != POST:
            responses.append(await watch.response())

    assert [it.partial for it in responses] == [True] * (len(responses) - 1) + [False]


@pytest.fixture
async def too_large(posts: ResourceApi, channel: grpc.aio.Channel) -> tuple[str, list[posts_pb2.Post]]:
    """A token that is followed by a transaction of 2.5 MiB."""
    token = await current_token(channel)
    return token, await posts.create_many(44, "x" * 60_000)


async def test_large_transaction_is_reported_in_parts(
    too_large: tuple[str, list[posts_pb2.Post]], channel: grpc.aio.Channel
) -> None:
    """All but the last are partial, and each token continues with the next part."""
    token, stored = too_large
    async with open_watch(channel, resume_token=token) as watch:
        responses = [await watch.response()]
        while responses[-1].partial:
            responses.append(await watch.response())

    assert len(responses) > 1
    assert [it.post for response in responses for it in response.changes] == stored
    assert all(response.ByteSize() < 4 * 1024 * 1024 for response in responses)
    told = 0
    for response in responses[:-1]:
        told += len(response.changes)
        async with open_watch(channel, resume_token=response.resume_token) as watch:
            rest = [it.post for it in await watch.changes(len(stored) - told)]
        assert rest == stored[told:]


async def test_partial_response_is_followed_by_the_rest_under_a_filter(
    too_large: tuple[str, list[posts_pb2.Post]], channel: grpc.aio.Channel
) -> None:
    token, stored = too_large
    async with open_watch(channel, resume_token=token, post_ids=[stored[0].id]) as watch:
        responses = [await watch.response()]
        while responses[-1].partial:
            responses.append(await watch.read())

    assert [it.post for response in responses for it in response.changes] == stored[:1]
    assert not any(response.heartbeat for response in responses)


# Where a watch starts


async def test_new_watch_has_a_token_at_once(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Also in an empty database. Only later changes are reported."""
    async with open_watch(channel) as watch:
        first = await watch.read()
        assert first.heartbeat
        old = await stubs.create_post("old")
        # Wait until the change is visible: its transaction can count as running for a moment.
        await watch.until(old.id)
    async with open_watch(channel) as watch:
        assert (await watch.read()).heartbeat
        new = await stubs.create_post("new")
        assert [it.post for it in await watch.changes(1)] == [new]
    async with open_watch(channel, resume_token=first.resume_token) as watch:
        assert [it.post for it in await watch.changes(2)] == [old, new]


async def test_earliest_reports_every_kept_change(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """In order."""
    post = await stubs.create_post()
    comment = await stubs.create_comment(post.id)
    changed = await stubs.posts.UpdatePost(update(post, "changed"))
    async with open_watch(channel, earliest=True) as watch:
        assert (await watch.read()).heartbeat
        changes = await watch.changes(3)

    assert [(it.action, changed_resource(it)) for it in changes] == [
        (CREATE, post),
        (CREATE, comment),
        (UPDATE, changed),
    ]


async def test_every_token_continues_after_its_response(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    stored = []
    tokens = []
    async with watch_from_now(channel) as watch:
        tokens.append(watch.token)
        for n in range(6):
            stored.append(await stubs.create_post(f"post {n}"))
            await watch.until(stored[-1].id)
            tokens.append(watch.token)

    for index, token in enumerate(tokens[:-1]):
        async with open_watch(channel, resume_token=token) as watch:
            assert [it.post for it in await watch.changes(6 - index)] == stored[index:]


async def test_initial_state_precedes_changes(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Posts, comments, one initial_state_complete, then changes."""
    gone = await stubs.create_post("gone")
    await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=gone.id))
    one, two = await stubs.create_post("one"), await stubs.create_post("two")
    comments = [await stubs.create_comment(it.id) for it in (two, one, two)]
    one = await stubs.posts.UpdatePost(update(one, "one, changed"))
    await current_token(channel)
    async with open_watch(channel, initial_state=True) as watch:
        state = await watch.initial_state()
        new = await stubs.create_post("new")
        changes = await watch.until(new.id)

    assert [(it.action, changed_resource(it)) for it in state] == [
        (SNAPSHOT, it) for it in [one, two, *comments]
    ]
    assert [it.commit_time for it in state] == [changed_resource(it).update_time for it in state]
    assert [it.post_id for it in state] == [one.id, two.id, two.id, one.id, two.id]
    assert summaries(changes)[-1] == (CREATE, POST, new.id)


async def test_initial_state_of_an_empty_store_is_complete_at_once(
    stubs: Stubs, channel: grpc.aio.Channel
) -> None:
    async with open_watch(channel, initial_state=True) as watch:
        first = await watch.read()
        assert (first.initial_state_complete, list(first.changes), first.heartbeat) == (True, [], False)
        post = await stubs.create_post()
        (change,) = (await watch.response()).changes

    assert (change.action, change.post) == (CREATE, post)


@pytest.fixture
async def stored_state(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> Replica:
    """Five posts, of which the first three have three comments each, in pages of two."""
    monkeypatch.setattr(snapshot, "PAGE_SIZE", 2)
    posts = [await stubs.create_post(f"post {n}") for n in range(5)]
    for n in range(3):
        for post in posts[:3]:
            await stubs.create_comment(post.id, f"comment {n}")
    return await list_everything(stubs)


async def test_initial_state_is_filtered(stored_state: Replica, channel: grpc.aio.Channel) -> None:
    """A missing post is not an error."""
    all_kinds, all_post_ids = ([], [POST], [COMMENT]), ([], [1], [3, 2, 987], [5], [987])
    for case in product(all_kinds, all_post_ids):
        kinds, post_ids = case
        async with open_watch(channel, initial_state=True, kinds=kinds, post_ids=post_ids) as watch:
            state = await watch.initial_state()

        posts = {id for id in stored_state.posts if not post_ids or id in post_ids}
        comments = {id for id, it in stored_state.comments.items() if not post_ids or it.post_id in post_ids}
        told = summaries(state)
        told_posts = {id for _, kind, id in told if kind == POST}
        told_comments = {id for _, kind, id in told if kind == COMMENT}
        assert len(told) == len(set(told)), case
        assert told_posts == (posts if COMMENT not in kinds else set()), case
        assert told_comments == (comments if POST not in kinds else set()), case


@pytest.mark.parametrize("post_ids", [[], [1, 2, 3, 5, 987]], ids=["all", "some"])
async def test_token_inside_the_initial_state_continues(
    stored_state: Replica, stubs: Stubs, channel: grpc.aio.Channel, post_ids: list[int]
) -> None:
    """The rest has exactly one initial_state_complete, and the changes follow."""
    request: dict[str, Any] = {"post_ids": post_ids}
    responses: list[pb.WatchResponse] = []
    async with open_watch(channel, initial_state=True, **request) as watch:
        while not responses or not responses[-1].initial_state_complete:
            responses.append(await watch.read())
    whole = [change_key(it) for response in responses for it in response.changes]
    assert len(responses) > 5
    changed = await stubs.posts.UpdatePost(update(stored_state.posts[1], "meanwhile"))

    told = 0
    for response in responses[:-1]:
        told += len(response.changes)
        async with open_watch(channel, resume_token=response.resume_token, **request) as watch:
            rest = await watch.initial_state()
            live = await watch.until(1)
        # The changed post is sent in its current state.
        assert [key[:2] for key in map(change_key, rest)] == [key[:2] for key in whole[told:]]
        assert changed_resource(live[-1]) == changed
        assert not any(it.action == SNAPSHOT for it in live)
    async with open_watch(channel, resume_token=responses[-1].resume_token, **request) as watch:
        assert not (await watch.read()).initial_state_complete
        assert changed_resource((await watch.until(1))[-1]) == changed


@pytest.mark.parametrize("post_ids", [[], list(range(1, 101))], ids=["all", "some"])
async def test_initial_state_uses_small_messages(
    stubs: Stubs, channel: grpc.aio.Channel, post_ids: list[int]
) -> None:
    """A large body has its own message; small bodies share one."""
    sizes = [10] * 60 + [2**16] * 40
    for some in (sizes[:60], sizes[60:]):
        requests = [posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="a" * size)) for size in some]
        await stubs.posts.BatchCreatePosts(posts_pb2.BatchCreatePostsRequest(requests=requests))
    for size in sizes[50:70]:
        await stubs.create_comment(1, "a" * size)
    responses: list[pb.WatchResponse] = []
    async with open_watch(channel, initial_state=True, post_ids=post_ids) as watch:
        while not responses or not responses[-1].initial_state_complete:
            responses.append(await watch.read())

    told = [len(changed_resource(it).body) for response in responses for it in response.changes]
    assert told == sizes + sizes[50:70]
    assert max(response.ByteSize() for response in responses) < 600 * 1024
    assert len(responses) < 30


async def test_initial_state_and_changes_reproduce_the_store(
    stored_state: Replica, stubs: Stubs, channel: grpc.aio.Channel
) -> None:
    """Also if resources change between the pages."""
    replica = Replica()
    token = ""
    complete = 0
    # Each watch reads one response, so that all writes come between two pages.
    for n in range(50):
        request: dict[str, Any] = {"resume_token": token} if token else {"initial_state": True}
        async with open_watch(channel, **request) as watch:
            response = await watch.read()
        replica.apply(response.changes)
        token = response.resume_token
        complete += response.initial_state_complete
        if response.initial_state_complete:
            break
        if n < 3:
            await stubs.create_post(f"new {n}")
        if n == 0:
            for id in (1, 5):
                await stubs.posts.UpdatePost(update(stored_state.posts[id], "changed"))
            await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=2, force=True))
            await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=4))
            await stubs.create_comment(1, "new")
    last = await stubs.create_post("last")
    async with open_watch(channel, resume_token=token) as watch:
        replica.apply(await watch.until(last.id))

    assert complete == 1
    assert replica == await list_everything(stubs)


# Heartbeats


async def test_heartbeats_have_tokens(
    stubs: Stubs, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while only filtered changes happen."""
    monkeypatch.setattr(watch_validation, "MIN_HEARTBEAT_SECONDS", 0.05)
    interval = Duration(nanos=50_000_000)
    post = await stubs.create_post()
    tokens = []
    async with watch_from_now(channel, kinds=[COMMENT], heartbeat_interval=interval) as watch:
        for _ in range(3):
            await stubs.create_post("not for this watch")
            beat = await watch.read()
            assert (beat.heartbeat, list(beat.changes), beat.partial) == (True, [], False)
            tokens.append(beat.resume_token)
        comment = await stubs.create_comment(post.id)
        assert [it.comment for it in (await watch.response()).changes] == [comment]

    for token in tokens:
        async with open_watch(channel, resume_token=token, kinds=[COMMENT]) as watch:
            assert [it.comment for it in await watch.changes(1)] == [comment]


async def test_heartbeat_token_advances(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch without matching changes does not expire."""
    monkeypatch.setattr(watch_validation, "MIN_HEARTBEAT_SECONDS", 0.05)
    async with watch_from_now(
        channel, kinds=[COMMENT], heartbeat_interval=Duration(nanos=50_000_000)
    ) as watch:
        first = watch.token
        for n in range(5):
            post = await stubs.create_post(f"post {n}")
        async with watch_from_now(channel, earliest=True) as other:
            await other.until(post.id)
            behind = other.token
        while token_position(watch.token) < token_position(behind):
            await watch.read()
    async with keeper(database_url, max_change_rows=1) as old:
        assert await old.step()

    async with open_watch(channel, resume_token=first) as watch_from_first:
        assert (await watch_from_first.end()).reason == "RESUME_TOKEN_EXPIRED"
    async with open_watch(channel, resume_token=watch.token) as watch:
        last = await stubs.create_post("last")
        assert [it.post for it in await watch.changes(1)] == [last]


@SQLITE_ONLY
async def test_shortest_heartbeat_is_one_second(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """The next response of a watch without changes is a heartbeat."""
    async with watch_from_now(channel, heartbeat_interval=Duration(seconds=1)) as watch:
        assert (await watch.read()).heartbeat


# A watch after a list


async def test_list_and_watch_have_no_gap(api: ResourceApi, channel: grpc.aio.Channel) -> None:
    """With the token of the first page."""
    stored = await api.create_many(6)
    first = await api.page(page_size=2)
    held = {it.id: it for it in api.resources_in(first)}
    # Changes of a page that was read, of the next page, of the last page, and after it.
    await api.update(api.resource(id=stored[0].id, body="changed"))
    await api.delete(stored[1].id)
    await api.delete(stored[2].id)
    await api.update(api.resource(id=stored[5].id, body="changed"))
    await api.create_one("new")
    page = first
    while page.next_page_token:
        page = await api.page(page_size=2, page_token=page.next_page_token)
        assert page.resume_token == ""
        held |= {it.id: it for it in api.resources_in(page)}
    await api.delete(stored[3].id)
    last = await api.create_one("after the pages")
    kind = POST if api.name == "Post" else COMMENT
    async with open_watch(channel, resume_token=first.resume_token, kinds=[kind]) as watch:
        for change in await watch.until(last.id, kind=kind):
            if change.action == DELETE:
                held.pop(change.id, None)
            else:
                held[change.id] = changed_resource(change)

    assert held == {it.id: it for page in await api.all_pages() for it in page}


async def test_empty_list_and_watch_have_no_gap(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    posts = await stubs.posts.ListPosts(posts_pb2.ListPostsRequest())
    comments = await stubs.comments.ListComments(comments_pb2.ListCommentsRequest())
    post = await stubs.create_post()

    for token in (posts.resume_token, comments.resume_token):
        async with open_watch(channel, resume_token=token) as watch:
            assert [it.post for it in await watch.changes(1)] == [post]


# Tokens that are refused


@SQLITE_ONLY
async def test_resume_token_with_a_damaged_byte_is_invalid(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    token = await current_token(channel)

    for index, character in enumerate(token):
        damaged = token[:index] + ("A" if character != "A" else "B") + token[index + 1 :]
        error = await watch_error(channel, resume_token=damaged)
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID")
        assert error.fields == ["resume_token"]


@SQLITE_ONLY
@pytest.mark.parametrize("token", ["", "nonsense", "A" * 72, "é" * 72])
async def test_arbitrary_text_is_not_a_resume_token(channel: grpc.aio.Channel, token: str) -> None:
    """Also an empty one that is set."""
    assert (await watch_error(channel, resume_token=token)).reason == "RESUME_TOKEN_INVALID"


@contextmanager
def another_database(request: pytest.FixtureRequest, database_url: str, folder: Path) -> Iterator[str]:
    """An empty database of the same engine."""
    if is_sqlite(database_url):
        yield f"sqlite:///{folder / 'another.db'}"
    else:
        with new_database(request.getfixturevalue("postgres")) as url:
            yield url


async def test_resume_token_of_another_database_is_foreign(
    request: pytest.FixtureRequest, stubs: Stubs, channel: grpc.aio.Channel, database_url: str, tmp_path: Path
) -> None:
    """Tokens of a watch, of a page, and of the initial state."""
    tokens = [await current_token(channel)]
    tokens.append((await stubs.posts.ListPosts(posts_pb2.ListPostsRequest())).resume_token)
    async with open_watch(channel, initial_state=True) as watch:
        tokens.append((await watch.read()).resume_token)

    with another_database(request, database_url, tmp_path) as url:
        config = settings.load(DATABASE_URL=url, listen="127.0.0.1:0")
        async with serving(config) as server, grpc.aio.insecure_channel(server.address) as other:
            for token in tokens:
                error = await watch_error(other, resume_token=token)
                assert (error.code, error.reason) == (
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "RESUME_TOKEN_FOREIGN",
                )
                assert error.fields == ["resume_token"]


@SQLITE_ONLY  # The database is restored by copying its file.
@pytest.mark.parametrize("writes_after", [0, 2, 3, 5])
async def test_resume_token_is_foreign_after_a_database_rollback(
    config: Config, database_file: Path, tmp_path: Path, writes_after: int
) -> None:
    """Regardless of later writes."""
    copy = tmp_path / "copy.db"
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        await Stubs(channel).create_post("in both")
        kept = await current_token(channel)
    shutil.copy(database_file, copy)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        for n in range(3):
            await Stubs(channel).create_post(f"lost {n}")
        lost = await current_token(channel)
    shutil.copy(copy, database_file)

    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        new = [await Stubs(channel).create_post(f"new {n}") for n in range(writes_after)]

        assert (await watch_error(channel, resume_token=lost)).reason == "RESUME_TOKEN_FOREIGN"
        async with open_watch(channel, resume_token=kept) as watch:
            assert [it.post for it in await watch.changes(len(new))] == new


@SQLITE_ONLY  # The database is restored by copying its file.
async def test_resume_token_is_foreign_after_a_rollback_and_trim(
    config: Config, database_file: Path, database_url: str, tmp_path: Path
) -> None:
    """The last trimmed change is kept to identify its position."""
    copy = tmp_path / "copy.db"
    shutil.copy(database_file, copy)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        for n in range(3):
            await Stubs(channel).create_post(f"lost {n}")
    async with keeper(database_url, change_retention_hours=0) as old:
        assert await old.step()
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        lost = await current_token(channel)
    shutil.copy(copy, database_file)

    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        for n in range(5):
            await Stubs(channel).create_post(f"new {n}")

        assert (await watch_error(channel, resume_token=lost)).reason == "RESUME_TOKEN_FOREIGN"


@SQLITE_ONLY  # The database is restored by copying its file.
@pytest.mark.parametrize("trimmed_by", ["this version", "an earlier version"])
@pytest.mark.parametrize("writes_after", [0, 6, 12])
async def test_token_of_the_earliest_change_is_foreign_after_a_rollback(
    config: Config, database_file: Path, database_url: str, tmp_path: Path, trimmed_by: str, writes_after: int
) -> None:
    copy = tmp_path / "copy.db"
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        kept = await current_token(channel)
        await Stubs(channel).create_post("in both")
    shutil.copy(database_file, copy)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        for n in range(9):
            await Stubs(channel).create_post(f"lost {n}")
    async with keeper(database_url, max_change_rows=3) as old:
        assert await old.step()
    if trimmed_by == "an earlier version":
        forget_the_change_at_the_mark(database_url)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        async with watch_from_now(channel, earliest=True) as watch:
            lost = [watch.token]
        lost.append((await refusal_after_all(channel, kept)).metadata["earliest_resume_token"])
    shutil.copy(copy, database_file)

    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        new = [await Stubs(channel).create_post(f"new {n}") for n in range(writes_after)]

        for token in lost:
            assert (await watch_error(channel, resume_token=token)).reason == "RESUME_TOKEN_FOREIGN"
        async with open_watch(channel, resume_token=kept) as watch:
            assert [it.post for it in await watch.changes(1 + len(new))][1:] == new


@SQLITE_ONLY  # The database is restored by copying its file.
async def test_token_at_the_start_of_the_feed_is_foreign_after_a_rollback(
    config: Config, database_file: Path, database_url: str, tmp_path: Path
) -> None:
    """The change at that position has another time."""
    copy = tmp_path / "copy.db"
    shutil.copy(database_file, copy)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        await Stubs(channel).posts.BatchCreatePosts(batch(["lost", "lost too"]))
        lost = [await current_token(channel)]
        async with open_watch(channel, earliest=True) as watch:
            await watch.changes(2)
            lost.append(watch.token)
    shutil.copy(copy, database_file)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        await Stubs(channel).posts.BatchCreatePosts(batch(["new", "new too"]))
        await Stubs(channel).create_post("last")
    async with keeper(database_url, max_change_rows=1) as old:
        assert await old.step()

    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        async with watch_from_now(channel, earliest=True) as watch:
            assert token_position(watch.token) == token_position(lost[1])
        for token in lost:
            assert (await watch_error(channel, resume_token=token)).reason == "RESUME_TOKEN_FOREIGN"


async def refusal_after_all(channel: grpc.aio.Channel, token: str) -> ReceivedError:
    """Returns the error of a watch that fails after its start."""
    async with open_watch(channel, resume_token=token) as watch:
        return await watch.end()


def forget_the_change_at_the_mark(database_url: str) -> None:
    """Deletes the last trimmed change too, as earlier versions did."""
    with database_connection(database_url) as connection:
        gone = connection.execute(text("DELETE FROM changes WHERE seq = (SELECT trimmed_seq FROM feed)"))
        assert gone.rowcount == 1


# Changes that are no longer kept


@pytest.mark.parametrize("trimmed_by", ["this version", "an earlier version"])
async def test_every_token_at_the_start_of_the_feed_continues(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str, trimmed_by: str
) -> None:
    """Also after a transaction of several changes."""
    await stubs.posts.BatchCreatePosts(batch(["a", "b", "c"]))
    tokens = [await current_token(channel)]
    tokens.append((await stubs.posts.ListPosts(posts_pb2.ListPostsRequest())).resume_token)
    async with open_watch(channel, initial_state=True) as watch:
        await watch.initial_state()
        tokens.append(watch.token)
    async with open_watch(channel, earliest=True) as watch:
        await watch.changes(3)
        tokens.append(watch.token)
    last = await stubs.create_post("last")

    async with keeper(database_url, max_change_rows=1) as old:
        assert await old.step()
    if trimmed_by == "an earlier version":
        forget_the_change_at_the_mark(database_url)
    async with watch_from_now(channel, earliest=True) as watch:
        tokens.append(watch.token)

    for token in tokens:
        async with open_watch(channel, resume_token=token) as watch:
            assert [it.post for it in await watch.changes(1)] == [last]


async def test_token_before_the_earliest_change_is_expired(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """The error has the token of the earliest one, which continues."""
    token = await current_token(channel)
    stored = [await stubs.create_post(f"post {n}") for n in range(7)]
    async with open_watch(channel, resume_token=token) as watch:
        await watch.until(stored[-1].id)
        end = watch.token
    async with keeper(database_url, max_change_rows=3) as old:
        assert await old.step()

    async with open_watch(channel, resume_token=token) as watch:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watch.changes(1)
    error = received_error(ended.value)
    assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED")
    earliest = error.metadata["earliest_resume_token"]
    for request in ({"resume_token": earliest}, {"earliest": True}):
        async with open_watch(channel, **request) as watch:
            assert [it.post for it in await watch.changes(3)] == stored[4:]
    async with open_watch(channel, resume_token=end) as watch:
        last = await stubs.create_post("last")
        assert [it.post for it in await watch.changes(1)] == [last]


async def test_changes_are_kept_for_their_retention(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """The initial state still contains what trimmed changes created."""
    stored = [await stubs.create_post(f"post {n}") for n in range(6)]
    with database_connection(database_url) as connection:
        connection.execute(
            text("UPDATE changes SET commit_time = commit_time - 7200000000 WHERE resource_id <= 4")
        )
    async with watch_from_now(channel, earliest=True) as watch:
        await watch.until(stored[-1].id)
    async with keeper(database_url, change_retention_hours=3) as old:
        assert await old.step()
    async with open_watch(channel, earliest=True) as watch:
        assert [it.post for it in await watch.changes(6)] == stored
    async with keeper(database_url, change_retention_hours=1) as old:
        assert await old.step()

    async with open_watch(channel, earliest=True) as watch:
        assert [it.post for it in await watch.changes(2)] == stored[4:]
    async with open_watch(channel, initial_state=True) as watch:
        assert [it.post for it in await watch.initial_state()] == stored


async def test_old_changes_are_trimmed_in_steps(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a gap at any time."""
    monkeypatch.setattr(retention, "STEP_ROWS", 2)
    monkeypatch.setattr(retention, "MAX_REPEATS", 1)
    stored = [await stubs.create_post(f"post {n}") for n in range(6)]
    async with watch_from_now(channel, earliest=True) as watch:
        await watch.until(stored[-1].id)
    seen = []
    async with keeper(database_url, max_change_rows=1) as old:
        done = False
        while not done:
            done = await old.step()
            async with open_watch(channel, earliest=True) as watch:
                seen.append([it.post.id for it in await watch.until(stored[-1].id)])

    assert seen == [[3, 4, 5, 6], [5, 6], [6]]


async def test_large_changes_are_trimmed_in_small_steps(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STEP_BYTES", 250)
    monkeypatch.setattr(retention, "MAX_REPEATS", 1)
    for n in range(6):
        await stubs.create_post(str(n) * 100)
    left = []
    async with keeper(database_url, max_change_rows=1) as old:
        done = False
        while not done:
            done = await old.step()
            left.append(query(database_url, "SELECT count(*) FROM changes")[0][0])

    # The last trimmed change is kept for its commit time.
    assert left == [4, 2]


async def test_trimming_during_a_watch_causes_no_silent_gap(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STEP_ROWS", 3)
    monkeypatch.setattr(store_changes, "BATCH_ROWS", 4)
    count = 200
    reasons: list[str] = []
    is_over = asyncio.Event()

    async def write() -> None:
        for n in range(count):
            await stubs.create_post(f"post {n}")

    async def trim() -> None:
        async with keeper(database_url, max_change_rows=30) as old:
            while not is_over.is_set():
                await old.step()

    async def earliest() -> str:
        async with watch_from_now(channel, earliest=True) as watch:
            return watch.token

    async def watch_from(token: str) -> str:
        """Reads to the last change. Returns the reason of the error; empty if there is none."""
        # Each change is a new post, so changes and posts have the same numbers.
        _, id = token_position(token)
        async with open_watch(channel, resume_token=token) as watch:
            try:
                while id < count:
                    for change in (await watch.read()).changes:
                        assert change.id == id + 1
                        id = change.id
            except grpc.aio.AioRpcError as error:
                return received_error(error).reason
        return ""

    async def watch_again_and_again() -> None:
        while not is_over.is_set():
            reasons.append(await watch_from(await earliest()))

    first = await earliest()
    async with asyncio.TaskGroup() as group:
        group.create_task(trim())
        for _ in range(3):
            group.create_task(watch_again_and_again())
        await write()
        is_over.set()

    assert await watch_from(first) == "RESUME_TOKEN_EXPIRED"
    assert await watch_from(await earliest()) == ""
    assert set(reasons) <= {"", "RESUME_TOKEN_EXPIRED"}


# Requests that are refused


@SQLITE_ONLY
@pytest.mark.parametrize(
    ("request_fields", "fields"),
    [
        ({"initial_state": False}, ["initial_state"]),
        ({"earliest": False}, ["earliest"]),
        ({"kinds": [0]}, ["kinds[0]"]),
        ({"kinds": [1, 2, 3]}, ["kinds[2]"]),
        ({"kinds": [1] * 101}, ["kinds"]),
        ({"kinds": [0] * 101, "post_ids": [0]}, ["kinds", "post_ids[0]"]),
        ({"post_ids": [0]}, ["post_ids[0]"]),
        ({"post_ids": [1, -1]}, ["post_ids[1]"]),
        ({"post_ids": list(range(1, 1002))}, ["post_ids"]),
        ({"heartbeat_interval": Duration()}, ["heartbeat_interval"]),
        ({"heartbeat_interval": Duration(nanos=999_999_999)}, ["heartbeat_interval"]),
        ({"heartbeat_interval": Duration(seconds=60, nanos=1)}, ["heartbeat_interval"]),
        ({"heartbeat_interval": Duration(seconds=-1)}, ["heartbeat_interval"]),
        ({"heartbeat_interval": Duration(seconds=2**62)}, ["heartbeat_interval"]),
        ({"earliest": False, "kinds": [9], "post_ids": [0]}, ["earliest", "kinds[0]", "post_ids[0]"]),
    ],
    ids=lambda it: str(it)[:40],
)
async def test_invalid_watch_fields_are_named(
    channel: grpc.aio.Channel, request_fields: dict[str, Any], fields: list[str]
) -> None:
    """The error names all fields, and there is no response."""
    error = await watch_error(channel, **request_fields)

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert error.fields == fields


@SQLITE_ONLY
async def test_limits_of_watch_fields_are_inclusive(channel: grpc.aio.Channel) -> None:
    """1000 posts, and heartbeats between one second and sixty."""
    for seconds in (1, 60):
        request: dict[str, Any] = {
            "post_ids": range(1, 1001),
            "heartbeat_interval": Duration(seconds=seconds),
        }
        async with watch_from_now(channel, **request):
            pass


# Several processes


@POSTGRESQL_ONLY
async def test_change_is_reported_by_every_server_on_the_database(
    config: Config, server: RunningServer, stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """Tokens are valid on every server. SQLite allows only one server."""
    async with serving(config) as second, grpc.aio.insecure_channel(second.address) as other:
        async with watch_from_now(channel) as watch, watch_from_now(other) as watch_of_other:
            for n in range(3):
                one = await stubs.create_post(f"a {n}")
                assert [it.post for it in await watch_of_other.until(one.id)] == [one]
                two = await Stubs(other).create_post(f"b {n}")
                assert [it.post for it in await watch.until(two.id)] == [one, two]
                await watch_of_other.until(two.id)
        last = await stubs.create_post("last")
        async with open_watch(other, resume_token=watch.token) as watch:
            assert [it.post for it in await watch.changes(1)] == [last]


@POSTGRESQL_ONLY
async def test_earlier_transaction_that_commits_later_is_not_skipped(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """SQLite has one writer."""
    token = await current_token(channel)
    first = await stubs.create_post("first")
    with psycopg.connect(database_url) as open_transaction:
        open_transaction.execute(
            "INSERT INTO changes (action, kind, resource_id, post_id, payload, size, commit_time)"
            ' VALUES (2, 1, 987, 987, \'{"body": "late", "version": 7}\', 4,'
            " (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)"
        )
        second = await stubs.create_post("second")
        async with open_watch(channel, resume_token=token) as watch:
            told = await watch.until(first.id)
            cut_off_at = watch.token
        async with watch_from_now(channel) as now:
            open_transaction.commit()
            told_now = await now.until(second.id)
    async with open_watch(channel, resume_token=cut_off_at) as watch:
        told += await watch.until(second.id)

    assert [it.id for it in told] == [first.id, 987, second.id]
    assert [it.id for it in told_now] == [987, second.id]


@POSTGRESQL_ONLY
async def test_changes_of_one_resource_are_reported_in_their_order(
    config: Config, server: RunningServer, stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """Also if the second transaction started first; SQLite has one writer."""
    first, second, third = [await stubs.create_post(f"post {n}") for n in range(3)]
    token = await current_token(channel)
    async with serving(config) as other, grpc.aio.insecure_channel(other.address) as other_channel:
        with psycopg.connect(database_url) as in_the_way:
            in_the_way.execute("SELECT * FROM posts WHERE id = %s FOR UPDATE", [second.id])
            ids = [first.id, second.id, third.id]
            deletion = asyncio.ensure_future(
                stubs.posts.BatchDeletePosts(posts_pb2.BatchDeletePostsRequest(ids=ids))
            )
            # This transaction locks the first post and waits for the second.
            await eventually(lambda: waits_for_a_lock(database_url))
            update_third = asyncio.ensure_future(
                Stubs(other_channel).posts.UpdatePost(update(third, "changed"))
            )
            await asyncio.wait([update_third], timeout=1)
        deleted, updated = await asyncio.gather(deletion, result_or_error(update_third))
    last = await stubs.create_post("last")
    async with open_watch(channel, resume_token=token) as watch:
        told = [(it.action, it.post) for it in await watch.until(last.id) if it.id == third.id]

    # The database decides the order of the two.
    if isinstance(updated, grpc.RpcError):
        assert received_error(updated).reason == "POST_NOT_FOUND"
        assert told == [(DELETE, third)]
    else:
        assert deleted.posts[-1] == updated
        assert told == [(UPDATE, updated), (DELETE, updated)]


def waits_for_a_lock(database_url: str) -> bool:
    with psycopg.connect(database_url) as connection:
        waiting = connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND application_name = 'store-service' AND datname = current_database()"
        )
        return waiting.fetchone() is not None
