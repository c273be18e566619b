"""Both clients behind real proxies, during a kill of the service and during a proxy timeout."""

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import storeapi
from storeapi import _retries

from tests.support.ports import free_port
from tests.support.proxies import PROXIES, proxy
from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout

TIMEOUT = 60.0
"""More than by default, for a busy machine takes long to start a service."""


@pytest.fixture
def service(server_process: ServerProcess) -> ServerProcess:
    """A service that restarts on the same address."""
    server_process.settings["STORE_LISTEN"] = f"127.0.0.1:{free_port()}"
    return server_process.start()


@pytest.fixture(params=PROXIES)
def address(request: pytest.FixtureRequest, service: ServerProcess) -> Iterator[str]:
    """The service's address as the world sees it."""
    with proxy(request.param, service.address, service.folder) as address:
        yield address


@pytest.fixture
async def client(make_client: Callable[..., Any], address: str) -> Any:
    return make_client(address, timeout=TIMEOUT)


@pytest.fixture
def interrupted() -> Iterator[Callable[[], Any]]:
    """Waits until a watch has lost its connection once more."""
    lost = threading.Semaphore(0)
    handler = logging.Handler()
    handler.emit = lambda record: lost.release() if "interrupted" in record.getMessage() else None
    log = logging.getLogger("storeapi")
    log.addHandler(handler)
    yield lambda: asyncio.to_thread(lost.acquire, timeout=scaled_timeout())
    log.removeHandler(handler)


async def test_server_kill_loses_and_duplicates_nothing(client, service):
    """One post per create and one change per post, in order, whatever was in flight."""
    bodies = [str(number) for number in range(60)]
    created: list[storeapi.Post] = []
    enough = asyncio.Event()

    async def create() -> None:
        for body in bodies:
            created.append(await client.posts.create(body=body))
            if len(created) % 20 == 0:
                enough.set()

    async def follow(watch: Any) -> list[storeapi.Change]:
        return [await anext(watch) for _ in bodies]

    async with client.changes.watch(start="earliest") as watch:
        following = asyncio.create_task(follow(watch))
        creating = asyncio.create_task(create())
        for _ in range(2):
            waiting = asyncio.create_task(enough.wait())
            await asyncio.wait([waiting, creating], return_when=asyncio.FIRST_COMPLETED)
            enough.clear()
            await asyncio.to_thread(service.kill)
            await asyncio.to_thread(service.start)
        await creating
        seen = await following

    assert [post.body for post in created] == bodies
    assert [change.resource for change in seen] == created
    assert [post.body async for post in client.posts.list()] == bodies


async def test_watch_survives_the_timeout_of_a_proxy(client, interrupted):
    """The proxy cuts a stream without messages again and again."""
    async with client.changes.watch(heartbeat_seconds=60) as watch:
        for body in ("a", "b"):
            following = asyncio.ensure_future(anext(watch))
            for _ in range(2):
                assert await interrupted()
            post = await client.posts.create(body=body)

            assert (await following).resource == post


async def test_call_survives_the_timeout_of_a_proxy(client, service, monkeypatch):
    """A write that takes longer is repeated and done once."""
    again = threading.Event()
    pause_after = _retries.Attempts.pause_after

    def noted(attempts, error):
        again.set()
        return pause_after(attempts, error)

    monkeypatch.setattr(_retries.Attempts, "pause_after", noted)
    with closing(sqlite3.connect(service.folder / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        creating = asyncio.ensure_future(client.posts.create(body="a"))
        assert await asyncio.to_thread(again.wait, scaled_timeout())
        other.execute("ROLLBACK")
    post = await creating

    assert [it async for it in client.posts.list()] == [post]
