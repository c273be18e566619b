"""The operations that all resources have, each of which executes a batch of jobs on a connection.

Each write reads what it needs, decides in Python, and writes the results, in one transaction.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any, Generic

from store_service.database.batch_operation import DEFERRED, BatchOperation
from store_service.database.connection import Connection
from store_service.database.resource_sql import ResourceSql
from store_service.database.revisions import FIELDS
from store_service.database.statements import as_json
from store_service.errors import DatabaseBusy, ExternalIdTaken, NotDeleted, NotFound, ServiceError
from store_service.model import (
    BatchResult,
    DeletedResource,
    Deletion,
    IdempotencyKey,
    Page,
    PageRequest,
    RevisionsRequest,
    Update,
    WriteCommand,
)
from store_service.service.external_ids import check_not_taken, create_with_external_ids
from store_service.service.idempotency import IdempotentWrite, request_ids
from store_service.service.operations import (
    Selection,
    apply_update,
    check_response_size,
    decide,
    deletion_times,
    find_by_id,
    not_stored,
    now_microseconds,
    numbered,
    read_by_id,
    reader_of_one,
    select_for_deletion,
    state_before,
    with_times,
)
from store_service.service.pages import read_page, read_pages
from store_service.service.resource_type import D, DeletionPlan, R, ResourceType
from store_service.service.revisions import read_revisions

_revision_row = attrgetter("id", *FIELDS)
_text = attrgetter("author", "body")
_external_id = attrgetter("external_id")


class Operations(Generic[R, D]):
    """The operation of each method, which executes a batch of jobs on a connection."""

    def __init__(
        self, type: ResourceType[R, D], *, undelete_hours: float = 0, max_revisions: int = 0
    ) -> None:
        """Takes the description of the resource type.

        Args:
            type: The description.
            undelete_hours: How long deleted resources can be restored; 0: not at all.
            max_revisions: The number of former versions that are kept; 0: none.
        """
        self.type: ResourceType[R, D] = type
        self._max_revisions = max_revisions
        self._undelete_microseconds = int(undelete_hours * 3_600_000_000)
        sql = type.sql
        self.get: BatchOperation[Sequence[int], Mapping[int, R]] = BatchOperation(
            self._get, run_one=reader_of_one(sql.by_single_id, sql.from_row)
        )
        self.by_external_id: BatchOperation[Sequence[str], Mapping[str, R]] = BatchOperation(
            self._by_external_id,
            run_one=reader_of_one(sql.by_single_external_id, sql.from_row, key=_external_id),
        )
        self.deleted: BatchOperation[Sequence[int], Mapping[int, R]] = BatchOperation(self._deleted)
        self.deleted_by_external_id: BatchOperation[Sequence[str], Mapping[str, R]] = BatchOperation(
            self._deleted_by_external_id
        )
        self.find: BatchOperation[Sequence[int], Selection[R]] = BatchOperation(self._find)
        self.list: BatchOperation[PageRequest, Page[R]] = BatchOperation(self._list)
        self.revisions: BatchOperation[RevisionsRequest, Page[R]] = BatchOperation(self._revisions)
        self.create: IdempotentWrite[Sequence[D], tuple[R, ...]] = IdempotentWrite(
            self._create,
            type.model,
            name=f"create {type.name}",
            to_batch_result=lambda created: BatchResult(items=created),
            from_batch_result=lambda stored: stored.items,
            insert_only=True,
            single_statement=type.before_create is None,
        )
        self.create_with_external_ids: IdempotentWrite[Sequence[D], tuple[R, ...]] = IdempotentWrite(
            partial(create_with_external_ids, type.sql, type.release_external_ids, self._create),
            type.model,
            name=f"create {type.name} with external id",
            to_batch_result=lambda created: BatchResult(items=created),
            from_batch_result=lambda stored: stored.items,
            # Not insert-only, so that no other process creates the same external ids at the same time.
        )
        self.update: IdempotentWrite[Sequence[Update], tuple[R, ...]] = IdempotentWrite(
            self._update,
            type.model,
            name=f"update {type.name}",
            to_batch_result=lambda updated: BatchResult(items=updated),
            from_batch_result=lambda stored: stored.items,
        )
        self.delete: IdempotentWrite[Deletion, BatchResult[R]] = IdempotentWrite(
            self._delete,
            type.model,
            name=f"delete {type.name}",
            to_batch_result=lambda deleted: deleted,
            from_batch_result=lambda stored: stored,
        )
        self.undelete: IdempotentWrite[int, R] = IdempotentWrite(
            self._undelete,
            type.model,
            name=f"undelete {type.name}",
            to_batch_result=lambda restored: BatchResult(items=(restored,)),
            from_batch_result=lambda stored: stored.items[0],
        )
        self.writes: tuple[IdempotentWrite[Any, Any], ...] = (
            self.create,
            self.create_with_external_ids,
            self.update,
            self.delete,
            self.undelete,
        )

    async def _create(
        self, connection: Connection, writes: Sequence[WriteCommand[Sequence[D]]]
    ) -> list[tuple[R, ...] | ServiceError]:
        each: Sequence[Sequence[D] | ServiceError] = [write.argument for write in writes]
        if self.type.before_create is not None:
            each = await self.type.before_create(connection, [write.argument for write in writes])
        accepted = [
            (write, drafts)
            for write, drafts in zip(writes, each, strict=True)
            if not isinstance(drafts, ServiceError)
        ]
        drafts = [draft for _, drafts in accepted for draft in drafts]
        keys = [write.key for write, drafts in accepted for _ in drafts]
        created = await self._insert(connection, drafts, keys) if drafts else []
        if writes[0].dry_run:
            created = not_stored(created)
        rest = iter(created)
        return [
            outcome if isinstance(outcome, ServiceError) else tuple(islice(rest, len(outcome)))
            for outcome in each
        ]

    async def _insert(
        self, connection: Connection, drafts: Sequence[D], keys: Sequence[IdempotencyKey | None]
    ) -> list[R]:
        now = now_microseconds()
        sql = self.type.sql
        insert = sql.insert if any(map(self.type.fields.has_optional, drafts)) else sql.insert_required
        if any(keys):
            requests = request_ids(enumerate(keys))
            values = as_json(insert.draft_rows(drafts))
            rows = await connection.write(insert.statement, requests=requests, drafts=values, now=now)
        elif len(drafts) == 1:
            rows = await connection.write(insert.single, **insert.single_values(drafts[0]), now=now)
        else:
            values = as_json(insert.draft_rows(drafts))
            rows = await connection.write(insert.without_requests, drafts=values, now=now)
        return sql.inserted(rows, drafts, now)

    async def _get(
        self, connection: Connection, batches: Sequence[Sequence[int]]
    ) -> list[Mapping[int, R] | ServiceError]:
        return await read_by_id(connection, batches, self.type.sql.by_id, self.type.sql.from_row)

    async def _by_external_id(
        self, connection: Connection, batches: Sequence[Sequence[str]]
    ) -> list[Mapping[str, R] | ServiceError]:
        sql = self.type.sql
        return await read_by_id(connection, batches, sql.by_external_id, sql.from_row, key=_external_id)

    async def _deleted(
        self, connection: Connection, batches: Sequence[Sequence[int]]
    ) -> list[Mapping[int, R] | ServiceError]:
        deleted = self.type.sql.deleted
        return await read_by_id(connection, batches, deleted.by_id, deleted.from_row)

    async def _deleted_by_external_id(
        self, connection: Connection, batches: Sequence[Sequence[str]]
    ) -> list[Mapping[str, R] | ServiceError]:
        deleted = self.type.sql.deleted
        return await read_by_id(
            connection,
            batches,
            deleted.by_external_id,
            deleted.from_row,
            key=_external_id,
        )

    async def _find(
        self, connection: Connection, batches: Sequence[Sequence[int]]
    ) -> list[Selection[R] | ServiceError]:
        sql = self.type.sql
        return await find_by_id(connection, batches, sql.by_id, sql.from_row, self.type.not_found)

    async def _list(
        self, connection: Connection, requests: Sequence[PageRequest]
    ) -> list[Page[R] | ServiceError]:
        return await read_pages(connection, requests, self.type.read_page or self._page)

    async def _page(self, connection: Connection, request: PageRequest) -> Page[R]:
        return await read_page(connection, request, self.type.sql)

    async def _revisions(
        self, connection: Connection, requests: Sequence[RevisionsRequest]
    ) -> list[Page[R] | ServiceError]:
        return await read_pages(connection, requests, self._revisions_of)

    async def _revisions_of(self, connection: Connection, request: RevisionsRequest) -> Page[R]:
        async with connection.snapshot():
            return await self._read_revisions(connection, request)

    async def _read_revisions(self, connection: Connection, request: RevisionsRequest) -> Page[R]:
        sql, ids = self.type.sql, as_json([request.id])
        found = [sql.from_row(row) for row in await connection.fetch(sql.by_id, ids=ids)]
        if not found and request.show_deleted:
            found = [sql.deleted.from_row(row) for row in await connection.fetch(sql.deleted.by_id, ids=ids)]
        if not found:
            raise self.type.not_found(ids=[request.id])
        return await read_revisions(connection, request, sql.revisions, found[0])

    async def _update(
        self, connection: Connection, writes: Sequence[WriteCommand[Sequence[Update]]]
    ) -> list[tuple[R, ...] | ServiceError]:
        stored = await self._locked(connection, {update.id for write in writes for update in write.argument})
        now = now_microseconds()
        updated: list[tuple[R, R, IdempotencyKey | None]] = []

        def decision(write: WriteCommand[Sequence[Update]]) -> tuple[R, ...]:
            missing = [update.id for update in write.argument if update.id not in stored]
            if missing:
                raise self.type.not_found(ids=missing)
            results = [apply_update(update, stored[update.id], now=now) for update in write.argument]
            if len(results) > 1:
                check_response_size(results)
            for after in results:
                before = stored[after.id]
                if after is not before:
                    # The next update of this resource in the transaction starts from the result of this one.
                    stored[after.id] = after
                    updated.append((before, after, write.key))
            return tuple(results)

        outcomes = decide(writes, decision)
        if updated:
            await self._write_updates(connection, updated, stored, now)
        return outcomes

    async def _write_updates(
        self,
        connection: Connection,
        updated: Sequence[tuple[R, R, IdempotencyKey | None]],
        stored: Mapping[int, R],
        now: int,
    ) -> None:
        """Writes updates, each with the state before it, in their order. `stored` has the last states."""
        sql: ResourceSql[R] = self.type.sql
        rows = numbered(
            [
                sql.to_row(one, int(stored[one.id] is one), state_before(before, one))
                for before, one, _ in updated
            ]
        )
        ids: set[int] = set()
        # The former versions: ids of those in the table of the resources, and those that were never there.
        kept: list[int] = []
        former: list[R] = []
        for before, one, _ in updated:
            # A version with the same text would displace an older one that differs.
            if self._max_revisions and _text(before) != _text(one):
                if one.id in ids:
                    former.append(before)
                else:
                    kept.append(one.id)
            ids.add(one.id)
        write = sql.update_with_history if kept else sql.update
        requests = request_ids((n, key) for n, (_, _, key) in enumerate(updated))
        await connection.write(write, updates=as_json(rows), ids=as_json(kept), requests=requests, now=now)
        if former:
            values = numbered([_revision_row(it) for it in former])
            await connection.fetch(sql.revisions.add, former=as_json(values))
        if any(one.version > self._max_revisions + 1 for _, one, _ in updated):
            await connection.fetch(sql.revisions.trim, ids=as_json(list(ids)), count=self._max_revisions)

    async def _delete(
        self, connection: Connection, writes: Sequence[WriteCommand[Deletion]]
    ) -> list[BatchResult[R] | ServiceError]:
        stored = await self._locked(connection, {id for write in writes for id in write.argument.ids})
        plan: DeletionPlan[R] = await self.type.plan_deletions(connection, writes, stored)
        times = await deletion_times(connection, self._undelete_microseconds)
        deleted: dict[int, DeletedResource[R]] = {}

        def decision(write: WriteCommand[Deletion]) -> BatchResult[R]:
            found = select_for_deletion(write.argument, stored, not_found=self.type.not_found)
            if not plan.may_run(write, found.items):
                return DEFERRED  # type: ignore[no-any-return]  # it is Any
            for it in found.items:
                del stored[it.id]
                if not write.dry_run:
                    deleted[it.id] = DeletedResource(resource=it, key=write.key, force=write.argument.force)
            return with_times(found, times)

        outcomes = decide(writes, decision)
        if deleted:
            await plan.execute(deleted, times)
        return outcomes

    async def _undelete(
        self, connection: Connection, writes: Sequence[WriteCommand[int]]
    ) -> list[R | ServiceError]:
        outcomes: list[R | ServiceError] = []
        for write in writes:
            try:
                restored = await self._undelete_one(connection, write)
            except (NotFound, NotDeleted, ExternalIdTaken, DatabaseBusy) as error:
                # They are raised before anything is changed.
                outcomes.append(error)
            else:
                outcomes.append(restored)
        return outcomes

    async def _undelete_one(self, connection: Connection, write: WriteCommand[int]) -> R:
        sql, ids = self.type.sql, as_json([write.argument])
        rows = await connection.fetch(sql.deleted.by_id, ids=ids)
        if not rows:
            if await connection.fetch(sql.by_id, ids=ids):
                raise NotDeleted(resource_type=self.type.model.__name__, id=write.argument)
            raise self.type.not_found(ids=[write.argument])
        deleted = sql.deleted.from_row(rows[0])
        await self.type.check_restore(connection, deleted)
        if deleted.external_id:
            await check_not_taken(connection, sql, deleted.external_id)
            await self.type.release_external_ids(connection, [deleted.external_id])
        await self.type.restore(connection, deleted, write.key)
        ((*row,),) = await connection.fetch(sql.by_id, ids=ids)
        return sql.from_row(row)

    async def _locked(self, connection: Connection, ids: set[int]) -> dict[int, R]:
        sql = self.type.sql
        rows = await connection.fetch(sql.locked_by_id, ids=as_json(list(ids)))
        return {row[0]: sql.from_row(row) for row in rows}
