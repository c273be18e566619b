"""Finishes large deletions and restorations in steps, each of which is a small write.

See docs/decisions/0031.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from store_service.database import deletions as sql
from store_service.database import posts as post_sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.errors import ServiceError, StoreMoving
from store_service.model import DeletionTimes
from store_service.repeated_failure import RepeatedFailure
from store_service.service.comment_removal import (
    MAX_BYTES,
    MAX_ROWS,
    MAX_THREADS,
    remove_childless_tombstones,
    remove_comments,
    rows_of_thread,
)
from store_service.service.idempotency import stored_key
from store_service.service.large_deletions import removable
from store_service.service.restoration import restore_comments, rows_deleted_with

MAX_POSTS = 100
"""Maximum number of marked posts that one step works on."""

STEP_REPLIES = 400
"""Maximum number of replies that one step removes. With MAX_ROWS, other writes wait for up to 160 ms on
PostgreSQL, because each reply is copied to the deleted comments with all their indexes."""

STEP_SECONDS = 0.05
"""Pause after a step, in which other writes run without this task."""

TAKEOVER_SECONDS = 1.0
"""After this time without a step by another process, this process continues the work."""

IDLE_SECONDS = 10.0
"""Pause between two checks for work that another process has begun and not finished."""

log = structlog.get_logger("store_service.background_steps")


@dataclass(frozen=True, slots=True)
class Work:
    """A deletion or restoration that is not finished, and its progress."""

    kind: str
    """A key of _STEPS."""
    key: tuple[int, ...]
    """The primary key of its row."""
    progress: int | str
    """Changes with each step."""


class BackgroundSteps:
    """Finishes deletions and restorations. On PostgreSQL one process at a time does so."""

    def __init__(self, database: Database) -> None:
        """Takes the open database."""
        self._database = database
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Checks for work now. Called after a write that may have left some."""
        self._woken.set()

    async def run(self) -> None:
        """Executes steps until it is cancelled."""
        failure = RepeatedFailure(
            log,
            "cannot finish deletions and restorations",
            end_event="deletions and restorations are finished again",
        )
        expected: Work | None = None
        while True:
            try:
                # Each step changes the progress. If it has not changed since this process last read it or
                # made a step, no other process is working.
                found = await self._database.read(FIND, expected)
                if found is not None and found == expected:
                    expected = await self._database.write(STEP, found, size=MAX_BYTES)
                    pause = STEP_SECONDS
                else:
                    expected = found
                    pause = IDLE_SECONDS if found is None else TAKEOVER_SECONDS
                failure.ended()
            except StoreMoving:
                # It lasts, and an operator has caused it.
                pause = IDLE_SECONDS
            except ServiceError as error:
                failure.failed(error=type(error).__name__, cause=str(error.__cause__ or error))
                pause = IDLE_SECONDS
            except Exception as error:
                # An unhandled exception must not end this task, or no work would ever be finished again.
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


async def _find_each(connection: Connection, expected: Sequence[Work | None]) -> list[Work | None]:
    return [await _find(connection, it) for it in expected]


async def _find(connection: Connection, expected: Work | None) -> Work | None:
    """Returns the expected work, or else other work; None if there is none."""
    first = expected.kind if expected else ""
    for kind in sorted(_STEPS, key=lambda it: it != first):
        key = expected.key if expected and kind == first else (0, 0)
        row = await _row(connection, kind, key)
        if row is not None:
            return row[0]
    return None


async def _row(connection: Connection, kind: str, key: tuple[int, ...]) -> tuple[Work, Any] | None:
    """Returns work of one kind, with its row."""
    if kind == "post":
        rows = await connection.fetch(sql.MARKS, post_id=key[0], limit=1)
        return (Work(kind, rows[0][:1], rows[0][1]), rows[0]) if rows else None
    if kind == "thread":
        rows = await connection.fetch(sql.MARKED_THREADS, comment_id=key[0], limit=1)
        return (Work(kind, rows[0][:1], rows[0][3]), rows[0]) if rows else None
    rows = await connection.fetch(sql.RESTORATIONS, post_id=key[0], deleted_with=key[1])
    return (Work(kind, rows[0][:2], rows[0][2]), rows[0]) if rows else None


