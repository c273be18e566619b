"""What posts and comments have in common: batches of ids, updates with etags, sizes of answers."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from store_service.database.connection import Connection
from store_service.database.statements import Statement, as_json
from store_service.errors import (
    EtagMismatch,
    FieldImmutable,
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
    Post,
    PostDraft,
    Update,
    concatenated_texts,
    format_etag,
)

MAX_ANSWER_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""Answers stay below gRPC's 4 MiB for a message, with room for what is not a body."""

MAX_HELD_BYTES = 16 * 1024 * 1024
"""When the answers that a batch has read take as much memory as this, it reads no more of them."""

FEW = 64
"""Up to so many rows by their ids are read where that is quickest."""

READ_IDS = 1000
"""About so many rows are read by their ids at a time, as many as one batch may name."""

_BYTES_OF_AN_ID = 4096
"""What counts for a row that a write is to read: how large it is, is not known before."""

_BYTES_BESIDE_THE_BODY = 80
"""At most this much of a message is id, post_id, times and etag."""

R = TypeVar("R", Post, Comment)
IdempotencyKey = TypeVar("IdempotencyKey")
Outcome = TypeVar("Outcome")


def now_microseconds() -> int:
    """The time, as the tables hold it."""
    return time.time_ns() // 1000


def check_answer_size(items: Iterable[Post | Comment | PostDraft | CommentDraft]) -> int:
    """Refuses a batch whose answer would not fit in a message, and returns how large it is otherwise.

    Raises:
        ResponseTooLarge: It would not.
    """
    size = sum([len(concatenated_texts(item).encode()) + _BYTES_BESIDE_THE_BODY for item in items])
    if size > MAX_ANSWER_BYTES:
        raise ResponseTooLarge(max_bytes=MAX_ANSWER_BYTES)
    return size


def update_size(update: Update) -> int:
    """How large an update is among the writes that share a transaction."""
    return _BYTES_OF_AN_ID + sum(
        [len(value.encode()) for value in update.values.values() if isinstance(value, str)]
    )


def deletion_size(deletion: Deletion) -> int:
    """How large a deletion is among the writes that share a transaction."""
    return _BYTES_OF_AN_ID * len(deletion.ids)


async def read_by_id(
    connection: Connection,
    batches: Sequence[Sequence[int]],
    statement: Statement,
    of_row: Callable[[Any], R],
) -> list[Mapping[int, R] | ServiceError]:
    """What is stored under the ids of each batch, and perhaps more: each picks what it asked for.

    A batch that cannot fit in an answer gets ResponseTooLarge here, and no more than READ_IDS are held at a
    time before that is known, so that many such batches do not fill the memory.
    """
    outcomes: list[Mapping[int, R] | ServiceError] = []
    for group, ids in _read_together(batches):
        fetch = connection.fetch_inline if len(ids) <= FEW else connection.fetch
        rows = await fetch(statement, ids=as_json(list(ids)))
        stored = {row[0]: of_row(row) for row in rows}
        if (
            len(ids) <= FEW
            or sum([len(concatenated_texts(it)) for it in stored.values()]) <= MAX_ANSWER_BYTES
        ):
            outcomes += [stored] * len(group)
        else:
            outcomes += [_fitting({id: stored[id] for id in batch if id in stored}) for batch in group]
    return outcomes


def _read_together(batches: Sequence[Sequence[int]]) -> Iterator[tuple[list[Sequence[int]], set[int]]]:
    group: list[Sequence[int]] = []
    ids: set[int] = set()
    for batch in batches:
        if group and len(ids) + len(batch) > READ_IDS:
            yield group, ids
            group, ids = [], set()
        group.append(batch)
        ids.update(batch)
    yield group, ids


def _fitting(found: Mapping[int, R]) -> Mapping[int, R] | ServiceError:
    try:
        check_answer_size(found.values())
    except ResponseTooLarge as error:
        return error
    return found


