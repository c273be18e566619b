"""Deletes expired changes, idempotency keys and deleted resources in small steps.

The writes of a step run in the batches of callers. Therefore a step deletes few rows, to keep the batches
short. The RetentionClock decides how old a row is, not the wall clock alone.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import structlog

from store_service.database import changes as change_sql
from store_service.database import idempotency as request_sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.errors import ServiceError, StoreMoving
from store_service.model import Position
from store_service.observability.metrics import RetentionMetrics
from store_service.repeated_failure import RepeatedFailure
from store_service.service import purge
from store_service.service.operations import now_microseconds
from store_service.service.retention_clock import JUMP_TOLERANCE_MICROSECONDS, RetentionClock

STEP_ROWS = 500
"""Maximum number of rows that one step deletes from each table."""

STEP_BYTES = 8 * 1024 * 1024
"""A step deletes no more rows after their total size has reached this."""

MAX_REPEATS = 100
"""Maximum number of deletions from a table in one step."""

STEP_SECONDS = 0.05
"""Pause after a step that left expired rows."""

PAUSE_SECONDS = 10.0
"""Pause if no expired rows are left."""

SAVE_SECONDS = 60.0
"""Interval at which the state of the clock is saved."""

MAX_QUERY_SECONDS = 1.0
"""If the query for the time of the database takes longer, its result is inexact and the step is skipped."""

PROBE_RATIO = 1.25
"""Ratio of the distances of two consecutive probes for an old change."""

PROBE_ROWS = 3
"""Number of consecutive change numbers in one probe, because PostgreSQL skips some numbers."""

MIN_CONFIRMED_HOURS = 24.0
"""A jump of the clock within this time before a purge delays the purge, also if the setting is shorter."""

_HOUR = 3_600_000_000
"""Microseconds."""

log = structlog.get_logger("store_service.retention")


class Retention:
    """Deletes expired rows repeatedly."""

    def __init__(
        self,
        database: Database,
        *,
        change_retention_hours: float,
        max_change_rows: int,
        request_id_retention_hours: float,
        undelete_hours: float = 0,
        metrics: RetentionMetrics | None = None,
        wall: Callable[[], int] = now_microseconds,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes the retention of each table.

        Args:
            database: The open database.
            change_retention_hours: How long changes are kept.
            max_change_rows: Maximum number of changes, regardless of their age.
            request_id_retention_hours: How long idempotency keys are kept.
            undelete_hours: How long deleted resources are kept.
            metrics: The metrics to update; None if metrics are off.
            wall: Returns microseconds since 1970. On PostgreSQL the time of the database is used instead,
                because it is the same for all processes.
            monotonic: Returns seconds since an arbitrary time.
        """
        self._database = database
        self._max_change_rows = max_change_rows
        self._retentions = {
            "changes": int(change_retention_hours * _HOUR),
            "requests": int(request_id_retention_hours * _HOUR),
            # Earlier deletions may have a later purge_time than the current setting gives.
            "deleted resources": int(max(undelete_hours, MIN_CONFIRMED_HOURS) * _HOUR),
        }
        self._metrics = metrics or RetentionMetrics()
        self._wall = wall
        self._monotonic = monotonic
        self._clock: RetentionClock | None = None
        self._saved_at = 0.0
        self._extended: set[str] = set()
        """The tables whose rows are kept longer than the wall clock says."""

    async def run(self) -> None:
        """Deletes expired rows until it is cancelled."""
        failure = RepeatedFailure(
            log, "cannot delete expired rows", end_event="expired rows are deleted again"
        )
        while True:
            try:
                is_done = await self.step()
                failure.ended()
            except StoreMoving:
                # It lasts, and an operator has caused it.
                is_done = True
            except ServiceError as error:
                failure.failed(error=type(error).__name__, cause=str(error.__cause__ or error))
                is_done = True
            except Exception as error:
                # An unhandled exception must not end this task, or no row would ever be deleted again.
                failure.failed(exc_info=error)
                is_done = True
            await asyncio.sleep(PAUSE_SECONDS if is_done else STEP_SECONDS)

    async def step(self) -> bool:
        """Deletes some expired rows. Returns whether no expired rows are left."""
        started_at = self._monotonic()
        times = await self._database.read(_READ_TIMES, self._wall())
        if self._monotonic() - started_at > MAX_QUERY_SECONDS:
            return True
        monotonic = int(started_at * 1_000_000)
        clock = await self._updated_clock(times, monotonic)
        before = {of: self._cutoff(clock, times.wall, monotonic, of) for of in self._retentions}
        no_changes_left = await self._repeat(TRIM, (before["changes"], self._max_change_rows))
        no_keys_left = await self._repeat(DELETE_KEYS, (before["requests"], times.wall))
        # The time of the clock, less what is not confirmed.
        confirmed = before["deleted resources"] + self._retentions["deleted resources"]
        earliest = await self._database.read(purge.EARLIEST, confirmed)
        self._metrics.purge_lag_seconds = (times.wall - earliest) / 1_000_000 if earliest else 0.0
        if earliest:
            await self._database.write(purge.PURGE, confirmed)
        return no_changes_left and no_keys_left and not earliest

    async def _repeat(self, delete: BatchOperation[tuple[int, int], bool], limits: tuple[int, int]) -> bool:
        """Deletes expired rows of one table, at most STEP_ROWS in each of MAX_REPEATS batches.

        Each batch of callers can include one deletion. So deletions keep up with any rate of writes.

        Returns:
            Whether no expired rows are left.
        """
        for _ in range(MAX_REPEATS):
            if await self._database.write(delete, limits):
                return True
        return False

    async def _updated_clock(self, times: "_Times", monotonic: int) -> RetentionClock:
        """Updates the clock. Saves it every SAVE_SECONDS, and after a jump."""
        clock, is_due = self._clock, self._monotonic() - self._saved_at >= SAVE_SECONDS
        if clock is None:
            clock = RetentionClock.restored(
                times.clock or RetentionClock(0, times.newest or times.wall, 0).saved(0),
                longest=max(self._retentions.values()),
                wall=times.wall,
                monotonic=monotonic,
            )
            is_due = True
        elif jump := clock.compare(times.wall, monotonic):
            direction = "forward" if jump > 0 else "back"
            log.warning("clock jumped", direction=direction, seconds=abs(jump) / 1_000_000)
            is_due = True
        if is_due:
            await self._database.write(SAVE, clock.saved(monotonic))
            self._saved_at = self._monotonic()
        self._clock = clock
        return clock

    def _cutoff(self, clock: RetentionClock, wall: int, monotonic: int, of: str) -> int:
        """Returns the time before which rows have certainly expired. Logs if the retention is extended."""
        retention = self._retentions[of]
        unconfirmed = clock.unconfirmed(retention, monotonic)
        is_extended = unconfirmed > JUMP_TOLERANCE_MICROSECONDS
        if is_extended and of not in self._extended:
            self._extended.add(of)
            log.info(
                "retention is extended: the clock is not confirmed", of=of, seconds=unconfirmed / 1_000_000
            )
        elif not is_extended and of in self._extended:
            self._extended.remove(of)
            log.info("clock confirmed", of=of)
        return wall - unconfirmed - retention


