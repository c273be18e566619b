"""Finds the ids of resources in an index for full-text search, the newest first.

The ids are read in windows, from the last one down. A window begins small and grows while few rows match. So
a frequent word needs a small window, and a rare one few statements.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from store_service.database import search_sql as sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection
from store_service.database.search_entries import BLOCK_IDS, GROUP_IDS, Match
from store_service.model import ResourceKind

MAX_STATEMENTS = 8
"""Maximum number of windows that one job reads. Other reads run before the next job."""

MAX_WINDOW_IDS = 16 * BLOCK_IDS
"""Maximum number of ids of a window."""

MAX_WINDOW_ROWS = GROUP_IDS
"""Maximum number of rows that a window returns on PostgreSQL. A window with more is read in smaller ones."""

GROWTH = 4
"""The ratio of the sizes of two consecutive windows."""

LAST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Find:
    """Ids to find before an id."""

    kind: ResourceKind
    match: Match
    before: int
    limit: int


@dataclass(frozen=True, slots=True)
class Found:
    """The ids that were found, in descending order."""

    ids: Sequence[int]
    before: int
    """The index has been read down to this id. The ids of rows before it follow."""
    is_end: bool
    """Whether no ids follow."""


async def _find_each(connection: Connection, jobs: Sequence[Find]) -> list[Found]:
    found = []
    for job in jobs:
        async with connection.snapshot():
            await connection.fetch_inline(sql.PLANNER)
            found.append(await _find(connection, job))
    return found


async def _find(connection: Connection, job: Find) -> Found:
    statements, ids, before = sql.SEARCH[job.kind], list[int](), job.before
    width = BLOCK_IDS if connection.SEARCHES_IN_ORDER else GROUP_IDS
    is_empty = True
    for _ in range(MAX_STATEMENTS):
        if is_empty:
            # Ids can have large gaps.
            ((last,),) = await connection.fetch_inline(statements.last_id, before=before)
            if last is None:
                return Found(ids, before, is_end=True)
            before = last + 1
        first = _first_id(before - 1, width)
        rows, is_complete = await _window(connection, statements, job, first, before, job.limit - len(ids))
        if not is_complete and not connection.SEARCHES_IN_ORDER:
            width = max(width // GROWTH, GROUP_IDS)
            continue
        is_empty = not rows
        ids += rows
        if len(ids) >= job.limit:
            return Found(ids[: job.limit], ids[job.limit - 1], is_end=False)
        before = first
        if len(rows) * GROWTH <= MAX_WINDOW_ROWS:
            width = min(width * GROWTH, MAX_WINDOW_IDS)
    return Found(ids, before, is_end=False)


def _first_id(last: int, width: int) -> int:
    """Returns the first id of the window with this last id. It begins with a group, or with a block."""
    if width <= BLOCK_IDS:
        block = last // BLOCK_IDS * BLOCK_IDS
        return max(last // GROUP_IDS * GROUP_IDS - width + GROUP_IDS, block)
    return (last // BLOCK_IDS - width // BLOCK_IDS + 1) * BLOCK_IDS


async def _window(
    connection: Connection, statements: sql.SearchSql, job: Find, first: int, before: int, limit: int
) -> tuple[list[int], bool]:
    """Returns ids in a window, in descending order, and whether they are all."""
    if connection.SEARCHES_IN_ORDER:
        match = job.match.on_sqlite(first, before - 1)
        rows = await connection.fetch(statements.find, match=match, first=first, before=before, limit=limit)
        return [id for (id,) in rows], len(rows) < limit
    match = job.match.on_postgresql(first, before - 1)
    rows = await connection.fetch(statements.find, match=match, limit=MAX_WINDOW_ROWS + 1)
    ids = sorted([id for (id,) in rows if first <= id < before], reverse=True)
    return ids, len(rows) <= MAX_WINDOW_ROWS


FIND: BatchOperation[Find, Found] = BatchOperation(_find_each)
"""Finds the next ids."""
