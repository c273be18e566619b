"""The index for searches: how it is built, and what it has after each kind of write."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from storeapi.v1 import admin_pb2, comments_pb2, posts_pb2

from store_service.config import Config
from store_service.database.connect import is_sqlite, open_database
from store_service.model import ResourceKind
from store_service.server import serving
from store_service.service import search_cleanup, search_index, search_steps
from store_service.service.search_index import SearchIndex
from tests.support.database import execute, query
from tests.support.errors import expect_error
from tests.support.polling import eventually
from tests.support.search import index_differences
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step has few rows. A search waits for as long as the index is built."""
    monkeypatch.setattr(search_steps, "STEP_ROWS", 3)
    monkeypatch.setattr(search_cleanup, "STEP_ROWS", 3)
    monkeypatch.setattr(search_index, "BUILDING_WAIT_SECONDS", scaled_timeout())
    monkeypatch.setattr(search_index, "WAIT_SECONDS", scaled_timeout())


@asynccontextmanager
async def served(config: Config, **changed: object) -> AsyncIterator[Stubs]:
    """Runs a server until the end of the block."""
    config = config.model_copy(update=changed)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        yield Stubs(channel)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Servers do not update the index, until this is undone."""
    with pytest.MonkeyPatch.context() as patch:

        async def wait(_: object) -> None:
            await asyncio.Event().wait()

        patch.setattr(SearchIndex, "run", wait)
        yield patch


async def found(stubs: Stubs, text: str) -> list[int]:
    """Returns the ids of comments that a search finds."""
    response = await stubs.comments.SearchComments(comments_pb2.SearchCommentsRequest(query=text))
    return [it.comment.id for it in response.results]


def insert_comments(config: Config, *bodies: str, first_id: int = 1) -> None:
    """Stores a post with comments without a change, as in a database of an earlier version."""
    url = config.DATABASE_URL
    overriding = "" if is_sqlite(url) else "OVERRIDING SYSTEM VALUE"
    for id, body in enumerate(bodies, first_id):
        execute(
            url,
            f"INSERT INTO posts (id, body) {overriding} VALUES (1, 'a post') ON CONFLICT DO NOTHING",
            f"INSERT INTO comments (id, body, post_id) {overriding} VALUES ({id}, '{body}', 1)",
        )
    if not is_sqlite(url):
        last = "(SELECT max(id) FROM comments)"
        execute(url, f"SELECT setval(pg_get_serial_sequence('comments', 'id'), {last})")


# Building


async def test_index_of_existing_rows_is_built_in_steps(config: Config) -> None:
    """While the service runs. Ids may have gaps."""
    insert_comments(config, *["word one"] * 8)
    insert_comments(config, "word two", first_id=70_000)
    insert_comments(config, "word three", first_id=10_000_000_000)

    async with served(config) as stubs:
        created = await stubs.create_comment(1, "word four")
        others = [created.id, 10_000_000_000, 70_000]
        assert await found(stubs, "word") == [*others, 8, 7, 6, 5, 4, 3, 2, 1]
        assert await found(stubs, "word -one") == others
        assert await found(stubs, "tw*") == [70_000]
    assert index_differences(config.DATABASE_URL) == {}


async def test_index_catches_up_without_a_search(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long pauses are only made if the index is neither being built nor behind."""
    monkeypatch.setattr(search_index, "PAUSE_RATIO", 1e9)
    monkeypatch.setattr(search_index, "BEHIND_SECONDS", -1.0)
    insert_comments(config, *["word"] * 8)
    url = config.DATABASE_URL

    async with served(config) as stubs:
        await eventually(lambda: query(url, "SELECT count(*) FROM comment_search") == [(8,)])
        for _ in range(4):
            await stubs.create_comment(1, "word")
        await eventually(lambda: query(url, "SELECT count(*) FROM comment_search") == [(12,)])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE search_index SET tokenizer = 'of another version'",
        "UPDATE search_index SET store_id = 'another store'",
        "UPDATE search_index SET seq = seq + 1000, xid = xid + 1000",
        "DELETE FROM search_index",
    ],
)
async def test_index_that_does_not_fit_is_built_again(config: Config, change: str) -> None:
    """One of another tokenizer, store or history. Rows of resources that do not exist are removed."""
    async with served(config) as stubs:
        await stubs.create_post()
        ids = [(await stubs.create_comment(1, "word")).id for _ in range(8)]
        assert len(await found(stubs, "word")) == 8
    execute(config.DATABASE_URL, change, f"DELETE FROM comments WHERE id < {ids[5]}")
    insert_comments(config, "other words", first_id=500)

    async with served(config) as stubs:
        assert await found(stubs, "word") == ids[:4:-1]
        assert await found(stubs, "words") == [500]
    assert index_differences(config.DATABASE_URL) == {}


