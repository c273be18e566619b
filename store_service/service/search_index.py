"""Maintains the indexes for full-text search, as a consumer of the change feed (docs/decisions/0049).

Each step reads the resources of some changes, or of a range of ids while the indexes are built, and replaces
their rows in the indexes. The position in the feed is stored in the same transaction, and a step that another
process has made is not made again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator

import structlog

from store_service.database.connect import Database
from store_service.database.consistency import is_on_replica, leave_replica
from store_service.errors import ReadOnly, SearchDisabled, SearchIndexNotReady, ServiceError
from store_service.observability.metrics import SearchMetrics
from store_service.pacing import Signal
from store_service.repeated_failure import RepeatedFailure
from store_service.service.search_cleanup import CLEAR, MERGE, RESTART
from store_service.service.search_steps import APPLY, JOB_BYTES, LOOK, READ, IndexState, Look, prepared

WAIT_SECONDS = 5.0
"""Maximum time that a search waits for the latest changes."""

REPLICA_WAIT_SECONDS = 0.5
"""Same as WAIT_SECONDS on a replica. After it, the primary answers."""

BUILDING_WAIT_SECONDS = 1.0
"""Same as WAIT_SECONDS while the indexes are being built, which is fast for a small database."""

GATHER_SECONDS = 0.5
"""Pause after a write, in which further changes are gathered for one step, because a step with few changes
costs nearly as much as one with many. A waiting search ends it."""

PAUSE_RATIO = 4.0
"""Pause after a step that left changes, as a multiple of its duration. A waiting search ends it."""

BEHIND_SECONDS = 2.0
"""Age of a change from which on the indexes are behind."""

BEHIND_PAUSE_RATIO = 1.0
"""Same as PAUSE_RATIO while the indexes are being built or are behind, so that they catch up."""

TAKEOVER_SECONDS = 0.5
"""Pause after a step of another process, which continues if it is working."""

IDLE_SECONDS = 10.0
"""Pause between two checks for changes of other processes."""

FAILURE_SECONDS = 1.0
"""Pause after a failure."""

POLL_SECONDS = 0.005
"""Pause before changes are read again that are committed and not visible in the feed yet."""

PROGRESS_SECONDS = 0.5
"""Time between two reports of the progress of a rebuild."""

POLL_INDEX_SECONDS = 0.02
"""Pause before a server that is read-only, or that reads from a replica, checks again what is indexed."""

log = structlog.get_logger("store_service.search")


class SearchIndex:
    """The indexes of posts and comments."""

    def __init__(self, database: Database, *, enabled: bool, metrics: SearchMetrics | None = None) -> None:
        """Takes the open database, whether there are indexes, and the metrics if enabled."""
        self._database = database
        self.enabled = enabled
        self._metrics = metrics or SearchMetrics()
        self._metrics.enabled = enabled
        self._woken = asyncio.Event()
        """Set after a write: there may be new changes."""
        self._needed = asyncio.Event()
        """Set while searches wait."""
        self._waiting = 0
        self._is_behind = False
        self._has_more = False
        """Whether the last step left changes that it had found."""
        self._stepped = Signal()
        self._lock = asyncio.Lock()
        database.after_write(self._woken.set)

    # For searches

    async def ready(self) -> None:
        """Returns when the indexes have every change that has been committed before.

        Raises:
            SearchDisabled: Search is switched off.
            SearchIndexNotReady: They are being built, or the latest changes were not added in time.
        """
        if not self.enabled:
            raise SearchDisabled
        look = await self._look()
        if look.is_current():
            return
        if is_on_replica():
            try:
                await self._wait(look, REPLICA_WAIT_SECONDS)
                return
            except SearchIndexNotReady:
                # The replica lags, so it does not have what is added to the index.
                leave_replica()
                look = await self._look()
        await self._wait(look, WAIT_SECONDS if look.progress == 1 else BUILDING_WAIT_SECONDS)

    async def _wait(self, look: Look, seconds: float) -> None:
        """Waits until the indexes have the newest change of a look.

        Raises:
            SearchIndexNotReady: They do not have it after `seconds`.
        """
        target = look.newest
        self._waiting += 1
        self._needed.set()
        try:
            async with asyncio.timeout(seconds):
                while not look.has(target):
                    seen = self._stepped.count
                    await (
                        asyncio.sleep(POLL_INDEX_SECONDS)
                        if self._database.read_only or is_on_replica()
                        else self._stepped.wait(seen)
                    )
                    look = await self._look()
        except TimeoutError:
            raise SearchIndexNotReady(progress=look.progress) from None
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._needed.clear()

    async def is_complete(self) -> bool:
        """Whether the indexes are complete, so that searches are answered."""
        return self.enabled and await self.progress() == 1

    async def progress(self) -> float:
        """Returns the part of the posts and comments that the indexes have, from 0 to 1."""
        return (await self._look()).progress

    async def _look(self) -> Look:
        return await self._database.read(LOOK, None)

    # For administrators

    async def rebuild(self) -> AsyncGenerator[float, None]:
        """Builds the indexes again, and yields the progress, from 0 to 1. `run` does the work.

        Raises the errors of `restart`.
        """
        await self.restart()
        progress = 0.0
        while progress < 1:
            yield progress
            await asyncio.sleep(PROGRESS_SECONDS)
            progress = await self.progress()
        yield progress

    async def restart(self) -> None:
        """Lets the next step begin to build the indexes again.

        Raises:
            SearchDisabled: Search is switched off.
            ReadOnly: The server is in read-only mode.
            ServiceError: The database is busy or unavailable.
        """
        if not self.enabled:
            raise SearchDisabled
        if self._database.read_only:
            raise ReadOnly
        await self._database.write(RESTART, None)

    async def settle(self) -> AsyncGenerator[float, None]:
        """Adds all changes to the indexes, and removes the words of deleted rows from the files of SQLite.

        Yields the progress of the first part after each step.
        """
        while await self.step():
            yield await self.progress() if self.enabled else 0.0
        is_first = True
        while await self._database.write(MERGE, is_first, size=JOB_BYTES):
            is_first = False
            yield 1.0

    # In the background

    async def run(self) -> None:
        """Adds changes to the indexes until it is cancelled, or empties them if they are switched off."""
        failure = RepeatedFailure(
            log, "cannot update the search index", end_event="the search index is updated again"
        )
        known: IndexState | None = None
        while True:
            try:
                if not self._waiting and self.enabled:
                    look = await self._look()
                    if look.state is not None and look.state != known:
                        # Another process is working, or nothing is known yet.
                        known = look.state
                        await self._pause(TAKEOVER_SECONDS)
                # Before the step reads, so that a later write is noticed.
                self._woken.clear()
                started = time.perf_counter()
                is_done = not await self.step()
                if self.enabled:
                    known = (await self._look()).state
                self._stepped.notify()
                failure.ended()
            except ServiceError as error:
                failure.failed(error=type(error).__name__, cause=str(error.__cause__ or error))
                await asyncio.sleep(FAILURE_SECONDS)
                continue
            except Exception as error:
                # An unhandled exception must not end this task, or searches would fail from now on.
                failure.failed(exc_info=error)
                await asyncio.sleep(FAILURE_SECONDS)
                continue
            if is_done and not self.enabled:
                return
            if not is_done and self._has_more:
                ratio = BEHIND_PAUSE_RATIO if self._is_behind else PAUSE_RATIO
                await self._pause(ratio * (time.perf_counter() - started))
            elif self._waiting:
                await asyncio.sleep(POLL_SECONDS)
            else:
                await self._wait_for_changes()

    async def _pause(self, seconds: float) -> None:
        """Waits, until a search waits."""
        try:
            # Not wait_for, which on Python 3.11 can swallow the cancellation of this task.
            async with asyncio.timeout(seconds):
                await self._needed.wait()
        except TimeoutError:
            return

    async def _wait_for_changes(self) -> None:
        """Waits for a write of this process, for a search, or for IDLE_SECONDS."""
        waits = [asyncio.ensure_future(it.wait()) for it in (self._woken, self._needed)]
        try:
            await asyncio.wait(waits, timeout=IDLE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for it in waits:
                it.cancel()
        if not self._needed.is_set():
            await self._pause(GATHER_SECONDS)

    async def step(self) -> bool:
        """Makes one step. Returns False if there was nothing to do."""
        async with self._lock:
            if not self.enabled:
                return await self._database.write(CLEAR, None, size=JOB_BYTES) or await self._database.write(
                    MERGE, True, size=JOB_BYTES
                )
            read = await self._database.read(READ, None)
            self._metrics.progress = read.progress
            lag = max(time.time() - read.oldest / 1_000_000, 0.0) if read.oldest else 0.0
            self._metrics.lag_seconds = lag
            self._has_more = read.has_more
            self._is_behind = read.progress < 1 or lag > BEHIND_SECONDS
            if read.reason:
                log.info("building the search index", reason=read.reason)
            if read.next is None:
                return False
            step = await asyncio.to_thread(prepared, read)
            if await self._database.write(APPLY, step, size=JOB_BYTES):
                self._metrics.indexed += step.count
                if read.is_last:
                    log.info("the search index is complete")
            return True
