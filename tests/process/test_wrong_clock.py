"""A real service process whose wall clock jumps by a year."""

from pathlib import Path

import grpc
import pytest
from storeapi.v1 import posts_pb2

from tests.rpc.helpers import become
from tests.support import ServerProcess, Stubs
from tests.watching import watching

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
    server_process.settings |= {"PYTHONPATH": str(folder), "WRONG_CLOCK": str(clock)}
    return server_process.start()


def jump(clock: Path) -> None:
    """Puts the clock a year ahead."""
    clock.write_text(str(YEAR_SECONDS))


async def create_once(channel: grpc.aio.Channel) -> posts_pb2.Post:
    request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="once"), request_id=REQUEST_ID)
    return await Stubs(channel).posts.CreatePost(request)


async def ids_of_changes(channel: grpc.aio.Channel, last: int) -> list[int]:
    """What a watch is told from the beginning."""
    async with watching(channel, earliest=True) as watch:
        return [it.id for it in await watch.until(last)]


async def test_clock_that_jumps_forgets_nothing(server: ServerProcess, clock: Path) -> None:
    """While the service runs, and when it is started again with the wrong clock."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        first = await create_once(channel)
        stored = [first.id, *[(await Stubs(channel).create_post()).id for _ in range(POSTS)]]
        jump(clock)
        await become(lambda: "the clock has jumped" in server.stderr())
        later = await Stubs(channel).create_post("later")
        assert later.create_time.seconds - first.create_time.seconds > YEAR_SECONDS - 3600
        assert await create_once(channel) == first
        assert await ids_of_changes(channel, later.id) == [*stored, later.id]
    assert server.stop() == 0

    server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        await become(lambda: server.stderr().count("retention is extended") == 4)
        assert await create_once(channel) == first
        assert await ids_of_changes(channel, later.id) == [*stored, later.id]
    assert server.stop() == 0
