"""Watches: one reader of the change feed for everybody who is up to date, and a way to catch up.

While anybody watches, one task reads what is new and keeps the last pieces of it in memory. A watch that
is up to date takes them from there; one that is behind reads for itself until it has caught up. Nobody
waits for anybody: a slow watch only falls behind, and costs the piece that it is sending.
"""

import asyncio
from collections import deque
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
from store_service.service.changes import ChangeBatch, Changes
from store_service.service.snapshot import Snapshot

POLL_SECONDS = 0.5
"""How often the feed is looked at when nothing tells of new changes."""

STANDBY_SECONDS = 10.0
"""How often a standby is asked whether it has become the primary, and can notify."""

SOON_SECONDS = 0.005
"""How soon it is looked at again when something told of changes that are not to be seen yet."""

GAP_SECONDS = 0.002
"""Pause between two pieces, so that under load many changes share one."""

GAP_SECONDS_PER_WATCH = 0.0005
"""More of it for every watch, each of which has to be sent every piece."""

MAX_RECENT_BYTES = 4 * 1024 * 1024
"""So much of the feed is kept in memory."""

log = structlog.get_logger("store_service.feed")


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class WatchEvent:
    """One message to a watch."""

    resume_token: str
    piece: ChangeBatch | None = None
    """Changes, of which the watch's filter is to be applied; None in a heartbeat and in the snapshot."""
    snapshot: tuple[Change, ...] = ()
    snapshot_complete: bool = False


