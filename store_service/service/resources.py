"""The methods that all resources have: create, get, list, update and delete, single and batch.

A `ResourceType` describes one type of resource. posts.py and comments.py hold one each, with their own rules.
Each write reads what it needs, decides in Python, and writes the results, in one transaction.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Generic, TypeVar

from store_service.database.batch_operation import DEFERRED, BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.resource_sql import ResourceSql
from store_service.database.statements import as_json
from store_service.errors import NotFound, ServiceError
from store_service.model import (
    BatchResult,
    Comment,
    CommentDraft,
    Deletion,
    IdempotencyKey,
    Page,
    PageRequest,
    Post,
    PostDraft,
    ResourceFields,
    Update,
    WriteCommand,
)
from store_service.service.external_ids import Release, create_with_external_ids
from store_service.service.idempotency import IdempotentWrite, is_replay, request_ids
from store_service.service.operations import (
    Selection,
    apply_update,
    check_response_size,
    decide,
    deletion_size,
    existing_size,
    find_by_id,
    not_stored,
    now_microseconds,
    numbered,
    read_by_id,
    select_by_either,
    select_for_deletion,
    state_before,
    update_size,
)
from store_service.service.pages import read_page, read_pages

R = TypeVar("R", Post, Comment)
D = TypeVar("D", PostDraft, CommentDraft)

Deleted = Mapping[int, IdempotencyKey | None]
"""The ids of the resources that a transaction deletes, and the idempotency key of each deletion."""


@dataclass(frozen=True, slots=True)
class DeletionPlan(Generic[R]):
    """What a resource type adds to the deletions of one transaction."""

    may_run: Callable[[WriteCommand[Deletion], Sequence[R]], bool]
    """Returns whether a deletion of these resources runs in this transaction. If not, it is deferred. A
    ServiceError that it raises refuses the deletion."""
    before: Callable[[Deleted], Awaitable[Collection[int]]]
    """Deletes rows that refer to the resources. Returns the ids whose own rows are deleted next."""
    after: Callable[[Deleted], Awaitable[None]]
    """Handles the resources whose rows are not deleted in this transaction."""


BeforeCreate = Callable[[Connection, Sequence[Sequence[D]]], Awaitable[Sequence[Sequence[D] | ServiceError]]]
"""Takes the drafts of each write. Returns for each write its drafts with their derived fields, or the error
that refuses it."""

BeforeDelete = Callable[
    [Connection, Sequence[WriteCommand[Deletion]], Mapping[int, R]], Awaitable[DeletionPlan[R]]
]
"""Takes the deletions of one transaction, and the stored resources that they name, which are locked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceType(Generic[R, D]):
    """The description of one type of resource."""

    name: str
    """The name of its field in requests: "post"."""
    model: type[R]
    draft: type[D]
    fields: ResourceFields
    """Which fields are mutable, immutable or output only."""
    sql: ResourceSql[R]
    not_found: type[NotFound]
    read_page: Callable[[Connection, PageRequest], Awaitable[Page[R]]] | None = None
    """Reads a page of a query with filters; None if queries have only an order."""
    before_create: BeforeCreate[D] | None = None
    before_delete: BeforeDelete[R] | None = None
    release_external_ids: Release | None = None


class Resources(Generic[R, D]):
    """The collection of one type of resource. Its methods raise the errors of `store_service.errors`."""

    def __init__(self, database: Database, operations: "Operations[R, D]") -> None:
        """Takes the open database, and the operation of each method."""
        self._database = database
        self._operations: Operations[R, D] = operations

    async def create(
        self, drafts: Sequence[D], *, key: IdempotencyKey | None = None, dry_run: bool = False
    ) -> tuple[R, ...]:
        """Creates resources, all or none, and returns them in the order of the drafts."""
        size = check_response_size(drafts)
        create = self._operations.create
        if self._operations.type.sql.has_optional(drafts) and any(draft.external_id for draft in drafts):
            create = self._operations.create_with_external_ids
            size += existing_size(drafts)
        created = await create.execute(self._database, drafts, key, dry_run=dry_run, size=size)
        return tuple(not_stored(created)) if dry_run and is_replay() else created

    async def get(self, id: int) -> R:
        """Returns one resource."""
        stored = await self._database.read(self._operations.get, (id,))
        if id not in stored:
            raise self._operations.type.not_found(ids=[id])
        return stored[id]

    async def get_many(self, ids: Sequence[int], *, allow_missing: bool) -> BatchResult[R]:
        """Returns resources in the order of `ids`."""
        selection = await self._database.read(self._operations.find, ids)
        return selection.result(allow_missing=allow_missing)

    async def get_by_external_id(self, external_id: str) -> R:
        """Returns one resource."""
        stored = await self._database.read(self._operations.by_external_id, (external_id,))
        if external_id not in stored:
            raise self._operations.type.not_found(external_ids=[external_id])
        return stored[external_id]

    async def get_many_by_either(
        self, ids: Sequence[int], external_ids: Sequence[str], *, allow_missing: bool
    ) -> BatchResult[R]:
        """Returns resources in the order of `ids`, followed by those of `external_ids`."""
        by_id: Mapping[int, R] = await self._database.read(self._operations.get, ids) if ids else {}
        stored: Mapping[str, R] = await self._database.read(self._operations.by_external_id, external_ids)
        not_found = None if allow_missing else self._operations.type.not_found
        return select_by_either(ids, by_id, external_ids, stored, not_found=not_found)

    async def list_page(self, request: PageRequest) -> Page[R]:
        """Returns one page."""
        return await self._database.read(self._operations.list, request)

    async def update(
        self, updates: Sequence[Update], *, key: IdempotencyKey | None = None, dry_run: bool = False
    ) -> tuple[R, ...]:
        """Updates resources, all or none, and returns their new states in the order of the updates."""
        size = update_size(updates)
        updated = await self._operations.update.execute(
            self._database, updates, key, dry_run=dry_run, size=size
        )
        return tuple([replace(it, update_time=None, version=0) for it in updated]) if dry_run else updated

    async def delete(
        self, deletion: Deletion, *, key: IdempotencyKey | None = None, dry_run: bool = False
    ) -> BatchResult[R]:
        """Deletes resources, all or none, and returns their last state."""
        size = deletion_size(deletion)
        return await self._operations.delete.execute(
            self._database, deletion, key, dry_run=dry_run, size=size
        )


