"""Counts the comments of posts in bounded steps, between which other reads are served.

The count is not one moment: a comment that stays while it is counted is counted once, one that is added or
deleted meanwhile may be counted or not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from store_service.database import comments as sql
from store_service.database.batch_operation import DEFERRED, BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.errors import ServiceError

MAX_ROWS = 10_000
"""Maximum number of comments that one step counts."""


@dataclass(frozen=True, slots=True)
class _Uncounted:
    post_ids: tuple[int, ...]
    """Ascending."""
    after: int = 0
    """Comments of the first post up to this id have been counted."""


@dataclass(frozen=True, slots=True)
class _Counted:
    counts: dict[int, int]
    """Of some of these posts, and perhaps of others."""
    left: _Uncounted


async def count_comments(database: Database, post_ids: Iterable[int]) -> dict[int, int]:
    """How many comments each of these posts has; 0 also for an id that is not a post."""
    counts = dict.fromkeys(post_ids, 0)
    left = _Uncounted(tuple(sorted(counts)))
    while left.post_ids:
        counted = await database.read(_COUNT, left)
        for post_id in left.post_ids:
            counts[post_id] += counted.counts.get(post_id, 0)
        left = counted.left
    return counts


async def _count(connection: Connection, asked: Sequence[_Uncounted]) -> list[_Counted | ServiceError]:
    """Counts up to MAX_ROWS comments of posts that are begun with, together for all who ask, and as many of
    posts that were begun with before."""
    begun: dict[_Uncounted, _Counted] = {}
    rows_left = MAX_ROWS
    for it in asked:
        if it.after and it not in begun and rows_left > 0:
            begun[it] = await _count_after(connection, it)
            rows_left -= sum(begun[it].counts.values())
    fresh = [it for it in asked if not it.after]
    counted = iter(await _count_fresh(connection, fresh) if fresh else [])
    return [begun.get(it, DEFERRED) if it.after else next(counted) for it in asked]


async def _count_after(connection: Connection, it: _Uncounted) -> _Counted:
    first, *others = it.post_ids
    ((count, last_id),) = await connection.fetch(
        sql.COMMENT_COUNT_AFTER, post_id=first, after=it.after, limit=MAX_ROWS
    )
    left = _Uncounted(it.post_ids, last_id) if count == MAX_ROWS else _Uncounted(tuple(others))
    return _Counted({first: count}, left)


async def _count_fresh(connection: Connection, asked: Sequence[_Uncounted]) -> list[_Counted]:
    post_ids = {post_id for it in asked for post_id in it.post_ids}
    rows = await connection.fetch(sql.COMMENT_COUNTS, post_ids=as_json(list(post_ids)), limit=MAX_ROWS)
    counts = {post_id: count for post_id, count, _ in rows}
    if sum(counts.values()) < MAX_ROWS:
        return [_Counted(counts, _Uncounted(()))] * len(asked)
    last, _, last_id = max(rows)
    rests = [tuple(post_id for post_id in it.post_ids if post_id >= last) for it in asked]
    return [_Counted(counts, _Uncounted(rest, last_id if last in rest else 0)) for rest in rests]


_COUNT: BatchOperation[_Uncounted, _Counted] = BatchOperation(_count)
