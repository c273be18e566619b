"""What a store has of the resources that a batch of an import names, and what the batch adds to it."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, Generic, TypeVar

from store_service.database.connection import Connection
from store_service.database.revisions import FIELDS
from store_service.database.statements import as_json
from store_service.database.transfer import TRANSFERS, TransferSql
from store_service.errors import SchemaMismatch
from store_service.model import Comment, ImportedRecord, Post, RecordState, ResourceKind
from store_service.service.operations import now_microseconds, numbered, state_before
from store_service.service.resource_type import ResourceType

LARGEST_ID = 2**62
"""The largest id that is imported, so that larger ones are left for new resources."""

R = TypeVar("R", Post, Comment)


class StoredResources(Generic[R]):
    """The resources of one kind. The batch adds what it stores, so that later records of it are decided by
    the result of earlier ones."""

    def __init__(self, type: ResourceType[R, Any], kind: ResourceKind) -> None:
        """Takes the description of the resource, and its kind."""
        self._type: ResourceType[R, Any] = type
        self.kind = kind
        self.sql: TransferSql[R] = TRANSFERS[kind]
        self.live: dict[int, R] = {}
        """The resources that are not deleted, and tombstones, by id."""
        self.hidden: set[int] = set()
        """The ids of those of them that callers do not see, because they are being deleted."""
        self.deleted: dict[int, tuple[R, int]] = {}
        """Deleted resources with their values of `deleted_with`, by id."""
        self.revisions: dict[tuple[int, int], R] = {}
        """Former versions by id and version."""
        self.ids: dict[str, int] = {}
        """Ids by external id."""
        self.new_ids: Iterator[int] = iter(())
        """Ids for resources without an id."""
        self._created: dict[int, None] = {}
        self._before: dict[int, R] = {}
        self._tombstones: dict[int, bool] = {}
        self._deleted: dict[int, bool] = {}
        self._revisions: dict[tuple[int, int], bool] = {}

    async def read(self, connection: Connection, records: Sequence[ImportedRecord]) -> None:
        """Reads what the records name."""
        resources = [it.resource for it in records]
        external_ids = sorted({it.external_id for it in resources if it.external_id})
        if external_ids:
            rows = await connection.fetch(self.sql.places_by_external_id, ids=as_json(external_ids))
            self.ids = {external_id: id for external_id, id, *_ in rows}
        # Of a resource that is found by its external id, the stored id counts.
        ids = as_json(sorted({it.id for it in resources if it.id} | set(self.ids.values())))
        for *row, is_shown in await connection.fetch(self.sql.by_ids, ids=ids):
            resource = self.sql.sql.from_row(row)
            self.live[resource.id] = resource
            if not is_shown:
                self.hidden.add(resource.id)
        for *row, deleted_with in await connection.fetch(self.sql.deleted_by_ids, ids=ids):
            resource = self.sql.sql.deleted.from_row(row)
            self.deleted[resource.id] = (resource, deleted_with)
        if any(it.state is RecordState.REVISION for it in records):
            for version in await connection.fetch(self.sql.revisions_of, ids=ids):
                resource = revision_from_row(self._type.model, version)
                self.revisions[resource.id, resource.version] = resource

    async def reserve_ids(self, connection: Connection, records: Sequence[ImportedRecord]) -> None:
        """Makes new ids greater than those of the records, and takes ids for records without one.

        Raises:
            SchemaMismatch: The role lacks a privilege for this.
        """
        ((may_skip_ids,),) = await connection.fetch(self.sql.may_skip_ids)
        if not may_skip_ids:
            raise SchemaMismatch(
                expected="the privilege UPDATE on the sequences of ids", actual="without this privilege"
            )
        resources = [it.resource for it in records if it.state is not RecordState.REVISION]
        largest = max([it.id for it in resources], default=0)
        if largest:
            for statement in self.sql.skip_ids:
                await connection.fetch(statement, id=largest)
        count = sum([not it.id and it.external_id not in self.ids for it in resources])
        if count:
            taken = as_json([(n + 1,) for n in range(count)])
            rows = await connection.fetch(self.sql.take_ids, taken=taken)
            self.new_ids = iter(sorted([id for (id,) in rows]))

    def invent_ids(self) -> None:
        """Uses ids that nothing has, for a check that stores nothing."""
        self.new_ids = itertools.count(LARGEST_ID + 1)

    def put_live(self, resource: R) -> None:
        """Adds or replaces a resource, or a tombstone."""
        former = self.live.get(resource.id)
        if is_tombstone(resource):
            self._tombstones.setdefault(resource.id, former is not None)
        elif former is None:
            self._created[resource.id] = None
        elif resource.id not in self._created:
            self._before.setdefault(resource.id, former)
        if former is not None and former.external_id:
            self.ids.pop(former.external_id, None)
        self.live[resource.id] = resource
        if resource.external_id:
            self.ids[resource.external_id] = resource.id

    def put_deleted(self, resource: R, deleted_with: int) -> None:
        """Adds or replaces a deleted resource."""
        self._deleted.setdefault(resource.id, resource.id in self.deleted)
        self.deleted[resource.id] = (resource, deleted_with)

    def put_revision(self, resource: R) -> None:
        """Adds or replaces a former version."""
        key = (resource.id, resource.version)
        self._revisions.setdefault(key, key in self.revisions)
        self.revisions[key] = resource

    async def write(self, connection: Connection) -> None:
        """Stores everything that was put."""
        now = now_microseconds()
        created = [self.live[id] for id in self._created]
        external_ids = [it.external_id for it in created if it.external_id]
        if external_ids:
            await self._type.release_external_ids(connection, external_ids)
        if created:
            rows = numbered([self.sql.live_row(it) for it in created])
            await connection.write(self.sql.insert, imported=as_json(rows), now=now)
        if self._before:
            await self._overwrite(connection, now)
        if self._tombstones:
            stored = [id for id, is_stored in self._tombstones.items() if is_stored]
            if stored:
                await connection.fetch(self.sql.remove_tombstones, ids=as_json(stored))
            tombstones = numbered([self.sql.tombstone_row(self.live[id]) for id in self._tombstones])
            await connection.fetch(self.sql.insert_tombstones, imported=as_json(tombstones))
        if self._deleted:
            stored = [id for id, is_stored in self._deleted.items() if is_stored]
            if stored:
                await connection.fetch(self.sql.remove_deleted, ids=as_json(stored))
            deleted = numbered([self.sql.deleted_row(*self.deleted[id]) for id in self._deleted])
            await connection.fetch(self.sql.insert_deleted, imported=as_json(deleted))
        if self._revisions:
            await self._write_revisions(connection)

    async def _overwrite(self, connection: Connection, now: int) -> None:
        updates: list[tuple[Any, ...]] = []
        for id, before in self._before.items():
            after = self.live[id]
            updates.append(self.sql.sql.to_row(after, state_before(before, after)))
        await connection.write(self.sql.overwrite, updates=as_json(numbered(updates)), requests="[]", now=now)
        # The next updates would store former versions with these numbers again.
        lowered = [
            (id, self.live[id].version)
            for id, before in self._before.items()
            if self.live[id].version <= before.version
        ]
        if lowered:
            await connection.fetch(
                self.sql.remove_newer_revisions,
                ids=as_json([id for id, _ in lowered]),
                lowered=as_json(numbered(lowered)),
            )

    async def _write_revisions(self, connection: Connection) -> None:
        stored = [key for key, is_stored in self._revisions.items() if is_stored]
        if stored:
            await connection.fetch(
                self.sql.remove_revisions,
                ids=as_json(sorted({id for id, _ in stored})),
                named=as_json(numbered(stored)),
            )
        added: list[R] = [self.revisions[key] for key in self._revisions]
        of_version = attrgetter("id", *FIELDS)
        values = numbered([of_version(it) for it in added])
        await connection.fetch(self.sql.sql.revisions.add, former=as_json(values))


class Places:
    """Where resources are that comments of a batch refer to: posts, or comments that they reply to."""

    def __init__(self, kind: ResourceKind) -> None:
        """Takes the kind of the resources."""
        self._sql = TRANSFERS[kind]
        self.live: dict[int, tuple[int, str]] = {}
        """The post and the path of those that are not deleted, and of tombstones, by id."""
        self.deleted: dict[int, tuple[int, str]] = {}
        """The same of deleted ones."""
        self.ids: dict[str, int] = {}
        """Ids by external id."""

    async def read(self, connection: Connection, ids: Iterable[int], external_ids: Iterable[str]) -> None:
        """Reads the places of resources with these ids and external ids."""
        parameter = as_json(sorted(ids))
        if parameter != "[]":
            for id, *place in await connection.fetch(self._sql.places, ids=parameter):
                self.live[id] = _place(place)
            for id, *place in await connection.fetch(self._sql.deleted_places, ids=parameter):
                self.deleted[id] = _place(place)
        parameter = as_json(sorted(external_ids))
        if parameter != "[]":
            for external_id, id, *place in await connection.fetch(
                self._sql.places_by_external_id, ids=parameter
            ):
                self.ids[external_id] = id
                self.live[id] = _place(place)

    def add(self, resource: Post | Comment, *, is_deleted: bool) -> None:
        """Adds a resource of the batch."""
        place = (resource.post_id, resource.path) if isinstance(resource, Comment) else (resource.id, "")
        (self.deleted if is_deleted else self.live)[resource.id] = place
        if resource.external_id and not is_deleted:
            self.ids[resource.external_id] = resource.id


def _place(row: Sequence[Any]) -> tuple[int, str]:
    return (row[0], row[1]) if len(row) > 1 else (row[0], "")


def revision_from_row(model: type[R], row: Sequence[Any]) -> R:
    """Returns a former version in a row of `page_of_revisions`. Its other fields are empty."""
    id, *values = row
    fields: dict[str, Any] = dict(zip(FIELDS, values, strict=True))
    if model is Comment:
        fields["post_id"] = 0
    return model(id=id, create_time=None, **fields)


def is_tombstone(resource: Post | Comment) -> bool:
    """Whether a resource in the table of those that are not deleted is a tombstone."""
    return resource.delete_time is not None


def with_stored(resource: R, unset: Iterable[str], stored: R) -> R:
    """Returns an imported resource with the id of the stored one, and with its values of unset fields."""
    return replace(resource, id=stored.id, **{name: getattr(stored, name) for name in unset})
