"""Resume tokens of the stores from which this one was copied."""

from collections.abc import Sequence
from dataclasses import replace

from store_service.database import changes as sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection
from store_service.database.former_stores import FORMER_STORES, SHIFT, FormerStore, from_text
from store_service.errors import ResumeTokenForeign, ServiceError
from store_service.model import Position, ResumePoint
from store_service.service import resume_tokens


async def _stores(connection: Connection) -> list[FormerStore]:
    ((text,),) = await connection.fetch_inline(FORMER_STORES)
    return from_text(text)


async def _ids(connection: Connection, calls: Sequence[None]) -> list[list[str]]:
    return [[it.store_id for it in await _stores(connection)]] * len(calls)


async def _each(connection: Connection, tokens: Sequence[str]) -> list[ResumePoint | ServiceError]:
    stores = await _stores(connection)
    outcomes: list[ResumePoint | ServiceError] = []
    for token in tokens:
        try:
            outcomes.append(await _point(connection, token, stores))
        except ResumeTokenForeign as error:
            outcomes.append(error)
    return outcomes


async def _point(connection: Connection, token: str, stores: Sequence[FormerStore]) -> ResumePoint:
    for number, store in enumerate(stores):
        try:
            point = resume_tokens.read(token, store.store_id)
        except ResumeTokenForeign:
            continue
        shift = SHIFT * (number + 1)
        return replace(
            point,
            position=await _position(connection, point.position, store, shift),
            seen=None if point.seen is None else await _position(connection, point.seen, store, shift),
        )
    raise resume_tokens.foreign()


async def _position(connection: Connection, former: Position, store: FormerStore, shift: int) -> Position:
    """Returns a position of a former store in this one.

    Raises:
        ResumeTokenForeign: The former store has added the change after it was copied.
    """
    position = replace(former, xid=former.xid - shift)
    for xid, time in await connection.fetch_inline(sql.CHANGE_AT, seq=former.seq):
        if time == former.time:
            # On SQLite the end of the feed has another xid than its last change.
            position = replace(position, xid=xid)
    if position > Position(xid=store.end_xid, seq=store.end_seq):
        raise resume_tokens.foreign()
    return position


FORMER_STORE_IDS: BatchOperation[None, list[str]] = BatchOperation(_ids)
"""Returns the ids of the stores, the last one first."""

FORMER_TOKEN: BatchOperation[str, ResumePoint] = BatchOperation(_each)
"""Returns where the watch of a token of a former store continues, or ResumeTokenForeign."""
