"""Automatic failover of PostgreSQL with Patroni, under load: acknowledged writes and open watches."""

import asyncio
import itertools
import random
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import storeapi
from storeapi import errors

from store_service.database import schema
from tests.support.database import query
from tests.support.patroni import Node, PatroniCluster, patroni_cluster
from tests.support.server_process import ServerProcess
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout

SWITCHOVERS = 20 if IS_LONG_RUN else 1
KILLS = 20 if IS_LONG_RUN else 1
SUSPENSIONS = 5 if IS_LONG_RUN else 0
"""Number of leaders that are stopped with SIGSTOP, so that their connections stay open."""

CALLERS = 32 if IS_LONG_RUN else 8
WATCHES = 4

WRITES_BETWEEN = 300 if IS_LONG_RUN else 60
"""Number of writes that are acknowledged before each failover."""

WRITES_LOST = 50 if IS_LONG_RUN else 20
"""Number of writes that are acknowledged and not replicated when an asynchronous leader is killed."""

PAUSE_SECONDS = 0.05
"""Pause of a caller between two writes. Without it, the callers would slow down the cluster."""


class Load:
    """Callers that repeat each write until it is acknowledged, and what was acknowledged."""

    def __init__(self, client: storeapi.AsyncStoreClient) -> None:
        self._client = client
        self.posts: dict[int, str] = {}
        """The bodies of the posts that must exist, by id."""
        self.acknowledged_at: list[float] = []
        self.lost = 0
        """Number of writes to posts that were acknowledged and do not exist any more."""
        self._progress = asyncio.Condition()
        self._is_stopping = False

    def stop(self) -> None:
        """Makes each caller stop after its current write."""
        self._is_stopping = True

    async def wait_for(self, count: int) -> None:
        """Waits until `count` more writes are acknowledged."""
        target = len(self.acknowledged_at) + count
        async with asyncio.timeout(scaled_timeout(120)), self._progress:
            await self._progress.wait_for(lambda: len(self.acknowledged_at) >= target)

    async def call(self, number: int) -> None:
        """Creates, updates and deletes posts of one caller."""
        posts, chance, own = self._client.posts, random.Random(number), list[int]()
        for count in itertools.count():
            if self._is_stopping:
                return
            await asyncio.sleep(PAUSE_SECONDS)
            body = f"{number}/{count}"
            action = chance.random()
            if not own or action < 0.5:
                post = await self._acknowledged(posts.create, body)
                own.append(post.id)
                self.posts[post.id] = body
                continue
            id = chance.choice(own)
            try:
                if action < 0.85:
                    await self._acknowledged(posts.update, id, body)
                    self.posts[id] = body
                    continue
                await self._acknowledged(posts.delete, id)
            except errors.PostNotFound:
                self.lost += 1
            own.remove(id)
            # After an asynchronous failover, PostgreSQL gives the ids of lost posts to other posts.
            self.posts.pop(id, None)

    async def _acknowledged(self, write: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        request_id = uuid.uuid4()
        while True:
            try:
                answer = await write(*arguments, request_id=request_id)
            except (errors.Unavailable, errors.DeadlineExceeded):
                continue
            async with self._progress:
                self.acknowledged_at.append(time.monotonic())
                self._progress.notify_all()
            return answer


@dataclass
class Mirror:
    """The posts as a watch has reported them."""

    posts: dict[int, str] = field(default_factory=dict)
    restarts: int = 0
    """How often the watch ended with RESUME_TOKEN_FOREIGN, and began again with the initial state."""

    async def follow(self, client: storeapi.AsyncStoreClient) -> None:
        """Applies changes until it is cancelled."""
        while True:
            self.posts.clear()
            try:
                async with client.changes.watch(start="initial_state", heartbeat_seconds=1) as watch:
                    async for change in watch:
                        if change.action == "delete":
                            self.posts.pop(change.id, None)
                        else:
                            self.posts[change.id] = change.resource.body
            except errors.ResumeTokenForeign:
                self.restarts += 1
            except (errors.Unavailable, errors.DeadlineExceeded):
                # No first response during a failover.
                continue


@pytest.fixture
def cluster(is_synchronous: bool) -> Iterator[PatroniCluster]:
    """A cluster whose database has the schema."""
    with patroni_cluster(is_synchronous=is_synchronous) as cluster:
        schema.upgrade(cluster.url)
        yield cluster


@asynccontextmanager
async def service(url: str, folder: Path) -> AsyncIterator[storeapi.AsyncStoreClient]:
    """A client of a running service."""
    process = ServerProcess(folder, settings={"DATABASE_URL": url, "STORE_LOG_LEVEL": "warning"})
    await asyncio.to_thread(process.start)
    try:
        async with storeapi.connect_async(process.address) as client:
            yield client
    finally:
        await asyncio.to_thread(process.stop)
    assert "Traceback" not in process.stderr()


def switch_over(cluster: PatroniCluster, leader: Node, *, is_synchronous: bool) -> None:
    candidates = [node for node in cluster.replicas() if not is_synchronous or node.is_in_role("synchronous")]
    leader.switch_over(candidates[0].name)


def fail_over(cluster: PatroniCluster, kind: str, *, is_synchronous: bool) -> None:
    """Makes another node the leader, and waits until the cluster is complete again."""
    leader = cluster.leader()
    if kind == "switchover":
        switch_over(cluster, leader, is_synchronous=is_synchronous)
    elif kind == "kill":
        leader.kill()
    else:
        leader.suspend()
    cluster.wait_for_leader_after(leader)
    if kind != "switchover":
        # A suspended node that continued would believe to be the leader until Patroni has demoted it.
        leader.kill()
        leader.start()
    cluster.wait_for_replicas(is_synchronous=is_synchronous)


@pytest.mark.timeout(300 + 120 * (SWITCHOVERS + KILLS + SUSPENSIONS))
@pytest.mark.parametrize(
    ("is_synchronous", "address"),
    [(True, "HAProxy"), (False, "several hosts")],
    ids=["synchronous-proxy", "asynchronous-hosts"],
)
async def test_failovers_lose_no_acknowledged_write_and_skip_no_change(
    cluster: PatroniCluster, is_synchronous: bool, address: str, tmp_path: Path
) -> None:
    """With synchronous replication, the table is what was acknowledged. Otherwise each watch reports the
    final table, or ended with RESUME_TOKEN_FOREIGN and began again."""
    kinds = ["switchover"] * SWITCHOVERS + ["kill"] * KILLS + ["suspension"] * SUSPENSIONS
    random.Random(5).shuffle(kinds)
    mirrors = [Mirror() for _ in range(WATCHES)]
    gaps: dict[str, list[float]] = {}
    url = cluster.url if address == "HAProxy" else cluster.hosts_url
    async with service(url, tmp_path) as client:
        load = Load(client)
        async with asyncio.TaskGroup() as watches:
            following = [watches.create_task(mirror.follow(client)) for mirror in mirrors]
            async with asyncio.TaskGroup() as group:
                for number in range(CALLERS):
                    group.create_task(load.call(number))
                for kind in kinds:
                    await load.wait_for(WRITES_BETWEEN)
                    began = len(load.acknowledged_at)
                    if kind == "kill" and not is_synchronous:
                        leader = await asyncio.to_thread(cluster.leader)
                        await asyncio.to_thread(leader.suspend_replication)
                        await load.wait_for(WRITES_LOST)
                    await asyncio.to_thread(fail_over, cluster, kind, is_synchronous=is_synchronous)
                    await load.wait_for(WRITES_BETWEEN)
                    times = load.acknowledged_at[began - 1 :]
                    gaps.setdefault(kind, []).append(max(b - a for a, b in itertools.pairwise(times)))
                load.stop()
            stored = {int(id): str(body) for id, body in query(cluster.url, "SELECT id, body FROM posts")}
            async with asyncio.timeout(scaled_timeout()):
                while any(mirror.posts != stored for mirror in mirrors):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            for task in following:
                task.cancel()

    figures = [
        f"{kind}: write gap median {statistics.median(seconds):.1f} s, worst {max(seconds):.1f} s"
        for kind, seconds in gaps.items()
    ]
    restarts = [mirror.restarts for mirror in mirrors]
    figures.append(
        f"{len(load.acknowledged_at)} acknowledged, {load.lost} lost, watches began again: {restarts}"
    )
    print(*figures, sep="\n")  # noqa: T201  # for `pytest -s`
    if is_synchronous:
        assert stored == load.posts
        assert load.lost == 0
        assert restarts == [0] * WATCHES
    else:
        assert min(restarts) > 0
