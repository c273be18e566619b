"""Reads the change feed: every committed change, in commit order.

A position is the number of a transaction and the number of a change. PostgreSQL assigns these numbers before
the commit. Therefore a reader sees only transactions below the oldest one that is still running: no change is
ever added before a position that a reader has reached (docs/decisions/0011).
"""

import uuid
from bisect import bisect_right
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import structlog

from store_service.database import changes as sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.errors import ResumeTokenExpired, ResumeTokenForeign, ServiceError, StandbyBehind
from store_service.model import Change, Position, ResumePoint
from store_service.service import resume_tokens
from store_service.service.feed_origin import IS_OWN, RESTART
from store_service.service.former_tokens import FORMER_STORE_IDS, FORMER_TOKEN

MAX_TRANSACTION_BYTES = 2 * 1024 * 1024
"""A transaction up to this size is one change batch. With the copies in gRPC a watch needs less than 8 MiB,
or 13 MiB if all bodies contain an emoji, because such a string takes four times its size in memory."""

BATCH_BYTES = 256 * 1024
"""Approximate size of a change batch that holds several transactions, or a part of a larger one."""

BATCH_ROWS = 4000
"""Maximum number of changes in a change batch."""

_BYTES_BESIDES_BODY = 120
"""Approximate size on the wire of all fields of a change except the body."""

T = TypeVar("T")

log = structlog.get_logger("store_service.feed")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedState:
    """The identity of the store, and the range of positions that it has changes for."""

    store_id: str
    trimmed: Position
    """All changes after this position are kept. The change at this position is kept for its commit time. An
    earlier version deleted it too; then the time is 0."""
    end: Position
    """The position of the last change."""

    def check(self, position: Position, time: int) -> None:
        """Checks that the changes after a position can be sent without a gap.

        Args:
            position: Where a watch continues.
            time: The commit time of the change with this `seq`, read together with this state; 0 if there is
                no such change.

        Raises:
            ResumeTokenExpired: Changes after the position have been deleted.
            ResumeTokenForeign: This store has never had the position, or has lost its change.
        """
        if self.end < position:
            raise resume_tokens.foreign()
        if self.trimmed > position:
            raise ResumeTokenExpired(earliest_resume_token=self.resume_token(self.trimmed))
        # On SQLite the end of the feed has the number of its last change as `xid` too.
        begins_at = (self.trimmed, Position(xid=self.trimmed.seq, seq=self.trimmed.seq))
        if not position.time:
            # The position is a former beginning of the feed, which is never after the current one.
            is_foreign = self.trimmed < position
        elif position.time == time:
            is_foreign = False
        elif position in begins_at:
            # An earlier version has deleted the change at the beginning of the feed, and its time.
            is_foreign = self.trimmed.time != 0
        else:
            is_foreign = self.trimmed < position
        if is_foreign:
            raise resume_tokens.foreign()

    def resume_token(self, position: Position, *, seen: Position | None = None) -> str:
        """Returns the token with which a watch continues after a position; see `ResumePoint.seen`."""
        return resume_tokens.make(self.store_id, ResumePoint(position=position, seen=seen))


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class ChangeBatch:
    """Consecutive changes: whole transactions, unless `partial` is set."""

    changes: tuple[Change, ...]
    positions: tuple[Position, ...]
    """The position of each change, ascending."""
    partial: bool
    """More changes of the last transaction follow in the next batch."""
    size: int
    """Approximate size on the wire in bytes."""

    @property
    def end(self) -> Position:
        """The position of the last change."""
        return self.positions[-1]

    def last_until(self, position: Position, before: Position) -> Position:
        """Returns the position of the last change up to `position`; `before` if the batch has none.

        Args:
            position: The upper bound.
            before: The position that this batch follows.
        """
        first = bisect_right(self.positions, position)
        return self.positions[first - 1] if first else before

    def after(self, position: Position) -> "ChangeBatch":
        """Returns the changes after a position, which is before the end of the batch."""
        first = bisect_right(self.positions, position)
        if not first:
            return self
        return ChangeBatch(
            changes=self.changes[first:],
            positions=self.positions[first:],
            partial=self.partial,
            size=self.size,
        )


