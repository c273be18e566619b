"""kill -9 of any process of a service with several workers on SQLite, under load."""

import asyncio
import os
import random
import signal
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import storeapi

from tests.support.polling import eventually
from tests.support.ports import free_port
from tests.support.server_process import ServerProcess
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout
from tests.support.worker_processes import worker_pids, writer_pids

KILLS = 100 if IS_LONG_RUN else 6
"""How many processes are killed, each kind in turn."""

CALLERS = 12
CREATES_BETWEEN = 40
"""Minimum number of acknowledged posts between two kills."""


@pytest.fixture
def service(database_file: Path) -> Iterator[ServerProcess]:
    """A supervisor of two workers with a fixed port, not started yet."""
    settings = {"STORE_WORKERS": "2", "STORE_LISTEN": f"127.0.0.1:{free_port()}"}
    process = ServerProcess(database_file.parent, settings)
    yield process
    process.kill()


@dataclass
class Load:
    """Callers that write until the end, and a watch."""

    created: dict[str, int] = field(default_factory=dict)
    """Ids of acknowledged posts by body."""
    watched: list[tuple[str, int]] = field(default_factory=list)
    is_over: bool = False

    async def write(self, client: storeapi.AsyncStoreClient) -> None:
        """Creates posts, and updates each second one."""
        while not self.is_over:
            body = str(uuid.uuid4())
            post = await client.posts.create(body=body)
            self.created[body] = post.id
            if post.id % 2:
                await client.posts.update(post.id, author="updated")

    async def watch(self, client: storeapi.AsyncStoreClient) -> None:
        """Receives every change."""
        async with client.changes.watch(start="earliest") as watch:
            async for change in watch:
                if change.action == "create":
                    assert isinstance(change.resource, storeapi.Post)
                    self.watched.append((change.resource.body, change.id))

    async def goes_on(self) -> None:
        """Waits until further posts are acknowledged."""
        wanted = len(self.created) + CREATES_BETWEEN
        await eventually(lambda: len(self.created) >= wanted)


@pytest.mark.timeout(120 + 20 * KILLS)
async def test_kill_9_of_any_process_loses_nothing(service: ServerProcess) -> None:
    """A client that retries sees no error: nothing acknowledged is lost, doubled or missing in the feed."""
    chance = random.Random(52)
    load = Load()
    await asyncio.to_thread(service.start)
    async with (
        storeapi.connect_async(service.address, timeout=scaled_timeout(60)) as client,
        storeapi.connect_async(service.address, timeout=scaled_timeout(60)) as other,
    ):
        watching = asyncio.create_task(load.watch(other))
        callers = [asyncio.create_task(load.write(it)) for it in (client, other) for _ in range(CALLERS // 2)]
        for number in range(KILLS):
            await load.goes_on()
            await asyncio.sleep(chance.random() * 0.01)
            await asyncio.to_thread(kill_one, service, ("worker", "writer", "supervisor")[number % 3], chance)
            with closing(sqlite3.connect(f"file:{service.folder}/store.db?mode=ro", uri=True)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        await load.goes_on()
        load.is_over = True
        await asyncio.gather(*callers)
        await eventually(lambda: len(set(load.watched)) >= len(load.created))
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert await asyncio.to_thread(service.stop) == 0

    with closing(sqlite3.connect(service.folder / "store.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        stored = connection.execute("SELECT body, id FROM posts").fetchall()
        updated = connection.execute("SELECT id FROM posts WHERE author = 'updated'").fetchall()
    assert Counter(body for body, _ in stored).most_common(1)[0][1] == 1
    assert dict(stored) == load.created
    assert {id for (id,) in updated} == {id for id in load.created.values() if id % 2}
    # At least once, in the order of commits.
    assert list(dict.fromkeys(load.watched)) == sorted(stored, key=lambda it: it[1])
    assert "Traceback" not in service.stderr()


def kill_one(service: ServerProcess, kind: str, chance: random.Random) -> None:
    """Kills a process. Starts the service again after the end of its supervisor."""
    if kind == "supervisor":
        service.kill()
        service.start()
        return
    pids = worker_pids(service) if kind == "worker" else writer_pids(service)
    # There is none if the last one that was killed has no successor yet.
    if pids:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(pids), signal.SIGKILL)
