"""Deletes posts with many comments: the budget of one transaction, and the task that removes the rest.

Comments that fit into the budget are deleted in the transaction of the post. A post with more comments is
marked. From that commit on, the post and its comments do not exist for callers. Their rows are removed in
steps, each of which is a small write (docs/decisions/0031).
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
"""Maximum total size of their bodies. A single comment may exceed it."""

FETCH_ROWS = 200
"""Number of comments whose sizes one statement reads. On SQLite this reads the bodies too."""

MAX_POSTS = 100
"""Maximum number of marked posts that one step works on."""

STEP_SECONDS = 0.05
"""Pause after a step, in which other writes run without this task."""

TAKEOVER_SECONDS = 1.0
"""After this time without a step by another process, this process continues the removal."""

IDLE_SECONDS = 10.0
"""Pause between two checks for posts that another process has marked and not removed."""

log = structlog.get_logger("store_service.large_deletions")


@dataclass
class Removable:
    """Comments that one transaction can remove."""

    comments: dict[int, list[int]] = field(default_factory=dict)
    """Ids of comments by post id."""
    complete: set[int] = field(default_factory=set)
    """The posts all of whose comments are in `comments`."""
    rows: int = 0
    bytes: int = 0


async def removable(
    connection: Connection, post_ids: Collection[int], *, after: int = 0, rows: int = 0, bytes: int = 0
) -> Removable:
    """Returns comments of posts that fit into the budget of one transaction. Reads few comments more.

    Args:
        connection: A connection in a write transaction.
        post_ids: The posts.
        after: Only comments with larger ids; requires a single post.
        rows: The number of other comments that the transaction removes.
        bytes: The size of those comments.
    """
    assert not after or len(post_ids) == 1, "`after` is an id among the comments of one post"
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
        connection: A connection in a write transaction.
        ids: The comments.
        requests: The idempotency key of the deletion of each post, by post id.
    """
    if ids:
        await connection.write(
            comment_sql.DELETE_COMMENTS_OF_POSTS,
            ids=as_json(ids),
            requests=request_ids(requests.items()),
            now=now_microseconds(),
        )


async def remove_hidden_comments(connection: Connection, external_ids: Sequence[str]) -> None:
    """Deletes comments of marked posts that have one of these external ids, which are then free.

    Args:
        connection: A connection in a write transaction.
        external_ids: The external ids.
    """
    rows = await connection.fetch(sql.HIDDEN_COMMENTS, external_ids=as_json(external_ids))
    requests = {post_id: IdempotencyKey(id=id, fingerprint="") if id else None for _, post_id, id in rows}
    await remove_comments(connection, [id for id, _, _ in rows], requests)


Mark = tuple[int, int]
"""A marked post, and the id up to which its comments are removed."""


class Remover:
    """Removes the rows of marked posts. On PostgreSQL one process at a time does so."""

    def __init__(self, database: Database) -> None:
        """Takes the open database."""
        self._database = database
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Checks for marked posts now. Called after a deletion that may have marked a post."""
        self._woken.set()

    async def run(self) -> None:
        """Removes rows until it is cancelled."""
        failure = RepeatedFailure(
            log, "cannot remove deleted posts", end_event="deleted posts are removed again"
        )
        expected: Mark | None = None
        while True:
            try:
                # Each step moves a mark. If the mark has not moved since this process last read it or made a
                # step, no other process is removing rows.
                found = await self._database.read(_FIND_MARK, expected)
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
                # An unhandled exception must not end this task, or rows would never be removed again.
                failure.failed(exc_info=error)
                pause = IDLE_SECONDS
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Waits. `wake` ends the pause of an idle task."""
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


async def _find_marks(connection: Connection, expected: Sequence[Mark | None]) -> list[Mark | None]:
    return [await _find_mark(connection, it) for it in expected]


async def _find_mark(connection: Connection, expected: Mark | None) -> Mark | None:
    """Returns the mark of the expected post, or else another mark; None without marks."""
    rows = await connection.fetch(sql.MARKS, post_id=expected[0] if expected else 0, limit=1)
    return (rows[0][0], rows[0][1]) if rows else None


async def _step(connection: Connection, expected: Sequence[Mark]) -> list[Mark | None]:
    return [await _step_once(connection, it) for it in expected]


async def _step_once(connection: Connection, expected: Mark) -> Mark | None:
    """Removes comments, and posts without remaining comments. Returns the mark that the next step expects."""
    marks = await connection.fetch(sql.MARKS, post_id=expected[0], limit=MAX_POSTS)
    if not marks or tuple(marks[0][:2]) != expected:
        # Another process has made a step since the mark was read.
        return await _find_mark(connection, expected)
    post_id, removed_id, _ = marks[0]
    # A post whose removal has started is finished alone, because `removed_id` applies to this post only.
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
            # The next step reads the removed rows once more, so that PostgreSQL marks their index entries as
            # dead. Otherwise the check of the foreign key reads all of them when the post is removed.
            await connection.fetch(sql.SET_REMOVED, post_id=it, removed_id=ids[0])
            expected = it, ids[0]
    return await _find_mark(connection, expected)


_FIND_MARK: BatchOperation[Mark | None, Mark | None] = BatchOperation(_find_marks)
_STEP: BatchOperation[Mark, Mark | None] = BatchOperation(_step)
