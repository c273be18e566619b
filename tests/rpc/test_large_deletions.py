"""Posts with more comments than one transaction removes: gone at once for every caller, removed in steps."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any
from uuid import uuid4

import grpc
import pytest
import storeapi
from sqlalchemy import text
from storeapi.v1 import changes_pb2, comments_pb2, posts_pb2

from store_service.config import Config
from store_service.database import connect
from store_service.database.connection import Connection
from store_service.server import RunningServer, serving
from store_service.service import background_steps, comment_removal, counting, large_deletions, pages
from store_service.service.background_steps import BackgroundSteps
from tests.support.database import database_connection, database_contents
from tests.support.engines import POSTGRESQL_ONLY
from tests.support.errors import expect_error, result_or_error
from tests.support.polling import eventually
from tests.support.resource_api import ResourceApi
from tests.support.running_server import server_with
from tests.support.stubs import Stubs
from tests.support.watches import COMMENT, CREATE, DELETE, POST, SNAPSHOT, open_watch, watch_from_now
from tests.support.write_queue import WriteQueue, run_in_one_batch

BUDGET = 10
"""So many comments does a transaction remove in these tests."""


@pytest.fixture(autouse=True)
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few comments are many."""
    for module in (comment_removal, large_deletions, background_steps):
        monkeypatch.setattr(module, "MAX_ROWS", BUDGET)
    for module in (comment_removal, large_deletions):
        monkeypatch.setattr(module, "FETCH_ROWS", 4)
    monkeypatch.setattr(background_steps, "TAKEOVER_SECONDS", 0.05)
    monkeypatch.setattr(background_steps, "STEP_SECONDS", 0.001)


class Gate:
    """Keeps what is marked from being removed until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._opened = asyncio.Event()
        run = BackgroundSteps.run

        async def run_when_opened(remover: BackgroundSteps) -> None:
            await self._opened.wait()
            await run(remover)

        monkeypatch.setattr(BackgroundSteps, "run", run_when_opened)

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Closed; before there is a server, for a test that names it before `stubs`."""
    return Gate(monkeypatch)


async def commented_post(stubs: Stubs, count: int, body: str = "a post") -> tuple[int, list[int]]:
    """A post with comments."""
    post = await stubs.create_post(body)
    requests = [
        comments_pb2.CreateCommentRequest(comment=comments_pb2.Comment(post_id=post.id, body=f"comment {n}"))
        for n in range(count)
    ]
    if not requests:
        return post.id, []
    batch = await stubs.comments.BatchCreateComments(
        comments_pb2.BatchCreateCommentsRequest(requests=requests)
    )
    return post.id, [comment.id for comment in batch.comments]


def force(stubs: Stubs, *ids: int, **options: Any) -> Any:
    """Deletes posts with their comments."""
    if len(ids) == 1:
        return stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=ids[0], force=True, **options))
    return stubs.posts.BatchDeletePosts(posts_pb2.BatchDeletePostsRequest(ids=ids, force=True, **options))


def marks(database_url: str) -> list[int]:
    """The posts that are still to be removed."""
    with database_connection(database_url) as connection:
        return list(connection.scalars(text("SELECT post_id FROM post_deletions ORDER BY post_id")))


def deletions(database_url: str) -> list[tuple[int, int, int, str | None]]:
    """The feed's deletions in its order: the transaction, kind, id and request id of each."""
    with database_connection(database_url) as connection:
        rows = connection.execute(
            text("SELECT xid, kind, resource_id, request_id FROM changes WHERE action = 4 ORDER BY xid, seq")
        )
        return [tuple(row) for row in rows]  # type: ignore[misc]  # of these four


async def removed(database_url: str) -> None:
    """Waits until nothing is left to be removed."""
    await eventually(lambda: not marks(database_url))


# For every caller it is done at once


