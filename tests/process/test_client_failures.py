"""A program that uses the client notices nothing of a bad network and of a server that is restarted."""

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import storeapi
from sqlalchemy import text

from tests.support.database import database_connection
from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout
from tests.support.unreliable_proxy import UnreliableProxy

CREATES = 5_000
CALLERS = 50
TIMEOUT = 30.0
"""More than by default: a machine that has other things to do may take as long for a restart alone."""
RESTARTS_AFTER = (1_500, 3_500)


class Progress:
    """The number of finished creates, which a test can await."""

    def __init__(self) -> None:
        self.posts: list[storeapi.Post] = []
        self._changed = threading.Condition()

    def add(self, post: storeapi.Post) -> None:
        with self._changed:
            self.posts.append(post)
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.posts) >= count, timeout=scaled_timeout(100))


def bodies_of(caller: int) -> list[str]:
    return [f"{caller}/{number} ".ljust(20 * 4 ** (number % 4), "x") for number in range(CREATES // CALLERS)]


async def create_with_tasks(address: str, progress: Progress) -> None:
    async def caller(number: int) -> None:
        for body in bodies_of(number):
            progress.add(await client.posts.create(body=body))

    async with storeapi.connect_async(address, timeout=TIMEOUT) as client, asyncio.TaskGroup() as group:
        for number in range(CALLERS):
            group.create_task(caller(number))


async def create_with_threads(address: str, progress: Progress) -> None:
    def caller(number: int) -> None:
        for body in bodies_of(number):
            progress.add(client.posts.create(body=body))

    with storeapi.connect(address, timeout=TIMEOUT) as client:
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                # Threads of its own: the loop's are fewer than the callers.
                group.create_task(in_a_thread(caller, number))


async def in_a_thread(work: Callable[..., None], *arguments: Any) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def run() -> None:
        try:
            work(*arguments)
        except BaseException as error:
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, None)

    threading.Thread(target=run, daemon=True).start()
    await done


@pytest.mark.timeout(300)  # Some connections die without a word, which takes seconds to notice.
@pytest.mark.parametrize("create", [create_with_tasks, create_with_threads])
async def test_no_create_is_lost_or_duplicated_by_a_bad_network(
    server_process: ServerProcess,
    create: Callable[[str, Progress], Any],
) -> None:
    """Through a network that drops, delays and cuts, over a restart and a kill: one post per create
    and no error.
    """
    network = UnreliableProxy(random.Random(23), cuts=0.01, drops=0.0005, delay_seconds=0.005)
    progress = Progress()
    async with network.running():
        await asyncio.to_thread(server_process.start)
        network.server_address = server_process.address
        creating = asyncio.create_task(create(network.address, progress))

        for count, end in zip(RESTARTS_AFTER, (server_process.stop, server_process.kill), strict=True):
            waiting = asyncio.create_task(asyncio.to_thread(progress.wait_for, count))
            await asyncio.wait([waiting, creating], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.to_thread(end)
            await asyncio.to_thread(server_process.start)
            network.server_address = server_process.address
        await creating
    assert server_process.stop() == 0

    wanted = sorted(body for number in range(CALLERS) for body in bodies_of(number))
    with database_connection(f"sqlite:///{server_process.folder / 'store.db'}") as connection:
        stored = dict(tuple(row) for row in connection.execute(text("SELECT id, body FROM posts")))
    assert sorted(stored.values()) == wanted
    assert stored == {post.id: post.body for post in progress.posts}
    assert min(network.cut_requests, network.cut_answers, network.dropped) > 0
