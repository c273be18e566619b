"""Posts: a post that has comments is deleted only by force, and its comments with it."""

from collections.abc import Callable, Mapping, Sequence

from store_service.database import comments as comment_sql
from store_service.database import posts as sql
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.errors import PostHasComments, PostNotFound
from store_service.model import (
    BatchResult,
    Deletion,
    IdempotencyKey,
    Post,
    PostDraft,
    ResourceFields,
    WriteCommand,
)
from store_service.service.counting import count_comments
from store_service.service.idempotency import request_ids
from store_service.service.large_deletions import Removable, removable, remove_comments
from store_service.service.operations import now_microseconds
from store_service.service.resources import DeletionPlan, Gone, Operations, Resources, ResourceType


class Posts(Resources[Post, PostDraft]):
    """Everything that can be done with posts."""

    def __init__(self, database: Database, *, after_deletion: Callable[[], None] = lambda: None) -> None:
        """Takes the open database, and what to call when posts may have been marked for removal."""
        super().__init__(database, _OPERATIONS)
        self._after_deletion = after_deletion

    async def delete(
        self, deletion: Deletion, *, key: IdempotencyKey | None = None, dry_run: bool = False
    ) -> BatchResult[Post]:
        """Deletes posts, all or none, and returns them as they last were."""
        try:
            deleted = await super().delete(deletion, key=key, dry_run=dry_run)
        except PostHasComments as error:
            # The writer has only seen that there are some: to count them takes time that grows with them.
            counts = await count_comments(self._database, error.comment_counts)
            raise PostHasComments(
                comment_counts={post_id: max(count, 1) for post_id, count in counts.items()}
            ) from None
        if deletion.force:
            self._after_deletion()
        return deleted


async def _comments_too(
    connection: Connection, writes: Sequence[WriteCommand[Deletion]], stored: Mapping[int, Post]
) -> DeletionPlan[Post]:
    """Refuses posts that have comments unless the deletion is forced, and then deletes or marks them."""
    rows = await connection.fetch(comment_sql.COMMENTED_POSTS, post_ids=as_json(list(stored)))
    commented = {id for (id,) in rows}
    marked, found = await _planned(connection, writes, commented)

    def may_run(write: WriteCommand[Deletion], posts: Sequence[Post]) -> bool:
        with_comments = [post.id for post in posts if post.id in commented]
        if with_comments and not write.argument.force:
            raise PostHasComments(comment_counts=dict.fromkeys(with_comments, 1))
        # Only a deletion that is executed is deferred. A validate_only call has been checked completely.
        return write.dry_run or found.complete.union(marked).issuperset(with_comments)

    async def before(gone: Gone) -> set[int]:
        comment_ids = [
            id for post_id in gone.keys() & found.complete for id in found.comments.get(post_id, ())
        ]
        await remove_comments(connection, comment_ids, gone)
        unmarked = gone.keys() - marked
        if unmarked:
            await connection.fetch(sql.CHECK_KEYS_BY_INDEX)
        return unmarked

    async def after(gone: Gone) -> None:
        if gone.keys() & marked:
            ids = as_json(list(gone.keys() & marked))
            requests, now = request_ids(gone.items()), now_microseconds()
            await connection.write(sql.MARK_POSTS, ids=ids, requests=requests, now=now)

    return DeletionPlan(may_run, before, after)


async def _planned(
    connection: Connection, writes: Sequence[WriteCommand[Deletion]], commented: set[int]
) -> tuple[set[int], Removable]:
    """Which posts are marked, and which comments are removed now, together no more than one transaction may.

    The first deletion is always done. Of the others those are whose comments fit too.
    """
    wanted = [
        commented.intersection(write.argument.ids)
        for write in writes
        if write.argument.force and not write.dry_run
    ]
    wanted = [ids for ids in wanted if ids]
    if not wanted:
        return set(), Removable()
    first, others = wanted[0], set[int]().union(*wanted[1:]) - wanted[0]
    found = await removable(connection, first)
    if found.complete == first:
        more = await removable(connection, others, rows=found.rows, bytes=found.bytes)
        return set(), Removable({**found.comments, **more.comments}, first | more.complete)
    return first, await removable(connection, others)


POSTS: ResourceType[Post, PostDraft] = ResourceType(
    name="post",
    model=Post,
    draft=PostDraft,
    fields=ResourceFields(Post),
    sql=sql.POSTS,
    not_found=PostNotFound,
    before_delete=_comments_too,
)
_OPERATIONS = Operations(POSTS)