def pick(
    ids: Sequence[int], stored: Mapping[int, R], *, allow_missing: bool, missing: type[NotFound]
) -> BatchResult[R]:
    """The resources that `ids` name, in that order.

    Raises:
        NotFound: Some are not there and `allow_missing` is not set; as the leaf `missing`.
        ResponseTooLarge: Together they do not fit in a message.
    """
    missing_ids = tuple(id for id in ids if id not in stored)
    if missing_ids and not allow_missing:
        raise missing(ids=missing_ids)
    items = tuple(stored[id] for id in ids if id in stored)
    check_answer_size(items)
    return BatchResult(items=items, missing_ids=missing_ids)


class Picked(Generic[R]):
    """The resources that the ids of a batch name, shared by all callers that ask for the same ids."""

    def __init__(self, ids: Sequence[int], stored: Mapping[int, R], missing: type[NotFound]) -> None:
        """Takes the stored resources, and the error for missing ones."""
        self._ids = ids
        self._stored: Mapping[int, R] = stored
        self._missing = missing
        self._found: BatchResult[R] | None = None

    def found(self, *, allow_missing: bool) -> BatchResult[R]:
        """The resources, in the order of the ids; raises as `pick` does."""
        if self._found is None:
            self._found = pick(self._ids, self._stored, allow_missing=True, missing=self._missing)
        if self._found.missing_ids and not allow_missing:
            raise self._missing(ids=self._found.missing_ids)
        return self._found


async def find_by_id(
    connection: Connection,
    batches: Sequence[Sequence[int]],
    statement: Statement,
    of_row: Callable[[Any], R],
    missing: type[NotFound],
) -> list[Picked[R] | ServiceError]:
    """What each batch of ids names; one object for equal batches."""
    distinct = list(dict.fromkeys(map(tuple, batches)))
    outcomes = await read_by_id(connection, distinct, statement, of_row)
    picked: dict[tuple[int, ...], Picked[R] | ServiceError] = {
        ids: stored if isinstance(stored, ServiceError) else Picked(ids, stored, missing)
        for ids, stored in zip(distinct, outcomes, strict=True)
    }
    return [picked[tuple(ids)] for ids in batches]


def updated(update: Update, stored: R | None, *, missing: type[NotFound], now: int) -> R:
    """What a resource becomes by an update.

    Raises:
        NotFound: It is not there; as the leaf `missing`.
        EtagMismatch: It was changed since the caller read it.
        FieldImmutable: The update would change what never changes.
    """
    if stored is None:
        raise missing(ids=[update.id])
    check_etag(update.etag, stored)
    violations = [
        Violation(
            error=FieldImmutable,
            field=f"{update.request_field}.{field}",
            description="never changes by an update, and this is not the stored value; leave it out",
        )
        for field, value in update.unchangeable
        if getattr(stored, field) != value
    ]
    if violations:
        raise FieldImmutable(violations)
    if not update.values:
        return stored
    return replace(stored, **update.values, update_time=now, version=stored.version + 1)


def check_etag(etag: str, stored: Post | Comment) -> None:
    """Lets pass what has the etag that the caller knows, or when the caller named none.

    Raises:
        EtagMismatch: It was changed since.
    """
    current = format_etag(stored.version)
    if etag and etag != current:
        raise EtagMismatch(resource_type=type(stored).__name__, id=stored.id, current_etag=current)


def deleted(deletion: Deletion, stored: Mapping[int, R], *, missing: type[NotFound]) -> BatchResult[R]:
    """What a deletion takes away, if nothing else forbids it.

    Raises:
        NotFound: Something is not there and may not be missing; as the leaf `missing`.
        EtagMismatch: It was changed since the caller read it.
        ResponseTooLarge: What is deleted does not fit in the answer.
    """
    found = pick(deletion.ids, stored, allow_missing=deletion.allow_missing, missing=missing)
    for item in found.items:
        check_etag(deletion.etag, item)
    return found


def decide(
    requests: Sequence[IdempotencyKey], decision: Callable[[IdempotencyKey], Outcome]
) -> list[Outcome | ServiceError]:
    """What comes of each request, in order: the result of `decision`, or the error that it raises."""
    outcomes: list[Outcome | ServiceError] = []
    for request in requests:
        try:
            outcomes.append(decision(request))
        except ServiceError as error:
            outcomes.append(error)
    return outcomes
