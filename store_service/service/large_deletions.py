"""Deletions of posts with many comments: how much one transaction removes, and who removes the rest.

What fits into the budget of a transaction is deleted in it. A post with more is marked: from that commit on
it and its comments do not exist for any caller, and their rows are removed in steps, each a small write
(docs/decisions/0031).
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from store_service.database import comments as comment_sql
from store_service.database import deletions as sql
from store_service.database import posts as post_sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.errors import ServiceError
from store_service.model import IdempotencyKey
from store_service.repeated_failure import RepeatedFailure
from store_service.service.idempotency import request_ids
from store_service.service.operations import now_microseconds

MAX_ROWS = 1000
"""Maximum number of comments of deleted posts that one transaction removes."""

MAX_BYTES = 1024 * 1024
"""Maximum size of their bodies together. One comment may exceed it alone."""

FETCH_ROWS = 200
"""Comments whose sizes are read at once: on SQLite reading the size of a body reads the body."""

MAX_POSTS = 100
"""Maximum number of marked posts that one step works on."""

STEP_SECONDS = 0.05
"""Pause after a step, in which other writers have the database to themselves."""

TAKEOVER_SECONDS = 1.0
"""After this time without a step by another process, this process continues the removal."""

IDLE_SECONDS = 10.0
"""How often it is looked whether another process has left something marked."""

log = structlog.get_logger("store_service.removal")


@dataclass
class Removable:
    """The comments of some posts, as far as they fit into a budget."""

    comments: dict[int, list[int]] = field(default_factory=dict)
    """Ids of comments by post."""
    complete: set[int] = field(default_factory=set)
    """The posts whose comments are all there."""
    rows: int = 0
    bytes: int = 0


async def removable(
    connection: Connection, post_ids: Collection[int], *, after: int = 0, rows: int = 0, bytes: int = 0
) -> Removable:
    """Finds the comments of posts that one transaction can remove, without reading many more.

    Args:
        connection: In a transaction that writes.
        post_ids: The posts.
        after: Only comments beyond this id; for a single post.
        rows: How many comments the transaction removes besides.
        bytes: How large those are.
    """
    assert not after or len(post_ids) == 1, "a place among the comments of one post"
    found = Removable(rows=rows, bytes=bytes)
    left = sorted(post_ids)
    while left:
        # One more row than fits shows whether a post is complete.
        limit = min(FETCH_ROWS, MAX_ROWS + 1 - found.rows)
        if after:
            sizes = await connection.fetch(
                sql.SIZES_OF_COMMENTS_AFTER, post_id=left[0], after=after, limit=limit
            )
        else:
            sizes = await connection.fetch(sql.SIZES_OF_COMMENTS, post_ids=as_json(left), limit=limit)
        for id, post_id, size in sizes:
            if found.rows == MAX_ROWS or (found.rows and found.bytes + size > MAX_BYTES):
                found.complete.update(it for it in left if it < post_id)
                return found
            found.comments.setdefault(post_id, []).append(id)
            found.rows += 1
            found.bytes += size
        if len(sizes) == limit:
            after, last, _ = sizes[-1]
        else:
            # All comments of the first post were read, or, without `after`, of every post.
            last = left[0] + 1 if after else left[-1] + 1
            after = 0
        found.complete.update(it for it in left if it < last)
        left = [it for it in left if it >= last]
    return found


async def remove_comments(
    connection: Connection, ids: Sequence[int], requests: Mapping[int, IdempotencyKey | None]
) -> None:
    """Deletes comments of deleted posts, and writes their changes.

    Args:
        connection: In a transaction that writes.
        ids: The comments.
        requests: The request that deletes each post, by post id.
    """
    if ids:
        await connection.write(
            comment_sql.DELETE_COMMENTS_OF_POSTS,
            ids=as_json(ids),
            requests=request_ids(requests.items()),
            now=now_microseconds(),
        )


Mark = tuple[int, int]
"""A post that is marked, and up to which id its comments are removed."""


class Remover:
    """Removes the rows of posts that are marked. Of several processes one does so at a time."""

    def __init__(self, database: Database) -> None:
        """Takes the open database."""
        self._database = database
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Looks for marked posts now, because this process may just have marked one."""
        self._woken.set()

    async def run(self) -> None:
        """Works until it is cancelled."""
        failure = RepeatedFailure(
            log, "cannot remove deleted posts", end_event="deleted posts are removed again"
        )
        expected: Mark | None = None
        while True:
            try:
                # Each step moves a mark. Where it has not moved since this process looked, or made a step
                # itself, no other process is at work.
                found = await self._database.read(_LOOK, expected)
                if found is not None and found == expected:
                    expected = await self._database.write(_STEP, found, size=MAX_BYTES)
                    pause = STEP_SECONDS
                else:
                    expected = found
                    pause = IDLE_SECONDS if found is None else TAKEOVER_SECONDS
                failure.ended()
            except ServiceError as error:
                failure.failed(error=type(error).__name__, cause=str(error.__cause__ or error))
                pause = IDLE_SECONDS
            except Exception as error:
                # A bug; but nothing would ever be removed again if this task ended.
                failure.failed(exc_info=error)
                pause = IDLE_SECONDS
            await self._rest(pause)

    async def _rest(self, seconds: float) -> None:
        if seconds < IDLE_SECONDS:
            await asyncio.sleep(seconds)
            return
        try:
            # Not wait_for, which on Python 3.11 can swallow the cancellation of this task.
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()