async def test_deleted_post_is_invisible_before_its_rows_are_removed(
    gate: Gate, stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """Neither it nor its comments, while all of their rows are still stored."""
    post_id, comment_ids = await commented_post(stubs, 3 * BUDGET)
    other, other_comments = await commented_post(stubs, 2)
    first = comment_ids[0]

    deleted = await force(stubs, post_id)
    assert (deleted.id, deleted.body) == (post_id, "a post")
    assert marks(database_url) == [post_id]
    assert len(database_contents(database_url).comments) == 3 * BUDGET + 2

    posts, comments = ResourceApi("Post", stubs), ResourceApi("Comment", stubs, post_id=post_id)
    refused: list[tuple[str, Any]] = [
        ("POST_NOT_FOUND", posts.get(post_id)),
        ("POST_NOT_FOUND", posts.batch_get([other, post_id])),
        ("POST_NOT_FOUND", posts.update(posts.resource(id=post_id, body="b"))),
        ("POST_NOT_FOUND", posts.delete(post_id)),
        ("POST_NOT_FOUND", posts.delete(post_id, force=True)),
        ("POST_NOT_FOUND", posts.delete(post_id, force=True, validate_only=True)),
        ("POST_NOT_FOUND", posts.batch_delete([other, post_id], force=True)),
        ("POST_NOT_FOUND", comments.create(comments.draft())),
        ("POST_NOT_FOUND", comments.batch_create([comments.draft()])),
        ("POST_NOT_FOUND", comments.page(post_id=post_id)),
        ("POST_NOT_FOUND", comments.page(post_id=post_id, order_by="id desc")),
        ("COMMENT_NOT_FOUND", comments.get(first)),
        ("COMMENT_NOT_FOUND", comments.batch_get([first, other_comments[0]])),
        ("COMMENT_NOT_FOUND", comments.update(comments.resource(id=first, body="b"))),
        ("COMMENT_NOT_FOUND", comments.delete(first)),
        ("COMMENT_NOT_FOUND", comments.batch_delete([first, other_comments[0]])),
    ]
    assert [(await expect_error(call)).reason for _, call in refused] == [reason for reason, _ in refused]
    assert (await posts.batch_get([post_id, other], allow_missing=True)).missing_ids == [post_id]
    assert (await posts.delete(post_id, allow_missing=True)) == posts_pb2.Post(id=post_id)
    assert (await comments.batch_get(comment_ids, allow_missing=True)).missing_ids == comment_ids
    assert (await comments.delete(first, allow_missing=True)) == comments_pb2.Comment(id=first)
    for order_by in ("id", "id desc"):
        assert [[it.id for it in page] for page in await posts.all_pages(order_by=order_by)] == [[other]]
        listed = [it.id for page in await comments.all_pages(order_by=order_by) for it in page]
        assert sorted(listed) == other_comments
    counted = await stubs.comments.CountComments(comments_pb2.CountCommentsRequest(post_ids=[post_id, other]))
    assert counted.counts == {post_id: 0, other: 2}
    for post_ids in ([], [post_id, other]):
        async with open_watch(channel, initial_state=True, post_ids=post_ids) as watch:
            state = await watch.initial_state()
            assert [(it.kind, it.id) for it in state] == [
                (POST, other),
                *((COMMENT, id) for id in other_comments),
            ]

    gate.open()
    await removed(database_url)
    left = database_contents(database_url)
    assert [row[0] for row in left.posts] == [other]
    assert [row[0] for row in left.comments] == other_comments


async def test_external_ids_are_free_before_the_rows_are_removed(
    gate: Gate, stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """Those of the post and of its comments. The feed has each deletion once, before the next create."""
    posts = ResourceApi("Post", stubs)
    post = await posts.create(posts.draft(external_id="a"))
    comments = ResourceApi("Comment", stubs, post_id=post.id)
    drafts = [comments.draft(f"{n}", external_id=f"c{n}", labels={"n": f"{n}"}) for n in range(3 * BUDGET)]
    old = comments.resources_in(await comments.batch_create(drafts))
    deletion = str(uuid4())

    async with watch_from_now(channel) as watch:
        await force(stubs, post.id, request_id=deletion)
        assert marks(database_url) == [post.id]
        await expect_error(comments.create(comments.draft(external_id="c4", post_id=99)))
        again = await posts.create(posts.draft(external_id="a"))
        comments.post_id = again.id
        first = await comments.create(comments.draft(external_id="c5"))
        batch = [comments.draft(external_id=it) for it in ("c7", "new", "c29")]
        await comments.batch_create(batch, return_existing=True)
        gate.open()
        await removed(database_url)
        end = await comments.create(comments.draft("end"))
        changes = await watch.until(end.id, kind=COMMENT)

    assert await comments.get(external_id="c5") == first
    assert await posts.get(external_id="a") == again
    deleted = [it for it in changes if it.action == DELETE and it.kind == COMMENT]
    assert sorted(it.id for it in deleted) == [it.id for it in old]
    assert {it.comment.external_id for it in deleted} == {f"c{n}" for n in range(3 * BUDGET)}
    assert {it.request_id for it in deleted} == {deletion}
    order = [(it.action, it.comment.external_id) for it in changes if it.kind == COMMENT]
    for name in ("c5", "c7", "c29"):
        assert order.index((DELETE, name)) < order.index((CREATE, name))
    assert [it.post.external_id for it in changes if it.kind == POST] == ["a", "a"]


async def test_marked_post_is_reported_before_its_comments(
    gate: Gate, stubs: Stubs, channel: grpc.aio.Channel, database_url: str
) -> None:
    """Each exactly once, in steps within the budget, with the request id."""
    request_id = str(uuid4())
    post_id, comment_ids = await commented_post(stubs, 3 * BUDGET + 5)
    async with watch_from_now(channel) as watch:
        await force(stubs, post_id, request_id=request_id)
        (change,) = await watch.changes(1)
        assert (change.action, change.kind, change.id) == (DELETE, POST, post_id)
        assert change.post.body == "a post"

        gate.open()
        changes = await watch.changes(len(comment_ids))

    assert [(it.action, it.kind, it.id, it.post_id) for it in changes] == [
        (DELETE, COMMENT, id, post_id) for id in comment_ids
    ]
    assert [it.comment.body for it in changes] == [f"comment {n}" for n in range(len(comment_ids))]
    await removed(database_url)
    told = deletions(database_url)
    assert [row[1:] for row in told] == [
        (1, post_id, request_id),
        *((2, id, request_id) for id in comment_ids),
    ]
    assert list(Counter(row[0] for row in told).values()) == [1, BUDGET, BUDGET, BUDGET, 5]


async def test_replayed_deletion_gets_the_first_response(gate: Gate, stubs: Stubs, database_url: str) -> None:
    """While the rows exist, and after their removal."""
    request_id = str(uuid4())
    post_id, _ = await commented_post(stubs, BUDGET + 1)
    first = await force(stubs, post_id, request_id=request_id)

    assert await force(stubs, post_id, request_id=request_id) == first
    gate.open()
    await removed(database_url)
    assert await force(stubs, post_id, request_id=request_id) == first


async def test_validate_only_marks_nothing(gate: Gate, stubs: Stubs, database_url: str) -> None:
    """The answer is that of the deletion, and everything stays."""
    post_id, _ = await commented_post(stubs, BUDGET + 1)
    before = database_contents(database_url)

    answer = await force(stubs, post_id, validate_only=True)

    assert answer.id == post_id
    assert marks(database_url) == []
    assert database_contents(database_url) == before


# What fits into the budget


async def test_deletion_within_the_budget_is_one_transaction(
    gate: Gate, stubs: Stubs, database_url: str
) -> None:
    """Comments come first in the feed."""
    post_id, comment_ids = await commented_post(stubs, BUDGET)

    await force(stubs, post_id)

    assert marks(database_url) == []
    told = deletions(database_url)
    assert [row[1:3] for row in told] == [*((2, id) for id in comment_ids), (1, post_id)]
    assert len({row[0] for row in told}) == 1


async def test_budget_counts_bytes(
    gate: Gate, stubs: Stubs, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step removes at least one row."""
    monkeypatch.setattr(large_deletions, "MAX_BYTES", 1000)
    post_id = (await stubs.create_post()).id
    for size in (600, 400, 1, 2000, 2000):
        await stubs.create_comment(post_id, "x" * size)

    await force(stubs, post_id)
    gate.open()
    await removed(database_url)

    assert list(Counter(row[0] for row in deletions(database_url)).values()) == [1, 2, 1, 1, 1]


async def test_budget_counts_former_versions(
    gate: Gate, stubs: Stubs, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each version counts as the bytes of the body."""
    monkeypatch.setattr(large_deletions, "MAX_BYTES", 1000)
    post_id = (await stubs.create_post()).id
    for updates in (0, 2, 0, 0):
        comment = await stubs.create_comment(post_id, "x" * 300)
        for _ in range(updates):
            update = comments_pb2.Comment(id=comment.id, body=comment.body)
            await stubs.comments.UpdateComment(comments_pb2.UpdateCommentRequest(comment=update))

    await force(stubs, post_id)
    gate.open()
    await removed(database_url)

    assert list(Counter(row[0] for row in deletions(database_url)).values()) == [1, 1, 1, 2]


@pytest.mark.parametrize("with_ids", [False, True], ids=["", "request_id"])
async def test_deletions_of_one_batch_share_the_budget(
    gate: Gate, write_queue: WriteQueue, stubs: Stubs, database_url: str, with_ids: bool
) -> None:
    """A deletion that does not fit comes in the next transaction."""
    posts = [await commented_post(stubs, 6) for _ in range(4)]
    options = [{"request_id": str(uuid4())} if with_ids else {} for _ in posts]
    calls = [partial(force, stubs, post_id, **it) for (post_id, _), it in zip(posts, options, strict=True)]

    # The last one twice, where that is one request.
    calls += calls[-1:] if with_ids else []
    answers = await run_in_one_batch(write_queue, ResourceApi("Post", stubs), database_url, calls)

    assert [it.id for it in answers[:4]] == [id for id, _ in posts]
    assert answers[3:] == [answers[3]] * len(answers[3:])
    assert marks(database_url) == []
    by_transaction: dict[int, list[tuple[int, int]]] = {}
    for xid, kind, id, _ in deletions(database_url):
        by_transaction.setdefault(xid, []).append((kind, id))
    expected = [[*((2, it) for it in comment_ids), (1, id)] for id, comment_ids in posts]
    assert sorted(by_transaction.values(), key=lambda it: it[-1]) == expected


async def test_refused_deletion_does_not_block_others(
    gate: Gate, write_queue: WriteQueue, stubs: Stubs, database_url: str
) -> None:
    """Whatever the budget was looked up for, the rest is done in the next transaction."""
    posts = [await commented_post(stubs, 8) for _ in range(3)]

    outcomes = await run_in_one_batch(
        write_queue,
        ResourceApi("Post", stubs),
        database_url,
        [
            lambda: force(stubs, posts[0][0], etag="another"),
            lambda: force(stubs, posts[1][0]),
            lambda: force(stubs, posts[2][0]),
            lambda: force(stubs, posts[1][0]),
        ],
    )

    assert (await expect_error(_raised(outcomes[0]))).reason == "ETAG_MISMATCH"
    assert [it.id for it in outcomes[1:3]] == [posts[1][0], posts[2][0]]
    assert (await expect_error(_raised(outcomes[3]))).reason == "POST_NOT_FOUND"
    assert marks(database_url) == []


async def _raised(error: Exception) -> None:
    raise error


async def test_posts_of_one_request_are_marked_together(gate: Gate, stubs: Stubs, database_url: str) -> None:
    """All or none, although their comments exceed the budget."""
    posts = [await commented_post(stubs, 4) for _ in range(4)]
    bare = (await stubs.create_post()).id
    ids = [id for id, _ in posts]

    refused = await expect_error(force(stubs, *ids, bare, 10**6))
    assert refused.reason == "POST_NOT_FOUND"
    assert marks(database_url) == []
    answer = await force(stubs, *ids, bare)

    assert [post.id for post in answer.posts] == [*ids, bare]
    assert marks(database_url) == ids
    assert [row[1:3] for row in deletions(database_url)] == [(1, bare), *((1, id) for id in ids)]
    gate.open()
    await removed(database_url)
    assert database_contents(database_url).posts == database_contents(database_url).comments == ()
    told = deletions(database_url)[5:]
    assert [row[2] for row in told] == [id for _, comment_ids in posts for id in comment_ids]
    assert max(Counter(row[0] for row in told).values()) <= BUDGET
    assert len(Counter(row[0] for row in told)) == 3, "two steps for the first, one for the others"


# Pages and counts


async def test_page_of_comments_examines_a_bounded_number_of_rows(
    gate: Gate,
    stubs: Stubs,
    channel: grpc.aio.Channel,
    monkeypatch: pytest.MonkeyPatch,
    server: RunningServer,
) -> None:
    """It may be short or empty and has a token."""
    monkeypatch.setattr(pages, "MAX_EXAMINED_ROWS", 20)
    monkeypatch.setattr(pages, "FETCH_ROWS", 7)
    _, before_ids = await commented_post(stubs, 2)
    post_id, _ = await commented_post(stubs, 60)
    _, after_ids = await commented_post(stubs, 2)
    await force(stubs, post_id)
    comments = ResourceApi("Comment", stubs)

    found = await comments.all_pages(page_size=5)
    assert [len(page) for page in found] == [2, 0, 0, 2]
    assert [it.id for page in found for it in page] == before_ids + after_ids
    found = await comments.all_pages(page_size=1, order_by="id desc")
    assert [it.id for page in found for it in page] == [*reversed(after_ids), *reversed(before_ids)]
    assert [] in found
    async with storeapi.AsyncStoreClient(server.address) as client:
        assert [it.id async for it in client.comments.list(page_size=5)] == before_ids + after_ids
    async with open_watch(channel, initial_state=True, kinds=[COMMENT]) as watch:
        assert [it.id for it in await watch.initial_state()] == before_ids + after_ids


async def test_page_of_posts_examines_a_bounded_number_of_rows(
    gate: Gate, stubs: Stubs, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Posts that are marked are passed over in the same way."""
    monkeypatch.setattr(pages, "MAX_EXAMINED_ROWS", 4)
    monkeypatch.setattr(pages, "FETCH_ROWS", 2)
    posts = [await commented_post(stubs, 2) for _ in range(12)]
    await force(stubs, *(id for id, _ in posts[1:-1]))

    found = await ResourceApi("Post", stubs).all_pages(page_size=3)

    assert [it.id for page in found for it in page] == [posts[0][0], posts[-1][0]]
    assert [] in found
    async with open_watch(channel, initial_state=True, kinds=[POST]) as watch:
        assert [it.id for it in await watch.initial_state()] == [posts[0][0], posts[-1][0]]


async def test_comments_are_counted_in_steps(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    posts = [await commented_post(stubs, count) for count in (0, 5, 1, 7, 2, 3, 0, 6)]
    wanted = {id: len(comment_ids) for id, comment_ids in posts} | {10**6: 0}
    for step in (1, 2, 3, 6, 7, 24, 25):
        monkeypatch.setattr(counting, "MAX_ROWS", step)
        asked = [[*wanted], [posts[3][0]], [posts[7][0], posts[1][0]], [*reversed(wanted)]]
        calls = [
            stubs.comments.CountComments(comments_pb2.CountCommentsRequest(post_ids=ids)) for ids in asked
        ]
        answers = await asyncio.gather(*calls)

        assert [dict(it.counts) for it in answers] == [{id: wanted[id] for id in ids} for ids in asked]


async def test_permanent_comment_is_counted_once(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """While others are created and deleted."""
    monkeypatch.setattr(counting, "MAX_ROWS", 2)
    post_id, staying = await commented_post(stubs, 20)
    going = [(await stubs.create_comment(post_id)).id for _ in range(10)]
    request = comments_pb2.CountCommentsRequest(post_ids=[post_id])

    async def change() -> None:
        for id in going:
            await stubs.comments.DeleteComment(comments_pb2.DeleteCommentRequest(id=id))
            await stubs.create_comment(post_id)

    changing = asyncio.create_task(change())
    counts = []
    while not changing.done():
        counts.append((await stubs.comments.CountComments(request)).counts[post_id])
    await changing

    assert counts
    assert all(len(staying) <= count <= len(staying) + 20 for count in counts)


async def test_post_has_comments_error_has_the_exact_count(
    stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in steps outside of the transaction."""
    monkeypatch.setattr(counting, "MAX_ROWS", 4)
    (one, _), (other, _) = await commented_post(stubs, 3 * BUDGET), await commented_post(stubs, 5)

    for options in ({}, {"validate_only": True}, {"request_id": str(uuid4())}):
        refused = await expect_error(
            stubs.posts.BatchDeletePosts(posts_pb2.BatchDeletePostsRequest(ids=[one, other], **options))
        )
        assert refused.reason == "POST_HAS_COMMENTS"
        assert refused.metadata == {"post_id": f"{one},{other}", "comment_count": str(3 * BUDGET + 5)}


# The remover


async def test_removal_continues_after_a_restart(gate: Gate, config: Config, database_url: str) -> None:
    async with serving(config) as running, grpc.aio.insecure_channel(running.address) as channel:
        post_id, _ = await commented_post(Stubs(channel), 3 * BUDGET)
        await force(Stubs(channel), post_id)
    assert marks(database_url) == [post_id]

    gate.open()
    async with serving(config):
        await removed(database_url)

    assert database_contents(database_url).comments == database_contents(database_url).posts == ()


async def test_read_only_server_removes_nothing(gate: Gate, config: Config, database_url: str) -> None:
    """It still hides deleted posts."""
    async with serving(config) as running, grpc.aio.insecure_channel(running.address) as channel:
        post_id, _ = await commented_post(Stubs(channel), 3 * BUDGET)
        await force(Stubs(channel), post_id)

    gate.open()
    read_only = config.model_copy(update={"read_only": True})
    async with serving(read_only) as running, grpc.aio.insecure_channel(running.address) as channel:
        assert not any(task.get_name() == "large-deletions" for task in asyncio.all_tasks())
        assert (
            await expect_error(ResourceApi("Post", Stubs(channel)).get(post_id))
        ).reason == "POST_NOT_FOUND"
    assert len(database_contents(database_url).comments) == 3 * BUDGET


async def test_forced_rollback_marks_and_removes(config: Config, database_url: str) -> None:
    """In one transaction that is rolled back at the end."""
    rolling_back = config.model_copy(update={"DB_FORCE_ROLL_BACK": True})
    async with serving(rolling_back) as running, grpc.aio.insecure_channel(running.address) as channel:
        stubs = Stubs(channel)
        post_id, _ = await commented_post(stubs, 3 * BUDGET)
        start = await stubs.posts.ListPosts(posts_pb2.ListPostsRequest())
        assert [post.id for post in start.posts] == [post_id]
        await force(stubs, post_id)
        assert (await expect_error(ResourceApi("Post", stubs).get(post_id))).reason == "POST_NOT_FOUND"

    assert database_contents(database_url).posts == database_contents(database_url).changes == ()
    assert marks(database_url) == []


class Servers:
    """Several servers on one database, and which of their connections remove comments that were marked."""

    def __init__(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        self._config = config
        self._stacks: list[AsyncExitStack] = []
        self.removing: list[Connection] = []
        remove = background_steps.remove_comments

        async def watched(connection: Connection, *arguments: Any, **named: Any) -> None:
            self.removing.append(connection)
            await remove(connection, *arguments, **named)

        # Only what the background steps call: posts.py has its own name for it.
        monkeypatch.setattr(background_steps, "remove_comments", watched)

    async def start(self) -> Stubs:
        """One more."""
        self._stacks.append(AsyncExitStack())
        running = await self._stacks[-1].enter_async_context(serving(self._config))
        return Stubs(await self._stacks[-1].enter_async_context(grpc.aio.insecure_channel(running.address)))

    async def stop(self, index: int) -> None:
        """Stops one that is running."""
        await self._stacks.pop(index).aclose()

    async def stop_all(self) -> None:
        while self._stacks:
            await self.stop(0)


@pytest.fixture
async def servers(config: Config, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Servers]:
    """None is started yet."""
    servers = Servers(config, monkeypatch)
    yield servers
    await servers.stop_all()


@POSTGRESQL_ONLY
async def test_one_process_removes_and_another_takes_over(servers: Servers, database_url: str) -> None:
    """Both hide deleted posts at once."""
    one, other = await servers.start(), await servers.start()
    post_id, _ = await commented_post(one, 60 * BUDGET)
    also, _ = await commented_post(one, 5 * BUDGET)
    await force(one, post_id)
    assert (await expect_error(ResourceApi("Post", other).get(post_id))).reason == "POST_NOT_FOUND"
    await eventually(lambda: bool(servers.removing))
    await force(other, also)

    await eventually(lambda: len(servers.removing) >= 10)
    assert len(set(servers.removing)) == 1
    await servers.stop(0)
    assert post_id in marks(database_url)
    await removed(database_url)
    assert len(set(servers.removing)) == 2
    assert database_contents(database_url).posts == database_contents(database_url).comments == ()


@POSTGRESQL_ONLY
async def test_concurrent_removal_step_removes_nothing(gate: Gate, stubs: Stubs, database_url: str) -> None:
    """The second process finds that the mark has moved."""
    post_id, _ = await commented_post(stubs, 5 * BUDGET)
    await force(stubs, post_id)
    async with connect.open_database(database_url) as store:
        seen = await store.read(background_steps.FIND, None)
        assert seen is not None

        after_one = await store.write(background_steps.STEP, seen)
        assert await store.write(background_steps.STEP, seen) == after_one

    assert len(database_contents(database_url).comments) == 4 * BUDGET


async def test_posts_deleted_during_a_removal_are_removed(
    gate: Gate, stubs: Stubs, database_url: str
) -> None:
    """Including lower ids."""
    first, _ = await commented_post(stubs, 2 * BUDGET)
    second, _ = await commented_post(stubs, 2 * BUDGET)
    await stubs.comments.BatchCreateComments(
        comments_pb2.BatchCreateCommentsRequest(
            requests=[
                comments_pb2.CreateCommentRequest(comment=comments_pb2.Comment(post_id=first, body="later"))
                for _ in range(2 * BUDGET)
            ]
        )
    )
    await force(stubs, second)
    async with connect.open_database(database_url) as store:
        mark = await store.read(background_steps.FIND, None)
        assert mark is not None
        mark = await store.write(background_steps.STEP, mark)
        await force(stubs, first)
        while mark is not None:
            mark = await store.write(background_steps.STEP, mark)

    assert database_contents(database_url).comments == ()
    assert database_contents(database_url).posts == ()
    assert marks(database_url) == []


async def test_comments_created_during_a_deletion_are_removed(stubs: Stubs, database_url: str) -> None:
    """Acknowledged ones are in the feed as deleted; later ones are refused."""
    await _race([stubs, stubs], database_url)


@POSTGRESQL_ONLY
async def test_comments_created_by_another_process_during_a_deletion_are_removed(
    servers: Servers, database_url: str
) -> None:
    """No comment is left without its post."""
    await _race([await servers.start(), await servers.start()], database_url)


async def _race(stubs: list[Stubs], database_url: str) -> None:
    creating, deleting = stubs
    acknowledged: dict[int, int] = {}
    for _ in range(4):
        post_id, comment_ids = await commented_post(creating, BUDGET)
        acknowledged.update(dict.fromkeys(comment_ids, post_id))

        async def create(post_id: int = post_id) -> None:
            while True:
                outcome = await result_or_error(creating.create_comment(post_id))
                if isinstance(outcome, grpc.RpcError):
                    assert (await expect_error(_raised(outcome))).reason == "POST_NOT_FOUND"
                    return
                acknowledged[outcome.id] = post_id

        callers = [asyncio.create_task(create()) for _ in range(8)]
        await eventually(lambda: len(acknowledged) % 3 == 0 or len(acknowledged) > 3 * BUDGET)
        await force(deleting, post_id)
        await asyncio.gather(*callers)

    await removed(database_url)
    assert database_contents(database_url).posts == database_contents(database_url).comments == ()
    told = Counter(id for _, kind, id, _ in deletions(database_url) if kind == 2)
    assert told == Counter(acknowledged.keys())


# The feed


async def test_feed_reproduces_the_tables(stubs: Stubs, channel: grpc.aio.Channel, database_url: str) -> None:
    """Also for a consumer that starts meanwhile."""
    kept: dict[tuple[int, int], str] = {}

    def apply(changes: list[changes_pb2.Change]) -> None:
        for change in changes:
            if change.action == DELETE:
                kept.pop((change.kind, change.id), None)
            else:
                assert change.action in (CREATE, SNAPSHOT)
                kept[change.kind, change.id] = (change.post or change.comment).body

    posts = [await commented_post(stubs, 2 * BUDGET + n) for n in range(4)]
    async with open_watch(channel, initial_state=True) as watch:
        apply((await watch.read()).changes)
        await force(stubs, posts[0][0])
        apply(await watch.initial_state())
        await force(stubs, posts[1][0], posts[2][0])
        await removed(database_url)
        last = await stubs.create_post("last")
        apply(await watch.until(last.id))

    left = database_contents(database_url)
    assert {id for kind, id in kept if kind == POST} == {row[0] for row in left.posts}
    assert {id for kind, id in kept if kind == COMMENT} == {row[0] for row in left.comments}
    assert len(left.comments) == len(posts[3][1])


async def test_writer_reads_no_more_rows_than_the_budget(
    config: Config, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is deleted, no statement returns more rows than the budget has. Search has its own."""
    most = 0
    fetch = Connection.fetch

    async def watched(connection: Connection, statement: Any, **values: Any) -> Any:
        nonlocal most
        rows = await fetch(connection, statement, **values)
        most = max(most, len(rows))
        return rows

    async with server_with(config, search=False) as (_, stubs):
        posts = [await commented_post(stubs, 5 * BUDGET) for _ in range(3)]
        monkeypatch.setattr(Connection, "fetch", watched)
        run: Callable[[], Awaitable[Any]]
        for run in (
            lambda: expect_error(stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=posts[0][0]))),
            lambda: force(stubs, posts[0][0], validate_only=True),
            lambda: force(stubs, *(id for id, _ in posts)),
            lambda: removed(database_url),
        ):
            await run()

    assert 0 < most <= BUDGET + 1
