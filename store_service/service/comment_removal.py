"""Removes the rows of deleted comments, and keeps the threads of the remaining ones connected.

A deleted comment with replies becomes a tombstone. A tombstone whose last reply is removed is removed too,
and so are the tombstones above it. `purge` keeps the threads of deleted comments connected.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from store_service.database import comments as sql
from store_service.database import deletions as unfinished
from store_service.database.connection import Connection
from store_service.database.statements import AFTER_DIGITS, Statement, as_json
from store_service.model import (
    LEVEL_DIGITS,
    Comment,
    DeletedResource,
    DeletionTimes,
    IdempotencyKey,
    path_below,
)
from store_service.service.idempotency import request_ids, stored_key
from store_service.service.operations import now_microseconds

MAX_ROWS = 1000
"""Maximum number of comments that one transaction removes or restores with a post or a comment above them."""

MAX_BYTES = 1024 * 1024
"""Maximum total size of their bodies. A single comment may exceed it."""

FETCH_ROWS = 200
"""Number of comments whose sizes one statement reads. On SQLite this reads the bodies too."""

MAX_THREADS = 50
"""Maximum number of threads whose replies one transaction reads. More threads are removed in steps."""

Keys = Mapping[int, IdempotencyKey | None]
"""The idempotency key of each deletion, by the id of the comment or post."""


@dataclass
class ThreadRows:
    """Rows of one thread in thread order, the last ones first."""

    ids: list[int] = field(default_factory=list)
    parents: dict[int, int] = field(default_factory=dict)
    """The comment that each comment replies to."""
    last_key: str = ""
    """The position of the row that was read last."""
    bytes: int = 0
    is_complete: bool = False
    """Whether these are all rows of the thread except the first one."""


def parent_in(path: str) -> int:
    """Returns the comment that a comment with this path replies to; 0 at the top level."""
    return int(path[-LEVEL_DIGITS:], 16) if path else 0


async def rows_of_thread(
    connection: Connection,
    post_id: int,
    key: str,
    *,
    before: str,
    rows: int,
    bytes: int,
    statement: Statement = sql.ROWS_OF_THREAD,
) -> ThreadRows:
    """Returns rows of the comments below a comment, the last ones first, within a budget.

    Args:
        connection: A connection in a write transaction.
        post_id: The post of the comment.
        key: The position of the comment in thread order; empty: all comments of the post.
        before: Only comments before this position; empty: all.
        rows: The maximum number of comments.
        bytes: The maximum size of their bodies. A single comment may exceed it.
        statement: Reads the rows: ROWS_OF_THREAD or ROWS_OF_DELETED_THREAD.
    """
    found = ThreadRows(last_key=before or key + AFTER_DIGITS)
    while True:
        limit = min(FETCH_ROWS, rows + 1 - len(found.ids))
        fetched = await connection.fetch(statement, post_id=post_id, key=found.last_key, limit=limit)
        for id, path, size in fetched:
            if not path.startswith(key):
                found.is_complete = True
                return found
            if len(found.ids) == rows or (found.ids and found.bytes + size > bytes):
                return found
            found.ids.append(id)
            found.parents[id] = parent_in(path)
            found.last_key = path_below(path, id)
            found.bytes += size
        if len(fetched) < limit:
            found.is_complete = True
            return found


async def delete_comments(
    connection: Connection, deleted: Mapping[int, DeletedResource[Comment]], times: DeletionTimes
) -> None:
    """Deletes comments, and the replies to those whose deletion is forced; see DeleteComment in the contract.

    Args:
        connection: A connection in a write transaction.
        deleted: The comments by id. No other transaction changes them.
        times: When they are deleted.
    """
    keys: dict[int, IdempotencyKey | None] = {id: it.key for id, it in deleted.items()}
    parents = {id: it.resource.reply_to_id for id, it in deleted.items()}
    deleted_with: dict[int, int] = {}
    marked: list[int] = []
    forced = [it.resource for it in deleted.values() if it.force]
    if forced:
        await connection.fetch(unfinished.END_RESTORATIONS_OF_THREADS, ids=as_json([it.id for it in forced]))
        threads, marked = await _threads(connection, forced)
        for root, thread in threads.items():
            for id in thread.ids:
                if id not in deleted:
                    keys[id], deleted_with[id] = deleted[root].key, root
            parents = {**thread.parents, **parents}
    tombstones = await _with_remaining_replies(connection, parents, marked)
    if tombstones:
        await _make_tombstones(connection, tombstones, keys, times)
    removed = [id for id in parents if id not in tombstones]
    await remove_comments(connection, removed, keys, times, deleted_with=deleted_with)
    if marked:
        await connection.fetch(
            unfinished.MARK_THREADS,
            ids=as_json(marked),
            requests=request_ids(keys.items()),
            delete_time=times.delete_time,
            purge_time=times.purge_time,
        )
    await remove_childless_tombstones(connection, {parents[id] for id in removed} - parents.keys())


async def _threads(
    connection: Connection, roots: Sequence[Comment]
) -> tuple[dict[int, ThreadRows], list[int]]:
    """Returns the rows below each of these comments, and those of them that have too many in total."""
    found = await connection.fetch(sql.WITH_REPLIES, ids=as_json([it.id for it in roots]), except_ids="[]")
    with_replies = {id for (id,) in found}
    post_ids = as_json(list({it.post_id for it in roots}))
    # Other restorations restore replies that have to be deleted too.
    restored_posts = {id for (id,) in await connection.fetch(unfinished.RESTORED_POSTS, ids=post_ids)}
    threads: dict[int, ThreadRows] = {}
    marked: list[int] = []
    above: Comment | None = None
    rows, bytes = MAX_ROWS, MAX_BYTES
    for root in sorted(roots, key=lambda it: (it.post_id, it.thread_key)):
        is_below = (
            above is not None
            and root.post_id == above.post_id
            and root.thread_key.startswith(above.thread_key)
        )
        if is_below or not (root.id in with_replies or root.post_id in restored_posts):
            continue
        above = root
        if root.post_id in restored_posts or len(threads) == MAX_THREADS or rows <= 0 or bytes <= 0:
            marked.append(root.id)
            continue
        thread = await rows_of_thread(
            connection, root.post_id, root.thread_key, before="", rows=rows, bytes=bytes
        )
        if thread.is_complete:
            threads[root.id] = thread
            rows -= len(thread.ids)
            bytes -= thread.bytes
        else:
            marked.append(root.id)
    return threads, marked


async def _with_remaining_replies(
    connection: Connection, parents: Mapping[int, int], marked: Collection[int]
) -> set[int]:
    """Returns those of the comments to delete that are marked or have a reply that remains."""
    ids = as_json(list(parents))
    found = {id for (id,) in await connection.fetch(sql.WITH_REPLIES, ids=ids, except_ids=ids)}
    found.update(marked)
    for id in list(found):
        parent = parents[id]
        while parent in parents and parent not in found:
            found.add(parent)
            parent = parents[parent]
    return found


async def _make_tombstones(
    connection: Connection, ids: Collection[int], keys: Keys, times: DeletionTimes
) -> None:
    """Makes comments tombstones."""
    if times.can_be_restored:
        await _keep(connection, ids, {}, times)
    await connection.write(
        sql.MAKE_TOMBSTONES,
        ids=as_json(list(ids)),
        requests=request_ids((id, keys[id]) for id in ids),
        now=now_microseconds(),
        delete_time=times.delete_time,
        purge_time=times.purge_time,
    )
    if not times.can_be_restored:
        await _remove_revisions(connection, ids)


async def _keep(
    connection: Connection, ids: Iterable[int], deleted_with: Mapping[int, int], times: DeletionTimes
) -> None:
    await connection.fetch(
        sql.COMMENTS.deleted.add,
        deleted=as_json([(n, id, deleted_with.get(id, 0)) for n, id in enumerate(ids)]),
        delete_time=times.delete_time,
        purge_time=times.purge_time,
    )


async def remove_comments(
    connection: Connection,
    ids: Collection[int],
    keys: Keys,
    times: DeletionTimes,
    *,
    deleted_with: Mapping[int, int],
) -> None:
    """Deletes comments and tombstones without remaining replies, and writes the changes of the comments.

    Args:
        connection: A connection in a write transaction.
        ids: The comments. If a reply to one of them exists, it has to be removed later.
        keys: The idempotency key of the deletion of each comment.
        times: When they are deleted.
        deleted_with: With what they are deleted, unless it is by themselves; see `deleted_comment_table`.
    """
    if not ids:
        return
    if deleted_with:
        # Comments that were deleted before and are not removed yet stay so.
        marks = await connection.fetch(unfinished.IN_MARKED_THREADS, ids=as_json(list(deleted_with)))
        for (root, *mark), rows in groupby(
            {id: tuple(it) for id, *it in marks}.items(), key=lambda it: it[1]
        ):
            of_root = [id for id, _ in rows]
            await _remove(connection, of_root, *_of_mark(of_root, *mark), dict.fromkeys(of_root, root))
        removed = {row[0] for row in marks}
        ids = [id for id in ids if id not in removed]
    await _remove(connection, ids, keys, times, deleted_with)


def _of_mark(
    ids: Sequence[int], request_id: str | None, delete_time: int | None, purge_time: int | None
) -> tuple[Keys, DeletionTimes]:
    """Returns the idempotency keys and the times of comments that are removed with what is marked."""
    key = stored_key(request_id)
    return dict.fromkeys(ids, key), DeletionTimes(delete_time=delete_time or 0, purge_time=purge_time)


async def _remove(
    connection: Connection,
    ids: Collection[int],
    keys: Keys,
    times: DeletionTimes,
    deleted_with: Mapping[int, int],
) -> None:
    if not ids:
        return
    if times.can_be_restored:
        await _keep(connection, ids, deleted_with, times)
    if deleted_with or not times.can_be_restored:
        # Tombstones, or comments that cannot be restored with replies that can.
        values = {"delete_time": times.delete_time, "keep_all": int(times.can_be_restored)}
        await connection.fetch(sql.KEEP_LINKS, ids=as_json(list(ids)), **values)
    await connection.write(
        sql.COMMENTS.delete,
        ids=as_json(list(ids)),
        requests=request_ids((id, keys[id]) for id in ids),
        now=now_microseconds(),
        delete_time=times.delete_time if times.can_be_restored else None,
        purge_time=times.purge_time,
    )
    if not times.can_be_restored:
        await _remove_revisions(connection, ids)


async def _remove_revisions(connection: Connection, ids: Collection[int]) -> None:
    await connection.fetch(sql.COMMENTS.revisions.remove, ids=as_json(list(ids)))


async def remove_childless_tombstones(connection: Connection, ids: Collection[int]) -> None:
    """Removes those of these comments that are tombstones without replies, and such tombstones above them."""
    ids = {id for id in ids if id}
    while ids:
        rows = await connection.fetch(sql.CHILDLESS_TOMBSTONES, ids=as_json(list(ids)))
        if not rows:
            return
        found = as_json([id for id, _ in rows])
        await connection.fetch(sql.KEEP_LINKS, ids=found, delete_time=None, keep_all=0)
        await connection.fetch(sql.REMOVE_TOMBSTONES, ids=found)
        ids = {parent for _, parent in rows if parent}


async def remove_marked_comments(connection: Connection, external_ids: Sequence[str]) -> None:
    """Removes comments of marked posts and threads that have one of these external ids, which are free then.

    Args:
        connection: A connection in a write transaction.
        external_ids: The external ids.
    """
    for statement in (unfinished.MARKED_COMMENTS, unfinished.MARKED_REPLIES):
        rows = await connection.fetch(statement, external_ids=as_json(external_ids))
        for id, deleted_with, *mark in rows:
            await remove_comments(connection, [id], *_of_mark([id], *mark), deleted_with={id: deleted_with})
