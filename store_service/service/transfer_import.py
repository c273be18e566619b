"""Imports records: one transaction for each batch.

A batch reads everything that its records name, decides for each record in order, and writes the results in a
few statements. Sending a batch again changes nothing: a record that is stored with the same values is left as
it is.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.job_queue import LARGE_JOB_BYTES
from store_service.errors import ReadOnly, SchemaMismatch, ServiceError
from store_service.model import (
    LEVEL_DIGITS,
    Comment,
    ConflictPolicy,
    ImportBatch,
    ImportedRecord,
    ImportResult,
    Post,
    RecordError,
    RecordErrorReason,
    RecordState,
    ResourceKind,
    path_below,
)
from store_service.service.comments import COMMENTS, MAX_REPLY_DEPTH
from store_service.service.operations import now_microseconds
from store_service.service.posts import POSTS
from store_service.service.transfer_stored import (
    Places,
    StoredResources,
    is_tombstone,
    with_stored,
)

_LINKS = ("post_id", "reply_to_id", "path")
"""The fields of a comment that an import does not change: replies depend on them."""


class Imports:
    """Stores batches of imported records."""

    def __init__(self, database: Database, *, max_reply_depth: int = MAX_REPLY_DEPTH) -> None:
        """Takes the open database, and the maximum depth of a reply."""
        self._database = database
        self._operation = import_operation(max_reply_depth)

    async def store(self, batch: ImportBatch) -> ImportResult:
        """Stores the records of a batch, and returns when they are on disk.

        Raises:
            ReadOnly: The server is in read-only mode.
            SchemaMismatch: The role of the database may not set the sequences of ids.
        """
        if self._database.read_only:
            raise ReadOnly
        if batch.dry_run:
            return await self._database.read(self._operation, batch)
        # As a large job: batches of one import keep their order, and each has its own transaction.
        size = max(batch.size, LARGE_JOB_BYTES + 1)
        return await self._database.write(self._operation, batch, size=size)


def import_operation(max_reply_depth: int = MAX_REPLY_DEPTH) -> BatchOperation[ImportBatch, ImportResult]:
    """Returns the operation that stores batches, with a maximum depth of a reply."""

    async def run(
        connection: Connection, batches: Sequence[ImportBatch]
    ) -> list[ImportResult | ServiceError]:
        outcomes: list[ImportResult | ServiceError] = []
        for batch in batches:
            try:
                outcomes.append(await _Import(batch, max_reply_depth).run(connection))
            except SchemaMismatch as error:
                # It is raised before anything is changed.
                outcomes.append(error)
        return outcomes

    return BatchOperation(run, name="import")


class _Refused(Exception):
    """A record is refused."""

    def __init__(self, reason: RecordErrorReason, field: str, description: str) -> None:
        super().__init__(description)
        self.reason = reason
        self.field = field
        self.description = description


class _Conflict(_Refused):
    """Something else is stored in place of the record."""


class _Import:
    """The import of one batch."""

    def __init__(self, batch: ImportBatch, max_reply_depth: int) -> None:
        self._batch = batch
        self._max_reply_depth = max_reply_depth
        self._now = now_microseconds()
        self._posts = Places(ResourceKind.POST)
        self._parents = Places(ResourceKind.COMMENT)
        self._stored: dict[ResourceKind, StoredResources[Any]] = {
            ResourceKind.POST: StoredResources(POSTS, ResourceKind.POST),
            ResourceKind.COMMENT: StoredResources(COMMENTS, ResourceKind.COMMENT),
        }
        self._result = ImportResult(errors=list(batch.errors))

    async def run(self, connection: Connection) -> ImportResult:
        await self._read(connection)
        for record in self._batch.records:
            try:
                self._decide(record)
            except _Refused as refusal:
                if isinstance(refusal, _Conflict) and self._batch.on_conflict is ConflictPolicy.SKIP:
                    self._result.skipped += 1
                    continue
                self._result.errors.append(
                    RecordError(
                        index=record.index,
                        reason=refusal.reason,
                        field=refusal.field,
                        description=refusal.description,
                    )
                )
        if not self._batch.dry_run:
            for stored in self._stored.values():
                await stored.write(connection)
        self._result.errors.sort(key=lambda it: it.index)
        return self._result

    async def _read(self, connection: Connection) -> None:
        for kind, stored in self._stored.items():
            records = [it for it in self._batch.records if it.kind is kind]
            if not records:
                continue
            await stored.read(connection, records)
            if self._batch.dry_run:
                stored.invent_ids()
            else:
                await stored.reserve_ids(connection, records)
            if kind is ResourceKind.COMMENT:
                comments = [it.resource for it in records if isinstance(it.resource, Comment)]
                await self._posts.read(
                    connection,
                    {it.post_id for it in comments if it.post_id},
                    {it.post_external_id for it in records if it.post_external_id},
                )
                await self._parents.read(
                    connection,
                    {it.reply_to_id for it in comments if it.reply_to_id},
                    {it.reply_to_external_id for it in records if it.reply_to_external_id},
                )

    def _decide(self, record: ImportedRecord) -> None:
        if record.state is RecordState.REVISION:
            self._decide_revision(record)
            return
        resource = record.resource
        if isinstance(resource, Comment):
            resource = self._linked(record, resource)
        if record.state is RecordState.DELETED:
            self._decide_deleted(record, resource)
        else:
            self._decide_live(record, resource)

    def _linked(self, record: ImportedRecord, comment: Comment) -> Comment:
        """Returns a comment with the ids of its post and of the comment that it replies to, and its path."""
        is_deleted = record.state is RecordState.DELETED
        may_be_earlier = self._batch.dry_run and self._batch.is_part
        post_id = comment.post_id or self._posts.ids.get(record.post_external_id, 0)
        is_known = post_id in self._posts.live or (is_deleted and post_id in self._posts.deleted)
        if not is_known and not may_be_earlier:
            field = "comment.post_id" if comment.post_id else "post_external_id"
            raise _Refused(RecordErrorReason.POST_NOT_FOUND, field, "there is no such post")
        reply_to_id = comment.reply_to_id or self._parents.ids.get(record.reply_to_external_id, 0)
        path = ""
        if comment.reply_to_id or record.reply_to_external_id:
            field = "comment.reply_to_id" if comment.reply_to_id else "reply_to_external_id"
            parent = self._parents.live.get(reply_to_id)
            if parent is None and is_deleted:
                parent = self._parents.deleted.get(reply_to_id)
            if parent is not None:
                if parent[0] != post_id:
                    reason = RecordErrorReason.REPLY_POST_MISMATCH
                    raise _Refused(reason, field, f"belongs to post {parent[0]}")
                path = path_below(parent[1], reply_to_id)
                if comment.path and comment.path != path:
                    raise _invalid("ancestor_ids", "differs from the stored thread")
            elif comment.path:
                path = comment.path
            elif not may_be_earlier:
                raise _Refused(RecordErrorReason.COMMENT_NOT_FOUND, field, "there is no such comment")
            else:
                return replace(comment, post_id=post_id, reply_to_id=reply_to_id)
            if len(path) // LEVEL_DIGITS > self._max_reply_depth:
                reason = RecordErrorReason.REPLY_TOO_DEEP
                raise _Refused(reason, field, f"the maximum depth is {self._max_reply_depth}")
        if record.depth and record.depth != len(path) // LEVEL_DIGITS:
            raise _invalid("comment.depth", f"the depth of the comment is {len(path) // LEVEL_DIGITS}")
        return replace(comment, post_id=post_id, reply_to_id=reply_to_id, path=path)

    def _decide_live(self, record: ImportedRecord, resource: Post | Comment) -> None:
        stored = self._stored[record.kind]
        id = resource.id or stored.ids.get(resource.external_id, 0)
        former = stored.live.get(id)
        if former is None:
            if id in stored.deleted and not is_tombstone(resource):
                raise _conflict(record, f"{record.kind.name.lower()} {id} is deleted; it can be undeleted")
            self._check_external_id(record, resource, id)
            self._put_live(record, _completed(resource, record.unset, id or next(stored.new_ids), self._now))
            self._result.created += 1
            return
        wanted = with_stored(resource, record.unset, former)
        if wanted == former and id not in stored.hidden:
            self._result.unchanged += 1
            return
        if id in stored.hidden or is_tombstone(former) != is_tombstone(resource):
            raise _conflict(record, f"{record.kind.name.lower()} {id} is deleted in only one of the two")
        if any(getattr(former, name, 0) != getattr(wanted, name, 0) for name in _LINKS):
            raise _conflict(record, f"comment {id} is stored in another place of a thread")
        if self._batch.on_conflict is not ConflictPolicy.OVERWRITE:
            raise _conflict(record, f"{record.kind.name.lower()} {id} is stored with other values")
        self._check_external_id(record, resource, id)
        if "version" in record.unset:
            wanted = replace(wanted, version=former.version + 1)
        if "update_time" in record.unset:
            wanted = replace(wanted, update_time=self._now)
        self._put_live(record, wanted)
        self._result.overwritten += 1

    def _decide_deleted(self, record: ImportedRecord, resource: Post | Comment) -> None:
        stored = self._stored[record.kind]
        id = resource.id
        live = stored.live.get(id)
        if live is not None and not is_tombstone(live):
            raise _conflict(record, f"{record.kind.name.lower()} {id} is stored and not deleted")
        former = stored.deleted.get(id)
        if former is None:
            resource = _completed(resource, record.unset, id, self._now)
            self._result.created += 1
        else:
            resource = with_stored(resource, record.unset, former[0])
            if (resource, record.deleted_with) == former:
                self._result.unchanged += 1
                return
            if any(getattr(former[0], name, 0) != getattr(resource, name, 0) for name in _LINKS):
                raise _conflict(record, f"comment {id} is stored in another place of a thread")
            if self._batch.on_conflict is not ConflictPolicy.OVERWRITE:
                raise _conflict(record, f"{record.kind.name.lower()} {id} is stored with other values")
            self._result.overwritten += 1
        stored.put_deleted(resource, record.deleted_with)
        (self._parents if record.kind is ResourceKind.COMMENT else self._posts).add(resource, is_deleted=True)

    def _decide_revision(self, record: ImportedRecord) -> None:
        stored, resource = self._stored[record.kind], record.resource
        current = stored.live.get(resource.id)
        if current is None or is_tombstone(current):
            current = stored.deleted.get(resource.id, (current, 0))[0]
        name = record.kind.name.lower()
        if current is None:
            if self._batch.dry_run and self._batch.is_part:
                self._result.created += 1
                return
            reason = RecordErrorReason[f"{record.kind.name}_NOT_FOUND"]
            raise _Refused(reason, f"{name}.id", f"there is no such {name}")
        former = stored.revisions.get((resource.id, resource.version))
        if former is None:
            if resource.version >= current.version:
                raise _invalid(f"{name}.etag", f"is not before the etag of {name} {resource.id}")
            self._result.created += 1
        else:
            if with_stored(resource, record.unset, former) == former:
                self._result.unchanged += 1
                return
            if self._batch.on_conflict is not ConflictPolicy.OVERWRITE:
                raise _conflict(record, "this version is stored with other values")
            self._result.overwritten += 1
        stored.put_revision(replace(resource, create_time=None))

    def _put_live(self, record: ImportedRecord, resource: Post | Comment) -> None:
        self._stored[record.kind].put_live(resource)
        (self._parents if record.kind is ResourceKind.COMMENT else self._posts).add(
            resource, is_deleted=False
        )

    def _check_external_id(self, record: ImportedRecord, resource: Post | Comment, id: int) -> None:
        taken_by = self._stored[record.kind].ids.get(resource.external_id, id)
        if resource.external_id and taken_by != id:
            name = record.kind.name.lower()
            raise _Conflict(
                RecordErrorReason.EXTERNAL_ID_TAKEN,
                f"{name}.external_id",
                f"{name} {taken_by} has this external_id",
            )


def _completed(resource: Any, unset: frozenset[str], id: int, now: int) -> Any:
    """Returns a new resource with its id and default values of unset fields."""
    values: dict[str, Any] = {"id": id}
    if "version" in unset:
        values["version"] = 1
    create_time = resource.create_time
    if "create_time" in unset:
        values["create_time"] = create_time = now
    if "update_time" in unset:
        values["update_time"] = create_time
    return replace(resource, **values)


def _invalid(field: str, description: str) -> _Refused:
    return _Refused(RecordErrorReason.FIELD_INVALID, field, description)


def _conflict(record: ImportedRecord, description: str) -> _Conflict:
    return _Conflict(RecordErrorReason.CONFLICT, f"{record.kind.name.lower()}.id", description)
