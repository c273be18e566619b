"""The steps that empty the indexes for full-text search, and that remove the words of deleted rows from the
files of SQLite."""

from collections.abc import Sequence

from store_service.database import search_sql as sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.service.search_steps import FIRST_ID, LAST_ID, STEP_ROWS

MERGE_PAGES = 64
"""Number of pages of an index that one step merges."""


async def _restart(connection: Connection, jobs: Sequence[None]) -> list[None]:
    # Without a state, the next step begins from the first id. It replaces the rows.
    await connection.fetch(sql.REMOVE_STATE)
    return [None] * len(jobs)


async def _clear_each(connection: Connection, jobs: Sequence[None]) -> list[bool]:
    return [await _clear(connection) for _ in jobs]


async def _clear(connection: Connection) -> bool:
    """Removes some rows of the indexes. Returns False if there were none."""
    await connection.fetch(sql.REMOVE_STATE)
    for statements in sql.SEARCH.values():
        rows = await connection.fetch(statements.ids_in_range, after=FIRST_ID, until=LAST_ID, limit=STEP_ROWS)
        if rows:
            await connection.fetch(statements.remove, ids=as_json([id for (id,) in rows]))
            return True
    return False


async def _merge_each(connection: Connection, jobs: Sequence[bool]) -> list[bool]:
    return [await _merge(connection, is_first=it) for it in jobs]


async def _merge(connection: Connection, *, is_first: bool) -> bool:
    """Merges a part of the indexes. Returns False if everything is merged."""
    changed = False
    for statements in sql.SEARCH.values():
        before = await connection.fetch(sql.TOTAL_CHANGES)
        await connection.fetch(statements.merge, pages=-MERGE_PAGES if is_first else MERGE_PAGES)
        after = await connection.fetch(sql.TOTAL_CHANGES)
        # Each call changes one row, also if there is nothing to merge.
        changed = changed or after[0][0] - before[0][0] > 1
    return changed


# No other write changes these rows, and the feed does not contain them.
RESTART: BatchOperation[None, None] = BatchOperation(_restart, insert_only=True, name="restart index")
"""Lets the next step begin to build the indexes."""

CLEAR: BatchOperation[None, bool] = BatchOperation(_clear_each, insert_only=True, name="clear index")
"""Empties the indexes in steps."""

MERGE: BatchOperation[bool, bool] = BatchOperation(_merge_each, insert_only=True, name="merge index")
"""Merges the parts of the indexes on SQLite, in which texts of removed rows remain."""