class Operations(Generic[R, D]):
    """The operation of each method, which executes a batch of jobs on a connection."""

    def __init__(self, type: ResourceType[R, D]) -> None:
        """Takes the description of the resource type."""
        self.type: ResourceType[R, D] = type
        self.get: BatchOperation[Sequence[int], Mapping[int, R]] = BatchOperation(self._get)
        self.by_external_id: BatchOperation[Sequence[str], Mapping[str, R]] = BatchOperation(
            self._by_external_id
        )
        self.find: BatchOperation[Sequence[int], Selection[R]] = BatchOperation(self._find)
        self.list: BatchOperation[PageRequest, Page[R]] = BatchOperation(self._list)
        self.create: IdempotentWrite[Sequence[D], tuple[R, ...]] = IdempotentWrite(
            self._create,
            type.model,
            to_batch_result=lambda created: BatchResult(items=created),
            from_batch_result=lambda stored: stored.items,
            insert_only=True,
            single_statement=type.before_create is None,
        )
        self.create_with_external_ids: IdempotentWrite[Sequence[D], tuple[R, ...]] = IdempotentWrite(
            partial(create_with_external_ids, type.sql, type.release_external_ids, self._create),
            type.model,
            to_batch_result=lambda created: BatchResult(items=created),
            from_batch_result=lambda stored: stored.items,
            # Not insert-only, so that no other process creates the same external ids at the same time.
        )
        self.update: IdempotentWrite[Sequence[Update], tuple[R, ...]] = IdempotentWrite(
            self._update,
            type.model,
            to_batch_result=lambda updated: BatchResult(items=updated),
            from_batch_result=lambda stored: stored.items,
        )
        self.delete: IdempotentWrite[Deletion, BatchResult[R]] = IdempotentWrite(
            self._delete,
            type.model,
            to_batch_result=lambda deleted: deleted,
            from_batch_result=lambda stored: stored,
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
            outcome if isinstance(outcome, ServiceError) else tuple([next(rest) for _ in outcome])
            for outcome in each
        ]

    async def _insert(
        self, connection: Connection, drafts: Sequence[D], keys: Sequence[IdempotencyKey | None]
    ) -> list[R]:
        now = now_microseconds()
        sql = self.type.sql
        insert = sql.insert if sql.has_optional(drafts) else sql.insert_required
        rows = await connection.write(
            insert.statement,
            drafts=as_json(insert.draft_rows(drafts)),
            requests=request_ids(enumerate(keys)),
            now=now,
        )
        return sql.inserted(rows, drafts, now)

    async def _get(
        self, connection: Connection, batches: Sequence[Sequence[int]]
    ) -> list[Mapping[int, R] | ServiceError]:
        return await read_by_id(connection, batches, self.type.sql.by_id, self.type.sql.from_row)

    async def _by_external_id(
        self, connection: Connection, batches: Sequence[Sequence[str]]
    ) -> list[Mapping[str, R] | ServiceError]:
        sql = self.type.sql
        return await read_by_id(
            connection, batches, sql.by_external_id, sql.from_row, key=attrgetter("external_id")
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
        return await read_page(connection, request, self.type.sql.list, self.type.sql)

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
            sql: ResourceSql[R] = self.type.sql
            rows = numbered(
                [
                    sql.to_row(one, int(stored[one.id] is one), state_before(before, one))
                    for before, one, _ in updated
                ]
            )
            requests = request_ids((n, key) for n, (_, _, key) in enumerate(updated))
            await connection.write(sql.update, updates=as_json(rows), requests=requests, now=now)
        return outcomes

    async def _delete(
        self, connection: Connection, writes: Sequence[WriteCommand[Deletion]]
    ) -> list[BatchResult[R] | ServiceError]:
        stored = await self._locked(connection, {id for write in writes for id in write.argument.ids})
        plan: DeletionPlan[R] | None = None
        if self.type.before_delete is not None:
            plan = await self.type.before_delete(connection, writes, stored)
        deleted: dict[int, IdempotencyKey | None] = {}

        def decision(write: WriteCommand[Deletion]) -> BatchResult[R]:
            found = select_for_deletion(write.argument, stored, not_found=self.type.not_found)
            if plan is not None and not plan.may_run(write, found.items):
                return DEFERRED  # type: ignore[no-any-return]  # it is Any
            for it in found.items:
                del stored[it.id]
                if not write.dry_run:
                    deleted[it.id] = write.key
            return found

        outcomes = decide(writes, decision)
        ids: Collection[int] = deleted if plan is None else await plan.before(deleted)
        if ids:
            await connection.write(
                self.type.sql.delete,
                ids=as_json(list(ids)),
                requests=request_ids(deleted.items()),
                now=now_microseconds(),
            )
        if plan is not None:
            await plan.after(deleted)
        return outcomes

    async def _locked(self, connection: Connection, ids: set[int]) -> dict[int, R]:
        sql = self.type.sql
        rows = await connection.fetch(sql.locked_by_id, ids=as_json(list(ids)))
        return {row[0]: sql.from_row(row) for row in rows}
