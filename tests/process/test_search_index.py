"""The search index after kill -9, and the command that builds it again."""

import asyncio
import random
from collections.abc import Iterator

import grpc
import pytest
from storeapi.v1 import admin_pb2, comments_pb2, posts_pb2

from tests.support.search import index_differences, when_ready
from tests.support.server_process import ServerProcess, run_command
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN

ROUNDS = 60 if IS_LONG_RUN else 4

SEARCH = comments_pb2.SearchCommentsRequest(query="word", page_size=100)


@pytest.fixture
def server_process(server_process: ServerProcess, database_url: str) -> Iterator[ServerProcess]:
    """A server on each engine, not started yet."""
    server_process.settings |= {"DATABASE_URL": database_url}
    yield server_process
    server_process.kill()


async def write(stubs: Stubs, chance: random.Random) -> None:
    """Creates, updates and deletes comments until the server ends."""
    ids: list[int] = []
    try:
        while True:
            drafts = [
                comments_pb2.CreateCommentRequest(
                    comment=comments_pb2.Comment(post_id=1, body=f"word {chance.random()} " * 20)
                )
                for _ in range(chance.randint(1, 60))
            ]
            batch = comments_pb2.BatchCreateCommentsRequest(requests=drafts)
            ids += [it.id for it in (await stubs.comments.BatchCreateComments(batch)).comments]
            update = comments_pb2.Comment(id=chance.choice(ids), body=f"another text {chance.random()}")
            await stubs.comments.UpdateComment(comments_pb2.UpdateCommentRequest(comment=update))
            deleted = ids.pop(chance.randrange(len(ids)))
            await stubs.comments.DeleteComment(comments_pb2.DeleteCommentRequest(id=deleted))
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.UNAVAILABLE:
            raise


@pytest.mark.timeout(120 + 20 * ROUNDS)
async def test_index_agrees_with_the_tables_after_kill_9(
    server_process: ServerProcess, database_url: str
) -> None:
    """At random moments while changes are added, and while the index is built again."""
    chance = random.Random(49)
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        await Stubs(channel).create_post()
    for number in range(ROUNDS):
        async with grpc.aio.insecure_channel(server_process.address) as channel:
            stubs = Stubs(channel)
            writing = asyncio.create_task(write(stubs, chance))
            await when_ready(lambda stubs=stubs: stubs.comments.SearchComments(SEARCH))
            if number % 2:
                await stubs.admin.RebuildSearchIndex(admin_pb2.RebuildSearchIndexRequest()).read()
            await asyncio.sleep(chance.random() * 0.4)
            server_process.kill()
            await writing
        server_process.start()

    async with grpc.aio.insecure_channel(server_process.address) as channel:
        stubs = Stubs(channel)
        found = await when_ready(lambda: stubs.comments.SearchComments(SEARCH))
        assert len(found.results) == 100
        await stubs.posts.SearchPosts(posts_pb2.SearchPostsRequest(query="post"))
    assert server_process.stop() == 0
    assert index_differences(database_url) == {}
    assert "Traceback" not in server_process.stderr()


async def test_reindex_works_with_and_without_a_service(
    server_process: ServerProcess, database_url: str
) -> None:
    """The index is complete afterwards. `check` reports its state."""
    settings = {"DATABASE_URL": database_url, "STORE_LISTEN": "127.0.0.1:0"}
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        await Stubs(channel).create_post("word")
    running = run_command("reindex", "--address", server_process.address, folder=server_process.folder)
    assert server_process.stop() == 0
    alone = run_command("reindex", folder=server_process.folder, settings=settings)
    checked = run_command("check", folder=server_process.folder, settings=settings)
    off = run_command("reindex", folder=server_process.folder, settings=settings | {"STORE_SEARCH": "false"})

    for done in (running, alone):
        assert (done.returncode, done.stdout) == (0, "search index: complete\n"), done.stderr
    assert checked.stdout.endswith("search index: fine\n")
    assert off.returncode == 1
    assert "search is switched off (STORE_SEARCH)" in off.stderr
    assert index_differences(database_url) == {}