async def test_changes_that_were_deleted_before_they_were_read_are_noticed(
    config: Config, idle: pytest.MonkeyPatch
) -> None:
    """The index is built again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SearchIndex, "run", run_of_index)
        async with served(config) as stubs:
            await stubs.create_post()
            await stubs.create_comment(1, "word")
            assert await found(stubs, "word") == [1]
    async with served(config) as stubs:
        for _ in range(5):
            await stubs.create_comment(1, "word")
    (last,) = query(config.DATABASE_URL, "SELECT xid, seq FROM changes ORDER BY seq DESC LIMIT 1")
    execute(
        config.DATABASE_URL,
        f"UPDATE feed SET trimmed_xid = {last[0]}, trimmed_seq = {last[1]}",
        f"DELETE FROM changes WHERE seq < {last[1]}",
    )
    idle.undo()

    async with served(config) as stubs:
        assert await found(stubs, "word") == [6, 5, 4, 3, 2, 1]
    assert index_differences(config.DATABASE_URL) == {}


run_of_index = SearchIndex.run


async def test_search_fails_while_the_index_is_built(config: Config, idle: pytest.MonkeyPatch) -> None:
    """With the progress, and when to retry. Health reports it under a name of its own."""
    idle.setattr(search_index, "BUILDING_WAIT_SECONDS", 0.01)
    insert_comments(config, *["word"] * 6)
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        stubs, health = Stubs(channel), health_pb2_grpc.HealthStub(channel)

        error = await expect_error(
            stubs.comments.SearchComments(comments_pb2.SearchCommentsRequest(query="a"))
        )

        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SEARCH_INDEX_NOT_READY")
        assert error.metadata == {"progress": "0.000"}
        assert error.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
        assert (await health.Check(health_pb2.HealthCheckRequest(service="search"))).status == NOT_SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
    idle.undo()
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert await found(Stubs(channel), "word") == [6, 5, 4, 3, 2, 1]
        assert (await health.Check(health_pb2.HealthCheckRequest(service="search"))).status == SERVING


async def test_rebuild_reports_its_progress(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last response is complete, and searches work."""
    monkeypatch.setattr(search_index, "PROGRESS_SECONDS", 0.01)
    insert_comments(config, *["word"] * 8)
    async with served(config) as stubs:
        call = stubs.admin.RebuildSearchIndex(admin_pb2.RebuildSearchIndexRequest())
        responses = [it async for it in call]

        assert [it.complete for it in responses] == [False] * (len(responses) - 1) + [True]
        assert [it.progress for it in responses] == sorted(it.progress for it in responses)
        assert len(await found(stubs, "word")) == 8


async def test_rebuild_needs_an_index_and_a_server_that_writes(config: Config) -> None:
    """Otherwise it is refused."""
    for changed, reason in (({"search": False}, "SEARCH_DISABLED"), ({"read_only": True}, "READ_ONLY")):
        async with served(config, **changed) as stubs:
            call = stubs.admin.RebuildSearchIndex(admin_pb2.RebuildSearchIndexRequest())
            assert (await expect_error(call.read())).reason == reason


# Switching off


