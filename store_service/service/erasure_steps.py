"""The steps that remove or empty the posts, comments and former versions of an author.

Each step is a small write. It changes nothing that a later step needs to find the rest: a comment or post of
the author stays until everything below it is removed. So an erasure that was interrupted can be repeated.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from store_service.database import comments as comment_sql
from store_service.database import deletions as unfinished
from store_service.database import erasure as sql
from store_service.database import posts as post_sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.model import EraseMode, ResourceKind, path_below
from store_service.service.comment_removal import remove_childless_tombstones, rows_of_thread
from store_service.service.operations import now_microseconds
from store_service.service.purge import purge_comments

STEP_ROWS = 200
"""Maximum number of posts and comments that one step removes, and of former versions."""

STEP_BYTES = 1024 * 1024
"""Maximum total size of their bodies. A single one may exceed it."""

MAX_THREADS = 10
"""Maximum number of posts and comments with something below them that one step works on."""

POST, COMMENT = ResourceKind.POST, ResourceKind.COMMENT

SOURCES = ((COMMENT, False), (COMMENT, True), (POST, False), (POST, True))
"""The tables by kind, and by whether they have deleted resources. Comments come first: a post without
comments of others is removed."""


@dataclass(frozen=True, slots=True)
class Step:
    """The next step among the rows of one table."""

    author: str = field(repr=False)
    mode: EraseMode
    kind: ResourceKind
    is_deleted: bool


@dataclass(slots=True)
class Done:
    """What a step has done."""

    posts: list[int] = field(default_factory=list)
    comments: list[int] = field(default_factory=list)
    """The posts and comments whose content is erased."""
    revisions: int = 0
    found: bool = False
    """Whether there was something to do."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A post or comment of the author."""

    id: int
    post_id: int
    key: str
    """The position in thread order with which the positions below it begin; empty for a post."""


async def _step_each(connection: Connection, steps: Sequence[Step]) -> list[Done]:
    return [await _step(connection, it) for it in steps]


async def _step(connection: Connection, step: Step) -> Done:
    done = Done()
    statement = sql.AUTHORS[step.kind, step.is_deleted].of_author
    fetched = await connection.fetch(statement, author=step.author, after=0, limit=STEP_ROWS)
    rows = [
        _Row(id, post_id, path_below(path, id) if step.kind is COMMENT else "")
        for id, post_id, path, _ in _within_bytes(fetched)
    ]
    if not rows:
        return done
    done.found = True
    if step.mode is EraseMode.DELETE:
        rows = await _without_rows_below(connection, step.kind, rows, done)
    ids = [it.id for it in rows]
    if not ids or not await _remove_revisions(connection, step.kind, ids, done):
        return done
    if step.kind is COMMENT:
        await _erase_comments(connection, ids, done)
    elif step.is_deleted:
        await _erase_deleted_posts(connection, ids, step.mode, done)
    else:
        await _erase_posts(connection, ids, step.mode, done)
    return done


def _within_bytes(rows: Iterable[Any]) -> list[Any]:
    """Returns the first of these rows, whose last columns are sizes, that fit into a step."""
    taken: list[Any] = []
    total = 0
    for row in rows:
        total += row[-1]
        if taken and total > STEP_BYTES:
            break
        taken.append(row)
    return taken


async def _without_rows_below(
    connection: Connection, kind: ResourceKind, rows: Sequence[_Row], done: Done
) -> list[_Row]:
    """Removes comments below some of these posts or comments. Returns those without any below them."""
    with_more = await _with_comments_below(connection, kind, rows)
    ready = [it for it in rows if it.id not in with_more]
    # The keys of comments in a thread begin with that of the comment above them.
    above = ""
    threads = sorted([it for it in rows if it.id in with_more], key=lambda it: (it.post_id, it.key))
    for row in threads[:MAX_THREADS]:
        if len(done.comments) >= STEP_ROWS:
            break
        if above and row.key.startswith(above):
            continue
        above = row.key
        if await _remove_below(connection, row, done):
            ready.append(row)
        else:
            break
    # Comments below others are removed by now.
    removed = set(done.comments) if kind is COMMENT else set()
    return [it for it in ready if it.id not in removed]


async def _with_comments_below(connection: Connection, kind: ResourceKind, rows: Sequence[_Row]) -> set[int]:
    wanted = as_json([(n, it.id) for n, it in enumerate(rows)])
    statements = (
        (sql.COMMENTS_OF, sql.DELETED_COMMENTS_OF)
        if kind is POST
        else (sql.WITH_REPLIES, sql.WITH_DELETED_REPLIES)
    )
    return {id for it in statements for (id,) in await connection.fetch(it, wanted=wanted)}


async def _remove_below(connection: Connection, row: _Row, done: Done) -> bool:
    """Removes comments below a post or comment, deleted ones first, and the last ones in thread order first.

    So each comment above a remaining one remains. Returns whether all are removed.
    """
    for statement in (comment_sql.ROWS_OF_DELETED_THREAD, comment_sql.ROWS_OF_THREAD):
        thread = await rows_of_thread(
            connection,
            row.post_id,
            row.key,
            before="",
            rows=max(STEP_ROWS - len(done.comments), 0),
            bytes=STEP_BYTES,
            statement=statement,
        )
        if thread.ids:
            if not await _remove_revisions(connection, COMMENT, thread.ids, done):
                return False
            if statement is comment_sql.ROWS_OF_DELETED_THREAD:
                await _erase_deleted_comments(connection, thread.ids, done)
            else:
                await _remove_live_comments(connection, thread.ids, done)
        if not thread.is_complete:
            return False
    return True


