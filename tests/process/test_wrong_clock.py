"""A real service process whose wall clock jumps by a year."""

from pathlib import Path

import grpc
import pytest
from storeapi.v1 import posts_pb2

from tests.support.polling import eventually
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.watches import open_watch

YEAR_SECONDS = 366 * 24 * 3600
REQUEST_ID = "018f6b5e-6a1c-7c3e-9d2b-3f4a5b6c7d8e"
POSTS = 50


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """The file that says how wrong the clock is."""
    file = tmp_path / "ahead"
    file.write_text("0")
    return file


@pytest.fixture
def server(server_process: ServerProcess, clock: Path) -> ServerProcess:
    """A server with that clock."""
    folder = Path(__file__).parent / "wrong_clock"
    server_process.settings |= {
        "PYTHONPATH": str(folder),
        "WRONG_CLOCK": str(clock),
        "STORE_UNDELETE_HOURS": "24",
    }
    return server_process.start()


def jump(clock: Path) -> None:
    """Puts the clock a year ahead."""
    clock.write_text(str(YEAR_SECONDS))


async def create_once(channel: grpc.aio.Channel) -> posts_pb2.Post:
    request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="once"), request_id=REQUEST_ID)
    return await Stubs(channel).posts.CreatePost(request)


async def ids_of_changes(channel: grpc.aio.Channel, last: int) -> list[int]:
    """The ids of all changes from the earliest on."""
    async with open_watch(channel, earliest=True) as watch:
        return [it.id for it in await watch.until(last)]


async def get_deleted(channel: grpc.aio.Channel, id: int) -> posts_pb2.Post:
    return await Stubs(channel).posts.GetPost(posts_pb2.GetPostRequest(id=id, show_deleted=True))


async def test_clock_jump_deletes_nothing(server: ServerProcess, clock: Path) -> None:
    """While the service runs, and after a restart with the wrong clock."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        first = await create_once(channel)
        stored = [first.id, *[(await Stubs(channel).create_post()).id for _ in range(POSTS)]]
        deleted = (await Stubs(channel).create_post("deleted")).id
        await Stubs(channel).posts.DeletePost(posts_pb2.DeletePostRequest(id=deleted))
        stored += [deleted, deleted]
        jump(clock)
        await eventually(lambda: "clock jumped" in server.stderr())
        later = await Stubs(channel).create_post("later")
        assert later.create_time.seconds - first.create_time.seconds > YEAR_SECONDS - 3600
        assert await create_once(channel) == first
        assert await ids_of_changes(channel, later.id) == [*stored, later.id]
        assert (await get_deleted(channel, deleted)).body == "deleted"
    assert server.stop() == 0

    server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        await eventually(lambda: server.stderr().count("retention is extended") == 6)
        assert await create_once(channel) == first
        assert await ids_of_changes(channel, later.id) == [*stored, later.id]
        assert (await get_deleted(channel, deleted)).body == "deleted"
        restored = await Stubs(channel).posts.UndeletePost(posts_pb2.UndeletePostRequest(id=deleted))
        assert restored.body == "deleted"
    assert server.stop() == 0
