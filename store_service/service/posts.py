"""The service layer of posts. A post with comments is deleted only with force, together with its comments."""

from collections.abc import Callable, Mapping, Sequence

from store_service.database import comments as comment_sql
from store_service.database import posts as sql
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.deletions import END_RESTORATIONS_OF_POSTS, WITH_POST
from store_service.database.statements import as_json
from store_service.errors import DatabaseBusy, PostHasComments, PostNotFound
from store_service.model import (
    BatchResult,
    DeletedResource,
    Deletion,
    DeletionTimes,
    IdempotencyKey,
    Post,
    PostDraft,
    Query,
    ResourceFields,
    ResourceFilter,
    WriteCommand,
)
from store_service.service.comment_removal import remove_comments
from store_service.service.comments import count_of_posts
from store_service.service.idempotency import request_ids
from store_service.service.large_deletions import Removable, removable
from store_service.service.matching_count import MatchingCount
from store_service.service.operations import now_microseconds
from store_service.service.resource_operations import Operations
from store_service.service.resource_type import DeletionPlan, ResourceType
from store_service.service.resources import Resources
from store_service.service.restoration import check_post, restore_post


class Posts(Resources[Post, PostDraft]):
    """The collection of posts."""

    def __init__(
        self,
        database: Database,
        *,
        undelete_hours: float = 0,
        max_revisions: int = 0,
        after_write: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes the open database.

        Args:
            database: The open database.
            undelete_hours: How long deleted posts can be restored; 0: not at all.
            max_revisions: The number of former versions that are kept; 0: none.
            after_write: Called after a write that may have left work for `BackgroundSteps`.
        """
        operations = Operations(POSTS, undelete_hours=undelete_hours, max_revisions=max_revisions)
        super().__init__(database, operations, after_write=after_write)

    async def count(self, filter: ResourceFilter, *, max_count: int = 0) -> int:
        """Returns the number of posts that match."""
        (count,) = await _COUNT.count(self._database, [Query(resource="posts", filter=filter)], max_count)
        return count

    async def delete(
        self, deletion: Deletion, *, key: IdempotencyKey | None = None, dry_run: bool = False
    ) -> BatchResult[Post]:
        """Deletes posts, all or none, and returns their last state.

        Raises:
            PostHasComments: Some posts have comments, and `force` is not set.
            DatabaseBusy: All comments of the posts are deleted, and some are not removed yet.
        """
        try:
            return await super().delete(deletion, key=key, dry_run=dry_run)
        except PostHasComments as error:
            # The writer only checks whether there are rows of comments, because counting many takes long.
            counts = await count_of_posts(self._database, list(error.comment_counts))
            if not any(counts.values()):
                raise DatabaseBusy from None
            raise PostHasComments(
                comment_counts={post_id: count for post_id, count in counts.items() if count}
            ) from None


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

    async def execute(deleted: Mapping[int, DeletedResource[Post]], times: DeletionTimes) -> None:
        keys = {
            id: it.key
            for post_id, it in deleted.items()
            if post_id in removed.complete
            for id in removed.comments.get(post_id, ())
        }
        with_posts = dict.fromkeys(keys, WITH_POST)
        await remove_comments(connection, keys, keys, times, deleted_with=with_posts)
        if times.can_be_restored:
            await connection.fetch(
                sql.POSTS.deleted.add,
                deleted=as_json([(n, id, 0) for n, id in enumerate(deleted)]),
                delete_time=times.delete_time,
                purge_time=times.purge_time,
            )
        else:
            await connection.fetch(END_RESTORATIONS_OF_POSTS, ids=as_json(list(deleted)))
            await connection.fetch(sql.POSTS.revisions.remove, ids=as_json(list(deleted)))
        unmarked, marked_now = deleted.keys() - marked, deleted.keys() & marked
        values = {
            "requests": request_ids((id, it.key) for id, it in deleted.items()),
            "now": now_microseconds(),
            "delete_time": times.delete_time if times.can_be_restored else None,
            "purge_time": times.purge_time,
        }
        if unmarked:
            await connection.fetch(sql.CHECK_KEYS_BY_INDEX)
            await connection.write(sql.POSTS.delete, ids=as_json(list(unmarked)), **values)
        if marked_now:
            ids = as_json(list(marked_now))
            await connection.write(sql.MARK_POSTS, ids=ids, **values)
            await connection.fetch(sql.RELEASE_EXTERNAL_IDS, ids=ids)

    return DeletionPlan(may_run, execute)


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


async def _no_marked_external_ids(connection: Connection, external_ids: Sequence[str]) -> None:
    """Does nothing: a post that callers do not see has no external id."""


POSTS: ResourceType[Post, PostDraft] = ResourceType(
    name="post",
    model=Post,
    draft=PostDraft,
    fields=ResourceFields(Post),
    sql=sql.POSTS,
    not_found=PostNotFound,
    plan_deletions=_plan_deletions,
    check_restore=check_post,
    restore=restore_post,
    release_external_ids=_no_marked_external_ids,
)
_COUNT = MatchingCount(POSTS.sql)
