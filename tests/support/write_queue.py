"""Observation of the batch queue of the writer."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from store_service.database import batch_queue, job_queue
from tests.support.database import write_lock
from tests.support.errors import result_or_error
from tests.support.polling import eventually
from tests.support.resource_api import ResourceApi


class WriteQueue:
    """Records the jobs of the writer: those that a batch has taken, and those that still wait.

    Readers are not recorded, because the service itself reads at intervals, for watches and health.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Starts recording."""
        self.arguments: list[Any] = []
        self._queues: set[batch_queue.BatchQueue] = set()
        execute, take = batch_queue.BatchQueue.execute, job_queue.JobQueue.take

        def watched_execute(queue: batch_queue.BatchQueue, *arguments: Any, **options: Any) -> Any:
            if queue._writes:
                self._queues.add(queue)
            return execute(queue, *arguments, **options)

        def watched_take(queue: job_queue.JobQueue) -> list[job_queue.Job]:
            batch = take(queue)
            if any(queue is it._waiting for it in self._queues):
                self.arguments += [job.argument for job in batch]
            return batch

        monkeypatch.setattr(batch_queue.BatchQueue, "execute", watched_execute)
        monkeypatch.setattr(job_queue.JobQueue, "take", watched_take)

    @property
    def arrived(self) -> int:
        """How many jobs have arrived so far, waiting or taken."""
        return len(self.arguments) + sum(len(queue._waiting) for queue in self._queues)

    async def wait_for_arrivals(self, count: int, *, since: int) -> None:
        """Waits until `count` jobs have arrived after the count `since`."""
        await eventually(lambda: self.arrived >= since + count)


async def run_in_one_batch(
    write_queue: WriteQueue,
    api: ResourceApi,
    database_url: str,
    calls: Sequence[Callable[[], Awaitable[Any]]],
) -> list[Any]:
    """Makes calls that the writer runs in one batch, in this order. Returns their responses and errors."""
    before = write_queue.arrived
    with write_lock(database_url):
        # The first job blocks the writer alone, so that all further jobs wait for one batch.
        first = asyncio.ensure_future(api.create(api.draft(), validate_only=True))
        await write_queue.wait_for_arrivals(1, since=before)
        pending = []
        for call in calls:
            pending.append(asyncio.ensure_future(result_or_error(call())))
            await write_queue.wait_for_arrivals(1 + len(pending), since=before)
    await first
    return await asyncio.gather(*pending)
