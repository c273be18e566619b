"""The methods that all resources have: create, get, list, update and delete, single and batch.

A `ResourceType` describes one type of resource. posts.py and comments.py hold one each, with their own rules.
Each write reads what it needs, decides in Python, and writes the results, in one transaction.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

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
from store_service.service.idempotency import IdempotentWrite, request_ids
from store_service.service.operations import (
    Selection,
    apply_update,
    check_response_size,
    decide,
    deletion_size,
    find_by_id,
    now_microseconds,
    read_by_id,
    select_for_deletion,
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


BeforeCreate = Callable[[Connection, Sequence[Sequence[D]]], Awaitable[Sequence[ServiceError | None]]]
"""Takes the drafts of each write. Returns for each write the error that refuses it, or None."""

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
        created = await self._operations.create.execute(
            self._database, drafts, key, dry_run=dry_run, size=size
        )
        if not dry_run:
            return created
        return tuple([replace(it, id=0, create_time=None, update_time=None, version=0) for it in created])

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

    async def list_page(self, request: PageRequest) -> Page[R]:
        """Returns one page."""
        return await self._database.read(self._operations.list, request)

    async def update(self, update: Update, *, key: IdempotencyKey | None = None, dry_run: bool = False) -> R:
        """Updates a resource and returns its new state."""
        size = update_size(update)
        updated = await self._operations.update.execute(
            self._database, update, key, dry_run=dry_run, size=size
        )
        return replace(updated, update_time=None, version=0) if dry_run else updated

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
        self.update: IdempotentWrite[Update, R] = IdempotentWrite(
            self._update,
            type.model,
            to_batch_result=lambda updated: BatchResult(items=(updated,)),
            from_batch_result=lambda stored: stored.items[0],
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
        errors: Sequence[ServiceError | None] = [None] * len(writes)
        if self.type.before_create is not None:
            errors = await self.type.before_create(connection, [write.argument for write in writes])
        accepted = [write for write, error in zip(writes, errors, strict=True) if error is None]
        drafts = [draft for write in accepted for draft in write.argument]
        keys = [write.key for write in accepted for _ in write.argument]
        created = iter(await self._insert(connection, drafts, keys) if drafts else ())
        return [
            tuple([next(created) for _ in write.argument]) if error is None else error
            for write, error in zip(writes, errors, strict=True)
        ]

    async def _insert(
        self, connection: Connection, drafts: Sequence[D], keys: Sequence[IdempotencyKey | None]
    ) -> list[R]:
        now = now_microseconds()
        sql = self.type.sql
        rows = await connection.write(
            sql.insert,
            drafts=as_json(sql.draft_rows(drafts)),
            requests=request_ids(enumerate(keys)),
            now=now,
        )
        return sql.inserted(rows, drafts, now)

    async def _get(
        self, connection: Connection, batches: Sequence[Sequence[int]]
    ) -> list[Mapping[int, R] | ServiceError]:
        return await read_by_id(connection, batches, self.type.sql.by_id, self.type.sql.from_row)

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
        sql = self.type.sql
        return await read_page(connection, request, sql.pages[request.query.order], sql.from_row)

    async def _update(
        self, connection: Connection, writes: Sequence[WriteCommand[Update]]
    ) -> list[R | ServiceError]:
        stored = await self._locked(connection, {write.argument.id for write in writes})
        now = now_microseconds()
        updated: list[tuple[R, IdempotencyKey | None]] = []

        def decision(write: WriteCommand[Update]) -> R:
            before = stored.get(write.argument.id)
            after = apply_update(write.argument, before, not_found=self.type.not_found, now=now)
            if after is not before:
                # The next update in this batch starts from the result of this one.
                stored[after.id] = after
                updated.append((after, write.key))
            return after

        outcomes = decide(writes, decision)
        if updated:
            sql: ResourceSql[R] = self.type.sql
            rows = _numbered([sql.to_row(one, int(stored[one.id] is one)) for one, _ in updated])
            requests = request_ids((n, key) for n, (_, key) in enumerate(updated))
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


def _numbered(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Returns rows with their index as the first column."""
    return [(n, *row) for n, row in enumerate(rows)]