class _Times(NamedTuple):
    """The current time, and the saved state of the clock."""

    wall: int
    """The time by which rows are stamped."""
    clock: str | None
    """The saved state; None before the first save."""
    newest: int
    """The time of the newest row if there is no saved state; 0 if there are no rows."""


async def _read_times(connection: Connection, wall_times: Sequence[int]) -> list[_Times]:
    ((wall, clock),) = await connection.fetch(change_sql.CLOCK, now=wall_times[-1])
    newest = 0
    if clock is None:
        for statement in (change_sql.NEWEST_TIME, request_sql.NEWEST_TIME):
            ((found,),) = await connection.fetch(statement)
            newest = max(newest, found)
    return [_Times(wall, clock, newest)] * len(wall_times)


async def _save(connection: Connection, clocks: Sequence[str]) -> list[None]:
    await connection.fetch(change_sql.SAVE_CLOCK, clock=clocks[-1])
    return [None] * len(clocks)


def _step_length(sizes: Sequence[int]) -> int:
    """Returns how many rows of these sizes a step deletes. The last row may exceed STEP_BYTES."""
    return min(bisect_left(list(accumulate(sizes)), STEP_BYTES) + 1, len(sizes))


async def _trim(connection: Connection, jobs: Sequence[tuple[int, int]]) -> list[bool]:
    return [await _trim_once(connection, before, max_rows) for before, max_rows in jobs]


