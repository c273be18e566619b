"""Removes deleted resources whose purge_time has passed, in small steps.

The change feed has no changes of it, because it has reported the deletions.
"""

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any

from store_service.database import comments as sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.comments import COMMENTS
from store_service.database.connection import Connection
from store_service.database.deletions import END_RESTORATIONS_OF_POSTS
from store_service.database.posts import POSTS
from store_service.database.statements import as_json
from store_service.model import ResourceKind

STEP_ROWS = 500
"""Maximum number of resources that one step removes."""

STEP_BYTES = 4 * 1024 * 1024
"""Maximum total size of their bodies, including those of former versions. A single resource may exceed it."""

KEEP_MICROSECONDS = 3_600_000_000
"""By how much the purge of comments that are being restored is delayed."""


async def _earliest(connection: Connection, jobs: Sequence[int]) -> list[int]:
    rows = [
        row
        for before in jobs[:1]
        for deleted in (POSTS.deleted, COMMENTS.deleted)
        for row in await connection.fetch(deleted.due, before=before, limit=1)
    ]
    return [min((row[2] for row in rows), default=0)] * len(jobs)


async def _purge(connection: Connection, jobs: Sequence[int]) -> list[None]:
    for before in jobs:
        await _purge_once(connection, before)
    return [None] * len(jobs)


async def _due(connection: Connection, before: int) -> tuple[ResourceKind, list[int]] | None:
    """Returns deleted resources whose purge_time is before a time, posts first.

    As long as a post can be restored, so can be the comments that were deleted with it.
    """
    for kind, deleted in ((ResourceKind.POST, POSTS.deleted), (ResourceKind.COMMENT, COMMENTS.deleted)):
        rows = await connection.fetch(deleted.due, before=before, limit=STEP_ROWS)
        sizes = accumulate(size for _, size, _ in rows)
        ids = [
            row[0]
            for n, (row, size) in enumerate(zip(rows, sizes, strict=True))
            if not n or size <= STEP_BYTES
        ]
        if ids:
            return kind, ids
    return None


async def _purge_once(connection: Connection, before: int) -> None:
    found = await _due(connection, before)
    if found is None:
        return
    kind, ids = found
    if kind is ResourceKind.COMMENT:
        kept = await connection.fetch(
            sql.KEEP_LONGER, ids=as_json(ids), before=before, later=before + KEEP_MICROSECONDS
        )
        await purge_comments(connection, list(set(ids).difference(id for (id,) in kept)))
        return
    await connection.fetch(END_RESTORATIONS_OF_POSTS, ids=as_json(ids))
    await connection.fetch(POSTS.deleted.remove, ids=as_json(ids))
    await connection.fetch(POSTS.revisions.remove, ids=as_json(ids))


async def purge_comments(connection: Connection, ids: Sequence[int]) -> None:
    """Removes deleted comments for good. Those with replies that can be restored stay without content."""
    parameter = as_json(list(ids))
    rows = await connection.fetch(sql.LINKS_OF, ids=parameter)
    tombstones = {id for (id,) in await connection.fetch(sql.EXISTING_IDS, ids=parameter)}
    needed = {id for (id,) in await connection.fetch(sql.WITH_DELETED_REPLIES, ids=parameter)}
    links: list[int] = []
    removed: list[int] = []
    by_depth: list[Any] = sorted(rows, key=lambda row: len(row[2]), reverse=True)
    for id, parent, _ in by_depth:
        if id in needed and id not in tombstones:
            links.append(id)
            needed.add(parent)
        else:
            removed.append(id)
    if tombstones:
        await connection.fetch(sql.CLOSE_TOMBSTONES, ids=as_json(list(tombstones)))
    if links:
        await connection.fetch(sql.KEEP_ONLY_LINKS, ids=as_json(links))
    await connection.fetch(COMMENTS.deleted.remove, ids=as_json(removed))
    await connection.fetch(COMMENTS.revisions.remove, ids=parameter)
    await _remove_childless_links(connection, {parent for id, parent, _ in rows if id in set(removed)})


async def _remove_childless_links(connection: Connection, ids: Collection[int]) -> None:
    ids = {id for id in ids if id}
    while ids:
        rows = await connection.fetch(sql.CHILDLESS_LINKS, ids=as_json(list(ids)))
        if not rows:
            return
        await connection.fetch(COMMENTS.deleted.remove, ids=as_json([id for id, _ in rows]))
        ids = {parent for _, parent in rows if parent}


EARLIEST: BatchOperation[int, int] = BatchOperation(_earliest)
"""The purge_time of the resource to purge first, if it is before a time; otherwise 0."""

PURGE: BatchOperation[int, None] = BatchOperation(_purge, name="purge")
"""Purges some resources before a time."""
