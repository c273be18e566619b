"""What a watch tells, and from where on."""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
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
from store_service.rpc import validation
from store_service.server import RunningServer, serving
from store_service.store import changes as store_changes
from store_service.store import keeping, snapshot
from store_service.store.keeping import Keeping
from tests.postgres import new_database
from tests.rpc.helpers import ON_POSTGRESQL, ONE_ENGINE, Side, Taken, become, connected, outcome_of, together
from tests.store.by_hand import query
from tests.support import ErrorSeen, Stubs, error_seen, failure
from tests.watching import (
    COMMENT,
    CREATE,
    DELETE,
    POST,
    SNAPSHOT,
    UPDATE,
    Replica,
    begun,
    briefly,
    key_of,
    listed,
    position_of,
    refusal,
    resource_of,
    token_of_now,
    watching,
)

FOREVER = 10**6
"""A limit that nothing reaches."""


def update(post: posts_pb2.Post, body: str) -> posts_pb2.UpdatePostRequest:
    return posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=post.id, body=body))


def batch(bodies: list[str]) -> posts_pb2.BatchCreatePostsRequest:
    requests = [posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body)) for body in bodies]
    return posts_pb2.BatchCreatePostsRequest(requests=requests)


@asynccontextmanager
async def keeper(database_url: str, **limits: Any) -> AsyncIterator[Keeping]:
    """What deletes old changes, at the test's command."""
    kept = {"change_hours": FOREVER, "change_rows": FOREVER, "request_id_hours": FOREVER}
    async with connect.open_store(database_url, readers=1) as store:
        yield Keeping(store, **kept | limits)


# What is told


async def test_every_action_is_told_with_the_whole_resource(side: Side, channel: grpc.aio.Channel) -> None:
    """Created, updated, deleted: the resource is what the caller was answered; deleted, what it last was."""
    async with begun(channel) as watch:
        created = await side.stored("first")
        updated = await side.update(side.resource(id=created.id, body="second"))
        deleted = await side.delete(created.id)
        changes = await watch.changes(3)

    kind = POST if side.name == "Post" else COMMENT
    assert briefly(changes) == [(action, kind, created.id) for action in (CREATE, UPDATE, DELETE)]
    assert [resource_of(it) for it in changes] == [created, updated, deleted]
    assert deleted == updated
    assert {it.post_id for it in changes} == {created.id if kind == POST else created.post_id}
    assert {it.request_id for it in changes} == {""}
    assert [it.commit_time for it in changes[:2]] == [created.create_time, updated.update_time]
    assert changes[2].commit_time.ToNanoseconds() >= updated.update_time.ToNanoseconds()


async def test_an_update_that_changes_nothing_is_no_change(comments: Side, channel: grpc.aio.Channel) -> None:
    """Only what never changes is named, with the value that it has: the etag stays, and nothing is told."""
    one = await comments.stored("before")
    async with begun(channel, resume_token=await token_of_now(channel)) as watch:
        assert await comments.update(comments.resource(id=one.id, post_id=one.post_id), ["post_id"]) == one
        changed = await comments.update(comments.resource(id=one.id, body="after"))
        (told,) = (await watch.response()).changes

    assert resource_of(told) == changed


async def test_a_post_that_is_deleted_with_force_tells_of_its_comments_first(
    stubs: Stubs, channel: grpc.aio.Channel
) -> None:
    """In one response, each as it last was, so that nobody who applies it holds a comment without a post."""
    post, other = await stubs.create_post("a"), await stubs.create_post("b")
    comments = [await stubs.create_comment(post.id, f"comment {n}") for n in range(3)]
    await stubs.create_comment(other.id)
    async with begun(channel, resume_token=await token_of_now(channel)) as watch:
        await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=post.id, force=True))
        response = await watch.response()

    assert [(it.action, resource_of(it)) for it in response.changes] == [
        *((DELETE, comment) for comment in comments),
        (DELETE, post),
    ]
    assert {it.post_id for it in response.changes} == {post.id}


async def test_a_change_names_the_request_that_made_it(side: Side, channel: grpc.aio.Channel) -> None:
    """Each of a batch does, and a request that is sent again is told once."""
    ids = [str(uuid.uuid4()) for _ in range(4)]
    async with begun(channel) as watch:
        for _ in range(2):
            one = await side.create(side.draft("one"), request_id=ids[0])
            await side.update(side.resource(id=one.id, body="two"), request_id=ids[1])
            await side.delete(one.id, request_id=ids[2])
            await side.batch_create([side.draft("three"), side.draft("four")], request_id=ids[3])
        last = await side.stored("without")
        told = await watch.until(last.id, kind=POST if side.name == "Post" else COMMENT)

    assert [it.request_id for it in told] == [*ids[:3], ids[3], ids[3], ""]