async def _look(connection: Connection, asked: Sequence[Mark | None]) -> list[Mark | None]:
    return [await _first(connection, expected) for expected in asked]


async def _first(connection: Connection, expected: Mark | None) -> Mark | None:
    """The expected mark, however far it is by now, or else another one."""
    rows = await connection.fetch(sql.MARKS, post_id=expected[0] if expected else 0, limit=1)
    return (rows[0][0], rows[0][1]) if rows else None


async def _step(connection: Connection, asked: Sequence[Mark]) -> list[Mark | None]:
    return [await _step_once(connection, expected) for expected in asked]


async def _step_once(connection: Connection, expected: Mark) -> Mark | None:
    """Removes some comments, and posts that have none left; returns the mark that the next step expects."""
    marks = await connection.fetch(sql.MARKS, post_id=expected[0], limit=MAX_POSTS)
    if not marks or tuple(marks[0][:2]) != expected:
        # Another process has made a step in between.
        return await _first(connection, expected)
    post_id, removed_id, _ = marks[0]
    # A post whose removal has begun is finished alone: `removed_id` says nothing about others.
    post_ids = [post_id] if removed_id else [it for it, removed, _ in marks if not removed]
    found = await removable(connection, post_ids, after=removed_id)
    requests = {it: IdempotencyKey(id=id, fingerprint="") if id else None for it, _, id in marks}
    await remove_comments(connection, [id for ids in found.comments.values() for id in ids], requests)
    if found.complete:
        complete = as_json(list(found.complete))
        await connection.fetch(post_sql.CHECK_KEYS_BY_INDEX)
        await connection.fetch(post_sql.REMOVE_POSTS, ids=complete)
        await connection.fetch(sql.UNMARK_POSTS, ids=complete)
    for it, ids in found.comments.items():
        if it not in found.complete:
            # The next step reads once more what this one has removed, so that PostgreSQL marks those entries
            # of the index as dead. Otherwise its foreign key would read all of them when the post is removed.
            await connection.fetch(sql.SET_REMOVED, post_id=it, removed_id=ids[0])
            expected = it, ids[0]
    return await _first(connection, expected)


_LOOK: BatchOperation[Mark | None, Mark | None] = BatchOperation(_look)
_STEP: BatchOperation[Mark, Mark | None] = BatchOperation(_step)
