"""How long changes and requests are kept: what is too old is deleted in small steps.

Each step is a few writes like any other, done together with the writes of callers, who wait for no more than
its few rows. How old a row is says the RetentionClock, not the wall clock alone.
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
from store_service.errors import ServiceError
from store_service.model import Position
from store_service.repeated_failure import RepeatedFailure
from store_service.service.operations import now_microseconds
from store_service.service.retention_clock import JUMP_TOLERANCE_MICROSECONDS, RetentionClock

STEP_ROWS = 500
"""Most rows that one step deletes."""

STEP_BYTES = 8 * 1024 * 1024
"""When the rows that a step has deleted were as large as this together, it deletes no more."""

STEP_SECONDS = 0.05
"""Pause after a step that left something to do."""

PAUSE_SECONDS = 10.0
"""Pause when there is nothing left to do."""

SAVE_SECONDS = 60.0
"""How often the state of the clock is saved."""

MAX_LOOK_SECONDS = 1.0
"""If the query for the database's time takes longer, its result is too inexact."""

PROBE_RATIO = 1.25
"""By how much farther than the place before each place is at which a later change is looked for."""

PROBE_ROWS = 3
"""Numbers of changes that are tried at each of these places, for PostgreSQL leaves some out."""

_HOUR = 3_600_000_000

log = structlog.get_logger("store_service.keeping")


