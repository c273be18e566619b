"""Checks the requests of TransferService. A record that is not valid does not affect the other records."""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from storeapi.v1 import transfer_pb2 as pb

from store_service.compiled import compiled
from store_service.errors import FieldInvalid
from store_service.model import (
    LEVEL_DIGITS,
    TOMBSTONE_ETAG,
    ConflictPolicy,
    ImportBatch,
    ImportedRecord,
    RecordError,
    RecordErrorReason,
    RecordState,
    ResourceKind,
    labels_to_text,
)
from store_service.rpc.convert import microseconds_from_timestamp
from store_service.rpc.validation.resource_message import COMMENT, POST, ResourceMessage
from store_service.rpc.validation.violations import Violations
from store_service.rpc.validation.watch import check_kinds
from store_service.service.comments import COMMENTS
from store_service.service.posts import POSTS
from store_service.service.resource_type import ResourceType
from store_service.service.transfer_stored import LARGEST_ID

_ETAG = re.compile(rf"v([1-9a-f][0-9a-f]{{0,15}})({TOMBSTONE_ETAG})?")

_MIN_SECONDS, _MAX_SECONDS = -62_135_596_800, 253_402_300_799
"""The range of a Timestamp: the years 1 to 9999."""

CHECKED_AT_ONCE = 200
"""Number of records that are checked before the event loop runs again; each takes 20 to 30 microseconds."""

_STATES = {int(it): it for it in RecordState}

_TIMES = ("create_time", "update_time", "delete_time", "purge_time")

_NEVER_IN_REVISIONS = ("create_time", "delete_time", "purge_time", "external_id", "post_id", "reply_to_id")

Rules = Mapping[str, Callable[[Any], Sequence[str]]]

_Problem = tuple[str, str]
"""A field below the record, and the description of its violation."""


class _Imported:
    """Converts and checks the records of one kind."""

    def __init__(self, message: ResourceMessage, type: ResourceType[Any, Any], kind: ResourceKind) -> None:
        self.kind = kind
        self.name = message.name
        self.content = message.content
        texts = [
            "labels=labels_to_text(message.labels)" if name == "labels" else f"{name}=message.{name}"
            for name in message.content
        ]
        times = [
            f"{name}=microseconds(message.{name}) if message.HasField('{name}') else None" for name in _TIMES
        ]
        self.resource: Callable[[Any], Any] = compiled(
            ["message"],
            [f"return Model(id=message.id, version=0, {', '.join(texts)}, {', '.join(times)})"],
            Model=type.model,
            labels_to_text=labels_to_text,
            microseconds=microseconds_from_timestamp,
        )
        """Returns the resource of a message, without its version."""


_KINDS = {
    it.name: it
    for it in (_Imported(POST, POSTS, ResourceKind.POST), _Imported(COMMENT, COMMENTS, ResourceKind.COMMENT))
}


def export_request(request: pb.ExportRequest) -> frozenset[ResourceKind]:
    """Returns the kinds to export."""
    violations = Violations(0)
    check_kinds(request.kinds, violations)
    violations.raise_if_any()
    return frozenset(ResourceKind(kind) for kind in request.kinds) or frozenset(ResourceKind)


def check_policy(policy: int, field: str, violations: Violations) -> None:
    """Checks a required conflict policy."""
    if policy not in set(ConflictPolicy):
        violations.add(
            FieldInvalid,
            field,
            "must be CONFLICT_POLICY_FAIL, CONFLICT_POLICY_SKIP or CONFLICT_POLICY_OVERWRITE",
        )


