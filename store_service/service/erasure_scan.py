"""Finds what an author wrote in the change feed and in stored responses, and removes the content.

Neither has an index of authors, so all of it is read, in steps on a reader. Only what is found is written.
The feed is read from its end: a change that an erasure has added shows that the content of all
earlier changes of the same resource has to be removed. So the scan needs nothing from an earlier one that was
interrupted.
"""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from store_service.database import erasure_scan as sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.idempotency import ANSWERS_BY_ID
from store_service.database.statements import as_json
from store_service.model import CONTENT_TEXTS, ErasedIds, ResourceKind

SCAN_ROWS = 500
"""Maximum number of changes or stored responses that one step reads."""

SCAN_BYTES = 1024 * 1024
"""Maximum total size of them. A single one may exceed it."""

WRITE_SIZE = 512 * 1024
"""The size of a job that writes, so that it has a batch of its own."""

_END = 2**62


@dataclass(frozen=True, slots=True)
class _ChangesBefore:
    """Changes to read, before a position."""

    author: str = field(repr=False)
    xid: int
    seq: int


@dataclass(frozen=True, slots=True)
class _Changes:
    """The changes that were read."""

    next: _ChangesBefore
    rows: Sequence[Any]
    """See FIND_CHANGES."""


@dataclass(frozen=True, slots=True)
class _Responses:
    """The stored responses that were read."""

    last_id: str
    """The id of the last one; empty at the end."""
    rows: Sequence[tuple[str, str]]
    """Id and text."""


def _length(sizes: Sequence[int]) -> int:
    """Returns how many rows of these sizes one step reads; at least one."""
    return max(sum(total <= SCAN_BYTES for total in accumulate(sizes)), 1)


async def clear_changes(
    database: Database, author: str, erased: ErasedIds, *, dry_run: bool
) -> AsyncIterator[tuple[int, float]]:
    """Removes the content of the changes of an author and of erased resources.

    Yields the number of changes after each step, and how much of the feed has been read.

    Args:
        database: The open database.
        author: The author.
        erased: The resources that are erased. Those with a change without content are added.
        dry_run: Only counts the changes.
    """
    oldest = await database.read(_OLDEST, None)
    before = _ChangesBefore(author, _END, _END)
    newest = 0
    while True:
        found = await database.read(_FIND_CHANGES, before)
        if not found.rows:
            return
        before = found.next
        newest = newest or found.rows[0][0]
        to_clear: list[int] = []
        for seq, kind, id, has_content, is_erasure, is_of_author, version in found.rows:
            if has_content and (is_of_author or erased.has(kind, id)):
                to_clear.append(seq)
            elif is_erasure:
                erased.add(ResourceKind(kind), [id], version=version)
        if to_clear and not dry_run:
            await database.write(CLEAR_CHANGES, to_clear, size=WRITE_SIZE)
        yield len(to_clear), (newest - before.seq) / max(newest - oldest, 1)


async def _find_each(connection: Connection, jobs: Sequence[_ChangesBefore]) -> list[_Changes]:
    return [await _find_changes(connection, it) for it in jobs]


async def _find_changes(connection: Connection, before: _ChangesBefore) -> _Changes:
    position = {"before_xid": before.xid, "before_seq": before.seq}
    sizes = await connection.fetch(sql.SIZES_BEFORE, limit=SCAN_ROWS, **position)
    if not sizes:
        return _Changes(before, ())
    from_xid, from_seq, _ = sizes[_length([size for _, _, size in sizes]) - 1]
    rows = await connection.fetch(
        sql.FIND_CHANGES, author=before.author, from_xid=from_xid, from_seq=from_seq, **position
    )
    return _Changes(_ChangesBefore(before.author, from_xid, from_seq), rows)


async def _oldest(connection: Connection, jobs: Sequence[None]) -> list[int]:
    ((oldest,),) = await connection.fetch(sql.OLDEST_CHANGE)
    return [oldest] * len(jobs)


async def _clear_each(connection: Connection, jobs: Sequence[Sequence[int]]) -> list[None]:
    for seqs in jobs:
        await connection.fetch(sql.CLEAR_CHANGES, seqs=as_json(seqs))
    return [None] * len(jobs)


async def clear_responses(
    database: Database, author: str, erased: ErasedIds, *, dry_run: bool
) -> AsyncIterator[tuple[int, float]]:
    """Removes the content of resources of an author, and of erased resources, from stored responses.

    The responses remain, so a replay is not executed. Yields the same as `clear_changes`.
    """
    last_id = ""
    while True:
        found = await database.read(_READ_RESPONSES, last_id)
        if not found.last_id:
            return
        last_id = found.last_id
        cleared = [(id, text) for id, stored in found.rows if (text := _cleared(stored, author, erased))]
        if cleared and not dry_run:
            await database.write(SET_RESPONSES, cleared, size=WRITE_SIZE)
        yield len(cleared), _position(last_id)


def _cleared(text: str, author: str, erased: ErasedIds) -> str | None:
    """Returns a stored response without the content that is erased; None if it has none."""
    stored = json.loads(text)
    is_changed = False
    for item in stored["items"]:
        kind = ResourceKind.COMMENT if "post_id" in item else ResourceKind.POST
        if not any(item.get(it) for it in CONTENT_TEXTS):
            continue
        if item.get("author") == author or erased.has(kind, item["id"], version=item["version"]):
            item.update(dict.fromkeys(CONTENT_TEXTS, ""))
            is_changed = True
    return as_json(stored) if is_changed else None


def _position(request_id: str) -> float:
    """Returns the position of a UUID among all UUIDs, which are random."""
    try:
        return int(request_id[:4], 16) / 0x10000
    except ValueError:
        return 1.0


async def _read_responses(connection: Connection, after: Sequence[str]) -> list[_Responses]:
    return [await _responses_after(connection, it) for it in after]


async def _responses_after(connection: Connection, after: str) -> _Responses:
    sizes = await connection.fetch(sql.RESPONSE_SIZES, after=after, limit=SCAN_ROWS)
    if not sizes:
        return _Responses("", ())
    ids = [id for id, _ in sizes[: _length([size for _, size in sizes])]]
    rows = await connection.fetch(ANSWERS_BY_ID, ids=as_json(ids))
    return _Responses(ids[-1], [(id, text) for id, text in rows])


async def _set_each(connection: Connection, jobs: Sequence[Sequence[tuple[str, str]]]) -> list[None]:
    for responses in jobs:
        changed = [(n, id, len(text), text) for n, (id, text) in enumerate(responses)]
        await connection.fetch(sql.SET_RESPONSES, changed=as_json(changed))
    return [None] * len(jobs)


_FIND_CHANGES: BatchOperation[_ChangesBefore, _Changes] = BatchOperation(_find_each)
_OLDEST: BatchOperation[None, int] = BatchOperation(_oldest)
CLEAR_CHANGES: BatchOperation[Sequence[int], None] = BatchOperation(_clear_each, name="clear changes")
_READ_RESPONSES: BatchOperation[str, _Responses] = BatchOperation(_read_responses)
SET_RESPONSES: BatchOperation[Sequence[tuple[str, str]], None] = BatchOperation(
    _set_each, name="set responses"
)