async def _step_each(connection: Connection, expected: Sequence[Work]) -> list[Work | None]:
    return [await _step(connection, it) for it in expected]


async def _step(connection: Connection, expected: Work) -> Work | None:
    """Makes a step. Returns the work that the next step expects."""
    found = await _row(connection, expected.kind, expected.key)
    if found is not None and found[0] == expected:
        await _STEPS[expected.kind](connection, found[1])
    # Otherwise another process has made a step since the work was read.
    return await _find(connection, expected)


async def _remove_comments_of_posts(connection: Connection, row: Any) -> None:
    """Removes comments of marked posts, and posts without remaining comments."""
    post_id, removed_id, *_ = row
    marks = await connection.fetch(sql.MARKS, post_id=post_id, limit=MAX_POSTS)
    # A post whose removal has started is finished alone, because `removed_id` applies to this post only.
    post_ids = [post_id] if removed_id else [it[0] for it in marks if not it[1]]
    found = await removable(connection, post_ids, after=removed_id)
    for it, _, request_id, delete_time, purge_time in marks:
        ids = found.comments.get(it, [])
        times = DeletionTimes(delete_time=delete_time or 0, purge_time=purge_time)
        keys = dict.fromkeys(ids, stored_key(request_id))
        await remove_comments(connection, ids, keys, times, deleted_with=dict.fromkeys(ids, sql.WITH_POST))
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


async def _remove_replies(connection: Connection, row: Any) -> None:
    """Removes replies to marked comments, the last ones in thread order first."""
    marks = await connection.fetch(sql.MARKED_THREADS, comment_id=row[0], limit=MAX_THREADS)
    rows, bytes = min(MAX_ROWS, STEP_REPLIES), MAX_BYTES
    for comment_id, post_id, key, removed_key, request_id, delete_time, purge_time in marks:
        found = await rows_of_thread(connection, post_id, key, before=removed_key, rows=rows, bytes=bytes)
        await remove_comments(
            connection,
            found.ids,
            dict.fromkeys(found.ids, stored_key(request_id)),
            DeletionTimes(delete_time=delete_time, purge_time=purge_time),
            deleted_with=dict.fromkeys(found.ids, int(comment_id)),
        )
        if not found.is_complete:
            await connection.fetch(sql.SET_REMOVED_KEY, comment_id=comment_id, key=found.last_key)
            return
        await connection.fetch(sql.UNMARK_THREADS, ids=as_json([comment_id]))
        await remove_childless_tombstones(connection, [comment_id])
        rows, bytes = rows - len(found.ids), bytes - found.bytes
        if rows <= 0 or bytes <= 0:
            return


async def _restore(connection: Connection, row: Any) -> None:
    """Restores comments that were deleted with a post or a comment."""
    post_id, deleted_with, _, request_id = row
    rows, is_complete = await rows_deleted_with(connection, post_id, deleted_with)
    await restore_comments(connection, rows, stored_key(request_id))
    if is_complete:
        await connection.fetch(sql.END_RESTORATION, post_id=post_id, deleted_with=deleted_with)
    else:
        await connection.fetch(
            sql.ADVANCE_RESTORATION, post_id=post_id, deleted_with=deleted_with, count=len(rows)
        )


_STEPS: dict[str, Callable[[Connection, Any], Awaitable[None]]] = {
    "post": _remove_comments_of_posts,
    "thread": _remove_replies,
    "restoration": _restore,
}
"""The step of each kind of work, which takes its row."""

FIND: BatchOperation[Work | None, Work | None] = BatchOperation(_find_each)
"""Finds the expected work if it is not finished, or else other work."""

STEP: BatchOperation[Work, Work | None] = BatchOperation(_step_each, name="background step")
"""Makes a step of work, unless another process has made it. Returns the work to expect next."""