class Retention:
    """Deletes expired rows repeatedly."""

    def __init__(
        self,
        database: Database,
        *,
        change_retention_hours: float,
        max_change_rows: int,
        request_id_retention_hours: float,
        wall: Callable[[], int] = now_microseconds,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes what is deleted when.

        Args:
            database: The open database.
            change_retention_hours: How long changes are kept.
            max_change_rows: How many are kept, however young they are.
            request_id_retention_hours: How long requests are kept.
            wall: Microseconds since 1970. On PostgreSQL the time of the database counts instead, for all
                processes that share it.
            monotonic: Seconds since any time.
        """
        self._database = database
        self._change_rows = max_change_rows
        self._retentions = {
            "changes": int(change_retention_hours * _HOUR),
            "requests": int(request_id_retention_hours * _HOUR),
        }
        self._wall = wall
        self._monotonic = monotonic
        self._clock: RetentionClock | None = None
        self._saved_at = 0.0
        self._doubted: set[str] = set()
        """Of what rows are kept longer than the wall clock says."""

    async def run(self) -> None:
        """Works until it is cancelled."""
        failure = RepeatedFailure(
            log, "cannot delete expired rows", end_event="expired rows are deleted again"
        )
        while True:
            try:
                is_done = await self.step()
                failure.ended()
            except ServiceError as error:
                failure.failed(error=type(error).__name__, cause=str(error.__cause__ or error))
                is_done = True
            except Exception as error:
                # A bug; but nothing would ever be deleted again if this task ended.
                failure.failed(exc_info=error)
                is_done = True
            await asyncio.sleep(PAUSE_SECONDS if is_done else STEP_SECONDS)

    async def step(self) -> bool:
        """Deletes some changes and some requests; whether nothing is left that is too old."""
        asked_at = self._monotonic()
        look = await self._database.read(_LOOK, self._wall())
        if self._monotonic() - asked_at > MAX_LOOK_SECONDS:
            return True
        monotonic = int(asked_at * 1_000_000)
        clock = await self._compared(look, monotonic)
        before = {of: self._cutoff(clock, look.wall, monotonic, of) for of in self._retentions}
        is_trimmed = await self._database.write(_TRIM, (before["changes"], self._change_rows))
        is_forgotten = await self._database.write(_FORGET, (before["requests"], look.wall))
        return is_trimmed and is_forgotten

    async def _compared(self, look: "_Look", monotonic: int) -> RetentionClock:
        """The clock after it has taken the time of now; saved from time to time, and when it has jumped."""
        clock, is_due = self._clock, self._monotonic() - self._saved_at >= SAVE_SECONDS
        if clock is None:
            clock = RetentionClock.restored(
                look.clock or RetentionClock(0, look.newest or look.wall, 0).saved(0),
                longest=max(self._retentions.values()),
                wall=look.wall,
                monotonic=monotonic,
            )
            is_due = True
        elif jump := clock.compare(look.wall, monotonic):
            direction = "forward" if jump > 0 else "back"
            log.warning("clock jumped", direction=direction, seconds=abs(jump) / 1_000_000)
            is_due = True
        if is_due:
            await self._database.write(_SAVE, clock.saved(monotonic))
            self._saved_at = self._monotonic()
        self._clock = clock
        return clock

    def _cutoff(self, clock: RetentionClock, wall: int, monotonic: int, of: str) -> int:
        """The time before which rows are certainly too old."""
        retention = self._retentions[of]
        unconfirmed = clock.unconfirmed(retention, monotonic)
        is_doubted = unconfirmed > JUMP_TOLERANCE_MICROSECONDS
        if is_doubted and of not in self._doubted:
            self._doubted.add(of)
            log.info(
                "retention is extended: the clock is not confirmed", of=of, seconds=unconfirmed / 1_000_000
            )
        elif not is_doubted and of in self._doubted:
            self._doubted.remove(of)
            log.info("clock confirmed", of=of)
        return wall - unconfirmed - retention


class _Look(NamedTuple):
    """The time of the database, and the saved state of the clock."""

    wall: int
    """The time by which rows are stamped."""
    clock: str | None
    """What was saved of the clock."""
    newest: int
    """When the newest row is from; 0 if there is none."""


async def _look(connection: Connection, asked: Sequence[int]) -> list[_Look]:
    ((wall, clock),) = await connection.fetch(change_sql.CLOCK, now=asked[-1])
    newest = 0
    if clock is None:
        for statement in (change_sql.NEWEST_TIME, request_sql.NEWEST_TIME):
            ((found,),) = await connection.fetch(statement)
            newest = max(newest, found)
    return [_Look(wall, clock, newest)] * len(asked)


async def _save(connection: Connection, asked: Sequence[str]) -> list[None]:
    await connection.fetch(change_sql.SAVE_CLOCK, clock=asked[-1])
    return [None] * len(asked)


def _in_a_step(sizes: Sequence[int]) -> int:
    """How many rows of these sizes to delete, the last of which may pass STEP_BYTES."""
    return min(bisect_left(list(accumulate(sizes)), STEP_BYTES) + 1, len(sizes))


async def _trim(connection: Connection, asked: Sequence[tuple[int, int]]) -> list[bool]:
    return [await _trim_once(connection, before, most_rows) for before, most_rows in asked]


async def _trim_once(connection: Connection, before: int, most_rows: int) -> bool:
    """Moves the mark after the oldest changes and deletes what is before it; whether none is left to go."""
    feed = await connection.fetch(change_sql.LOCKED_FEED)
    if not feed:
        # Another process is at it.
        return True
    ((_, trimmed_xid, trimmed_seq),) = feed
    found = await connection.fetch(
        change_sql.SIZES, after_xid=trimmed_xid, after_seq=trimmed_seq, limit=STEP_ROWS
    )
    ((last_seq,),) = await connection.fetch(change_sql.LAST_SEQ)
    # Everything up to the new mark is told no more. A change is as old as any that follows it in the order of
    # the feed: its own time may be in the future, of a clock that was wrong when it was made.
    count = max(
        (n for n, row in enumerate(found, 1) if row[3] < before or row[1] <= last_seq - most_rows), default=0
    )
    if count < len(found) == STEP_ROWS and await _is_any_older(connection, found[-1][1], last_seq, before):
        count = len(found)
    deleted = found[: _in_a_step([size for _, _, size, _ in found[:count]])]
    if deleted:
        until = Position(xid=deleted[-1][0], seq=deleted[-1][1])
        # The change at the mark stays: its time is how a token is told from one of a past that was undone.
        await connection.fetch(change_sql.DELETE_CHANGES, until_xid=until.xid, until_seq=until.seq)
        await connection.fetch(change_sql.SET_TRIMMED, until_xid=until.xid, until_seq=until.seq)
    return len(deleted) == count < STEP_ROWS


async def _is_any_older(connection: Connection, after_seq: int, last_seq: int, before: int) -> bool:
    """Whether a change after a place is older than a time, as far as some tries tell.

    There are as many tries as the logarithm of the number of changes. What they miss now they find when more
    of the changes are old.
    """
    seqs: set[int] = set()
    distance = float(STEP_ROWS)
    while (place := after_seq + int(distance)) < last_seq:
        seqs.update(range(place, place + PROBE_ROWS))
        distance *= PROBE_RATIO
    seqs.update(range(last_seq - PROBE_ROWS, last_seq + 1))
    found = await connection.fetch(change_sql.COMMIT_TIMES, seqs=as_json(sorted(seqs)))
    return any(commit_time < before for (commit_time,) in found)


async def _forget(connection: Connection, asked: Sequence[tuple[int, int]]) -> list[bool]:
    return [await _forget_once(connection, before, now) for before, now in asked]


async def _forget_once(connection: Connection, before: int, now: int) -> bool:
    """Deletes the oldest requests; whether none is left to go."""
    # Rows with a time in the future, from a wrong clock, would stay until then.
    restamped = await connection.fetch(
        request_sql.RESTAMP_FUTURE_REQUESTS, after=now + _HOUR, now=now, limit=STEP_ROWS
    )
    found = await connection.fetch(request_sql.SIZES, before=before, limit=STEP_ROWS)
    count = _in_a_step([size for (size,) in found])
    if count:
        await connection.fetch(request_sql.DELETE_OLD_REQUESTS, before=before, limit=count)
    return count == len(found) < STEP_ROWS and len(restamped) < STEP_ROWS


_LOOK: BatchOperation[int, _Look] = BatchOperation(_look)
# No other write changes these rows, and the feed does not contain them.
_SAVE: BatchOperation[str, None] = BatchOperation(_save, insert_only=True)
_TRIM: BatchOperation[tuple[int, int], bool] = BatchOperation(_trim, insert_only=True)
_FORGET: BatchOperation[tuple[int, int], bool] = BatchOperation(_forget, insert_only=True)