async def _trim_once(connection: Connection, before: int, max_rows: int) -> bool:
    """Deletes the oldest changes, and moves the start of the feed.

    Returns whether no expired changes are left.
    """
    feed = await connection.fetch(change_sql.LOCKED_FEED)
    if not feed:
        # Another process is trimming the feed.
        return True
    ((_, trimmed_xid, trimmed_seq),) = feed
    found = await connection.fetch(
        change_sql.SIZES, after_xid=trimmed_xid, after_seq=trimmed_seq, limit=STEP_ROWS
    )
    ((last_seq,),) = await connection.fetch(change_sql.LAST_SEQ)
    # A change has expired if any change after it in the feed has expired. Its own time can be in the future,
    # if the clock was wrong when it was made.
    count = max(
        (n for n, row in enumerate(found, 1) if row[3] < before or row[1] <= last_seq - max_rows), default=0
    )
    if count < len(found) == STEP_ROWS and await _is_any_older(connection, found[-1][1], last_seq, before):
        count = len(found)
    deleted = found[: _step_length([size for _, _, size, _ in found[:count]])]
    if deleted:
        until = Position(xid=deleted[-1][0], seq=deleted[-1][1])
        # The change at the new start is kept. Its time distinguishes tokens of this history from tokens of a
        # history that the store has lost.
        await connection.fetch(change_sql.DELETE_CHANGES, until_xid=until.xid, until_seq=until.seq)
        await connection.fetch(change_sql.SET_TRIMMED, until_xid=until.xid, until_seq=until.seq)
    return len(deleted) == count < STEP_ROWS


async def _is_any_older(connection: Connection, after_seq: int, last_seq: int, before: int) -> bool:
    """Probes whether a change after `after_seq` is older than a time.

    The number of probes grows with the logarithm of the number of changes. An old change that they miss is
    found later, when more of the changes are old.
    """
    seqs: set[int] = set()
    distance = float(STEP_ROWS)
    while (seq := after_seq + int(distance)) < last_seq:
        seqs.update(range(seq, seq + PROBE_ROWS))
        distance *= PROBE_RATIO
    seqs.update(range(last_seq - PROBE_ROWS, last_seq + 1))
    found = await connection.fetch(change_sql.COMMIT_TIMES, seqs=as_json(sorted(seqs)))
    return any(commit_time < before for (commit_time,) in found)


async def _delete_keys(connection: Connection, jobs: Sequence[tuple[int, int]]) -> list[bool]:
    return [await _delete_keys_once(connection, before, now) for before, now in jobs]


async def _delete_keys_once(connection: Connection, before: int, now: int) -> bool:
    """Deletes the oldest idempotency keys. Returns whether no expired keys are left."""
    # Rows with a time in the future, from a wrong clock, would stay until that time.
    restamped = await connection.fetch(
        request_sql.RESTAMP_FUTURE_REQUESTS, after=now + _HOUR, now=now, limit=STEP_ROWS
    )
    found = await connection.fetch(request_sql.SIZES, before=before, limit=STEP_ROWS)
    count = _step_length([size for (size,) in found])
    if count:
        await connection.fetch(request_sql.DELETE_OLD_REQUESTS, before=before, limit=count)
    return count == len(found) < STEP_ROWS and len(restamped) < STEP_ROWS


_READ_TIMES: BatchOperation[int, _Times] = BatchOperation(_read_times)
# No other write changes these rows, and the feed does not contain them.
SAVE: BatchOperation[str, None] = BatchOperation(_save, insert_only=True, name="save clock")
TRIM: BatchOperation[tuple[int, int], bool] = BatchOperation(_trim, insert_only=True, name="trim")
DELETE_KEYS: BatchOperation[tuple[int, int], bool] = BatchOperation(
    _delete_keys, insert_only=True, name="delete keys"
)