async def test_what_a_forced_deletion_takes_along_names_its_request(
    stubs: Stubs, channel: grpc.aio.Channel
) -> None:
    """The comments of the post are changes of the same request."""
    id = str(uuid.uuid4())
    post = await stubs.create_post()
    await stubs.create_comment(post.id)
    async with begun(channel, resume_token=await token_of_now(channel)) as watch:
        await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=post.id, force=True, request_id=id))
        changes = await watch.changes(2)

    assert [(it.kind, it.request_id) for it in changes] == [(COMMENT, id), (POST, id)]


async def test_what_was_not_done_is_not_told(side: Side, stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Requests that only check, or fail, or fail in part, leave no change behind."""
    one = await side.stored("one")
    changed = side.resource(id=one.id, body="changed", etag="v9")
    async with begun(channel, resume_token=await token_of_now(channel)) as watch:
        await side.create(side.draft(), validate_only=True)
        await side.update(side.resource(id=one.id, body="checked"), validate_only=True)
        await side.delete(one.id, validate_only=True)
        assert (await failure(side.update(changed))).reason == "ETAG_MISMATCH"
        assert (await failure(side.delete(one.id, etag="v9"))).reason == "ETAG_MISMATCH"
        assert (await failure(side.delete(987))).reason == side.not_found
        assert (await failure(side.batch_delete([one.id, 987]))).reason == side.not_found
        assert (await failure(side.create(side.draft("")))).reason == "FIELD_INVALID"
        await side.delete(987, allow_missing=True)
        last = await side.stored("last")
        told = await watch.until(last.id, kind=POST if side.name == "Post" else COMMENT)

    assert [resource_of(it) for it in told] == [last]


async def test_only_the_posts_and_kinds_asked_for_are_told(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """A post id stands for the post and its comments; both filters must match."""
    one, two = await stubs.create_post(), await stubs.create_post()
    token = await token_of_now(channel)
    await stubs.posts.UpdatePost(update(one, "changed"))
    await stubs.create_comment(one.id)
    await stubs.posts.UpdatePost(update(two, "changed"))
    await stubs.create_comment(two.id)
    last = await stubs.create_post()

    async def told(kinds: Sequence[int], post_ids: Sequence[int]) -> list[tuple[int, int]]:
        # The last post shows that everything has been told; who watches comments alone knows their number.
        post_ids = post_ids and [*post_ids, last.id]
        async with watching(channel, resume_token=token, kinds=kinds, post_ids=post_ids) as watch:
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


async def test_every_change_of_one_commit_is_told(
    side: Side, channel: grpc.aio.Channel, taken: Taken, database_url: str
) -> None:
    """Callers who ride in one commit each leave a change, also when the next overwrites it at once."""
    one = await side.stored("body 0")
    async with begun(channel, resume_token=await token_of_now(channel)) as watch:

        def change(n: int) -> Callable[[], Any]:
            return lambda: side.update(side.resource(id=one.id, body=f"body {n}"))

        answers = await together(taken, side, database_url, [change(n) for n in (1, 2, 3)])
        response = await watch.response()

    assert [resource_of(it).body for it in response.changes] == ["body 1", "body 2", "body 3"]
    assert [resource_of(it) for it in response.changes] == sorted(answers, key=lambda it: it.etag)


async def test_one_batch_request_is_one_response(
    side: Side, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is written around it, and although it is larger than a response usually is."""
    monkeypatch.setattr(store_changes, "PIECE_BYTES", 1000)
    async with begun(channel) as watch:
        await side.stored("before")
        many = await side.several(300)
        await side.batch_delete([it.id for it in many])
        last = await side.stored("after")
        responses: list[pb.WatchResponse] = []
        while not responses or responses[-1].changes[-1].id != last.id:
            responses.append(await watch.response())

    batches = [it for it in responses if len(it.changes) > 1]
    assert [[change.action for change in it.changes] for it in batches] == [[CREATE] * 300, [DELETE] * 300]
    assert [resource_of(it) for it in batches[0].changes] == many
    assert not any(it.partial for it in responses)


async def test_a_batch_of_exactly_as_many_rows_as_are_read_is_whole(
    posts: Side, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is partial only if more of it follow."""
    monkeypatch.setattr(store_changes, "PIECE_ROWS", 5)
    async with begun(channel) as watch:
        await posts.several(5)
        response = await watch.response()

    assert (len(response.changes), response.partial) == (5, False)


async def test_a_forced_deletion_is_one_response_or_says_that_it_is_partial(
    stubs: Stubs, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comments and the post go in one transaction: whoever stops between them knows that more follow."""
    monkeypatch.setattr(store_changes, "PIECE_BYTES", 1000)
    post = await stubs.create_post()
    for _ in range(8):
        await stubs.create_comment(post.id, "x" * 300)
    async with begun(channel, resume_token=await token_of_now(channel)) as watch:
        await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=post.id, force=True))
        responses = [await watch.response()]
        while responses[-1].changes[-1].kind != POST:
            responses.append(await watch.response())

    assert [it.partial for it in responses] == [True] * (len(responses) - 1) + [False]


