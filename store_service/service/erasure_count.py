"""Counts what an erasure would erase, in steps on a reader."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from store_service.database import comments as comment_sql
from store_service.database import erasure as sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.model import ErasedIds, EraseMode, Erasure, ErasureProgress, ResourceKind, path_below
from store_service.service.comment_removal import rows_of_thread
from store_service.service.erasure_steps import COMMENT, POST, SOURCES

PAGE_ROWS = 200
"""Maximum number of rows that one step reads."""

PAGE_BYTES = 4 * 1024 * 1024
"""Maximum total size of their bodies, which SQLite reads."""


@dataclass(frozen=True, slots=True)
class _Page:
    """The resources of an author in one table after an id."""

    author: str = field(repr=False)
    source: tuple[ResourceKind, bool]
    after: int


@dataclass(frozen=True, slots=True)
class _Below:
    """The comments below a post or comment, the last ones in thread order first."""

    post_id: int
    key: str
    before: str
    is_deleted: bool


async def count_resources(
    database: Database, erasure: Erasure, erased: ErasedIds, progress: ErasureProgress
) -> AsyncIterator[None]:
    """Counts posts, comments and former versions, and collects the posts and comments. Yields after each
    step."""
    for source in SOURCES:
        after = 0
        while rows := await database.read(_PAGE, _Page(erasure.author, source, after)):
            after = rows[-1][0]
            erased.add(source[0], [id for id, *_ in rows])
            if erasure.mode is EraseMode.DELETE:
                for id, post_id, path, _ in rows:
                    key = path_below(path, id) if source[0] is COMMENT else ""
                    async for ids in _below(database, post_id, key):
                        erased.add(COMMENT, ids)
                        yield
            progress.posts, progress.comments = len(erased.versions[POST]), len(erased.versions[COMMENT])
            yield
    for kind, found in erased.versions.items():
        for part in _parts(sorted(found)):
            progress.revisions += await database.read(_COUNT_REVISIONS, (kind, part))
            yield
    position = (0, 0, 0)
    while rows := await database.read(_REVISIONS_PAGE, (erasure.author, position)):
        position = rows[-1]
        progress.revisions += sum(not erased.has(kind, id) for kind, id, _ in rows)
        yield


async def _below(database: Database, post_id: int, key: str) -> AsyncIterator[list[int]]:
    for is_deleted in (False, True):
        before = ""
        while True:
            ids, before, is_complete = await database.read(_BELOW, _Below(post_id, key, before, is_deleted))
            yield ids
            if is_complete:
                break


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), PAGE_ROWS):
        yield ids[start : start + PAGE_ROWS]


async def _pages(connection: Connection, pages: Sequence[_Page]) -> list[Sequence[Any]]:
    return [
        await connection.fetch(
            sql.AUTHORS[it.source].of_author, author=it.author, after=it.after, limit=PAGE_ROWS
        )
        for it in pages
    ]


async def _below_each(connection: Connection, jobs: Sequence[_Below]) -> list[tuple[list[int], str, bool]]:
    return [await _below_one(connection, it) for it in jobs]


async def _below_one(connection: Connection, job: _Below) -> tuple[list[int], str, bool]:
    """Returns those with content, the position of the last row, and whether these are all."""
    statement = comment_sql.ROWS_OF_DELETED_THREAD if job.is_deleted else comment_sql.ROWS_OF_THREAD
    found = await rows_of_thread(
        connection,
        job.post_id,
        job.key,
        before=job.before,
        rows=PAGE_ROWS,
        bytes=PAGE_BYTES,
        statement=statement,
    )
    with_content = sql.AUTHORS[COMMENT, job.is_deleted].with_content
    rows = await connection.fetch(with_content, ids=as_json(found.ids)) if found.ids else ()
    return [id for (id,) in rows], found.last_key, found.is_complete


async def _count_revisions(
    connection: Connection, jobs: Sequence[tuple[ResourceKind, Sequence[int]]]
) -> list[int]:
    counts = []
    for kind, ids in jobs:
        ((count,),) = await connection.fetch(sql.COUNT_REVISIONS, kind=kind, ids=as_json(ids))
        counts.append(count)
    return counts


async def _revisions_pages(
    connection: Connection, jobs: Sequence[tuple[str, tuple[int, int, int]]]
) -> list[Sequence[Any]]:
    return [
        await connection.fetch(
            sql.AUTHOR_REVISIONS_AFTER,
            author=author,
            kind=kind,
            resource_id=id,
            version=version,
            limit=PAGE_ROWS,
        )
        for author, (kind, id, version) in jobs
    ]


_PAGE: BatchOperation[_Page, Sequence[Any]] = BatchOperation(_pages)
_BELOW: BatchOperation[_Below, tuple[list[int], str, bool]] = BatchOperation(_below_each)
_COUNT_REVISIONS: BatchOperation[tuple[ResourceKind, Sequence[int]], int] = BatchOperation(_count_revisions)
_REVISIONS_PAGE: BatchOperation[tuple[str, tuple[int, int, int]], Sequence[Any]] = BatchOperation(
    _revisions_pages
)
