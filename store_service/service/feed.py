"""Serves watches: one task reads new changes for all watches that are up to date.

While watches are open, a task reads the change feed and keeps the last change batches in memory. A watch that
is up to date takes its batches from memory. A watch that lags reads from the database until it has caught up.
No watch waits for another one: a slow watch lags, and holds only the batch that it is sending.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from store_service.database.connect import Database
from store_service.database.driver_errors import NotificationsUnavailable
from store_service.errors import (
    ResumeTokenExpired,
    ResumeTokenForeign,
    ServiceError,
    ShuttingDown,
    WatchLimit,
)
from store_service.model import (
    Change,
    Position,
    ResourceKind,
    ResumePoint,
    SnapshotCursor,
    WatchFilter,
    WatchStart,
)
from store_service.observability.metrics import FeedMetrics
from store_service.pacing import Signal
from store_service.repeated_failure import RepeatedFailure
from store_service.service import resume_tokens
from store_service.service.changes import ChangeBatch, Changes, FeedState
from store_service.service.recent_changes import RecentChanges
from store_service.service.snapshot import Snapshot

POLL_SECONDS = 0.5
"""Maximum pause between two reads of the feed without a notification."""

STANDBY_SECONDS = 10.0
"""Pause between two attempts to listen when the database sends no notifications. A standby sends them once it
is the primary."""

SOON_SECONDS = 0.005
"""Pause before the next read after a notification of changes that are not visible yet."""

GAP_SECONDS = 0.002
"""Pause between two change batches, so that under load many changes share a batch."""

GAP_SECONDS_PER_WATCH = 0.0005
"""Additional pause for each open watch, because each batch is sent to each watch."""

log = structlog.get_logger("store_service.feed")


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class WatchEvent:
    """One response of a watch: changes, a part of the initial state, or only a token."""

    resume_token: str
    batch: ChangeBatch | None = None
    """Changes to which the filter of the watch is not applied yet; None in other responses."""
    snapshot: tuple[Change, ...] = ()
    """A part of the initial state."""
    snapshot_complete: bool = False
    """Whether this is the last response of the initial state."""


class Feed:
    """Serves watches."""

    def __init__(self, database: Database, *, max_watches: int, metrics: FeedMetrics | None = None) -> None:
        """Takes the open database, the maximum number of open watches, and the metrics if enabled."""
        self._database = database
        self._changes = Changes(database)
        self._snapshot = Snapshot(database)
        self._max_watches = max_watches
        self._watches = 0
        self._all_closed = asyncio.Event()
        self._all_closed.set()
        self._stopping = False
        self._maybe_changed = asyncio.Event()
        """Set after a write or a notification; there may be new changes."""
        self._signal = Signal()
        """Notified when the batches in memory change, and when the feed stops."""
        self._recent = RecentChanges()
        self._reader: asyncio.Task[None] | None = None
        self._read_failure = RepeatedFailure(
            log, "cannot read the change feed", end_event="the change feed is read again"
        )
        self._listen_failure = RepeatedFailure(
            log, "cannot listen for changes, polling", end_event="listening for changes again"
        )
        self._is_polling = False
        """Whether the database sends no notifications: a standby, or a pooler in transaction mode."""
        self._metrics = metrics
        if metrics is not None:
            metrics.watches = lambda: self._watches
            metrics.max_watches = max_watches
        database.after_write(self._maybe_changed.set)

    async def stop(self, seconds: float) -> None:
        """Ends every watch with its last token. Waits until they have ended, at most `seconds`."""
        self._stopping = True
        self._signal.notify()
        try:
            async with asyncio.timeout(seconds):
                await self._all_closed.wait()
        except TimeoutError:
            log.debug("watches with pending messages are left to the server", count=self._watches)
        await self._stop_reading()

    def forget(self) -> None:
        """Removes the change batches from memory. Called when content was removed from stored changes."""
        self._recent.forget()

    async def watch(
        self, start: WatchStart, filter: WatchFilter, *, heartbeat_seconds: float
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yields the initial state or earlier changes if `start` requests them, and then new changes.

        There is an event at least every `heartbeat_seconds`. The first one comes at once, or with the first
        resource of an initial state.

        Raises:
            WatchLimit: The maximum number of watches is open.
            ResumeTokenInvalid: The token is damaged.
            ResumeTokenForeign: The token belongs to another store, or the store has lost changes that this
                watch or an earlier one has received.
            ResumeTokenExpired: Changes after the token have been deleted.
            StandbyBehind: The database is a standby that has not replayed the change of the token yet.
            ShuttingDown: The server stops.
        """
        with self._watch_slot():
            state = await self._changes.state()
            if start.resume_token is None:
                resume_point = _beginning(start, state)
            else:
                resume_point = await self._changes.resume_point(start.resume_token, state.store_id)
                await self._changes.check(resume_point.position)
                if resume_point.seen is not None:
                    await self._changes.check_seen(resume_point.seen)

            seen = resume_point.seen
            loop = asyncio.get_running_loop()
            heartbeat_at = loop.time() + heartbeat_seconds
            async for page in self._snapshot.pages(resume_point, filter):
                token, changes = resume_tokens.make(state.store_id, page.resume_point), page.changes
                # Many pages in a row are empty if few rows match. One without changes is a heartbeat.
                if changes or page.is_last or self._stopping or loop.time() >= heartbeat_at:
                    yield WatchEvent(resume_token=token, snapshot=changes, snapshot_complete=page.is_last)
                    heartbeat_at = loop.time() + heartbeat_seconds
                if self._stopping:
                    raise ShuttingDown(resume_token=token)
                seen = page.resume_point.seen

            position = resume_point.position
            if resume_point.snapshot is None:
                yield WatchEvent(resume_token=state.resume_token(position, seen=seen))
            heartbeat_at = loop.time() + heartbeat_seconds
            last_was_partial = False
            while not self._stopping:
                soon = heartbeat_at if seen is None else loop.time() + POLL_SECONDS
                batch = await self._next_batch(position, min(heartbeat_at, soon))
                if seen is not None:
                    # The changes that the initial state contains can be lost before they are read.
                    await self._changes.check_seen(seen)
                    if batch is not None and batch.end >= seen:
                        seen = None
                if batch is not None:
                    position = batch.end
                    # A partial response is always continued, even if no further change matches the filter.
                    if last_was_partial or any(map(filter.matches, batch.changes)):
                        yield WatchEvent(resume_token=state.resume_token(position, seen=seen), batch=batch)
                        heartbeat_at = loop.time() + heartbeat_seconds
                        last_was_partial = batch.partial
                if loop.time() >= heartbeat_at:
                    yield WatchEvent(resume_token=state.resume_token(position, seen=seen))
                    heartbeat_at = loop.time() + heartbeat_seconds
            token = state.resume_token(position, seen=seen)
            yield WatchEvent(resume_token=token)
            raise ShuttingDown(resume_token=token)

    @contextmanager
    def _watch_slot(self) -> Iterator[None]:
        if self._stopping:
            raise ShuttingDown
        if self._watches >= self._max_watches:
            raise WatchLimit(limit=self._max_watches)
        self._watches += 1
        self._all_closed.clear()
        if self._reader is None:
            self._recent.start(None)
            self._reader = asyncio.create_task(self._read_for_all(), name="feed")
        try:
            yield
        finally:
            self._watches -= 1
            if not self._watches:
                self._all_closed.set()
                if self._reader is not None:
                    self._reader.cancel()
                    self._reader = None

    async def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
            self._reader = None

    # In the task of each watch

    async def _next_batch(self, position: Position, timeout_at: float) -> ChangeBatch | None:
        """Returns the next changes; None if there are none at `timeout_at`, a time of the event loop."""
        while True:
            seen = self._signal.count
            is_known, batch = self._recent.after(position)
            if not is_known:
                # The read checks the position too.
                batch = await self._changes.read_after(position)
            if batch is not None:
                return batch
            if self._stopping:
                return None
            try:
                async with asyncio.timeout_at(timeout_at):
                    await self._signal.wait(seen)
            except TimeoutError:
                return None

    # In the task that reads for all watches

    async def _read_for_all(self) -> None:
        listening = asyncio.create_task(self._listen(), name="feed-listener")
        try:
            if self._metrics is not None:
                self._metrics.read()
            end: Position | None = None
            pause = 0.0
            while True:
                is_notified = await self._wait_for_changes(pause)
                try:
                    if end is None:
                        end = (await self._changes.state()).end
                        self._recent.start(end)
                    batch = await self._changes.read_after(end)
                    self._read_failure.ended()
                    if self._metrics is not None:
                        self._metrics.read(batch.positions[0].time if batch is not None else 0)
                except (ResumeTokenExpired, ResumeTokenForeign) as error:
                    # Changes are deleted faster than they are read, or the database has lost changes. Each
                    # watch reads the database next and gets its own error.
                    if isinstance(error, ResumeTokenForeign):
                        log.warning("the database has lost changes that were sent to watches")
                    end = None
                    self._recent.start(end)
                    self._signal.notify()
                    pause = POLL_SECONDS
                    continue
                except Exception as error:
                    # Any other error must not end this task, because all watches depend on it.
                    _log_failure(self._read_failure, error)
                    await asyncio.sleep(POLL_SECONDS)
                    continue
                if batch is not None:
                    end = batch.end
                    self._recent.add(batch)
                    self._signal.notify()
                    await asyncio.sleep(GAP_SECONDS + GAP_SECONDS_PER_WATCH * self._watches)
                    pause = 0.0
                else:
                    pause = SOON_SECONDS if is_notified else min(max(2 * pause, SOON_SECONDS), POLL_SECONDS)
        finally:
            listening.cancel()
            if self._metrics is not None:
                self._metrics.read_at = None

    async def _wait_for_changes(self, seconds: float) -> bool:
        """Waits for a notification, at most `seconds`. Returns whether there was one."""
        if not self._maybe_changed.is_set():
            try:
                # Not wait_for, which on Python 3.11 can swallow the cancellation of this task.
                async with asyncio.timeout(seconds):
                    await self._maybe_changed.wait()
            except TimeoutError:
                return False
        self._maybe_changed.clear()
        return True

    async def _listen(self) -> None:
        """Receives notifications of writes by other processes, if the database sends them."""
        while True:
            pause = POLL_SECONDS
            try:
                # `databases` assigns a connection to each task, so the connection has its own task.
                await asyncio.create_task(self._database.listen(self._notified), name="feed-connection")
            except NotificationsUnavailable:
                self._listen_failure.ended()
                if not self._is_polling:
                    log.info("polling for changes: the database sends no notifications", seconds=POLL_SECONDS)
                self._is_polling = True
                pause = STANDBY_SECONDS
            except Exception as error:
                _log_failure(self._listen_failure, error)
            await asyncio.sleep(pause)

    def _notified(self) -> None:
        """Called when listening has started, and for each notification."""
        self._is_polling = False
        self._listen_failure.ended()
        self._maybe_changed.set()


def _beginning(start: WatchStart, state: FeedState) -> ResumePoint:
    """Returns where a watch without a token begins."""
    if start.initial_state:
        return ResumePoint(position=state.end, snapshot=SnapshotCursor(kind=ResourceKind.POST))
    return ResumePoint(position=state.trimmed if start.earliest else state.end)


def _log_failure(failure: RepeatedFailure, error: Exception) -> None:
    """Logs an expected database error in one line, and an unhandled exception with its traceback."""
    if isinstance(error, ServiceError):
        failure.failed(error=type(error).__name__, cause=str(error.__cause__ or error))
    else:
        failure.failed(exc_info=error)
