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


@dataclass(frozen=True, slots=True)
class _Remaining:
    """The queries that are not counted yet."""

    queries: tuple[tuple[Query, ListSql], ...]
    """Each with the statements of the table that is read."""
    after: int = FIRST_ID
    """Rows of the first query up to this id have been counted."""


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

    async def count(self, database: Database, queries: Sequence[Query]) -> list[int]:
        """Returns the number of resources of each query."""
        reads = [(n, it, self._sql.list) for n, it in enumerate(queries)]
        reads += [(n, it, self._sql.deleted.list) for n, it in enumerate(queries) if it.filter.show_deleted]
        counts = [0] * len(queries)
        remaining = _Remaining(tuple([(query, sql) for _, query, sql in reads]))
        while remaining.queries:
            first = len(reads) - len(remaining.queries)
            step = await database.read(self._operation, remaining)
            for index, count in enumerate(step.counts):
                counts[reads[first + index][0]] += count
            remaining = step.remaining
        return counts

    async def _count(self, connection: Connection, jobs: Sequence[_Remaining]) -> list[_Step]:
        """Runs one step for the first jobs, within the limits for the whole batch. Defers the other jobs."""
        rows_left, statements_left = MAX_ROWS, MAX_STATEMENTS
        steps: list[_Step] = []
        for job in jobs:
            if not rows_left or not statements_left:
                steps.append(DEFERRED)
                continue
            counts: list[int] = []
            queries, after = job.queries, job.after
            while queries and rows_left and statements_left:
                query, sql = queries[0]
                ((matching, examined, last_id),) = await connection.fetch(
                    sql.count(path_of(query)), after=after, limit=rows_left, **filter_values(query)
                )
                counts.append(matching)
                statements_left -= 1
                if examined == rows_left:
                    after = last_id
                else:
                    queries, after = queries[1:], FIRST_ID
                rows_left -= examined
            steps.append(_Step(tuple(counts), _Remaining(queries, after)))
        return steps
