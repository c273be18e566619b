"""The service layer of posts. A post with comments is deleted only with force, together with its comments."""

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
    Query,
    ResourceFields,
    ResourceFilter,
    WriteCommand,
)
from store_service.service.counting import count_comments
from store_service.service.idempotency import request_ids
from store_service.service.large_deletions import Removable, removable, remove_comments
from store_service.service.matching_count import MatchingCount
from store_service.service.operations import now_microseconds
from store_service.service.resources import Deleted, DeletionPlan, Operations, Resources, ResourceType


class Posts(Resources[Post, PostDraft]):
    """The collection of posts."""

    def __init__(self, database: Database, *, after_deletion: Callable[[], None] = lambda: None) -> None:
        """Takes the open database, and a callback for deletions that may have marked posts for removal."""
        super().__init__(database, _OPERATIONS)
        self._after_deletion = after_deletion

    async def count(self, filter: ResourceFilter) -> int:
        """Returns the number of posts that match."""
        (count,) = await _COUNT.count(self._database, [Query(resource="posts", filter=filter)])
        return count

    async def delete(
        self, deletion: Deletion, *, key: IdempotencyKey | None = None, dry_run: bool = False
    ) -> BatchResult[Post]:
        """Deletes posts, all or none, and returns their last state."""
        try:
            deleted = await super().delete(deletion, key=key, dry_run=dry_run)
        except PostHasComments as error:
            # The writer only checks whether there are comments, because counting many takes long.
            counts = await count_comments(self._database, error.comment_counts)
            raise PostHasComments(
                comment_counts={post_id: max(count, 1) for post_id, count in counts.items()}
            ) from None
        if deletion.force:
            self._after_deletion()
        return deleted


async def _plan_deletions(
    connection: Connection, writes: Sequence[WriteCommand[Deletion]], stored: Mapping[int, Post]
) -> DeletionPlan[Post]:
    """Plans which posts are deleted with their comments, and which are marked.

    Posts with comments are refused without force.
    """
    rows = await connection.fetch(comment_sql.COMMENTED_POSTS, post_ids=as_json(list(stored)))
    commented = {id for (id,) in rows}
    marked, removed = await _marked_and_removable(connection, writes, commented)

    def may_run(write: WriteCommand[Deletion], posts: Sequence[Post]) -> bool:
        with_comments = [post.id for post in posts if post.id in commented]
        if with_comments and not write.argument.force:
            raise PostHasComments(comment_counts=dict.fromkeys(with_comments, 1))
        # Only a deletion that is executed is deferred. A validate_only call has been checked completely.
        return write.dry_run or removed.complete.union(marked).issuperset(with_comments)

    async def before(deleted: Deleted) -> set[int]:
        comment_ids = [
            id for post_id in deleted.keys() & removed.complete for id in removed.comments.get(post_id, ())
        ]
        await remove_comments(connection, comment_ids, deleted)
        unmarked = deleted.keys() - marked
        if unmarked:
            await connection.fetch(sql.CHECK_KEYS_BY_INDEX)
        return unmarked

    async def after(deleted: Deleted) -> None:
        if deleted.keys() & marked:
            ids = as_json(list(deleted.keys() & marked))
            requests, now = request_ids(deleted.items()), now_microseconds()
            await connection.write(sql.MARK_POSTS, ids=ids, requests=requests, now=now)
            await connection.fetch(sql.RELEASE_EXTERNAL_IDS, ids=ids)

    return DeletionPlan(may_run, before, after)


async def _marked_and_removable(
    connection: Connection, writes: Sequence[WriteCommand[Deletion]], commented: set[int]
) -> tuple[set[int], Removable]:
    """Returns the posts to mark, and the comments to remove in this transaction, within its budget.

    The first forced deletion always runs: its posts are marked if their comments exceed the budget. Another
    deletion runs if the comments of its posts fit too.
    """
    forced = [
        commented.intersection(write.argument.ids)
        for write in writes
        if write.argument.force and not write.dry_run
    ]
    forced = [ids for ids in forced if ids]
    if not forced:
        return set(), Removable()
    first, others = forced[0], set[int]().union(*forced[1:]) - forced[0]
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
    before_delete=_plan_deletions,
)
_OPERATIONS = Operations(POSTS)
_COUNT = MatchingCount(POSTS.sql.list)
