"""Follows one replica, a standby of the primary, and reads from it (docs/decisions/0050).

A replica is used while three things are known: it belongs to the cluster and the store of the primary, the
primary has its last change too, and its lag is within the limit.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import structlog

from store_service.database import replica_sql as sql
from store_service.database.batch_operation import Argument, BatchOperation, Result
from store_service.database.batch_queue import Backend, BatchQueue
from store_service.database.connection import Connection
from store_service.database.consistency import POLL_SECONDS, WAIT_SECONDS, Outcome, SeenOperations
from store_service.database.job_queue import LARGE_JOB_BYTES
from store_service.database.remote_writer import RemoteWriter
from store_service.database.replica_state import (
    HAS_CHANGE,
    REPLICA,
    PrimaryState,
    Refused,
    ReplicaState,
    check_history,
)
from store_service.errors import DatabaseUnavailable, OperatorError, ServiceError
from store_service.model import Position, Seen
from store_service.pacing import Signal
from store_service.repeated_failure import RepeatedFailure

COMPARE_SECONDS = 0.5
"""Time between two comparisons of a replica with the primary."""

LAG_POLL_SECONDS = 0.05
"""Time between two looks at a replica until it has what the primary had at the last comparison."""

LOOK_SECONDS = 2.0
"""Maximum time for a server to respond to a look."""

RETRY_SECONDS = 0.5
"""Pause before a replica is opened again."""

MAX_SAMPLES = 1000
"""Number of earlier states of the primary that are kept to measure the lag. From there on, they are
thinned out."""

log = structlog.get_logger("store_service.database")


class Replica:
    """One replica, with sessions of its own."""

    def __init__(
        self,
        name: str,
        open_backend: Callable[[], AbstractAsyncContextManager[Backend]],
        look_at_primary: Callable[[int], Awaitable[PrimaryState]],
        *,
        max_lag_seconds: float,
    ) -> None:
        """Takes what the replica is compared with.

        Args:
            name: Its name in the log and in metrics.
            open_backend: Opens its sessions.
            look_at_primary: Reads the state of the primary. The argument is the `seq` of a change.
            max_lag_seconds: The lag above which it is not used.
        """
        self.name = name
        self._open_backend = open_backend
        self._look_at_primary = look_at_primary
        self._max_lag_seconds = max_lag_seconds
        self._queue: BatchQueue | None = None
        """Its readers; None while the replica does not respond."""
        self._operations = SeenOperations(self._look_after_read)
        self._started = 0
        """Start time of the server; 0 before the first look. What follows is about this server."""
        self._end = Position(xid=0, seq=0)
        """The end of its change feed at the last look."""
        self._ended_xid = 0
        """All transactions up to this number have ended there."""
        self._timeline = 0
        """The timeline of the primary at the last comparison."""
        self._first_newest_xid = 0
        """The newest transaction with changes at the first comparison with this timeline."""
        self._is_on_timeline = False
        """Whether the replica has a change that was made on this timeline. It then has no lost changes."""
        self._confirmed_xid = 0
        """The last change of this server that a comparison has found on the primary."""
        self._is_compared = False
        """Whether the primary had the last change of this server at the last comparison."""
        self._current_at = -math.inf
        """A time at which the primary had nothing that the replica does not have now."""
        self._samples: deque[tuple[float, int]] = deque()
        """States of the primary that the replica has not reached: the time, and the end of the log."""
        self._behind_since: float | None = None
        """The time of the first of them; None if there is none."""
        self._waiting = 0
        self._woken = asyncio.Event()
        """Set when a read begins to wait."""
        self._looked = Signal()
        self._reads: set[asyncio.Timeout] = set()
        self._failure = RepeatedFailure(log, "replica is not used", end_event="replica is used again")

    # For reads and metrics. Any thread may read the properties.

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest known state of the primary that the replica lacked at the last look; 0 if it
        lacked none."""
        since = self._behind_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def is_used(self) -> bool:
        """Whether reads are answered: what the replica lacks is at most as old as the limit."""
        return self._is_compared and time.monotonic() - self._current_at <= self._max_lag_seconds

    @property
    def ended_xid(self) -> int:
        """All transactions up to this number have ended there."""
        return self._ended_xid

    def has(self, seen: Seen) -> bool:
        """Whether the replica is used, and is known to have what a caller has seen."""
        xid = self._ended_xid if self._is_on_timeline else self._confirmed_xid
        return self.is_used and seen.timeline <= self._timeline and seen.xid <= xid

    async def has_soon(self, seen: Seen) -> bool:
        """Same as `has`. Waits at most WAIT_SECONDS, and not at all if the replica lags more than that."""
        if self.lag_seconds > WAIT_SECONDS:
            return self.has(seen)
        self._waiting += 1
        self._woken.set()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not self.has(seen):
                    await self._looked.wait(self._looked.count)
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
        return True

    async def check_change(self, position: Position) -> None:
        """Checks that the replica has a change, or has trimmed it.

        Raises:
            DatabaseUnavailable: It does not, or has another change at this position.
            TimeoutError: The replica has failed meanwhile.
        """
        outcome = await self.read(HAS_CHANGE, position)
        if outcome[0] is not True:
            raise DatabaseUnavailable from Refused("it does not have the change of a resume token")

    async def read(self, operation: BatchOperation[Argument, Result], argument: Argument) -> Outcome[Result]:
        """Runs an operation.

        Raises:
            ServiceError: The outcome of the whole batch.
            TimeoutError: The replica has failed meanwhile.
        """
        if self._queue is None:
            raise DatabaseUnavailable
        async with asyncio.timeout(None) as limit:
            self._reads.add(limit)
            try:
                return await self._queue.execute(self._operations.of(operation), argument)
            finally:
                self._reads.discard(limit)

    async def _look_after_read(self, connection: Connection) -> Seen:
        ((started, is_standby, newest_xid, ended_xid),) = await connection.fetch(sql.SHOWN)
        if started != self._started or not is_standby:
            raise DatabaseUnavailable from Refused("the session is on another server, or on a new primary")
        self._ended_xid = max(self._ended_xid, ended_xid)
        return Seen(timeline=self._timeline, xid=newest_xid)

    # In the background

    async def run(self) -> None:
        """Follows the replica until it is cancelled."""
        while True:
            try:
                async with self._open_backend() as backend:
                    self._queue = backend.reader
                    try:
                        await self._follow(backend.writer)
                    finally:
                        # Before the sessions are closed, which takes long if the replica does not respond.
                        self._leave()
            except (ServiceError, OperatorError, Refused, TimeoutError) as error:
                cause = error.__cause__ or error
                self._failure.failed(replica=self.name, cause=str(cause) or type(cause).__name__)
            except Exception as error:
                # An unhandled exception must not end this task.
                self._failure.failed(replica=self.name, exc_info=error)
            await asyncio.sleep(RETRY_SECONDS)

    def _leave(self) -> None:
        """Ends the use of the replica, also for reads that wait for it."""
        self._queue = None
        self._begin(0)
        reads, self._reads = self._reads, set()
        for limit in reads:
            limit.reschedule(asyncio.get_running_loop().time())

    def _begin(self, started: int) -> None:
        """Forgets the last server."""
        self._started = started
        self._ended_xid = 0
        self._begin_timeline(0, 0)
        self._current_at = -math.inf
        self._behind_since = None

    def _begin_timeline(self, timeline: int, newest_xid: int) -> None:
        """Forgets the comparisons with the last timeline.

        The replica can receive changes that the failover has lost after a comparison. They can have greater
        numbers than changes of the new timeline.
        """
        self._timeline = timeline
        self._first_newest_xid = newest_xid
        self._is_on_timeline = False
        self._confirmed_xid = 0
        self._is_compared = False
        self._samples.clear()

    async def _follow(self, session: BatchQueue | RemoteWriter) -> None:
        """Compares the replica with the primary again and again.

        Raises:
            Refused: The server is not a replica of the primary.
            ServiceError, TimeoutError: The replica does not respond.
        """
        primary: PrimaryState | None = None
        compare_at = 0.0
        while True:
            now = time.monotonic()
            if now >= compare_at:
                timeline = self._timeline
                primary = await self._compare(now) or primary
                compare_at = now + COMPARE_SECONDS if self._timeline == timeline else 0.0
            async with asyncio.timeout(LOOK_SECONDS):
                # Not on a reader, where it would wait for reads.
                look = await session.execute(REPLICA, None, size=LARGE_JOB_BYTES + 1)
            if primary is not None:
                look.check(primary)
            if look.started != self._started:
                self._begin(look.started)
                compare_at = 0.0
            elif self._waiting and not self._is_on_timeline:
                compare_at = 0.0
            self._end = look.end
            self._ended_xid = max(self._ended_xid, look.end.xid)
            self._measure(look)
            self._looked.notify()
            await self._pause(compare_at - time.monotonic())

    async def _compare(self, now: float) -> PrimaryState | None:
        """Reads the primary, and checks that it has the last change of the replica.

        Returns None if the primary does not respond. The last comparison then stays valid for a time.
        """
        end = self._end
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                primary = await self._look_at_primary(end.seq)
        except (ServiceError, TimeoutError):
            return None
        if self._started:
            check_history(end, primary)
            if primary.timeline != self._timeline:
                # The end is that of an earlier look. The next comparison is made with a later one.
                self._begin_timeline(primary.timeline, primary.newest_xid)
                return primary
            self._is_compared = True
            if end.time == primary.time:
                self._confirmed_xid = end.xid
                self._is_on_timeline = self._is_on_timeline or end.xid > self._first_newest_xid
            self._samples.append((now, primary.log_end))
            if len(self._samples) > MAX_SAMPLES:
                self._samples = deque(list(self._samples)[::2])
        return primary

    def _measure(self, look: ReplicaState) -> None:
        samples = self._samples
        while samples and samples[0][1] <= look.log_end:
            self._current_at, _ = samples.popleft()
        self._behind_since = samples[0][0] if samples else None
        if self.is_used:
            self._failure.ended(replica=self.name)
        elif self._is_compared:
            self._failure.failed(replica=self.name, cause="it lags more than STORE_MAX_REPLICA_LAG_SECONDS")

    async def _pause(self, seconds: float) -> None:
        """Waits until the next look, at most `seconds`: until a read waits, or for a short time."""
        if self._waiting:
            await asyncio.sleep(POLL_SECONDS)
            return
        self._woken.clear()
        try:
            async with asyncio.timeout(min(seconds, LAG_POLL_SECONDS) if self._samples else seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