async def feed_state(connection: Connection) -> FeedState:
    """Reads the state of the feed."""
    (row,) = await connection.fetch_inline(sql.FEED)
    return _state_in(row)


async def check_position(connection: Connection, position: Position) -> FeedState:
    """Reads the state of the feed and checks a position; see `FeedState.check`.

    Raises:
        StandbyBehind: The server is a standby that has not replayed the change of the position yet.
    """
    ((*row, time),) = await connection.fetch_inline(sql.FEED_AT, seq=position.seq)
    state = _state_in(row)
    if state.end < position and await _is_standby(connection):
        raise StandbyBehind
    state.check(position, time)
    return state


async def check_seen(connection: Connection, seen: Position) -> None:
    """Checks that the changes up to a position that an initial state contains still exist.

    The position can be after the end of the feed, which waits for older transactions.

    Raises:
        ResumeTokenForeign: The store has lost the change at the position.
        StandbyBehind: The server is a standby that has not replayed that change yet.
    """
    ((*row, time),) = await connection.fetch_inline(sql.FEED_AT, seq=seen.seq)
    if time == seen.time or (not time and seen <= _state_in(row).trimmed):
        return
    if not time and await _is_standby(connection):
        raise StandbyBehind
    raise resume_tokens.foreign()


async def newest_position(connection: Connection) -> Position | None:
    """Returns the position of the newest committed change; None if there is none."""
    for xid, seq, time in await connection.fetch_inline(sql.NEWEST):
        return Position(xid=xid, seq=seq, time=time)
    return None


async def _is_standby(connection: Connection) -> bool:
    ((is_standby,),) = await connection.fetch_inline(sql.IS_STANDBY)
    return bool(is_standby)


def _state_in(row: Sequence[Any]) -> FeedState:
    store_id, trimmed_xid, trimmed_seq, trimmed_time, end_xid, end_seq, end_time = row
    return FeedState(
        store_id=store_id,
        trimmed=Position(xid=trimmed_xid, seq=trimmed_seq, time=trimmed_time),
        end=Position(xid=end_xid, seq=end_seq, time=end_time),
    )


class Changes:
    """The change feed of a database."""

    def __init__(self, database: Database) -> None:
        """Takes the open database."""
        self._database = database

    async def begin(self) -> None:
        """Prepares the feed at the start, before the first write.

        A dump that was restored into another PostgreSQL server contains changes of transactions of the former
        server. Later changes could sort before them, and changes of transactions that were running when the
        dump was made are missing. These changes are deleted and the store gets a new id. Watches that
        continue with a token of the old store are refused. A read-only service leaves the feed as it is.
        """
        if self._database.read_only or await self._database.read(IS_OWN, None):
            return
        if await self._database.write(RESTART, uuid.uuid4().hex):
            log.warning("change feed restarted: its changes come from another database server")

    async def state(self) -> FeedState:
        """Returns the current state of the feed."""
        return await self._database.read(_STATE, None)

    async def resume_point(self, token: str, store_id: str) -> ResumePoint:
        """Returns where the watch of a token continues.

        Raises:
            ResumeTokenInvalid: The token is damaged.
            ResumeTokenForeign: It belongs to another store, which is not one that this store was copied from.
        """
        try:
            return resume_tokens.read(token, store_id)
        except ResumeTokenForeign:
            return await self._database.read(FORMER_TOKEN, token)

    async def former_store_ids(self) -> list[str]:
        """Returns the ids of the stores from which this one was copied."""
        return await self._database.read(FORMER_STORE_IDS, None)

    async def check(self, position: Position) -> None:
        """Checks that a watch can continue after a position; see `check_position`."""
        await self._database.read(_CHECK, position)

    async def check_seen(self, seen: Position) -> None:
        """Checks that a watch has received no change that the store has lost; see `check_seen`."""
        await self._database.read(_CHECK_SEEN, seen)

    async def read_after(self, position: Position) -> ChangeBatch | None:
        """Returns the next changes; None if there are none yet.

        The position is checked each time, because the database can lose changes while a watch is open, for
        example in a failover to a standby that lacks the last changes.

        Raises:
            ResumeTokenExpired: Changes after the position have been deleted.
            ResumeTokenForeign: The store has lost the change at the position.
        """
        return await self._database.read(_READ, position)


