"""Exports everything that is stored: pages of records, and then what has changed meanwhile.

The pages are not a snapshot of one moment, because a transaction that lasts as long as an export would keep
the log of SQLite, or the dead rows of PostgreSQL. After the pages the export follows the change feed, reads
the resources that have changed again, and ends when nothing has changed since (docs/decisions/0053).
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.database.transfer import TRANSFERS
from store_service.errors import (
    ResumeTokenExpired,
    ResumeTokenForeign,
    ServiceError,
    StandbyBehind,
)
from store_service.model import (
    Change,
    Comment,
    Counts,
    ExportPart,
    Position,
    Post,
    Record,
    RecordState,
    ResourceKind,
    ResumePoint,
)
from store_service.service import background_steps, resume_tokens
from store_service.service.changes import ChangeBatch, Changes, newest_position, read_after
from store_service.service.restoration import ids_in
from store_service.service.snapshot import PAGE_BYTES, PageSize, texts_size, with_position
from store_service.service.transfer_cursor import PARTS, Cursor, make_cursor, read_cursor
from store_service.service.transfer_stored import is_tombstone, revision_from_row

CATCH_UP_CHANGES = 100
"""Number of changes after which the size of the records that are read again is checked."""

CATCH_UP_BYTES = 2 * 1024 * 1024
"""Approximate maximum size of the records that are read again in one step."""

WAIT_SECONDS = 0.05
"""Pause before the next step, while transactions run that the change feed does not show yet, or deletions and
restorations are not finished."""

REPORT_SECONDS = 1.0
"""Maximum time without a response while the export waits."""

_MODELS: dict[ResourceKind, Any] = {ResourceKind.POST: Post, ResourceKind.COMMENT: Comment}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    records: Sequence[Record]
    after: int
    after_version: int
    is_last: bool


@dataclass(slots=True, kw_only=True)
class _Step:
    """What has changed since the pages."""

    position: Position
    records: list[Record] = field(default_factory=list)
    changed: dict[ResourceKind, Sequence[int]] = field(default_factory=dict)
    counts: Counts | None = None
    """Set in the last step: nothing has changed after `position`."""


class Exports:
    """Exports the records of a database."""

    def __init__(self, database: Database) -> None:
        """Takes the open database."""
        self._database = database
        self._changes = Changes(database)

    async def run(self, kinds: frozenset[ResourceKind], cursor: str) -> AsyncGenerator[ExportPart, None]:
        """Yields the records of some kinds, from the beginning or after a cursor.

        Raises:
            FieldInvalid: The cursor is damaged, or belongs to other kinds.
            ResumeTokenForeign: The cursor belongs to another store, or to changes that this one has lost.
            ResumeTokenExpired: Changes since the export began have been deleted.
            StandbyBehind: The database is a standby that has not replayed the last change of the cursor yet.
        """
        state = await self._changes.state()
        if cursor:
            at = read_cursor(cursor, kinds, state.store_id)
            await self._changes.check(at.position)
            if at.seen is not None:
                await self._changes.check_seen(at.seen)
        else:
            at = Cursor(position=state.end)
        counts = await self._database.read(_COUNT, kinds)
        yield ExportPart(records=(), cursor=make_cursor(at, kinds, state.store_id), counts=counts)
        page_size = PageSize()
        while at.part < len(PARTS):
            kind, _ = PARTS[at.part]
            if kind in kinds:
                page, newest = await self._database.read(_PAGE, ((at, page_size.count), at.seen))
                seen = newest if newest is not None and newest > at.position else at.seen
                at = replace(at, after=page.after, after_version=page.after_version, seen=seen)
                if page.records:
                    page_size.adapt([it.resource for it in page.records])
            if kind not in kinds or page.is_last:
                at = Cursor(position=at.position, seen=at.seen, part=at.part + 1)
                page_size = PageSize()
            if kind in kinds:
                yield ExportPart(records=page.records, cursor=make_cursor(at, kinds, state.store_id))
        async for it in self._catch_up(at, kinds, state.store_id):
            yield it

    async def _catch_up(
        self, at: Cursor, kinds: frozenset[ResourceKind], store_id: str
    ) -> AsyncGenerator[ExportPart, None]:
        loop = asyncio.get_running_loop()
        report_at = loop.time() + REPORT_SECONDS
        while True:
            step, newest = await self._database.read(_CATCH_UP, ((at.position, kinds), at.seen))
            is_last = step.counts is not None
            before = make_cursor(at, kinds, store_id)
            seen = newest if newest is not None and newest > step.position else at.seen
            is_reached = seen is not None and seen <= step.position
            at = replace(at, position=step.position, seen=None if is_reached else seen)
            parts = list(_parts(step.records))
            changed = step.changed
            for part in parts[:-1]:
                # An export that continues from here does the whole step again.
                yield ExportPart(records=part, cursor=before, changed=changed)
                changed = {}
            if is_last or step.changed or loop.time() > report_at:
                token = resume_tokens.make(store_id, ResumePoint(position=at.position)) if is_last else ""
                yield ExportPart(
                    records=parts[-1],
                    cursor=make_cursor(at, kinds, store_id),
                    changed=changed,
                    resume_token=token,
                    counts=step.counts,
                )
                report_at = loop.time() + REPORT_SECONDS
            if is_last:
                return
            if not step.changed:
                await asyncio.sleep(WAIT_SECONDS)


def _parts(records: Sequence[Record]) -> Iterable[Sequence[Record]]:
    """Yields records in parts of about PAGE_BYTES; one part if there are none."""
    part: list[Record] = []
    size = 0
    for record in records:
        size += texts_size([record.resource])
        if part and size > PAGE_BYTES:
            yield part
            part, size = [], texts_size([record.resource])
        part.append(record)
    yield part


# On a connection


async def _pages(connection: Connection, arguments: Sequence[tuple[Cursor, int]]) -> list[_Page]:
    return [await _page(connection, at, limit) for at, limit in arguments]


async def _page(connection: Connection, at: Cursor, limit: int) -> _Page:
    kind, state = PARTS[at.part]
    sql = TRANSFERS[kind]
    values: dict[str, Any] = {"after": at.after, "limit": limit}
    records: list[Record] = []
    after, after_version, size = at.after, at.after_version, 0
    if state is RecordState.LIVE:
        rows = await connection.fetch(sql.page, **values)
    elif state is RecordState.DELETED:
        rows = await connection.fetch(sql.page_of_deleted, **values)
    else:
        rows = await connection.fetch(sql.page_of_revisions, after_version=after_version, **values)
    for row in rows:
        record = _record(kind, state, row)
        if record is not None:
            size += texts_size([record.resource])
            if records and size > PAGE_BYTES:
                return _Page(records=records, after=after, after_version=after_version, is_last=False)
            records.append(record)
        after = row[0]
        after_version = row[1] if state is RecordState.REVISION else 0
    return _Page(records=records, after=after, after_version=after_version, is_last=len(rows) < limit)


def _record(kind: ResourceKind, state: RecordState, row: Sequence[Any]) -> Record | None:
    """Returns the record of a row; None if callers do not see it."""
    sql = TRANSFERS[kind].sql
    if state is RecordState.REVISION:
        return Record(kind=kind, state=state, resource=revision_from_row(_MODELS[kind], row))
    *values, last = row
    if state is RecordState.DELETED:
        return Record(kind=kind, state=state, resource=sql.deleted.from_row(values), deleted_with=last)
    return Record(kind=kind, state=state, resource=sql.from_row(values)) if last else None


async def _steps(
    connection: Connection, arguments: Sequence[tuple[Position, frozenset[ResourceKind]]]
) -> list[_Step | ServiceError]:
    outcomes: list[_Step | ServiceError] = []
    for position, kinds in arguments:
        try:
            async with connection.snapshot():
                outcomes.append(await _step(connection, position, kinds))
        except (ResumeTokenExpired, ResumeTokenForeign, StandbyBehind) as error:
            outcomes.append(error)
    return outcomes


async def _step(connection: Connection, position: Position, kinds: frozenset[ResourceKind]) -> _Step:
    """Reads the resources again that have changed after a position, up to CATCH_UP_BYTES of them."""
    batch = await read_after(connection, position)
    step = _Step(position=position)
    changed: dict[ResourceKind, set[int]] = {kind: set() for kind in kinds}
    size = done = 0
    while batch is not None and done < len(batch.changes) and size < CATCH_UP_BYTES:
        group = _group(batch, done)
        done += len(group)
        step.position = batch.positions[done - 1]
        records = await _current(connection, group, changed)
        size += texts_size([it.resource for it in records])
        step.records += records
    step.changed = {kind: sorted(ids) for kind, ids in changed.items() if ids}
    step.records.sort(key=lambda it: PARTS.index((it.kind, it.state)))
    newest = await newest_position(connection)
    is_last = newest is None or newest <= step.position
    if is_last and await background_steps.FIND.run(connection, [None]) == [None]:
        step.counts = await _count(connection, kinds)
    return step


def _group(batch: ChangeBatch, first: int) -> Sequence[Change]:
    return batch.changes[first : first + CATCH_UP_CHANGES]


async def _current(
    connection: Connection, group: Sequence[Change], changed: dict[ResourceKind, set[int]]
) -> list[Record]:
    """Returns the records of the resources that the changes are about, and adds their ids to `changed`.

    Changes of a comment can add and remove tombstones above it, which have no changes.
    """
    records: list[Record] = []
    for kind, known in changed.items():
        ids = {it.resource.id for it in group if it.kind is kind} - known
        above = {
            id
            for it in group
            if it.kind is kind and isinstance(it.resource, Comment)
            for id in ids_in(it.resource.path)
        } - {*ids, *known}
        found = await _stored(connection, kind, {*ids, *above})
        of_comments = {
            it.resource.id for it in found if it.state is RecordState.LIVE and not is_tombstone(it.resource)
        }
        ids |= above - of_comments
        known |= ids
        records += [it for it in found if it.resource.id in ids]
    return records


async def _stored(connection: Connection, kind: ResourceKind, ids: set[int]) -> list[Record]:
    if not ids:
        return []
    sql, parameter = TRANSFERS[kind], as_json(sorted(ids))
    found = [
        _record(kind, state, row)
        for state, statement in (
            (RecordState.LIVE, sql.by_ids),
            (RecordState.DELETED, sql.deleted_by_ids),
            (RecordState.REVISION, sql.revisions_of),
        )
        for row in sorted(await connection.fetch(statement, ids=parameter), key=lambda it: it[0])
    ]
    return [it for it in found if it is not None]


async def _counts(connection: Connection, arguments: Sequence[frozenset[ResourceKind]]) -> list[Counts]:
    return [await _count(connection, kinds) for kinds in arguments]


async def _count(connection: Connection, kinds: frozenset[ResourceKind]) -> Counts:
    counts: Counts = {}
    for kind in kinds:
        sql = TRANSFERS[kind]
        for state, statement in (
            (RecordState.LIVE, sql.count),
            (RecordState.DELETED, sql.count_deleted),
            (RecordState.REVISION, sql.count_revisions),
        ):
            ((counts[kind, state],),) = await connection.fetch(statement)
    return counts


_COUNT: BatchOperation[frozenset[ResourceKind], Counts] = BatchOperation(_counts)
_PAGE = with_position(BatchOperation(_pages))
_CATCH_UP = with_position(BatchOperation(_steps))