@pytest.fixture
async def too_large(posts: Side, channel: grpc.aio.Channel) -> tuple[str, list[posts_pb2.Post]]:
    """A token, and behind it 2.5 MiB in one transaction."""
    token = await token_of_now(channel)
    return token, await posts.several(44, "x" * 60_000)


async def test_a_transaction_that_is_too_large_comes_in_parts(
    too_large: tuple[str, list[posts_pb2.Post]], channel: grpc.aio.Channel
) -> None:
    """All but the last response say that more of it follow, and each token goes on with the next part."""
    token, stored = too_large
    async with watching(channel, resume_token=token) as watch:
        responses = [await watch.response()]
        while responses[-1].partial:
            responses.append(await watch.response())

    assert len(responses) > 1
    assert [it.post for response in responses for it in response.changes] == stored
    assert all(response.ByteSize() < 4 * 1024 * 1024 for response in responses)
    told = 0
    for response in responses[:-1]:
        told += len(response.changes)
        async with watching(channel, resume_token=response.resume_token) as watch:
            rest = [it.post for it in await watch.changes(len(stored) - told)]
        assert rest == stored[told:]


async def test_a_partial_response_is_followed_by_more_of_the_same_also_under_a_filter(
    too_large: tuple[str, list[posts_pb2.Post]], channel: grpc.aio.Channel
) -> None:
    """Nobody who collects a transaction waits for a rest that the filter leaves out."""
    token, stored = too_large
    async with watching(channel, resume_token=token, post_ids=[stored[0].id]) as watch:
        responses = [await watch.response()]
        while responses[-1].partial:
            responses.append(await watch.read())

    assert [it.post for response in responses for it in response.changes] == stored[:1]
    assert not any(response.heartbeat for response in responses)


# Where a watch starts


async def test_a_watch_that_starts_now_has_a_token_at_once(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Also when nothing was ever written; what was before is not told, what comes next is."""
    async with watching(channel) as watch:
        first = await watch.read()
        assert first.heartbeat
        old = await stubs.create_post("old")
        # Until it has been told, its transaction might count as one that still runs.
        await watch.until(old.id)
    async with watching(channel) as watch:
        assert (await watch.read()).heartbeat
        new = await stubs.create_post("new")
        assert [it.post for it in await watch.changes(1)] == [new]
    async with watching(channel, resume_token=first.resume_token) as watch:
        assert [it.post for it in await watch.changes(2)] == [old, new]


async def test_earliest_is_every_change_that_is_kept(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """In the order in which they were made."""
    post = await stubs.create_post()
    comment = await stubs.create_comment(post.id)
    changed = await stubs.posts.UpdatePost(update(post, "changed"))
    async with watching(channel, earliest=True) as watch:
        assert (await watch.read()).heartbeat
        changes = await watch.changes(3)

    assert [(it.action, resource_of(it)) for it in changes] == [
        (CREATE, post),
        (CREATE, comment),
        (UPDATE, changed),
    ]


async def test_every_token_goes_on_behind_what_came_with_it(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Whoever starts again from any response is told the rest, once and in order."""
    stored = []
    tokens = []
    async with begun(channel) as watch:
        tokens.append(watch.token)
        for n in range(6):
            stored.append(await stubs.create_post(f"post {n}"))
            await watch.until(stored[-1].id)
            tokens.append(watch.token)

    for index, token in enumerate(tokens[:-1]):
        async with watching(channel, resume_token=token) as watch:
            assert [it.post for it in await watch.changes(6 - index)] == stored[index:]


async def test_the_initial_state_is_everything_stored_and_then_what_changes(
    stubs: Stubs, channel: grpc.aio.Channel
) -> None:
    """Posts, then comments, as they are now; complete once; then changes, beginning with the next."""
    gone = await stubs.create_post("gone")
    await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=gone.id))
    one, two = await stubs.create_post("one"), await stubs.create_post("two")
    comments = [await stubs.create_comment(it.id) for it in (two, one, two)]
    one = await stubs.posts.UpdatePost(update(one, "one, changed"))
    await token_of_now(channel)
    async with watching(channel, initial_state=True) as watch:
        state = await watch.initial_state()
        new = await stubs.create_post("new")
        changes = await watch.until(new.id)

    assert [(it.action, resource_of(it)) for it in state] == [(SNAPSHOT, it) for it in [one, two, *comments]]
    assert [it.commit_time for it in state] == [resource_of(it).update_time for it in state]
    assert [it.post_id for it in state] == [one.id, two.id, two.id, one.id, two.id]
    assert briefly(changes)[-1] == (CREATE, POST, new.id)


async def test_the_initial_state_of_an_empty_store_is_complete_at_once(
    stubs: Stubs, channel: grpc.aio.Channel
) -> None:
    """The first response says so, and what comes next is told."""
    async with watching(channel, initial_state=True) as watch:
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
    return await listed(stubs)