class Feed:
    """Serves watches."""

    def __init__(self, database: Database, *, max_watches: int, measure: FeedMetrics | None = None) -> None:
        """Takes the open database, how many may watch at once, and where to count."""
        self._database = database
        self._changes = Changes(database)
        self._snapshot = Snapshot(database)
        self._max_watches = max_watches
        self._watches = 0
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._stopping = False
        self._hint = asyncio.Event()
        self._signal = Signal()
        self._recent: deque[ChangeBatch] = deque()
        self._recent_start: Position | None = None
        self._reader: asyncio.Task[None] | None = None
        self._read_failure = RepeatedFailure(
            log, "cannot read the change feed", end_event="the change feed is read again"
        )
        self._listen_failure = RepeatedFailure(
            log,
            "cannot listen for changes, polling",
            end_event="listening for changes again",
        )
        self._is_polling = False
        """Whether the database server sends no notifications, as a standby."""
        self._measure = measure
        if measure is not None:
            measure.watches = lambda: self._watches
            measure.max_watches = max_watches
        database.after_write(self._hint.set)

    async def stop(self, seconds: float) -> None:
        """Ends every watch with its last token, and waits for them, but no longer than `seconds`."""
        self._stopping = True
        self._signal.notify()
        try:
            async with asyncio.timeout(seconds):
                await self._none_left.wait()
        except TimeoutError:
            log.debug("watches with pending messages are left to the server", count=self._watches)
        await self._stop_reading()

    async def watch(
        self, start: WatchStart, filter: WatchFilter, *, heartbeat_seconds: float
    ) -> AsyncGenerator[WatchEvent, None]:
        """Sends what there is from `start` on, and then whatever changes, until it is closed.

        The first message comes at once, and one with a token at least every `heartbeat_seconds`.

        Raises:
            WatchLimit: Too many are open.
            ResumeTokenInvalid: The token is damaged.
            ResumeTokenForeign: It is of another store, or the store was set back and has lost changes
                that were sent.
            ResumeTokenExpired: Changes behind it have been deleted.
            ShuttingDown: The server stops.
        """
        with self._watch_slot():
            state = await self._changes.state()
            resume_point = self._resume_point(start, state.store_id, state.trimmed, state.end)
            if start.resume_token is not None:
                await self._changes.check(resume_point.position)

            async for page in self._snapshot.pages(resume_point, filter):
                token = resume_tokens.make(state.store_id, page.resume_point)
                yield WatchEvent(resume_token=token, snapshot=page.changes, snapshot_complete=page.is_last)
                if self._stopping:
                    raise ShuttingDown(resume_token=token)

            position = resume_point.position
            if resume_point.snapshot is None:
                yield WatchEvent(resume_token=state.resume_token(position))
            loop = asyncio.get_running_loop()
            due = loop.time() + heartbeat_seconds
            is_owed = False
            while not self._stopping:
                piece = await self._next_batch(position, due)
                if piece is not None:
                    position = piece.end
                    # A part that was sent promised that more follows, if only to say that it was all.
                    if is_owed or any(map(filter.matches, piece.changes)):
                        yield WatchEvent(resume_token=state.resume_token(position), piece=piece)
                        due = loop.time() + heartbeat_seconds
                        is_owed = piece.partial
                if loop.time() >= due:
                    yield WatchEvent(resume_token=state.resume_token(position))
                    due = loop.time() + heartbeat_seconds
            yield WatchEvent(resume_token=state.resume_token(position))
            raise ShuttingDown(resume_token=state.resume_token(position))

    def _resume_point(
        self, start: WatchStart, store_id: str, trimmed: Position, end: Position
    ) -> ResumePoint:
        if start.resume_token is not None:
            return resume_tokens.read(start.resume_token, store_id)
        if start.initial_state:
            return ResumePoint(position=end, snapshot=SnapshotCursor(kind=ResourceKind.POST))
        return ResumePoint(position=trimmed if start.earliest else end)

    @contextmanager
    def _watch_slot(self) -> Iterator[None]:
        if self._stopping:
            raise ShuttingDown
        if self._watches >= self._max_watches:
            raise WatchLimit(limit=self._max_watches)
        self._watches += 1
        self._none_left.clear()
        if self._reader is None:
            self._recent.clear()
            self._recent_start = None
            self._reader = asyncio.create_task(self._read_for_all(), name="feed")
        try:
            yield
        finally:
            self._watches -= 1
            if not self._watches:
                self._none_left.set()
                if self._reader is not None:
                    self._reader.cancel()
                    self._reader = None

    async def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
            self._reader = None

    # What a watch does

    async def _next_batch(self, position: Position, due: float) -> ChangeBatch | None:
        """What follows a position; None when nothing does until the loop's time is `due`."""
        while True:
            seen = self._signal.count
            is_known, piece = self._remembered_after(position)
            if not is_known:
                # The database is asked, and whether it has the position.
                piece = await self._changes.read_after(position)
            if piece is not None:
                return piece
            if self._stopping:
                return None
            try:
                async with asyncio.timeout_at(due):
                    await self._signal.wait(seen)
            except TimeoutError:
                return None

    def _remembered_after(self, position: Position) -> tuple[bool, ChangeBatch | None]:
        """Whether memory holds what follows a position, and the next piece of it if there is one.

        Only a position that memory has itself is sure to be of the same past: it may have been read just
        before the database was set back, and what is in memory just after.
        """
        if self._recent_start is None or position < self._recent_start:
            return False, None
        last = self._recent_start
        for piece in self._recent:
            if piece.end > position:
                return piece.last_until(position, last).is_same(position), piece.behind(position)
            last = piece.end
        return last.is_same(position), None

    # What one task does for all

    async def _read_for_all(self) -> None:
        listening = asyncio.create_task(self._listen(), name="feed-listener")
        try:
            if self._measure is not None:
                self._measure.read()
            end: Position | None = None
            pause = 0.0
            while True:
                hinted = await self._hinted(pause)
                try:
                    if end is None:
                        end = self._recent_start = (await self._changes.state()).end
                    piece = await self._changes.read_after(end)
                    self._read_failure.ended()
                    if self._measure is not None:
                        self._measure.read(piece.places[0].time if piece is not None else 0)
                except (ResumeTokenExpired, ResumeTokenForeign) as error:
                    # Changes are deleted faster than they are read, or the database was set back; each watch
                    # finds out for itself.
                    if isinstance(error, ResumeTokenForeign):
                        log.warning(
                            "the database was set back and has lost changes that were sent to watches"
                        )
                    self._recent.clear()
                    end = self._recent_start = None
                    self._signal.notify()
                    pause = POLL_SECONDS
                    continue
                except Exception as error:
                    # Whatever it is, everybody's watch depends on this task.
                    _count(self._read_failure, error)
                    await asyncio.sleep(POLL_SECONDS)
                    continue
                if piece is not None:
                    end = piece.end
                    self._keep(piece)
                    self._signal.notify()
                    await asyncio.sleep(GAP_SECONDS + GAP_SECONDS_PER_WATCH * self._watches)
                    pause = 0.0
                else:
                    pause = SOON_SECONDS if hinted else min(max(2 * pause, SOON_SECONDS), POLL_SECONDS)
        finally:
            listening.cancel()
            if self._measure is not None:
                self._measure.read_at = None

    async def _hinted(self, pause: float) -> bool:
        """Waits until something tells of changes, or until the pause is over; whether it was the former."""
        if not self._hint.is_set():
            try:
                # Not wait_for, which on Python 3.11 can swallow the cancellation of this task.
                async with asyncio.timeout(pause):
                    await self._hint.wait()
            except TimeoutError:
                return False
        self._hint.clear()
        return True

    async def _listen(self) -> None:
        """Hears of what other processes write, where the database can tell."""
        while True:
            pause = POLL_SECONDS
            try:
                # In a task of its own, as workers have for each connection.
                await asyncio.create_task(self._database.listen(self._heard), name="feed-connection")
            except NotificationsUnavailable:
                self._listen_failure.ended()
                if not self._is_polling:
                    log.info("polling for changes: standbys send no notifications", seconds=POLL_SECONDS)
                self._is_polling = True
                pause = STANDBY_SECONDS
            except Exception as error:
                _count(self._listen_failure, error)
            await asyncio.sleep(pause)

    def _heard(self) -> None:
        """Notes that there may be changes; called first when listening has begun."""
        self._is_polling = False
        self._listen_failure.ended()
        self._hint.set()

    def _keep(self, piece: ChangeBatch) -> None:
        self._recent.append(piece)
        while len(self._recent) > 1 and sum(it.size for it in self._recent) > MAX_RECENT_BYTES:
            self._recent_start = self._recent.popleft().end


def _count(failure: RepeatedFailure, error: Exception) -> None:
    """Expected database errors are logged in one line, a bug with its traceback."""
    if isinstance(error, ServiceError):
        failure.failed(error=type(error).__name__, cause=str(error.__cause__ or error))
    else:
        failure.failed(exc_info=error)