async def test_index_is_emptied_while_search_is_off(config: Config) -> None:
    """And is built again when it is switched on."""
    url = config.DATABASE_URL
    async with served(config) as stubs:
        await stubs.create_post()
        for _ in range(7):
            await stubs.create_comment(1, "word")
        assert len(await found(stubs, "word")) == 7
    async with served(config, search=False) as stubs:
        await stubs.posts.UpdatePost(posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=1, body="b")))
        await eventually(lambda: query(url, "SELECT count(*) FROM comment_search") == [(0,)])
        await stubs.comments.DeleteComment(comments_pb2.DeleteCommentRequest(id=3))
    assert query(url, "SELECT * FROM search_index") == []

    async with served(config) as stubs:
        assert await found(stubs, "word") == [7, 6, 5, 4, 2, 1]
    assert index_differences(url) == {}


# Several servers


async def test_read_only_server_finds_what_the_index_has(config: Config) -> None:
    """It does not update the index, and fails if the index lacks the latest changes."""
    insert_comments(config, "word")
    async with served(config) as stubs:
        assert await found(stubs, "word") == [1]

    async with served(config, read_only=True) as stubs:
        assert await found(stubs, "word") == [1]


async def test_step_that_another_process_has_made_is_not_made_again(config: Config) -> None:
    """A step that is written late would bring back former texts."""
    insert_comments(config, *["former words"] * 5)
    async with open_database(config.DATABASE_URL, readers=1) as database:
        index = SearchIndex(database, enabled=True)
        while not (read := await database.read(search_steps.READ, None)).rows.get(ResourceKind.COMMENT):
            await index.step()
        execute(config.DATABASE_URL, "UPDATE comments SET body = 'a word'")
        while await index.step():
            pass

        assert not await database.write(search_steps.APPLY, search_steps.prepared(read))
    assert index_differences(config.DATABASE_URL) == {}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_two_servers_share_one_index(config: Config) -> None:
    """Each finds what the other has written, while both write."""
    async with served(config) as one, served(config) as other:
        await one.create_post()

        async def write(stubs: Stubs, reader: Stubs, name: str) -> None:
            for number in range(15):
                created = await stubs.create_comment(1, f"{name}{number} word")
                assert await found(reader, f"{name}{number}") == [created.id]

        await asyncio.gather(write(one, other, "a"), write(other, one, "b"))
        assert len(await found(one, "word")) == 30
    assert index_differences(config.DATABASE_URL) == {}


# What the index has


async def test_index_agrees_with_the_tables_after_each_kind_of_write(config: Config) -> None:
    """Creates, updates, deletions with replies, restorations, and tombstones."""
    async with served(config, undelete_hours=1) as stubs:
        post = await stubs.create_post("a post")
        comments = [await stubs.create_comment(post.id, f"word {it}") for it in range(6)]
        for it in comments:
            reply = comments_pb2.Comment(post_id=post.id, body=f"reply {it.id}", reply_to_id=it.id)
            await stubs.comments.CreateComment(comments_pb2.CreateCommentRequest(comment=reply))
        delete, undelete = comments_pb2.DeleteCommentRequest, comments_pb2.UndeleteCommentRequest
        await stubs.comments.DeleteComment(delete(id=comments[0].id))
        await stubs.comments.DeleteComment(delete(id=comments[1].id, force=True))
        await stubs.comments.DeleteComment(delete(id=comments[2].id, force=True))
        await stubs.comments.UndeleteComment(undelete(id=comments[2].id))
        update = comments_pb2.Comment(id=comments[3].id, body="other", labels={"a": "b"}, author="me")
        await stubs.comments.UpdateComment(comments_pb2.UpdateCommentRequest(comment=update))
        second = await stubs.create_post("another post")
        await stubs.create_comment(second.id, "word")
        await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=second.id, force=True))
        await stubs.posts.UndeletePost(posts_pb2.UndeletePostRequest(id=second.id))

        assert len(await found(stubs, "word")) == 4
        assert len(await found(stubs, "reply")) == 5
    assert index_differences(config.DATABASE_URL) == {}
