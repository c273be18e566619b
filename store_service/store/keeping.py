"""How long changes and requests are kept: what is too old is deleted in small steps.

Each step is two writes like any other, done together with the writes of callers, who wait for no more than
its few rows.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, takewhile

import structlog

from store_service.database import changes as change_sql
from store_service.database import requests as request_sql
from store_service.database.connect import Store
from store_service.database.connection import Connection
from store_service.database.workers import Operation
from store_service.errors import StoreError
from store_service.model import Position
from store_service.repeated_failure import RepeatedFailure
from store_service.store.batches import now_microseconds

STEP_ROWS = 500
"""Most rows that one step deletes."""

STEP_BYTES = 8 * 1024 * 1024
"""When the rows that a step has deleted were as large as this together, it deletes no more."""

STEP_SECONDS = 0.05
"""Pause after a step that left something to do."""

PAUSE_SECONDS = 10.0
"""Pause when there is nothing left to do."""

_HOUR = 3_600_000_000

log = structlog.get_logger("store_service.keeping")


class Keeping:
    """Deletes what is too old, again and again."""

    def __init__(
        self, store: Store, *, change_hours: float, change_rows: int, request_id_hours: float
    ) -> None:
        """Takes the open database, how long and how many changes are kept, and how long requests are."""
        self._store = store
        self._change_hours = change_hours
        self._change_rows = change_rows
        self._request_id_hours = request_id_hours

    async def run(self) -> None:
        """Works until it is cancelled."""
        failure = RepeatedFailure(
            log, "cannot delete what is too old", end_event="what is too old is deleted again"
        )
        while True:
            try:
                is_done = await self.step()
                failure.ended()
            except StoreError as error:
                failure.failed(error=type(error).__name__, cause=str(error.__cause__ or error))
                is_done = True
            except Exception as error:
                # A bug; but nothing would ever be deleted again if this task ended.
                failure.failed(exc_info=error)
                is_done = True
            await asyncio.sleep(PAUSE_SECONDS if is_done else STEP_SECONDS)

    async def step(self) -> bool:
        """Deletes some changes and some requests; whether nothing is left that is too old."""
        now = now_microseconds()
        limits = (now - int(self._change_hours * _HOUR), self._change_rows)
        is_trimmed = await self._store.write(_TRIM, limits)
        is_forgotten = await self._store.write(_FORGET, now - int(self._request_id_hours * _HOUR))
        return is_trimmed and is_forgotten


def _in_a_step(sizes: Sequence[int]) -> int:
    """How many rows of these sizes to delete, the last of which may pass STEP_BYTES."""
    return min(bisect_left(list(accumulate(sizes)), STEP_BYTES) + 1, len(sizes))


async def _trim(connection: Connection, asked: Sequence[tuple[int, int]]) -> list[bool]:
    return [await _trim_once(connection, before, most_rows) for before, most_rows in asked]


async def _trim_once(connection: Connection, before: int, most_rows: int) -> bool:
    """Moves the mark behind the oldest changes and deletes what is before it; whether none is left to go."""
    feed = await connection.fetch(change_sql.LOCKED_FEED)
    if not feed:
        # Another process is at it.
        return True
    ((_, trimmed_xid, trimmed_seq),) = feed
    found = await connection.fetch(
        change_sql.SIZES, after_xid=trimmed_xid, after_seq=trimmed_seq, limit=STEP_ROWS
    )
    ((last_seq,),) = await connection.fetch(change_sql.LAST_SEQ)
    # Only what is next in the order of the feed: everything up to the new mark is told no more.
    too_old = list(takewhile(lambda row: row[3] < before or row[1] <= last_seq - most_rows, found))
    count = _in_a_step([size for _, _, size, _ in too_old])
    is_done = count == len(too_old) < STEP_ROWS
    too_old = too_old[:count]
    if too_old:
        until = Position(xid=too_old[-1][0], seq=too_old[-1][1])
        # The change at the mark stays: its time is how a token is told from one of a past that was undone.
        await connection.fetch(change_sql.DELETE_CHANGES, until_xid=until.xid, until_seq=until.seq)
        await connection.fetch(change_sql.SET_TRIMMED, until_xid=until.xid, until_seq=until.seq)
    return is_done


async def _forget(connection: Connection, asked: Sequence[int]) -> list[bool]:
    return [await _forget_once(connection, before) for before in asked]


async def _forget_once(connection: Connection, before: int) -> bool:
    """Deletes the oldest requests; whether none is left to go."""
    found = await connection.fetch(request_sql.SIZES, before=before, limit=STEP_ROWS)
    count = _in_a_step([size for (size,) in found])
    if count:
        await connection.fetch(request_sql.DELETE_OLD_REQUESTS, before=before, limit=count)
    return count == len(found) < STEP_ROWS


# What they delete nobody else changes, and no change tells of it.
_TRIM: Operation[tuple[int, int], bool] = Operation(_trim, only_adds=True)
_FORGET: Operation[int, bool] = Operation(_forget, only_adds=True)
