"""Rules that all resources share: reads by id, etags, updates, and the maximum size of a response."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, Generic, TypeVar

from store_service.database.changes import CLOCK
from store_service.database.connection import Connection
from store_service.database.statements import Statement, as_json
from store_service.errors import (
    EtagMismatch,
    FieldImmutable,
    FieldInvalid,
    NotFound,
    ResponseTooLarge,
    ServiceError,
    Violation,
)
from store_service.model import (
    BatchResult,
    Comment,
    CommentDraft,
    Deletion,
    DeletionTimes,
    Post,
    PostDraft,
    Update,
    concatenated_texts,
    format_etag,
    labels_from_text,
    labels_to_text,
)

MAX_RESPONSE_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""Maximum size of the resources in a response: the 4 MiB of a gRPC message, less room for other fields."""

MAX_HELD_BYTES = 16 * 1024 * 1024
"""Maximum memory for the responses that one batch has read. It defers the jobs after that."""

MAX_LABELS = 64
"""Maximum number of labels of a resource."""

INLINE_IDS = 64
"""Maximum number of ids that `Connection.fetch_inline` reads."""

READ_IDS = 1000
"""Approximate number of rows that one statement reads by id: the maximum of one batch request."""

_BYTES_PER_ID = 4096
"""Assumed size of a row that a write reads, because the real size is not known before the read."""

_BYTES_BESIDES_BODY = 80
"""Maximum size on the wire of id, post_id, times and etag."""

R = TypeVar("R", Post, Comment)
K = TypeVar("K", int, str)
Command = TypeVar("Command")
Outcome = TypeVar("Outcome")


def not_stored(resources: Iterable[R]) -> list[R]:
    """Returns resources as the response of a create with validate_only has them."""
    return [replace(it, id=0, create_time=None, update_time=None, version=0) for it in resources]


def now_microseconds() -> int:
    """Returns the current time in microseconds since 1970."""
    return time.time_ns() // 1000


def check_response_size(items: Iterable[Post | Comment | PostDraft | CommentDraft]) -> int:
    """Returns the size of a response with these resources, in bytes.

    Raises:
        ResponseTooLarge: The response would not fit into a message.
    """
    size = sum([len(concatenated_texts(item).encode()) + _BYTES_BESIDES_BODY for item in items])
    if size > MAX_RESPONSE_BYTES:
        raise ResponseTooLarge(max_bytes=MAX_RESPONSE_BYTES)
    return size


def existing_size(drafts: Sequence[PostDraft | CommentDraft]) -> int:
    """Returns the approximate size of the resources that have the external ids of drafts, in bytes."""
    return _BYTES_PER_ID * len(drafts)


def update_size(updates: Sequence[Update]) -> int:
    """Returns the approximate size of updates in a transaction, in bytes."""
    return _BYTES_PER_ID * len(updates) + sum(
        [len(value.encode()) for it in updates for value in it.values.values() if isinstance(value, str)]
    )


def deletion_size(deletion: Deletion) -> int:
    """Returns the approximate size of a deletion in a transaction, in bytes."""
    return _BYTES_PER_ID * len(deletion.ids)


async def read_by_id(
    connection: Connection,
    batches: Sequence[Sequence[K]],
    statement: Statement,
    from_row: Callable[[Any], R],
    *,
    key: Callable[[R], K] = attrgetter("id"),
) -> list[Mapping[K, R] | ServiceError]:
    """Returns the stored resources of each batch of ids, by id; or of external ids, with another `key`.

    Batches that are read together share one mapping, so a mapping can contain resources of other batches.
    A batch whose response would be too large gets ResponseTooLarge. About READ_IDS resources are in memory
    before that is known, so that many such batches do not fill the memory.
    """
    outcomes: list[Mapping[K, R] | ServiceError] = []
    for group, ids in _grouped(batches):
        fetch = connection.fetch_inline if len(ids) <= INLINE_IDS else connection.fetch
        rows = await fetch(statement, ids=as_json(list(ids)))
        stored = {key(it): it for it in map(from_row, rows)}
        if (
            len(ids) <= INLINE_IDS
            or sum([len(concatenated_texts(it)) for it in stored.values()]) <= MAX_RESPONSE_BYTES
        ):
            outcomes += [stored] * len(group)
        else:
            outcomes += [_checked({id: stored[id] for id in batch if id in stored}) for batch in group]
    return outcomes


