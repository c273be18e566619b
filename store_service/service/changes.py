"""The change feed as it is stored: every committed change, in the order of commits.

A position is a pair of a transaction's number and a change's. PostgreSQL gives numbers before it commits,
so a reader there sees only transactions below the oldest one that still runs: what is behind a position
never changes any more, and a reader that goes from position to position misses nothing
(docs/decisions/0011).
"""

import uuid
from bisect import bisect_right
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import structlog

from store_service.database import changes as sql
from store_service.database.batch_queue import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.errors import ResumeTokenExpired, ResumeTokenForeign, ServiceError
from store_service.model import Change, Position, ResumePoint
from store_service.service import resume_tokens

MAX_TRANSACTION_BYTES = 2 * 1024 * 1024
"""A transaction up to this size is one piece; with copies in gRPC a watch stays below 8 MiB, or 13 if all
bodies have an emoji, for such a text takes four times its size."""

BATCH_BYTES = 256 * 1024
"""Small transactions share a piece, and larger ones are cut into pieces, of about this size."""

BATCH_ROWS = 4000
"""Most changes in a piece."""

_BYTES_BESIDE_THE_BODY = 120
"""About as much of a change on the wire is not the body."""

T = TypeVar("T")

log = structlog.get_logger("store_service.feed")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedState:
    """Which store this is, and from where to where it has changes."""

    store_id: str
    trimmed: Position
    """Behind it the changes are still told. The change there is kept for its time; an earlier version
    deleted it too, and then the time is 0."""
    end: Position

    def check(self, position: Position, time: int) -> None:
        """Checks that the changes after a position can be sent without a gap.

        Args:
            position: The changes after it are to be sent.
            time: When the change of its `seq` was made, read together with this state; 0 if there is none.

        Raises:
            ResumeTokenExpired: Changes after it have been deleted.
            ResumeTokenForeign: This store never had it, or has another past since it was set back.
        """
        if self.end < position:
            raise resume_tokens.foreign()
        if self.trimmed > position:
            raise ResumeTokenExpired(earliest_resume_token=self.resume_token(self.trimmed))
        # On SQLite the end of the feed has the number of its change for that of its transaction too.
        begins_at = (self.trimmed, Position(xid=self.trimmed.seq, seq=self.trimmed.seq))
        if not position.time:
            # A token of a former beginning of the feed, which is never after the current one.
            is_foreign = self.trimmed < position
        elif position.time == time:
            is_foreign = False
        elif position in begins_at:
            # An earlier version has deleted the change where the feed begins, and its time with it.
            is_foreign = self.trimmed.time != 0
        else:
            is_foreign = self.trimmed < position
        if is_foreign:
            raise resume_tokens.foreign()

    def resume_token(self, position: Position) -> str:
        """The token with which a watch goes on behind a position."""
        return resume_tokens.make(self.store_id, ResumePoint(position=position))


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class ChangeBatch:
    """Changes that follow each other without a gap; whole transactions unless `partial` is set."""

    changes: tuple[Change, ...]
    places: tuple[Position, ...]
    """Where each change stands, ascending."""
    partial: bool
    """More changes of the last transaction follow."""
    size: int
    """Bytes on the wire, about."""

    @property
    def end(self) -> Position:
        """Behind the last change."""
        return self.places[-1]

    def last_until(self, position: Position, before: Position) -> Position:
        """Where the last change up to a position stands, or `before`, which the piece follows."""
        first = bisect_right(self.places, position)
        return self.places[first - 1] if first else before

    def behind(self, position: Position) -> "ChangeBatch":
        """What of it stands behind a position, which is before its end."""
        first = bisect_right(self.places, position)
        if not first:
            return self
        return ChangeBatch(
            changes=self.changes[first:], places=self.places[first:], partial=self.partial, size=self.size
        )


async def feed_state(connection: Connection) -> FeedState:
    """Reads the state of the feed."""
    (row,) = await connection.fetch_inline(sql.FEED)
    return _state_in(row)


async def check_position(connection: Connection, position: Position) -> None:
    """Makes sure that the store has a position, as `FeedState.check` says."""
    ((*row, time),) = await connection.fetch_inline(sql.FEED_AT, seq=position.seq)
    _state_in(row).check(position, time)


def _state_in(row: Sequence[Any]) -> FeedState:
    store_id, trimmed_xid, trimmed_seq, trimmed_time, end_xid, end_seq, end_time = row
    return FeedState(
        store_id=store_id,
        trimmed=Position(xid=trimmed_xid, seq=trimmed_seq, time=trimmed_time),
        end=Position(xid=end_xid, seq=end_seq, time=end_time),
    )


