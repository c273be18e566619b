"""The service layer of comments. A comment belongs to a post that exists."""

from collections.abc import Sequence

from store_service.database import posts as post_sql
from store_service.database.comments import COMMENTS as SQL
from store_service.database.comments import PAGE_OF_POST
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.errors import CommentNotFound, PostNotFound, ServiceError
from store_service.model import Comment, CommentDraft, Page, PageRequest, ResourceFields
from store_service.service.counting import count_comments
from store_service.service.pages import read_page
from store_service.service.resources import Operations, Resources, ResourceType


class Comments(Resources[Comment, CommentDraft]):
    """The collection of comments."""

    def __init__(self, database: Database) -> None:
        """Takes the open database."""
        super().__init__(database, _OPERATIONS)

    async def count(self, post_ids: Sequence[int]) -> dict[int, int]:
        """Returns the number of comments of each post, by post id; 0 for a post that does not exist."""
        return await count_comments(self._database, post_ids)


async def _check_posts(
    connection: Connection, writes: Sequence[Sequence[CommentDraft]]
) -> list[ServiceError | None]:
    """Refuses comments of posts that do not exist, and locks the other posts against deletion."""
    post_ids = {draft.post_id for drafts in writes for draft in drafts}
    posts = {id for (id,) in await connection.fetch(post_sql.KEPT_POST_IDS, ids=as_json(list(post_ids)))}
    return [_missing_posts(drafts, posts) for drafts in writes]


def _missing_posts(drafts: Sequence[CommentDraft], posts: set[int]) -> ServiceError | None:
    missing: dict[int, str] = {}
    for draft in drafts:
        if draft.post_id not in posts:
            missing.setdefault(draft.post_id, draft.field)
    return PostNotFound(ids=list(missing), fields=list(missing.values())) if missing else None


async def _page(connection: Connection, request: PageRequest) -> Page[Comment]:
    query = request.query
    if not query.post_id:
        return await read_page(connection, request, SQL.pages[query.order], SQL.from_row)
    statement = PAGE_OF_POST[query.order]
    page = await read_page(connection, request, statement, SQL.from_row, post_id=query.post_id)
    # A comment on the page shows that the post exists, so only an empty page needs a check.
    if not page.items and not await connection.fetch(post_sql.POST_IDS, ids=as_json([query.post_id])):
        raise PostNotFound(ids=[query.post_id], fields=["post_id"])
    return page


COMMENTS: ResourceType[Comment, CommentDraft] = ResourceType(
    name="comment",
    model=Comment,
    draft=CommentDraft,
    fields=ResourceFields(Comment),
    sql=SQL,
    not_found=CommentNotFound,
    read_page=_page,
    before_create=_check_posts,
)
_OPERATIONS = Operations(COMMENTS)