def reader_of_one(
    statement: Statement, from_row: Callable[[Any], R], *, key: Callable[[R], K] = attrgetter("id")
) -> Callable[[Connection, Sequence[K]], Mapping[K, R] | None]:
    """Returns the `run_one` of a read by id, whose statement has the parameter `id`."""

    def run_one(connection: Connection, ids: Sequence[K]) -> Mapping[K, R] | None:
        if len(ids) != 1:
            return None
        return {key(it): it for it in map(from_row, connection.fetch_now(statement, id=ids[0]))}

    return run_one


def _grouped(batches: Sequence[Sequence[K]]) -> Iterator[tuple[list[Sequence[K]], set[K]]]:
    """Yields groups of batches, with the ids that one statement reads for them."""
    group: list[Sequence[K]] = []
    ids: set[K] = set()
    for batch in batches:
        if group and len(ids) + len(batch) > READ_IDS:
            yield group, ids
            group, ids = [], set()
        group.append(batch)
        ids.update(batch)
    yield group, ids


def _checked(found: Mapping[K, R]) -> Mapping[K, R] | ServiceError:
    try:
        check_response_size(found.values())
    except ResponseTooLarge as error:
        return error
    return found


def select_by_id(
    ids: Sequence[int], stored: Mapping[int, R], *, allow_missing: bool, not_found: type[NotFound]
) -> BatchResult[R]:
    """Returns the stored resources with the given ids, in the order of the ids.

    Raises:
        NotFound: Some do not exist and `allow_missing` is not set; as the subclass `not_found`.
        ResponseTooLarge: Together they do not fit into a message.
    """
    missing_ids = tuple(id for id in ids if id not in stored)
    if missing_ids and not allow_missing:
        raise not_found(ids=missing_ids)
    items = tuple(stored[id] for id in ids if id in stored)
    check_response_size(items)
    return BatchResult(items=items, missing_ids=missing_ids)


def select_by_either(
    ids: Sequence[int],
    by_id: Mapping[int, R],
    external_ids: Sequence[str],
    by_external_id: Mapping[str, R],
    *,
    not_found: type[NotFound] | None,
) -> BatchResult[R]:
    """Returns the stored resources in the order of the ids, followed by those of the external ids.

    Raises:
        NotFound: Some do not exist, as the subclass `not_found`; not if that is None.
        ResponseTooLarge: Together they do not fit into a message.
    """
    missing_ids = tuple([it for it in ids if it not in by_id])
    missing = tuple([it for it in external_ids if it not in by_external_id])
    if not_found is not None and (missing_ids or missing):
        raise not_found(ids=missing_ids, external_ids=missing)
    items = [by_id[it] for it in ids if it in by_id]
    items += [by_external_id[it] for it in external_ids if it in by_external_id]
    check_response_size(items)
    return BatchResult(items=tuple(items), missing_ids=missing_ids, missing_external_ids=missing)


class Selection(Generic[R]):
    """The resources with the ids of one batch request, shared by all callers that request the same ids."""

    def __init__(self, ids: Sequence[int], stored: Mapping[int, R], not_found: type[NotFound]) -> None:
        """Takes the ids, the stored resources, and the error for ids that do not exist."""
        self._ids = ids
        self._stored: Mapping[int, R] = stored
        self._not_found = not_found
        self._result: BatchResult[R] | None = None

    def result(self, *, allow_missing: bool) -> BatchResult[R]:
        """Returns the resources in the order of the ids; raises like `select_by_id`."""
        if self._result is None:
            self._result = select_by_id(
                self._ids, self._stored, allow_missing=True, not_found=self._not_found
            )
        if self._result.missing_ids and not allow_missing:
            raise self._not_found(ids=self._result.missing_ids)
        return self._result


async def find_by_id(
    connection: Connection,
    batches: Sequence[Sequence[int]],
    statement: Statement,
    from_row: Callable[[Any], R],
    not_found: type[NotFound],
) -> list[Selection[R] | ServiceError]:
    """Returns the resources of each batch of ids; the same object for equal batches."""
    distinct = list(dict.fromkeys(map(tuple, batches)))
    outcomes = await read_by_id(connection, distinct, statement, from_row)
    selections: dict[tuple[int, ...], Selection[R] | ServiceError] = {
        ids: stored if isinstance(stored, ServiceError) else Selection(ids, stored, not_found)
        for ids, stored in zip(distinct, outcomes, strict=True)
    }
    return [selections[tuple(ids)] for ids in batches]


