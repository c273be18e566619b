"""The service layer of comments. A comment belongs to a post that exists."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from store_service.database import posts as post_sql
from store_service.database.comments import COMMENTS as SQL
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.errors import (
    CommentNotFound,
    PostNotFound,
    ReplyPostMismatch,
    ReplyTooDeep,
    ServiceError,
)
from store_service.model import (
    EMPTY_FILTER,
    Comment,
    CommentDraft,
    Deletion,
    Page,
    PageRequest,
    Query,
    ResourceFields,
    ResourceFilter,
    WriteCommand,
)
from store_service.service.comment_removal import delete_comments, remove_marked_comments
from store_service.service.counting import count_comments
from store_service.service.matching_count import MatchingCount
from store_service.service.pages import read_page
from store_service.service.resource_operations import Operations
from store_service.service.resource_type import DeletionPlan, ResourceType
from store_service.service.resources import Resources
from store_service.service.restoration import check_comment, restore_comment

MAX_REPLY_DEPTH = 64
"""Default maximum depth of a reply."""


class Comments(Resources[Comment, CommentDraft]):
    """The collection of comments."""

    def __init__(
        self,
        database: Database,
        *,
        max_reply_depth: int = MAX_REPLY_DEPTH,
        undelete_hours: float = 0,
        max_revisions: int = 0,
        after_write: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes the open database.

        Args:
            database: The open database.
            max_reply_depth: The maximum depth of a reply.
            undelete_hours: How long deleted comments can be restored; 0: not at all.
            max_revisions: The number of former versions that are kept; 0: none.
            after_write: Called after a write that may have left work for `BackgroundSteps`.
        """
        super().__init__(
            database,
            Operations(
                with_reply_depth(max_reply_depth), undelete_hours=undelete_hours, max_revisions=max_revisions
            ),
            after_write=after_write,
        )

    async def count(
        self, post_ids: Sequence[int], filter: ResourceFilter = EMPTY_FILTER, *, max_count: int = 0
    ) -> dict[int, int]:
        """Returns the number of matching comments of each post, by id; 0 for a post that does not exist.

        If `max_count` is not 0, the count of a post stops at this number.
        """
        return await count_of_posts(self._database, post_ids, filter, max_count=max_count)

    async def count_all(self, filter: ResourceFilter, *, max_count: int = 0) -> int:
        """Returns the number of matching comments of all posts; at most `max_count` if it is not 0."""
        query = Query(resource="comments", filter=filter)
        (count,) = await _COUNT.count(self._database, [query], max_count)
        return count

    async def count_replies(
        self, comment_ids: Sequence[int], filter: ResourceFilter, *, max_count: int = 0
    ) -> dict[int, int]:
        """Returns the number of matching direct replies of each comment, by comment id.

        If `max_count` is not 0, the count of a comment stops at this number.
        """
        distinct = list(dict.fromkeys(comment_ids))
        queries = [
            Query(resource="comments", filter=replace(filter, reply_to_id=comment_id))
            for comment_id in distinct
        ]
        return dict(zip(distinct, await _COUNT.count(self._database, queries, max_count), strict=True))


def with_reply_depth(max_reply_depth: int) -> ResourceType[Comment, CommentDraft]:
    """Returns the description of comments with a maximum depth of replies."""
    check = partial(_complete_drafts, max_reply_depth=max_reply_depth)
    return replace(COMMENTS, before_create=check)


async def count_of_posts(
    database: Database,
    post_ids: Sequence[int],
    filter: ResourceFilter = EMPTY_FILTER,
    *,
    max_count: int = 0,
) -> dict[int, int]:
    """Returns the number of matching comments of each post that callers see; see `Comments.count`."""
    if filter == EMPTY_FILTER:
        counts, has_marked = await count_comments(database, post_ids, max_count)
        if not has_marked:
            return counts
    distinct = list(dict.fromkeys(post_ids))
    queries = [Query(resource="comments", post_id=post_id, filter=filter) for post_id in distinct]
    return dict(zip(distinct, await _COUNT.count(database, queries, max_count), strict=True))


