"""Restores deleted posts and comments."""

from collections.abc import Collection, Sequence

from store_service.database import comments as comment_sql
from store_service.database import deletions as unfinished
from store_service.database import posts as post_sql
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.errors import DatabaseBusy, PostNotFound
from store_service.model import LEVEL_DIGITS, Comment, IdempotencyKey, Post, path_below
from store_service.service.comment_removal import FETCH_ROWS, MAX_BYTES, MAX_ROWS
from store_service.service.idempotency import request_ids
from store_service.service.operations import now_microseconds


def ids_in(path: str) -> list[int]:
    """Returns the ids of the comments above a comment with this path."""
    return [int(path[n : n + LEVEL_DIGITS], 16) for n in range(0, len(path), LEVEL_DIGITS)]


Rows = Sequence[tuple[int, str]]
"""Ids and paths of deleted comments."""


async def check_post(connection: Connection, post: Post) -> None:
    """Checks that a deleted post can be restored now.

    Raises:
        DatabaseBusy: The deletion is not finished. Consumers of the feed would not learn that the comments
            exist whose deletion has no change yet.
    """
    marks = await connection.fetch(unfinished.MARKS, post_id=post.id, limit=1)
    if any(post_id == post.id for post_id, *_ in marks):
        raise DatabaseBusy


async def check_comment(connection: Connection, comment: Comment) -> None:
    """Checks that a deleted comment can be restored now.

    Raises:
        PostNotFound: The post of the comment does not exist or is deleted.
        DatabaseBusy: The comment, or one above it, is being deleted with its replies.
    """
    if not await connection.fetch(post_sql.KEPT_POST_IDS, ids=as_json([comment.post_id])):
        raise PostNotFound(ids=[comment.post_id])
    thread = [*ids_in(comment.path), comment.id]
    if await connection.fetch(unfinished.THREADS_ABOVE, ids=as_json(thread)):
        raise DatabaseBusy


async def restore_post(connection: Connection, post: Post, key: IdempotencyKey | None) -> None:
    """Restores a deleted post, with the comments that were deleted with it; many of them in steps.

    Args:
        connection: A connection in a write transaction.
        post: The deleted post.
        key: The idempotency key of the write.
    """
    ids = as_json([post.id])
    await connection.fetch(post_sql.POSTS.deleted.restore, ids=ids)
    await connection.write(
        post_sql.POSTS.deleted.undelete_changes,
        ids=ids,
        requests=request_ids([(post.id, key)]),
        now=now_microseconds(),
    )
    await connection.fetch(post_sql.POSTS.deleted.remove, ids=ids)
    rows, is_complete = await rows_deleted_with(connection, post.id, unfinished.WITH_POST)
    if is_complete:
        await restore_comments(connection, rows, key)
    else:
        await _restore_later(connection, post.id, unfinished.WITH_POST, key)


async def restore_comment(connection: Connection, comment: Comment, key: IdempotencyKey | None) -> None:
    """Restores a deleted comment, with the replies that were deleted with it; many of them in steps.

    Args:
        connection: A connection in a write transaction.
        comment: The deleted comment.
        key: The idempotency key of the write.
    """
    rows, is_complete = await rows_deleted_with(connection, comment.post_id, comment.id)
    await restore_comments(connection, [(comment.id, comment.path), *(rows if is_complete else ())], key)
    if not is_complete:
        await _restore_later(connection, comment.post_id, comment.id, key)


async def _restore_later(
    connection: Connection, post_id: int, deleted_with: int, key: IdempotencyKey | None
) -> None:
    await connection.fetch(
        unfinished.ADD_RESTORATION,
        post_id=post_id,
        deleted_with=deleted_with,
        request_id=None if key is None else key.id,
    )


async def rows_deleted_with(
    connection: Connection, post_id: int, deleted_with: int
) -> tuple[list[tuple[int, str]], bool]:
    """Returns comments that were deleted with a post or comment, in thread order, within the budget of one
    transaction, and whether these are all."""
    rows: list[tuple[int, str]] = []
    bytes, key = 0, ""
    while True:
        limit = min(FETCH_ROWS, MAX_ROWS + 1 - len(rows))
        fetched = await connection.fetch(
            comment_sql.DELETED_WITH, post_id=post_id, deleted_with=deleted_with, key=key, limit=limit
        )
        for id, path, size in fetched:
            if len(rows) == MAX_ROWS or (rows and bytes + size > MAX_BYTES):
                return rows, False
            rows.append((id, path))
            bytes += size
            key = path_below(path, id)
        if len(fetched) < limit:
            return rows, True


async def restore_comments(connection: Connection, rows: Rows, key: IdempotencyKey | None) -> None:
    """Restores deleted comments of posts that exist. Deleted comments above them become tombstones.

    Args:
        connection: A connection in a write transaction.
        rows: The comments.
        key: The idempotency key of the write.
    """
    if not rows:
        return
    ids = [id for id, _ in rows]
    await _add_tombstones(connection, {id for _, path in rows for id in ids_in(path)}.difference(ids))
    sql = comment_sql.COMMENTS.deleted
    await connection.fetch(sql.restore, ids=as_json(ids))
    await connection.write(
        sql.undelete_changes,
        ids=as_json(ids),
        requests=request_ids((id, key) for id in ids),
        now=now_microseconds(),
    )
    await connection.fetch(sql.remove, ids=as_json(ids))


async def _add_tombstones(connection: Connection, ids: Collection[int]) -> None:
    """Adds the tombstones of those of these comments that callers do not see."""
    if not ids:
        return
    existing = {id for (id,) in await connection.fetch(comment_sql.EXISTING_IDS, ids=as_json(list(ids)))}
    missing = as_json([id for id in ids if id not in existing])
    if missing != "[]":
        await connection.fetch(comment_sql.ADD_TOMBSTONES, ids=missing)
        await connection.fetch(comment_sql.REMOVE_LINKS, ids=missing)