async def _state(connection: Connection, calls: Sequence[None]) -> list[FeedState]:
    return [await feed_state(connection)] * len(calls)


async def _check(connection: Connection, positions: Sequence[Position]) -> list[ServiceError | None]:
    outcomes = [await _outcome(check_position(connection, position)) for position in positions]
    return [it if isinstance(it, ServiceError) else None for it in outcomes]


async def _check_seen(connection: Connection, positions: Sequence[Position]) -> list[ServiceError | None]:
    return [await _outcome(check_seen(connection, position)) for position in positions]


async def _read(
    connection: Connection, positions: Sequence[Position]
) -> list[ChangeBatch | ServiceError | None]:
    batches: dict[tuple[Position, int], ChangeBatch | ServiceError | None] = {}
    for position in positions:
        # After a failover two changes can have the same numbers and different times.
        key = (position, position.time)
        if key not in batches:
            batches[key] = await _outcome(read_after(connection, position))
    return [batches[position, position.time] for position in positions]


async def _outcome(reading: Awaitable[T]) -> T | ServiceError:
    """Returns the result, or the error of this position, which must not affect the others."""
    try:
        return await reading
    except (ResumeTokenExpired, ResumeTokenForeign, StandbyBehind) as error:
        return error


async def read_after(connection: Connection, position: Position) -> ChangeBatch | None:
    """Returns the next changes; see `Changes.read_after`."""
    after = {"after_xid": position.xid, "after_seq": position.seq}
    # One more row than fits shows whether the last transaction is complete.
    sizes = await connection.fetch(sql.SIZES, limit=BATCH_ROWS + 1, **after)
    count, partial = first_batch_length(sizes, BATCH_ROWS + 1)
    rows: Sequence[Any] = ()
    if count:
        until_xid, until_seq, *_ = sizes[count - 1]
        rows = await connection.fetch(sql.CHANGES, until_xid=until_xid, until_seq=until_seq, **after)
    # Checked after the read: changes that are not deleted now were not deleted during the read.
    await check_position(connection, position)
    if not rows:
        return None
    return ChangeBatch(
        changes=sql.changes_in(rows),
        positions=tuple(sql.position_from_row(row) for row in rows),
        partial=partial,
        size=sum(size + _BYTES_BESIDES_BODY for _, _, size, _ in sizes[:count]),
    )


def first_batch_length(sizes: Sequence[tuple[int, int, int, int]], limit: int) -> tuple[int, bool]:
    """Returns the length of the next change batch, and whether more changes of its last transaction follow.

    Args:
        sizes: Rows of xid, seq, size, time in order.
        limit: The limit of the query. If there are fewer rows, the last transaction is complete.
    """
    count = total_bytes = 0
    for _, changes in groupby(sizes, key=lambda row: row[0]):
        transaction = [size + _BYTES_BESIDES_BODY for _, _, size, _ in changes]
        is_complete = count + len(transaction) < limit or len(sizes) < limit
        max_bytes = MAX_TRANSACTION_BYTES if not count else BATCH_BYTES
        if is_complete and total_bytes + sum(transaction) <= max_bytes:
            count += len(transaction)
            total_bytes += sum(transaction)
        elif count:
            break
        else:
            part = _part_length(transaction)
            return part, not (is_complete and part == len(transaction))
    return count, False


def _part_length(sizes: Sequence[int]) -> int:
    """Returns how many changes of a transaction that is too large fit into a batch; at least one."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if count and total > BATCH_BYTES:
            return count
    return len(sizes)


_CHECK: BatchOperation[Position, None] = BatchOperation(_check)
_CHECK_SEEN: BatchOperation[Position, None] = BatchOperation(_check_seen)
_STATE: BatchOperation[None, FeedState] = BatchOperation(_state)
_READ: BatchOperation[Position, ChangeBatch | None] = BatchOperation(_read)
