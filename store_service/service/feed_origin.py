"""Finds out whether the changes of the feed were written on this database server, and restarts the feed."""

from collections.abc import Sequence

from store_service.database import changes as sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection


async def _are_own(connection: Connection, calls: Sequence[None]) -> list[bool]:
    return [await _is_own(connection) is True] * len(calls)


async def _is_own(connection: Connection) -> bool | None:
    """Whether this server has written the changes; None if it has as far as can be seen, and its system
    identifier must be stored."""
    ((has_own_past,),) = await connection.fetch(sql.HAS_OWN_PAST)
    ((system_id, can_read),) = await connection.fetch(sql.SYSTEM_ID)
    if not has_own_past or not can_read:
        return bool(has_own_past)
    if system_id is None:
        return None
    ((is_same,),) = await connection.fetch(sql.IS_SAME_SYSTEM)
    return bool(is_same)


async def _restart(connection: Connection, store_ids: Sequence[str]) -> list[bool]:
    return [await _restart_once(connection, store_id) for store_id in store_ids]


async def _restart_once(connection: Connection, store_id: str) -> bool:
    """Deletes all changes and gives the store a new id, and stores the system identifier. Returns False if
    the changes belong to this server."""
    # Read again under the order lock, while no other process restarts the feed or writes.
    is_own = await _is_own(connection)
    if is_own is False:
        for statement in sql.BEGIN_ANEW:
            await connection.fetch(statement, store_id=store_id)
    ((_, can_read),) = await connection.fetch(sql.SYSTEM_ID)
    if can_read:
        await connection.fetch(sql.SET_SYSTEM_ID)
    return is_own is False


IS_OWN: BatchOperation[None, bool] = BatchOperation(_are_own)
"""Returns whether nothing has to be done."""

RESTART: BatchOperation[str, bool] = BatchOperation(_restart, name="restart feed")
"""Deletes the changes of another server and gives the store this id; see `_restart_once`."""