@pytest.mark.parametrize("kinds", [[], [POST], [COMMENT]], ids=["all", "posts", "comments"])
@pytest.mark.parametrize("post_ids", [[], [1], [3, 2, 987], [5], [987]], ids=str)
async def test_the_initial_state_keeps_to_the_filters(
    stored_state: Replica, channel: grpc.aio.Channel, kinds: list[int], post_ids: list[int]
) -> None:
    """Nothing else is sent, nothing is left out, and a post that is not there is no error."""
    async with watching(channel, initial_state=True, kinds=kinds, post_ids=post_ids) as watch:
        state = await watch.initial_state()

    posts = {id for id in stored_state.posts if not post_ids or id in post_ids}
    comments = {id for id, it in stored_state.comments.items() if not post_ids or it.post_id in post_ids}
    told = briefly(state)
    assert len(told) == len(set(told))
    assert {id for _, kind, id in told if kind == POST} == (posts if COMMENT not in kinds else set())
    assert {id for _, kind, id in told if kind == COMMENT} == (comments if POST not in kinds else set())


@pytest.mark.parametrize("post_ids", [[], [1, 2, 3, 5, 987]], ids=["all", "some"])
async def test_a_token_from_the_midst_of_the_initial_state_goes_on_with_the_rest(
    stored_state: Replica, stubs: Stubs, channel: grpc.aio.Channel, post_ids: list[int]
) -> None:
    """From every response the rest is sent, complete exactly once, and then what changed meanwhile."""
    request: dict[str, Any] = {"post_ids": post_ids}
    responses: list[pb.WatchResponse] = []
    async with watching(channel, initial_state=True, **request) as watch:
        while not responses or not responses[-1].initial_state_complete:
            responses.append(await watch.read())
    whole = [key_of(it) for response in responses for it in response.changes]
    assert len(responses) > 5
    changed = await stubs.posts.UpdatePost(update(stored_state.posts[1], "meanwhile"))

    told = 0
    for response in responses[:-1]:
        told += len(response.changes)
        async with watching(channel, resume_token=response.resume_token, **request) as watch:
            rest = await watch.initial_state()
            live = await watch.until(1)
        # The post that changed is sent as it is now.
        assert [key[:2] for key in map(key_of, rest)] == [key[:2] for key in whole[told:]]
        assert resource_of(live[-1]) == changed
        assert not any(it.action == SNAPSHOT for it in live)
    async with watching(channel, resume_token=responses[-1].resume_token, **request) as watch:
        assert not (await watch.read()).initial_state_complete
        assert resource_of((await watch.until(1))[-1]) == changed


@pytest.mark.parametrize("post_ids", [[], list(range(1, 101))], ids=["all", "some"])
async def test_the_initial_state_comes_in_small_messages(
    stubs: Stubs, channel: grpc.aio.Channel, post_ids: list[int]
) -> None:
    """Whoever does not read costs a few copies of one; large bodies come alone, small ones together."""
    sizes = [10] * 60 + [2**16] * 40
    for some in (sizes[:60], sizes[60:]):
        requests = [posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="a" * size)) for size in some]
        await stubs.posts.BatchCreatePosts(posts_pb2.BatchCreatePostsRequest(requests=requests))
    for size in sizes[50:70]:
        await stubs.create_comment(1, "a" * size)
    responses: list[pb.WatchResponse] = []
    async with watching(channel, initial_state=True, post_ids=post_ids) as watch:
        while not responses or not responses[-1].initial_state_complete:
            responses.append(await watch.read())

    told = [len(resource_of(it).body) for response in responses for it in response.changes]
    assert told == sizes + sizes[50:70]
    assert max(response.ByteSize() for response in responses) < 600 * 1024
    assert len(responses) < 30


async def test_whoever_takes_the_initial_state_and_what_follows_has_what_is_stored(
    stored_state: Replica, stubs: Stubs, channel: grpc.aio.Channel
) -> None:
    """Whatever is created, changed and deleted between its pages, on those that were sent and the others."""
    replica = Replica()
    token = ""
    complete = 0
    # Each watch reads one response, so that all writes come between two pages.
    for n in range(50):
        request: dict[str, Any] = {"resume_token": token} if token else {"initial_state": True}
        async with watching(channel, **request) as watch:
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
    async with watching(channel, resume_token=token) as watch:
        replica.apply(await watch.until(last.id))

    assert complete == 1
    assert replica == await listed(stubs)


# Heartbeats