async def _complete_drafts(
    connection: Connection, writes: Sequence[Sequence[CommentDraft]], *, max_reply_depth: int
) -> list[Sequence[CommentDraft] | ServiceError]:
    """Refuses comments of posts that do not exist, and replies to comments to which no reply is possible.

    Locks the posts against deletion. Adds the paths of replies.
    """
    post_ids = {draft.post_id for drafts in writes for draft in drafts}
    posts = {id for (id,) in await connection.fetch(post_sql.KEPT_POST_IDS, ids=as_json(list(post_ids)))}
    reply_to_ids = {draft.reply_to_id for drafts in writes for draft in drafts if draft.reply_to_id}
    if posts == post_ids and not reply_to_ids:
        return list(writes)
    parents: dict[int, Comment] = {}
    if reply_to_ids:
        rows = await connection.fetch(SQL.by_id, ids=as_json(list(reply_to_ids)))
        parents = {it.id: it for it in map(SQL.from_row, rows)}
    return [
        _missing_posts(drafts, posts)
        or _refused_reply(drafts, parents, max_reply_depth)
        or _with_paths(drafts, parents)
        for drafts in writes
    ]


def _refused_reply(
    drafts: Sequence[CommentDraft], parents: Mapping[int, Comment], max_reply_depth: int
) -> ServiceError | None:
    replies = [draft for draft in drafts if draft.reply_to_id]
    missing = {it.reply_to_id: f"{it.field}.reply_to_id" for it in replies if it.reply_to_id not in parents}
    if missing:
        return CommentNotFound(ids=list(missing), fields=list(missing.values()))
    for reply in replies:
        parent, field = parents[reply.reply_to_id], f"{reply.field}.reply_to_id"
        if parent.post_id != reply.post_id:
            return ReplyPostMismatch(reply_to_id=parent.id, post_id=parent.post_id, field=field)
        if parent.depth >= max_reply_depth:
            return ReplyTooDeep(reply_to_id=parent.id, max_depth=max_reply_depth, field=field)
    return None


def _with_paths(drafts: Sequence[CommentDraft], parents: Mapping[int, Comment]) -> Sequence[CommentDraft]:
    if not parents:
        return drafts
    return [replace(it, path=parents[it.reply_to_id].thread_key) if it.reply_to_id else it for it in drafts]


def _missing_posts(drafts: Sequence[CommentDraft], posts: set[int]) -> ServiceError | None:
    missing: dict[int, str] = {}
    for draft in drafts:
        if draft.post_id not in posts:
            missing.setdefault(draft.post_id, f"{draft.field}.post_id")
    return PostNotFound(ids=list(missing), fields=list(missing.values())) if missing else None


async def _page(connection: Connection, request: PageRequest) -> Page[Comment]:
    query = request.query
    page = await read_page(connection, request, SQL)
    # A comment on the page shows that the post exists, so only an empty page needs a check.
    if (
        query.post_id
        and not page.items
        and not await connection.fetch(post_sql.POST_IDS, ids=as_json([query.post_id]))
        and not (
            query.filter.show_deleted
            and await connection.fetch(post_sql.DELETED_POST_IDS, ids=as_json([query.post_id]))
        )
    ):
        raise PostNotFound(ids=[query.post_id], fields=["post_id"])
    return page


async def _plan_deletions(
    connection: Connection, writes: Sequence[WriteCommand[Deletion]], stored: Mapping[int, Comment]
) -> DeletionPlan[Comment]:
    """Every deletion of comments runs: what exceeds the budget of the transaction is removed in steps."""
    return DeletionPlan(lambda write, comments: True, partial(delete_comments, connection))


COMMENTS: ResourceType[Comment, CommentDraft] = ResourceType(
    name="comment",
    model=Comment,
    draft=CommentDraft,
    fields=ResourceFields(Comment),
    sql=SQL,
    not_found=CommentNotFound,
    plan_deletions=_plan_deletions,
    check_restore=check_comment,
    restore=restore_comment,
    release_external_ids=remove_marked_comments,
    read_page=_page,
)
_COUNT = MatchingCount(COMMENTS.sql)