def apply_update(update: Update, stored: R, *, now: int) -> R:
    """Returns the resource after an update.

    Raises:
        EtagMismatch: The resource has changed since the caller read it.
        FieldImmutable: The update would change an immutable or output-only field.
    """
    check_etag(update.etag, stored)
    violations = [
        Violation(
            error=FieldImmutable,
            field=f"{update.request_field}.{field}",
            description="cannot be changed, and differs from the stored value; leave it unset",
        )
        for field, value in update.unchangeable
        if getattr(stored, field) != value
    ]
    if violations:
        raise FieldImmutable(violations)
    values = dict(update.values)
    if update.changed_labels:
        values["labels"] = _changed_labels(update, stored)
    if not values:
        return stored
    return replace(stored, **values, update_time=now, version=stored.version + 1)


def _changed_labels(update: Update, stored: Post | Comment) -> str:
    labels = labels_from_text(stored.labels)
    for key, value in update.changed_labels:
        if value is None:
            labels.pop(key, None)
        else:
            labels[key] = value
    if len(labels) > MAX_LABELS:
        raise FieldInvalid.at(
            f"{update.request_field}.labels", f"would have {len(labels)} labels; the maximum is {MAX_LABELS}"
        )
    return labels_to_text(labels)


def check_etag(etag: str, stored: Post | Comment) -> None:
    """Checks that a resource has the etag of the request. An empty etag is not checked.

    Raises:
        EtagMismatch: The resource has changed since the caller read it.
    """
    current = format_etag(stored.version)
    if etag and etag != current:
        raise EtagMismatch(resource_type=type(stored).__name__, id=stored.id, current_etag=current)


def select_for_deletion(
    deletion: Deletion, stored: Mapping[int, R], *, not_found: type[NotFound]
) -> BatchResult[R]:
    """Returns the resources that a deletion deletes.

    Raises:
        NotFound: Some do not exist and `allow_missing` is not set; as the subclass `not_found`.
        EtagMismatch: The resource has changed since the caller read it.
        ResponseTooLarge: The deleted resources do not fit into a message.
    """
    found = select_by_id(deletion.ids, stored, allow_missing=deletion.allow_missing, not_found=not_found)
    for item in found.items:
        check_etag(deletion.etag, item)
    return found


async def deletion_times(connection: Connection, undelete_microseconds: int) -> DeletionTimes:
    """Returns the times of resources that are deleted now.

    Those that can be restored have times of the database, because these also decide when they are purged.
    """
    now = now_microseconds()
    if not undelete_microseconds:
        return DeletionTimes(delete_time=now)
    ((wall, _),) = await connection.fetch(CLOCK, now=now)
    return DeletionTimes(delete_time=wall, purge_time=wall + undelete_microseconds)


def with_times(deleted: BatchResult[R], times: DeletionTimes) -> BatchResult[R]:
    """Returns deleted resources with their times, if they can be restored."""
    if not times.can_be_restored:
        return deleted
    items = [replace(it, delete_time=times.delete_time, purge_time=times.purge_time) for it in deleted.items]
    return replace(deleted, items=tuple(items))


def decide(
    commands: Sequence[Command], decision: Callable[[Command], Outcome]
) -> list[Outcome | ServiceError]:
    """Returns the outcome of each command: the result of `decision`, or the error that it raises."""
    outcomes: list[Outcome | ServiceError] = []
    for command in commands:
        try:
            outcomes.append(decision(command))
        except ServiceError as error:
            outcomes.append(error)
    return outcomes


def numbered(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Returns rows with their index as the first column."""
    return [(n, *row) for n, row in enumerate(rows)]


def state_before(before: Post | Comment, after: Post | Comment) -> str | None:
    """Returns what a change stores about the state before an update; see `Change.before`."""
    if (before.author, before.labels) == (after.author, after.labels):
        return None
    return as_json({"author": before.author, "labels": before.labels})
