"""The methods that all resources have: create, get, list, update, delete and undelete, single and batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Generic

from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.model import (
    BatchResult,
    Deletion,
    IdempotencyKey,
    Page,
    PageRequest,
    RevisionsRequest,
    Update,
)
from store_service.service.comment_removal import MAX_BYTES
from store_service.service.idempotency import is_replay
from store_service.service.operations import (
    K,
    check_response_size,
    deletion_size,
    existing_size,
    not_stored,
    select_by_either,
    update_size,
)
from store_service.service.resource_operations import Operations
from store_service.service.resource_type import D, R


class Resources(Generic[R, D]):
    """The collection of one type of resource. Its methods raise the errors of `store_service.errors`."""

    def __init__(
        self, database: Database, operations: Operations[R, D], *, after_write: Callable[[], None]
    ) -> None:
        """Takes the open database, the operation of each method, and a function that is called after a write
        that may have left work for `BackgroundSteps`."""
        self._database = database
        self._operations: Operations[R, D] = operations
        self._after_write = after_write

    async def create(
        self, drafts: Sequence[D], *, key: IdempotencyKey | None = None, dry_run: bool = False
    ) -> tuple[R, ...]:
        """Creates resources, all or none, and returns them in the order of the drafts."""
        size = check_response_size(drafts)
        create = self._operations.create
        if any(draft.external_id for draft in drafts):
            create = self._operations.create_with_external_ids
            size += existing_size(drafts)
        created = await create.execute(self._database, drafts, key, dry_run=dry_run, size=size)
        return tuple(not_stored(created)) if dry_run and is_replay() else created

    async def get(self, id: int, *, show_deleted: bool = False) -> R:
        """Returns one resource; with `show_deleted` also one that is deleted and can be restored."""
        stored = (
            await self._with_deleted((id,))
            if show_deleted
            else await self._database.read(self._operations.get, (id,))
        )
        if id not in stored:
            raise self._operations.type.not_found(ids=[id])
        return stored[id]

    async def get_many(self, ids: Sequence[int], *, allow_missing: bool) -> BatchResult[R]:
        """Returns resources in the order of `ids`."""
        selection = await self._database.read(self._operations.find, ids)
        return selection.result(allow_missing=allow_missing)

    async def get_by_external_id(self, external_id: str, *, show_deleted: bool = False) -> R:
        """Returns one resource; see `get`."""
        stored = await self._by_external_id((external_id,), show_deleted=show_deleted)
        if external_id not in stored:
            raise self._operations.type.not_found(external_ids=[external_id])
        return stored[external_id]

    async def get_many_by_either(
        self,
        ids: Sequence[int],
        external_ids: Sequence[str],
        *,
        allow_missing: bool,
        show_deleted: bool = False,
    ) -> BatchResult[R]:
        """Returns resources in the order of `ids`, followed by those of `external_ids`; see `get`."""
        by_id: Mapping[int, R] = {}
        if ids:
            by_id = (
                await self._with_deleted(ids)
                if show_deleted
                else await self._database.read(self._operations.get, ids)
            )
        stored: Mapping[str, R] = {}
        if external_ids:
            stored = await self._by_external_id(external_ids, show_deleted=show_deleted)
        not_found = None if allow_missing else self._operations.type.not_found
        return select_by_either(ids, by_id, external_ids, stored, not_found=not_found)

    async def _with_deleted(self, ids: Sequence[int]) -> dict[int, R]:
        """Returns resources by id, also deleted ones.

        Deleted ones are read before and after the others: each resource is found, also if it is deleted or
        restored meanwhile.
        """
        operations = self._operations
        return await self._read_missing(ids, {}, operations.deleted, operations.get, operations.deleted)

    async def _by_external_id(self, external_ids: Sequence[str], *, show_deleted: bool) -> Mapping[str, R]:
        operations = self._operations
        found = await self._database.read(operations.by_external_id, external_ids)
        if not show_deleted:
            return found
        return await self._read_missing(
            external_ids, found, operations.deleted_by_external_id, operations.by_external_id
        )

    async def _read_missing(
        self,
        ids: Sequence[K],
        found: Mapping[K, R],
        *operations: BatchOperation[Sequence[K], Mapping[K, R]],
    ) -> dict[K, R]:
        """Reads what is not found yet with each of these operations."""
        all_found = dict(found)
        for operation in operations:
            missing = tuple([id for id in ids if id not in all_found])
            if missing:
                more: Mapping[K, R] = await self._database.read(operation, missing)
                all_found.update(more)
        return all_found

    async def list_page(self, request: PageRequest) -> Page[R]:
        """Returns one page."""
        return await self._database.read(self._operations.list, request)

    async def list_revisions(self, request: RevisionsRequest) -> Page[R]:
        """Returns one page of the former versions of a resource."""
        page = await self._database.read(self._operations.revisions, request)
        return replace(page, resume_token="")

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
        deleted = await self._operations.delete.execute(
            self._database, deletion, key, dry_run=dry_run, size=size
        )
        if deletion.force:
            self._after_write()
        return deleted

    async def undelete(self, id: int, *, key: IdempotencyKey | None = None, dry_run: bool = False) -> R:
        """Restores a deleted resource, with everything that was deleted with it, and returns it."""
        restored = await self._operations.undelete.execute(
            self._database, id, key, dry_run=dry_run, size=MAX_BYTES
        )
        self._after_write()
        return replace(restored, version=0) if dry_run else restored