class Changes:
    """Reads the feed."""

    def __init__(self, database: Database) -> None:
        """Takes the open database."""
        self._database = database

    async def begin(self) -> None:
        """Makes sure that what is stored can be read in order; to be called before anything is written.

        A dump that was restored into another PostgreSQL has changes of transactions that are yet to begin
        there. They are forgotten, and whoever watched the old store is told to start again.
        """
        if await self._database.read(_HAS_OWN_PAST, None):
            return
        if await self._database.write(_BEGIN_ANEW, uuid.uuid4().hex):
            log.warning("change feed restarted: its changes come from another database server")

    async def state(self) -> FeedState:
        """Which store this is, and from where to where it has changes now."""
        return await self._database.read(_STATE, None)

    async def check(self, position: Position) -> None:
        """Checks that a watch can continue after a position; see `FeedState.check`."""
        await self._database.read(_CHECK, position)

    async def read_after(self, position: Position) -> ChangeBatch | None:
        """The next changes; None if there are none yet.

        The position is checked each time, for the database may have been set back since it was read: by a
        failover to a standby that lacked the last changes, say.

        Raises:
            ResumeTokenExpired: Some of them have been deleted.
            ResumeTokenForeign: The store has another past than the one that the position is of.
        """
        return await self._database.read(_READ, position)


async def _state(connection: Connection, asked: Sequence[None]) -> list[FeedState]:
    return [await feed_state(connection)] * len(asked)


async def _check(connection: Connection, positions: Sequence[Position]) -> list[ServiceError | None]:
    return [await _outcome(check_position(connection, position)) for position in positions]


async def _read(
    connection: Connection, positions: Sequence[Position]
) -> list[ChangeBatch | ServiceError | None]:
    read: dict[tuple[Position, int], ChangeBatch | ServiceError | None] = {}
    for position in positions:
        # Of two pasts there may be two changes with the same numbers.
        key = (position, position.time)
        if key not in read:
            read[key] = await _outcome(_read_after(connection, position))
    return [read[position, position.time] for position in positions]


async def _outcome(reading: Awaitable[T]) -> T | ServiceError:
    """The changes that were read, or the error of this position, which does not affect the others."""
    try:
        return await reading
    except (ResumeTokenExpired, ResumeTokenForeign) as error:
        return error


async def _read_after(connection: Connection, position: Position) -> ChangeBatch | None:
    after = {"after_xid": position.xid, "after_seq": position.seq}
    # One more than fits tells whether the last transaction ends there.
    sizes = await connection.fetch(sql.SIZES, limit=BATCH_ROWS + 1, **after)
    count, partial = first_batch_length(sizes, BATCH_ROWS + 1)
    rows: Sequence[Any] = ()
    if count:
        until_xid, until_seq, *_ = sizes[count - 1]
        rows = await connection.fetch(sql.CHANGES, until_xid=until_xid, until_seq=until_seq, **after)
    # Asked last: what had not been deleted by now had not been deleted when it was read.
    await check_position(connection, position)
    if not rows:
        return None
    return ChangeBatch(
        changes=sql.changes_in(rows),
        places=tuple(sql.position_from_row(row) for row in rows),
        partial=partial,
        size=sum(size + _BYTES_BESIDE_THE_BODY for _, _, size, _ in sizes[:count]),
    )


def first_batch_length(sizes: Sequence[tuple[int, int, int, int]], limit: int) -> tuple[int, bool]:
    """How many of these changes are the next piece, and whether more of the last transaction follow.

    Args:
        sizes: Rows of xid, seq, size, time in order.
        limit: How many rows were asked for; there may be more when there are so many.
    """
    taken = taken_bytes = 0
    for _, changes in groupby(sizes, key=lambda row: row[0]):
        each = [size + _BYTES_BESIDE_THE_BODY for _, _, size, _ in changes]
        is_whole = taken + len(each) < limit or len(sizes) < limit
        most = BATCH_BYTES if taken else MAX_TRANSACTION_BYTES
        if is_whole and taken_bytes + sum(each) <= most:
            taken += len(each)
            taken_bytes += sum(each)
        elif taken:
            break
        else:
            return _part(each), not (is_whole and _part(each) == len(each))
    return taken, False


def _part(each: Sequence[int]) -> int:
    """How many changes of a transaction that is too large go into a piece; at least one."""
    total = 0
    for count, size in enumerate(each):
        total += size
        if count and total > BATCH_BYTES:
            return count
    return len(each)


async def _has_own_past(connection: Connection, asked: Sequence[None]) -> list[bool]:
    ((has_own_past,),) = await connection.fetch(sql.HAS_OWN_PAST)
    return [bool(has_own_past)] * len(asked)


async def _begin_anew(connection: Connection, store_ids: Sequence[str]) -> list[bool]:
    """Whether each has begun anew, and not another process before it, which may have written since."""
    return [await _begin_anew_once(connection, store_id) for store_id in store_ids]


async def _begin_anew_once(connection: Connection, store_id: str) -> bool:
    # Asked again: only now, under the lock that keeps the order, does nobody else begin anew or write.
    ((has_own_past,),) = await connection.fetch(sql.HAS_OWN_PAST)
    if has_own_past:
        return False
    for statement in sql.BEGIN_ANEW:
        await connection.fetch(statement, store_id=store_id)
    return True


_HAS_OWN_PAST: BatchOperation[None, bool] = BatchOperation(_has_own_past)
_BEGIN_ANEW: BatchOperation[str, bool] = BatchOperation(_begin_anew)
_CHECK: BatchOperation[Position, None] = BatchOperation(_check)
_STATE: BatchOperation[None, FeedState] = BatchOperation(_state)
_READ: BatchOperation[Position, ChangeBatch | None] = BatchOperation(_read)