class TransferValidation:
    """Checks imports against the limits of this server."""

    def __init__(self, rules: Rules, *, max_batch_size: int) -> None:
        """Takes the rules of the fields that callers set, and the maximum size of a batch."""
        self._rules = rules
        self._max_batch_size = max_batch_size

    def options(self, request: pb.ImportRequest) -> pb.ImportOptions:
        """Returns the options in the first request of an import."""
        violations = Violations(self._max_batch_size)
        if not request.HasField("options"):
            violations.add(FieldInvalid, "options", "is required in the first request")
        else:
            check_policy(request.options.on_conflict, "options.on_conflict", violations)
        if request.batch:
            violations.add(FieldInvalid, "batch", "must be unset in the request with options")
        if request.records:
            violations.add(FieldInvalid, "records", "must be unset in the request with options")
        violations.raise_if_any()
        return request.options

    async def batch(self, request: pb.ImportRequest, options: pb.ImportOptions, *, after: int) -> ImportBatch:
        """Returns the batch in a further request, whose number must be greater than that of the last one."""
        violations = Violations(self._max_batch_size)
        if request.HasField("options"):
            violations.add(FieldInvalid, "options", "must be unset after the first request")
        if request.batch <= after:
            violations.add(FieldInvalid, "batch", f"must be greater than {after}")
        violations.check_batch_size("records", request.records)
        violations.raise_if_any()
        return await self._batch(request, options.on_conflict, dry_run=options.validate_only, is_part=True)

    async def only_batch(self, request: pb.ImportRecordsRequest) -> ImportBatch:
        """Returns the batch of ImportRecords."""
        violations = Violations(self._max_batch_size)
        check_policy(request.on_conflict, "on_conflict", violations)
        violations.check_batch_size("records", request.records)
        violations.raise_if_any()
        return await self._batch(request, request.on_conflict, dry_run=request.validate_only, is_part=False)

    async def _batch(
        self,
        request: pb.ImportRequest | pb.ImportRecordsRequest,
        policy: int,
        *,
        dry_run: bool,
        is_part: bool,
    ) -> ImportBatch:
        records: list[ImportedRecord] = []
        errors: list[RecordError] = []
        for index, message in enumerate(request.records):
            if index % CHECKED_AT_ONCE == CHECKED_AT_ONCE - 1:
                await asyncio.sleep(0)
            record = self._record(message, index)
            if isinstance(record, RecordError):
                errors.append(record)
            else:
                records.append(record)
        return ImportBatch(
            records=records,
            errors=errors,
            on_conflict=ConflictPolicy(policy),
            size=request.ByteSize(),
            dry_run=dry_run,
            is_part=is_part,
        )

    def _record(self, message: pb.Record, index: int) -> ImportedRecord | RecordError:
        name = message.WhichOneof("resource")
        if name is None:
            return _error(index, ("resource", "post or comment is required"))
        kind, state = _KINDS[name], _STATES.get(message.state)
        if state is None:
            return _error(index, ("state", "is unknown"))
        inner = getattr(message, name)
        resource = kind.resource(inner)
        for field, description in self._problems(kind, state, message, inner, resource):
            return _error(index, (field, description))
        # An export has etags, and leaves out times that are not known.
        unset = [it for it in ("create_time", "update_time") if getattr(resource, it) is None]
        values: dict[str, Any] = {"version": _version(inner.etag)}
        if message.ancestor_ids:
            values["path"] = "".join([f"{it:0{LEVEL_DIGITS}x}" for it in message.ancestor_ids])
        return ImportedRecord(
            kind=kind.kind,
            state=state,
            resource=replace(resource, **values),
            deleted_with=message.deleted_with,
            index=index,
            unset=frozenset() if inner.etag else frozenset(["version", *unset]),
            post_external_id=message.post_external_id,
            reply_to_external_id=message.reply_to_external_id,
            depth=inner.depth if name == "comment" else 0,
        )

    def _problems(
        self, kind: _Imported, state: RecordState, message: pb.Record, inner: Any, resource: Any
    ) -> Iterator[_Problem]:
        """Yields the violations of a record."""
        name = kind.name
        if not 0 <= resource.id <= LARGEST_ID:
            yield f"{name}.id", f"must be between 1 and {LARGEST_ID}"
        elif not resource.id and state is not RecordState.LIVE:
            yield f"{name}.id", "is required"
        elif not resource.id and not resource.external_id:
            yield f"{name}.id", "is required, unless external_id is set"
        yield from self._content_problems(kind, state, message, resource)
        for field in _TIMES:
            time = getattr(inner, field)
            if (time.seconds or time.nanos) and (
                not _MIN_SECONDS <= time.seconds <= _MAX_SECONDS
                or not 0 <= time.nanos < 1_000_000_000
                or time.nanos % 1000
            ):
                yield f"{name}.{field}", "must be in the years 1 to 9999, in microseconds"
        yield from _state_problems(name, state, inner, resource)
        if name == "comment":
            yield from _link_problems(state, message, resource)
        else:
            for field in ("post_external_id", "reply_to_external_id", "ancestor_ids", "deleted_with"):
                if getattr(message, field):
                    yield field, "must be unset for a post"

    def _content_problems(
        self, kind: _Imported, state: RecordState, message: pb.Record, resource: Any
    ) -> Iterator[_Problem]:
        for field in kind.content:
            value = getattr(resource, field)
            if field == "body" and not value and (resource.delete_time is not None or kind.name == "post"):
                # Tombstones, and posts whose author was erased, have no body.
                continue
            if field == "post_id" and not value:
                continue
            for description in self._rules[field](value):
                yield f"{kind.name}.{field}", description
        for field, text in (
            ("post_external_id", message.post_external_id),
            ("reply_to_external_id", message.reply_to_external_id),
        ):
            for description in self._rules["external_id"](text):
                yield field, description