async def _remove_revisions(
    connection: Connection, kind: ResourceKind, ids: Sequence[int], done: Done
) -> bool:
    """Removes former versions of these resources. Returns False if some remain for the next step."""
    rows = await connection.fetch(sql.REVISIONS_OF, kind=kind, ids=as_json(ids), limit=STEP_ROWS)
    taken = _within_bytes(rows)
    await _remove_former(connection, taken, done)
    return len(taken) == len(rows) < STEP_ROWS


async def _remove_former(connection: Connection, rows: Sequence[Any], done: Done) -> None:
    if rows:
        removed = [(n, kind, id, version) for n, (kind, id, version, _) in enumerate(rows)]
        await connection.fetch(sql.REMOVE_REVISIONS, removed=as_json(removed))
        done.revisions += len(rows)


async def _erase_comments(connection: Connection, ids: Sequence[int], done: Done) -> None:
    """Erases comments of the author. Those with replies become tombstones, or stay ones."""
    await _erase_deleted_comments(connection, ids, done)
    done.comments += await _with_content(connection, COMMENT, ids, is_deleted=False)
    now = now_microseconds()
    values = {"ids": as_json(ids), "requests": "[]", "now": now, "delete_time": now, "purge_time": None}
    await connection.write(sql.MAKE_ERASED_TOMBSTONES, **values)
    await remove_childless_tombstones(connection, ids)


async def _remove_live_comments(connection: Connection, ids: Sequence[int], done: Done) -> None:
    done.comments += await _with_content(connection, COMMENT, ids, is_deleted=False)
    values: dict[str, Any] = {
        "requests": "[]",
        "now": now_microseconds(),
        "delete_time": None,
        "purge_time": None,
    }
    await connection.write(sql.ERASE_COMMENTS, ids=as_json(ids), **values)


async def _erase_deleted_comments(connection: Connection, ids: Sequence[int], done: Done) -> None:
    """Purges deleted comments. Those with replies that can be restored stay without content."""
    done.comments += await _with_content(connection, COMMENT, ids, is_deleted=True)
    await _add_deletions(connection, COMMENT, ids)
    await purge_comments(connection, ids)


async def _erase_posts(connection: Connection, ids: Sequence[int], mode: EraseMode, done: Done) -> None:
    """Removes posts without comments, and the content of the others."""
    done.posts += ids
    commented: set[int] = set()
    if mode is EraseMode.ANONYMIZE:
        rows = await connection.fetch(comment_sql.COMMENTED_POSTS, post_ids=as_json(ids))
        commented = {id for (id,) in rows}
    values: dict[str, Any] = {"requests": "[]", "now": now_microseconds()}
    if commented:
        await connection.write(sql.CLEAR_POSTS, ids=as_json(list(commented)), **values)
    removed = [id for id in ids if id not in commented]
    if removed:
        await connection.fetch(unfinished.END_RESTORATIONS_OF_POSTS, ids=as_json(removed))
        await connection.fetch(post_sql.CHECK_KEYS_BY_INDEX)
        await connection.write(
            sql.ERASE_POSTS, ids=as_json(removed), delete_time=None, purge_time=None, **values
        )


async def _erase_deleted_posts(
    connection: Connection, ids: Sequence[int], mode: EraseMode, done: Done
) -> None:
    """Removes deleted posts, and only the content of those with which comments of others can be restored."""
    done.posts += ids
    await _add_deletions(connection, POST, ids)
    kept: set[int] = set()
    if mode is EraseMode.ANONYMIZE:
        wanted = as_json([(n, id) for n, id in enumerate(ids)])
        kept = {id for (id,) in await connection.fetch(sql.RESTORABLE_COMMENTS_OF, wanted=wanted)}
        await connection.fetch(sql.CLEAR_DELETED_POSTS, ids=as_json(list(kept)))
    removed = as_json([id for id in ids if id not in kept])
    await connection.fetch(unfinished.END_RESTORATIONS_OF_POSTS, ids=removed)
    await connection.fetch(post_sql.POSTS.deleted.remove, ids=removed)


async def _with_content(
    connection: Connection, kind: ResourceKind, ids: Collection[int], *, is_deleted: bool
) -> list[int]:
    statement = sql.AUTHORS[kind, is_deleted].with_content
    return [id for (id,) in await connection.fetch(statement, ids=as_json(list(ids)))]


async def _add_deletions(connection: Connection, kind: ResourceKind, ids: Collection[int]) -> None:
    """Adds deletions without content to the feed, so that consumers with copies find out."""
    now = now_microseconds()
    await connection.write(sql.DELETED_CHANGES[kind], ids=as_json(list(ids)), requests="[]", now=now)


async def _revisions_each(connection: Connection, authors: Sequence[str]) -> list[Done]:
    results = []
    for author in authors:
        done = Done()
        rows = await connection.fetch(sql.REVISIONS_OF_AUTHOR, author=author, limit=STEP_ROWS)
        await _remove_former(connection, _within_bytes(rows), done)
        done.found = bool(rows)
        results.append(done)
    return results


STEP: BatchOperation[Step, Done] = BatchOperation(_step_each, name="erasure step")
"""Erases some posts or comments."""

REVISIONS_STEP: BatchOperation[str, Done] = BatchOperation(_revisions_each, name="erasure step of revisions")
"""Removes some former versions that an author wrote of resources that are now of another author."""
