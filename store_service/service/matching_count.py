"""Counts the resources that match filters in bounded steps. Other reads run between the steps.

The count is not a snapshot; see `counting`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from store_service.database.batch_operation import DEFERRED, BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.list_sql import ListSql
from store_service.database.resource_sql import ResourceSql
from store_service.model import Comment, Post, Query
from store_service.service.scans import FIRST_ID, filter_values, path_of

MAX_ROWS = 10_000
"""Maximum number of rows that one step reads."""

MAX_STATEMENTS = 100
"""Maximum number of statements of one step."""


FEW_ROWS = 1_000
"""Minimum number of rows that one statement of a limited count reads. They need not all match."""


@dataclass(frozen=True, slots=True)
class _Remaining:
    """The queries that are not counted yet."""

    queries: tuple[tuple[Query, ListSql], ...]
    """Each with the statements of the table that is read."""
    max_count: int
    """The count of a query stops at this number; 0: no limit."""
    after: int = FIRST_ID
    """Rows of the first query up to this id have been counted."""
    counted: int = 0
    """Number of these rows that match."""


@dataclass(frozen=True, slots=True)
class _Step:
    """The result of one step."""

    counts: tuple[int, ...]
    """Numbers of matching rows of the first queries, as far as they were read."""
    remaining: _Remaining


class MatchingCount:
    """Counts resources of one type."""

    def __init__(self, sql: ResourceSql[Post] | ResourceSql[Comment]) -> None:
        """Takes the statements of the resource."""
        self._sql = sql
        self._operation: BatchOperation[_Remaining, _Step] = BatchOperation(self._count)

    async def count(self, database: Database, queries: Sequence[Query], max_count: int = 0) -> list[int]:
        """Returns the number of resources of each query; at most `max_count` of each if it is not 0."""
        reads = [(n, it, self._sql.list) for n, it in enumerate(queries)]
        reads += [(n, it, self._sql.deleted.list) for n, it in enumerate(queries) if it.filter.show_deleted]
        counts = [0] * len(queries)
        remaining = _Remaining(tuple([(query, sql) for _, query, sql in reads]), max_count)
        while remaining.queries:
            first = len(reads) - len(remaining.queries)
            step = await database.read(self._operation, remaining)
            for index, count in enumerate(step.counts):
                counts[reads[first + index][0]] += count
            remaining = step.remaining
        return [min(count, max_count) for count in counts] if max_count else counts

    async def _count(self, connection: Connection, jobs: Sequence[_Remaining]) -> list[_Step]:
        """Runs one step for the first jobs, within the limits for the whole batch. Defers the other jobs."""
        rows_left, statements_left = MAX_ROWS, MAX_STATEMENTS
        steps: list[_Step] = []
        for job in jobs:
            if not rows_left or not statements_left:
                steps.append(DEFERRED)
                continue
            counts: list[int] = []
            queries, after, counted = job.queries, job.after, job.counted
            while queries and rows_left and statements_left:
                query, sql = queries[0]
                limit = min(rows_left, max(job.max_count, FEW_ROWS)) if job.max_count else rows_left
                ((matching, examined, last_id),) = await connection.fetch(
                    sql.count(path_of(query)), after=after, limit=limit, **filter_values(query)
                )
                counts.append(matching)
                counted += matching
                statements_left -= 1
                rows_left -= examined
                if examined == limit and not 0 < job.max_count <= counted:
                    after = last_id
                    break
                queries, after, counted = queries[1:], FIRST_ID, 0
            steps.append(_Step(tuple(counts), _Remaining(queries, job.max_count, after, counted)))
        return steps