def _state_problems(name: str, state: RecordState, inner: Any, resource: Any) -> Iterator[_Problem]:
    """Yields violations of the rules for the etag, the times and the content of a state."""
    is_empty = not (resource.body or resource.author or resource.labels or resource.external_id)
    is_deleted = resource.delete_time is not None
    if inner.etag:
        found = _ETAG.fullmatch(inner.etag)
        if not found or int(found[1], 16) > LARGEST_ID:
            yield f"{name}.etag", "is not an etag of this service"
        elif bool(found[2]) != (is_deleted and not resource.body):
            yield f"{name}.etag", "is that of a resource in another state"
    elif state is RecordState.REVISION or not (resource.body or is_deleted):
        yield f"{name}.etag", "is required" if resource.body else "is required, because body is empty"
    if state is RecordState.REVISION:
        for field in _NEVER_IN_REVISIONS:
            if inner.HasField(field) if field in _TIMES else getattr(resource, field, None):
                yield f"{name}.{field}", "must be unset in a former version"
    elif not resource.body and not is_empty:
        yield f"{name}.body", "must not be empty"
    if state is RecordState.DELETED:
        if not is_deleted:
            yield f"{name}.delete_time", "is required"
        if resource.purge_time is None and (name == "post" or not is_empty):
            yield f"{name}.purge_time", "is required"
    elif is_deleted and (name == "post" or not is_empty):
        yield f"{name}.delete_time", "must be unset, because the record is not in RECORD_STATE_DELETED"
    if resource.purge_time is not None and not is_deleted:
        yield f"{name}.purge_time", "requires delete_time"


def _link_problems(state: RecordState, message: pb.Record, resource: Any) -> Iterator[_Problem]:
    """Yields violations of the rules for the place of a comment."""
    if state is RecordState.REVISION:
        for field in ("post_external_id", "reply_to_external_id", "ancestor_ids"):
            if getattr(message, field):
                yield field, "must be unset in a former version"
        if message.comment.depth:
            yield "comment.depth", "must be unset in a former version"
    elif bool(resource.post_id) == bool(message.post_external_id):
        yield "comment.post_id", "is required, or post_external_id instead"
    if resource.reply_to_id and message.reply_to_external_id:
        yield "reply_to_external_id", "must be unset if comment.reply_to_id is set"
    if resource.id and resource.reply_to_id >= resource.id:
        yield "comment.reply_to_id", "must be less than comment.id"
    ancestor_ids = list(message.ancestor_ids)
    if ancestor_ids and (
        ancestor_ids[-1] != resource.reply_to_id
        or ancestor_ids[0] < 1
        or any(one >= next for one, next in pairwise(ancestor_ids))
    ):
        yield "ancestor_ids", "must be ascending, and end with comment.reply_to_id"
    if message.comment.depth < 0:
        yield "comment.depth", "must not be negative"
    if message.deleted_with < -1:
        yield "deleted_with", "must be the id of a comment, or -1"
    elif message.deleted_with and state is not RecordState.DELETED:
        yield "deleted_with", "requires RECORD_STATE_DELETED"


def _version(etag: str) -> int:
    found = _ETAG.fullmatch(etag)
    return int(found[1], 16) if found else 0


def _error(index: int, problem: _Problem) -> RecordError:
    field, description = problem
    return RecordError(
        index=index, reason=RecordErrorReason.FIELD_INVALID, field=field, description=description
    )