async def test_a_watch_is_told_of_time_that_passes(
    stubs: Stubs, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats have tokens, also while all that changes is not what the watch is about; none is a gap."""
    monkeypatch.setattr(validation, "MIN_HEARTBEAT_SECONDS", 0.05)
    interval = Duration(nanos=50_000_000)
    post = await stubs.create_post()
    tokens = []
    async with begun(channel, kinds=[COMMENT], heartbeat_interval=interval) as watch:
        for _ in range(3):
            await stubs.create_post("not for this watch")
            beat = await watch.read()
            assert (beat.heartbeat, list(beat.changes), beat.partial) == (True, [], False)
            tokens.append(beat.resume_token)
        comment = await stubs.create_comment(post.id)
        assert [it.comment for it in (await watch.response()).changes] == [comment]

    for token in tokens:
        async with watching(channel, resume_token=token, kinds=[COMMENT]) as watch:
            assert [it.comment for it in await watch.changes(1)] == [comment]


async def test_the_token_of_a_heartbeat_moves_on(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch to which nothing applies does not expire: its token is behind what it was not told."""
    monkeypatch.setattr(validation, "MIN_HEARTBEAT_SECONDS", 0.05)
    async with begun(channel, kinds=[COMMENT], heartbeat_interval=Duration(nanos=50_000_000)) as watch:
        first = watch.token
        for n in range(5):
            post = await stubs.create_post(f"post {n}")
        async with begun(channel, earliest=True) as other:
            await other.until(post.id)
            behind = other.token
        while position_of(watch.token) < position_of(behind):
            await watch.read()
    async with keeper(database_url, change_rows=1) as old:
        assert await old.step()

    async with watching(channel, resume_token=first) as watch_from_first:
        assert (await watch_from_first.end()).reason == "RESUME_TOKEN_EXPIRED"
    async with watching(channel, resume_token=watch.token) as watch:
        last = await stubs.create_post("last")
        assert [it.post for it in await watch.changes(1)] == [last]


@ONE_ENGINE
async def test_the_shortest_heartbeat_is_one_second(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """As the contract allows; the next response of a quiet watch is a heartbeat."""
    async with begun(channel, heartbeat_interval=Duration(seconds=1)) as watch:
        assert (await watch.read()).heartbeat


# A list, and then a watch


async def test_a_list_and_then_a_watch_have_no_gap(side: Side, channel: grpc.aio.Channel) -> None:
    """The first page has the token; what changes while the pages are turned, and after them, is told."""
    stored = await side.several(6)
    first = await side.page(page_size=2)
    held = {it.id: it for it in side.of(first)}
    # On a page that was read, on the next, on the last, and behind it.
    await side.update(side.resource(id=stored[0].id, body="changed"))
    await side.delete(stored[1].id)
    await side.delete(stored[2].id)
    await side.update(side.resource(id=stored[5].id, body="changed"))
    await side.stored("new")
    page = first
    while page.next_page_token:
        page = await side.page(page_size=2, page_token=page.next_page_token)
        assert page.resume_token == ""
        held |= {it.id: it for it in side.of(page)}
    await side.delete(stored[3].id)
    last = await side.stored("after the pages")
    kind = POST if side.name == "Post" else COMMENT
    async with watching(channel, resume_token=first.resume_token, kinds=[kind]) as watch:
        for change in await watch.until(last.id, kind=kind):
            if change.action == DELETE:
                held.pop(change.id, None)
            else:
                held[change.id] = resource_of(change)

    assert held == {it.id: it for page in await side.all_pages() for it in page}


async def test_a_list_of_nothing_has_a_token_too(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Whoever finds nothing can wait for the first."""
    posts = await stubs.posts.ListPosts(posts_pb2.ListPostsRequest())
    comments = await stubs.comments.ListComments(comments_pb2.ListCommentsRequest())
    post = await stubs.create_post()

    for token in (posts.resume_token, comments.resume_token):
        async with watching(channel, resume_token=token) as watch:
            assert [it.post for it in await watch.changes(1)] == [post]


# Tokens that are refused


@ONE_ENGINE
async def test_a_token_with_any_damaged_byte_is_invalid(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Nobody goes on from a place that was never given."""
    token = await token_of_now(channel)

    for index, character in enumerate(token):
        damaged = token[:index] + ("A" if character != "A" else "B") + token[index + 1 :]
        error = await refusal(channel, resume_token=damaged)
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID")
        assert error.fields == ["resume_token"]


@ONE_ENGINE
@pytest.mark.parametrize("token", ["", "nonsense", "A" * 72, "é" * 72])
async def test_what_is_no_token_is_invalid(channel: grpc.aio.Channel, token: str) -> None:
    """Also an empty one, which must not mean now."""
    assert (await refusal(channel, resume_token=token)).reason == "RESUME_TOKEN_INVALID"


@contextmanager
def another_database(request: pytest.FixtureRequest, database_url: str, folder: Path) -> Iterator[str]:
    """An empty one of the same engine."""
    if is_sqlite(database_url):
        yield f"sqlite:///{folder / 'another.db'}"
    else:
        with new_database(request.getfixturevalue("postgres")) as url:
            yield url


async def test_a_token_of_another_database_is_foreign(
    request: pytest.FixtureRequest, stubs: Stubs, channel: grpc.aio.Channel, database_url: str, tmp_path: Path
) -> None:
    """Its changes are other changes; also a token of a list or of the initial state is told apart."""
    tokens = [await token_of_now(channel)]
    tokens.append((await stubs.posts.ListPosts(posts_pb2.ListPostsRequest())).resume_token)
    async with watching(channel, initial_state=True) as watch:
        tokens.append((await watch.read()).resume_token)

    with another_database(request, database_url, tmp_path) as url:
        config = settings.load(DATABASE_URL=url, listen="127.0.0.1:0")
        async with serving(config) as server, grpc.aio.insecure_channel(server.address) as other:
            for token in tokens:
                error = await refusal(other, resume_token=token)
                assert (error.code, error.reason) == (
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "RESUME_TOKEN_FOREIGN",
                )
                assert error.fields == ["resume_token"]


@ONE_ENGINE  # A file is copied; PostgreSQL is set back by means of its own.
@pytest.mark.parametrize("writes_after", [0, 2, 3, 5])
async def test_a_token_is_foreign_after_the_database_was_set_back(
    config: Config, database_file: Path, tmp_path: Path, writes_after: int
) -> None:
    """It tells of changes that never were, however many others were made in their place."""
    copy = tmp_path / "copy.db"
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        await Stubs(channel).create_post("in both")
        kept = await token_of_now(channel)
    shutil.copy(database_file, copy)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        for n in range(3):
            await Stubs(channel).create_post(f"lost {n}")
        lost = await token_of_now(channel)
    shutil.copy(copy, database_file)

    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        new = [await Stubs(channel).create_post(f"new {n}") for n in range(writes_after)]

        assert (await refusal(channel, resume_token=lost)).reason == "RESUME_TOKEN_FOREIGN"
        async with watching(channel, resume_token=kept) as watch:
            assert [it.post for it in await watch.changes(len(new))] == new


@ONE_ENGINE  # A file is copied; PostgreSQL is set back by means of its own.
async def test_a_token_is_foreign_also_if_all_before_it_was_too_old(
    config: Config, database_file: Path, database_url: str, tmp_path: Path
) -> None:
    """The last of them stays, though it is told no more, so that its place is known by more than a number."""
    copy = tmp_path / "copy.db"
    shutil.copy(database_file, copy)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        for n in range(3):
            await Stubs(channel).create_post(f"lost {n}")
    async with keeper(database_url, change_hours=0) as old:
        assert await old.step()
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        lost = await token_of_now(channel)
    shutil.copy(copy, database_file)

    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        for n in range(5):
            await Stubs(channel).create_post(f"new {n}")

        assert (await refusal(channel, resume_token=lost)).reason == "RESUME_TOKEN_FOREIGN"


@ONE_ENGINE  # A file is copied; PostgreSQL is set back by means of its own.
@pytest.mark.parametrize("trimmed_by", ["this version", "an earlier version"])
@pytest.mark.parametrize("writes_after", [0, 6, 12])
async def test_the_place_of_the_earliest_change_is_foreign_too_after_the_database_was_set_back(
    config: Config, database_file: Path, database_url: str, tmp_path: Path, trimmed_by: str, writes_after: int
) -> None:
    """No change was read to get there; what was written since is before it, or in its place, or behind."""
    copy = tmp_path / "copy.db"
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        kept = await token_of_now(channel)
        await Stubs(channel).create_post("in both")
    shutil.copy(database_file, copy)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        for n in range(9):
            await Stubs(channel).create_post(f"lost {n}")
    async with keeper(database_url, change_rows=3) as old:
        assert await old.step()
    if trimmed_by == "an earlier version":
        forget_the_change_at_the_mark(database_url)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        async with begun(channel, earliest=True) as watch:
            lost = [watch.token]
        lost.append((await refusal_after_all(channel, kept)).metadata["earliest_resume_token"])
    shutil.copy(copy, database_file)

    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        new = [await Stubs(channel).create_post(f"new {n}") for n in range(writes_after)]

        for token in lost:
            assert (await refusal(channel, resume_token=token)).reason == "RESUME_TOKEN_FOREIGN"
        async with watching(channel, resume_token=kept) as watch:
            assert [it.post for it in await watch.changes(1 + len(new))][1:] == new


@ONE_ENGINE  # A file is copied; PostgreSQL is set back by means of its own.
async def test_a_token_is_foreign_also_if_the_feed_now_begins_where_it_stands(
    config: Config, database_file: Path, database_url: str, tmp_path: Path
) -> None:
    """The change there is told no more, and was made at another time."""
    copy = tmp_path / "copy.db"
    shutil.copy(database_file, copy)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        await Stubs(channel).posts.BatchCreatePosts(batch(["lost", "lost too"]))
        lost = [await token_of_now(channel)]
        async with watching(channel, earliest=True) as watch:
            await watch.changes(2)
            lost.append(watch.token)
    shutil.copy(copy, database_file)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        await Stubs(channel).posts.BatchCreatePosts(batch(["new", "new too"]))
        await Stubs(channel).create_post("last")
    async with keeper(database_url, change_rows=1) as old:
        assert await old.step()

    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        async with begun(channel, earliest=True) as watch:
            assert position_of(watch.token) == position_of(lost[1])
        for token in lost:
            assert (await refusal(channel, resume_token=token)).reason == "RESUME_TOKEN_FOREIGN"


async def refusal_after_all(channel: grpc.aio.Channel, token: str) -> ErrorSeen:
    """The error of a watch that is begun and then cannot go on."""
    async with watching(channel, resume_token=token) as watch:
        return await watch.end()


def forget_the_change_at_the_mark(database_url: str) -> None:
    """Leaves changes as earlier versions did, which deleted all that is told no more."""
    with connected(database_url) as connection:
        gone = connection.execute(text("DELETE FROM changes WHERE seq = (SELECT trimmed_seq FROM feed)"))
        assert gone.rowcount == 1


# Changes that are no longer kept


@pytest.mark.parametrize("trimmed_by", ["this version", "an earlier version"])
async def test_every_token_of_where_the_feed_begins_goes_on(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str, trimmed_by: str
) -> None:
    """However it was got, nothing behind it has been deleted; also behind a transaction of several."""
    await stubs.posts.BatchCreatePosts(batch(["a", "b", "c"]))
    tokens = [await token_of_now(channel)]
    tokens.append((await stubs.posts.ListPosts(posts_pb2.ListPostsRequest())).resume_token)
    async with watching(channel, initial_state=True) as watch:
        await watch.initial_state()
        tokens.append(watch.token)
    async with watching(channel, earliest=True) as watch:
        await watch.changes(3)
        tokens.append(watch.token)
    last = await stubs.create_post("last")

    async with keeper(database_url, change_rows=1) as old:
        assert await old.step()
    if trimmed_by == "an earlier version":
        forget_the_change_at_the_mark(database_url)
    async with begun(channel, earliest=True) as watch:
        tokens.append(watch.token)

    for token in tokens:
        async with watching(channel, resume_token=token) as watch:
            assert [it.post for it in await watch.changes(1)] == [last]


async def test_a_token_before_what_is_kept_is_expired(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """It is said so, with the token of the oldest change that is kept; that one and later ones go on."""
    token = await token_of_now(channel)
    stored = [await stubs.create_post(f"post {n}") for n in range(7)]
    async with watching(channel, resume_token=token) as watch:
        await watch.until(stored[-1].id)
        end = watch.token
    async with keeper(database_url, change_rows=3) as old:
        assert await old.step()

    async with watching(channel, resume_token=token) as watch:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watch.changes(1)
    error = error_seen(ended.value)
    assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED")
    earliest = error.metadata["earliest_resume_token"]
    for request in ({"resume_token": earliest}, {"earliest": True}):
        async with watching(channel, **request) as watch:
            assert [it.post for it in await watch.changes(3)] == stored[4:]
    async with watching(channel, resume_token=end) as watch:
        last = await stubs.create_post("last")
        assert [it.post for it in await watch.changes(1)] == [last]


async def test_changes_are_kept_for_as_long_as_is_set(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """Those that are older go, the younger stay, and an initial state still shows what the old ones made."""
    stored = [await stubs.create_post(f"post {n}") for n in range(6)]
    with connected(database_url) as connection:
        connection.execute(
            text("UPDATE changes SET commit_time = commit_time - 7200000000 WHERE resource_id <= 4")
        )
    async with begun(channel, earliest=True) as watch:
        await watch.until(stored[-1].id)
    async with keeper(database_url, change_hours=3) as old:
        assert await old.step()
    async with watching(channel, earliest=True) as watch:
        assert [it.post for it in await watch.changes(6)] == stored
    async with keeper(database_url, change_hours=1) as old:
        assert await old.step()

    async with watching(channel, earliest=True) as watch:
        assert [it.post for it in await watch.changes(2)] == stored[4:]
    async with watching(channel, initial_state=True) as watch:
        assert [it.post for it in await watch.initial_state()] == stored


async def test_old_changes_go_in_small_steps(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step deletes no more than its rows and says that it is not done; at every moment there is no gap."""
    monkeypatch.setattr(keeping, "STEP_ROWS", 2)
    stored = [await stubs.create_post(f"post {n}") for n in range(6)]
    async with begun(channel, earliest=True) as watch:
        await watch.until(stored[-1].id)
    seen = []
    async with keeper(database_url, change_rows=1) as old:
        done = False
        while not done:
            done = await old.step()
            async with watching(channel, earliest=True) as watch:
                seen.append([it.post.id for it in await watch.until(stored[-1].id)])

    assert seen == [[3, 4, 5, 6], [5, 6], [6]]


async def test_large_changes_go_in_steps_of_few(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step goes by the size of what it deletes too."""
    monkeypatch.setattr(keeping, "STEP_BYTES", 250)
    for n in range(6):
        await stubs.create_post(str(n) * 100)
    left = []
    async with keeper(database_url, change_rows=1) as old:
        done = False
        while not done:
            done = await old.step()
            left.append(query(database_url, "SELECT count(*) FROM changes")[0][0])

    # The last that goes stays for its time.
    assert left == [4, 2]


async def test_whoever_reads_while_changes_are_deleted_misses_none_without_being_told(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every watch gets each change behind its token, one after the other, up to the last or to EXPIRED."""
    monkeypatch.setattr(keeping, "STEP_ROWS", 3)
    monkeypatch.setattr(store_changes, "PIECE_ROWS", 4)
    count = 200
    reasons: list[str] = []
    is_over = asyncio.Event()

    async def write() -> None:
        for n in range(count):
            await stubs.create_post(f"post {n}")

    async def trim() -> None:
        async with keeper(database_url, change_rows=30) as old:
            while not is_over.is_set():
                await old.step()

    async def earliest() -> str:
        async with begun(channel, earliest=True) as watch:
            return watch.token

    async def watch_from(token: str) -> str:
        """Reads to the last change; returns the reason why it could not, or nothing."""
        # Each change is a new post, so that their numbers are the same.
        _, id = position_of(token)
        async with watching(channel, resume_token=token) as watch:
            try:
                while id < count:
                    for change in (await watch.read()).changes:
                        assert change.id == id + 1
                        id = change.id
            except grpc.aio.AioRpcError as error:
                return error_seen(error).reason
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


@ONE_ENGINE
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
async def test_a_field_that_is_not_allowed_is_named(
    channel: grpc.aio.Channel, request_fields: dict[str, Any], fields: list[str]
) -> None:
    """All that are wrong at once, and nothing is sent."""
    error = await refusal(channel, **request_fields)

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert error.fields == fields


@ONE_ENGINE
async def test_the_limits_themselves_are_allowed(channel: grpc.aio.Channel) -> None:
    """1000 posts, and heartbeats between one second and sixty."""
    for seconds in (1, 60):
        request: dict[str, Any] = {
            "post_ids": range(1, 1001),
            "heartbeat_interval": Duration(seconds=seconds),
        }
        async with begun(channel, **request):
            pass


# Several processes


@ON_POSTGRESQL
async def test_a_change_is_told_by_every_server_on_the_database(
    config: Config, server: RunningServer, stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """Whichever wrote it, and a token of one goes on at another; SQLite has just one server at a time."""
    async with serving(config) as second, grpc.aio.insecure_channel(second.address) as other:
        async with begun(channel) as watch, begun(other) as watch_of_other:
            for n in range(3):
                one = await stubs.create_post(f"a {n}")
                assert [it.post for it in await watch_of_other.until(one.id)] == [one]
                two = await Stubs(other).create_post(f"b {n}")
                assert [it.post for it in await watch.until(two.id)] == [one, two]
                await watch_of_other.until(two.id)
        last = await stubs.create_post("last")
        async with watching(other, resume_token=watch.token) as watch:
            assert [it.post for it in await watch.changes(1)] == [last]


@ON_POSTGRESQL
async def test_what_began_earlier_and_commits_later_is_not_skipped(
    stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """A change is told only when nothing before it can still come; SQLite has one writer at a time."""
    token = await token_of_now(channel)
    first = await stubs.create_post("first")
    with psycopg.connect(database_url) as open_transaction:
        open_transaction.execute(
            "INSERT INTO changes (action, kind, resource_id, post_id, payload, size, commit_time)"
            ' VALUES (2, 1, 987, 987, \'{"body": "late", "version": 7}\', 4,'
            " (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)"
        )
        second = await stubs.create_post("second")
        async with watching(channel, resume_token=token) as watch:
            told = await watch.until(first.id)
            cut_off_at = watch.token
        async with begun(channel) as now:
            open_transaction.commit()
            told_now = await now.until(second.id)
    async with watching(channel, resume_token=cut_off_at) as watch:
        told += await watch.until(second.id)

    assert [it.id for it in told] == [first.id, 987, second.id]
    assert [it.id for it in told_now] == [987, second.id]


@ON_POSTGRESQL
async def test_the_changes_of_one_resource_are_told_in_the_order_in_which_they_were_made(
    config: Config, server: RunningServer, stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """Also when the transaction that came second to a post had begun first; SQLite has one at a time."""
    first, second, third = [await stubs.create_post(f"post {n}") for n in range(3)]
    token = await token_of_now(channel)
    async with serving(config) as other, grpc.aio.insecure_channel(other.address) as other_channel:
        with psycopg.connect(database_url) as in_the_way:
            in_the_way.execute("SELECT * FROM posts WHERE id = %s FOR UPDATE", [second.id])
            ids = [first.id, second.id, third.id]
            deletion = asyncio.ensure_future(
                stubs.posts.BatchDeletePosts(posts_pb2.BatchDeletePostsRequest(ids=ids))
            )
            # It holds the first post and waits for the second.
            await become(lambda: waits_for_a_lock(database_url))
            update_third = asyncio.ensure_future(
                Stubs(other_channel).posts.UpdatePost(update(third, "changed"))
            )
            await asyncio.wait([update_third], timeout=1)
        deleted, updated = await asyncio.gather(deletion, outcome_of(update_third))
    last = await stubs.create_post("last")
    async with watching(channel, resume_token=token) as watch:
        told = [(it.action, it.post) for it in await watch.until(last.id) if it.id == third.id]

    # Which of the two comes first is the database's business.
    if isinstance(updated, grpc.RpcError):
        assert error_seen(updated).reason == "POST_NOT_FOUND"
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
