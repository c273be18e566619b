"""Counts the comments of posts in bounded steps. Other reads run between the steps.

The count is not a snapshot. A comment that exists during the whole count is counted once. A comment that is
created or deleted during the count may be counted or not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from store_service.database import comment_counts as sql
from store_service.database.batch_operation import DEFERRED, BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.errors import ServiceError

MAX_ROWS = 10_000
"""Maximum number of comments that one step counts."""

MAX_LIMITED_ROWS = 40_000
"""The same for the first step of a limited count. Most posts have far fewer comments than the limit."""


@dataclass(frozen=True, slots=True)
class _Remaining:
    """The comments that are not counted yet."""

    post_ids: tuple[int, ...]
    """Ascending."""
    after: int = 0
    """Comments of the first post up to this id have been counted."""


@dataclass(frozen=True, slots=True)
class _Step:
    """The result of one step."""

    counts: dict[int, int]
    """Numbers of comments that this step has counted, by post id. Can include posts of other callers."""
    remaining: _Remaining
    has_marked: bool = False
    """Whether the counts may include comments that callers do not see."""


async def count_comments(
    database: Database, post_ids: Iterable[int], max_count: int = 0
) -> tuple[dict[int, int], bool]:
    """Returns the number of comments of each post, by post id; 0 for a post that does not exist.

    If `max_count` is not 0, the count of a post stops at this number.

    Also returns whether the counts may include comments that callers do not see, because the deletion of
    their thread is not finished. This count reads only indexes, and cannot exclude them.
    """
    counts = dict.fromkeys(post_ids, 0)
    if max_count:
        return await _limited_counts(database, counts, max_count)
    has_marked = False
    remaining = _Remaining(tuple(sorted(counts)))
    while remaining.post_ids:
        step = await database.read(_COUNT, remaining)
        for post_id in remaining.post_ids:
            counts[post_id] += step.counts.get(post_id, 0)
        has_marked = has_marked or step.has_marked
        remaining = step.remaining
    return counts, has_marked


async def _limited_counts(
    database: Database, counts: dict[int, int], max_count: int
) -> tuple[dict[int, int], bool]:
    """Counts at most `max_count` comments of each post. A step reads at most MAX_LIMITED_ROWS comments."""
    has_marked = False
    limit = min(max_count, MAX_ROWS)
    posts_in_step, ids = MAX_LIMITED_ROWS // limit, sorted(counts)
    for start in range(0, len(ids), posts_in_step):
        post_ids = ids[start : start + posts_in_step]
        for post_id, examined, last_id, tombstones, marked in await database.read(_FIRST, (post_ids, limit)):
            counts[post_id] = examined - tombstones
            has_marked = has_marked or bool(marked)
            # Tombstones are not counted, or max_count is larger than a step.
            remaining = _Remaining((post_id,) if last_id else (), last_id or 0)
            while remaining.post_ids and counts[post_id] < max_count:
                step = await database.read(_COUNT, remaining)
                counts[post_id] += step.counts.get(post_id, 0)
                remaining = step.remaining
    return {post_id: min(count, max_count) for post_id, count in counts.items()}, has_marked


async def _first(
    connection: Connection, jobs: Sequence[tuple[Sequence[int], int]]
) -> list[Sequence[tuple[Any, ...]]]:
    """Counts the first comments of each post. Defers jobs beyond MAX_LIMITED_ROWS comments."""
    outcomes: list[Sequence[tuple[Any, ...]]] = []
    rows_left = MAX_LIMITED_ROWS
    for post_ids, limit in jobs:
        rows_left -= len(post_ids) * limit
        if outcomes and rows_left < 0:
            outcomes.append(DEFERRED)
            continue
        posts = as_json(list(enumerate(post_ids)))
        outcomes.append(await connection.fetch(sql.LIMITED_COMMENT_COUNTS, posts=posts, limit=limit))
    return outcomes


async def _count(connection: Connection, jobs: Sequence[_Remaining]) -> list[_Step | ServiceError]:
    """Runs one step for each job, within two budgets of MAX_ROWS comments for the whole batch.

    One budget is for posts that were partly counted in an earlier step, the other one for all other posts.
    """
    continued: dict[_Remaining, _Step] = {}
    rows_left = MAX_ROWS
    for job in jobs:
        if job.after and job not in continued and rows_left > 0:
            continued[job], examined = await _continue(connection, job)
            rows_left -= examined
    new = [job for job in jobs if not job.after]
    started = iter(await _start(connection, new) if new else [])
    return [continued.get(job, DEFERRED) if job.after else next(started) for job in jobs]


async def _continue(connection: Connection, job: _Remaining) -> tuple[_Step, int]:
    """Counts comments of the first post only. Also returns the number of rows that were read."""
    first, *others = job.post_ids
    ((examined, last_id, tombstones, marked),) = await connection.fetch(
        sql.COMMENT_COUNT_AFTER, post_id=first, after=job.after, limit=MAX_ROWS
    )
    remaining = _Remaining(job.post_ids, last_id) if examined == MAX_ROWS else _Remaining(tuple(others))
    return _Step({first: examined - tombstones}, remaining, bool(marked)), examined


async def _start(connection: Connection, jobs: Sequence[_Remaining]) -> list[_Step]:
    """Counts comments of the posts of all jobs with one statement, in the order of the post ids."""
    post_ids = {post_id for job in jobs for post_id in job.post_ids}
    rows = await connection.fetch(sql.COMMENT_COUNTS, post_ids=as_json(list(post_ids)), limit=MAX_ROWS)
    counts = {post_id: examined - tombstones for post_id, examined, _, tombstones, _ in rows}
    has_marked = any(marked for *_, marked in rows)
    if sum(examined for _, examined, *_ in rows) < MAX_ROWS:
        return [_Step(counts, _Remaining(()), has_marked)] * len(jobs)
    last, _, last_id, *_ = max(rows)
    remaining = [tuple(post_id for post_id in job.post_ids if post_id >= last) for job in jobs]
    return [_Step(counts, _Remaining(ids, last_id if last in ids else 0), has_marked) for ids in remaining]


_FIRST = BatchOperation(_first)

_COUNT: BatchOperation[_Remaining, _Step] = BatchOperation(_count)
