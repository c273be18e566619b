"""The rules of comments, which are those of posts and one more: a comment belongs to a post that is
there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from store_service.database import comments as sql
from store_service.database import posts as post_sql
from store_service.database.connect import Store
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.database.workers import Operation
from store_service.errors import CommentNotFound, PostNotFound, StoreError
from store_service.model import (
    Comment,
    CommentDraft,
    Deletion,
    Found,
    Page,
    PageRequest,
    Request,
    Update,
    Write,
)
from store_service.store.batches import (
    Picked,
    check_answer_size,
    decide,
    deleted,
    find_by_id,
    now_microseconds,
    read_by_id,
    size_of_deletion,
    size_of_update,
    updated,
)
from store_service.store.counting import count_comments
from store_service.store.pages import read_page, read_pages
from store_service.store.requests import WriteOperation, request_ids


class Comments:
    """Everything that can be done with comments. Errors are those of `store_service.errors`."""

    def __init__(self, store: Store) -> None:
        """Takes the open database."""
        self._store = store

    async def create_comments(
        self, drafts: Sequence[CommentDraft], *, request: Request | None = None, keep: bool = True
    ) -> tuple[Comment, ...]:
        """Stores comments, all or none, and returns them in the order of the drafts."""
        size = check_answer_size(drafts)
        comments = await _CREATE.do(self._store, drafts, request, keep=keep, size=size)
        return comments if keep else tuple(_without_what_was_not_given(comment) for comment in comments)

    async def get_comment(self, id: int) -> Comment:
        """Returns one comment."""
        stored = await self._store.read(_GET, (id,))
        if id not in stored:
            raise CommentNotFound(ids=[id])
        return stored[id]

    async def get_comments(self, ids: Sequence[int], *, allow_missing: bool) -> Found[Comment]:
        """Returns comments in the order of `ids`."""
        picked = await self._store.read(_FIND, ids)
        return picked.found(allow_missing=allow_missing)

    async def list_comments(self, request: PageRequest) -> Page[Comment]:
        """Returns one page, of one post or of all."""
        return await self._store.read(_LIST, request)

    async def update_comment(
        self, update: Update, *, request: Request | None = None, keep: bool = True
    ) -> Comment:
        """Changes a comment and returns what it became."""
        comment = await _UPDATE.do(self._store, update, request, keep=keep, size=size_of_update(update))
        return comment if keep else replace(comment, update_time=None, version=0)

    async def delete_comments(
        self, deletion: Deletion, *, request: Request | None = None, keep: bool = True
    ) -> Found[Comment]:
        """Deletes comments, all or none, and returns them as they last were."""
        size = size_of_deletion(deletion)
        return await _DELETE.do(self._store, deletion, request, keep=keep, size=size)

    async def count_comments(self, post_ids: Sequence[int]) -> dict[int, int]:
        """How many comments each of these posts has; 0 also for an id that is not a post."""
        return await count_comments(self._store, post_ids)


def _without_what_was_not_given(comment: Comment) -> Comment:
    return replace(comment, id=0, create_time=None, update_time=None, version=0)


async def _create(
    connection: Connection, writes: Sequence[Write[Sequence[CommentDraft]]]
) -> list[tuple[Comment, ...] | StoreError]:
    post_ids = {draft.post_id for write in writes for draft in write.argument}
    posts = {id for (id,) in await connection.fetch(post_sql.KEPT_POST_IDS, ids=as_json(list(post_ids)))}
    now = now_microseconds()
    accepted: list[tuple[CommentDraft, Request | None]] = []

    def decision(write: Write[Sequence[CommentDraft]]) -> Sequence[CommentDraft]:
        missing: dict[int, str] = {}
        for draft in write.argument:
            if draft.post_id not in posts:
                missing.setdefault(draft.post_id, draft.field)
        if missing:
            raise PostNotFound(ids=list(missing), fields=list(missing.values()))
        accepted.extend((draft, write.request) for draft in write.argument)
        return write.argument

    outcomes = decide(writes, decision)
    if not accepted:
        return [outcome for outcome in outcomes if isinstance(outcome, StoreError)]
    rows = await connection.write(
        sql.INSERT_COMMENTS,
        drafts=as_json([(n, draft.body, draft.post_id) for n, (draft, _) in enumerate(accepted)]),
        requests=request_ids((n, request) for n, (_, request) in enumerate(accepted)),
        now=now,
    )
    ids = iter([id for (id,) in rows])
    return [
        outcome
        if isinstance(outcome, StoreError)
        else tuple(
            Comment(
                id=next(ids),
                body=draft.body,
                post_id=draft.post_id,
                create_time=now,
                update_time=now,
                version=1,
            )
            for draft in outcome
        )
        for outcome in outcomes
    ]


async def _get(
    connection: Connection, batches: Sequence[Sequence[int]]
) -> list[Mapping[int, Comment] | StoreError]:
    return await read_by_id(connection, batches, sql.COMMENTS_BY_ID, sql.comment_of)


async def _find(
    connection: Connection, batches: Sequence[Sequence[int]]
) -> list[Picked[Comment] | StoreError]:
    return await find_by_id(connection, batches, sql.COMMENTS_BY_ID, sql.comment_of, CommentNotFound)


async def _list(connection: Connection, requests: Sequence[PageRequest]) -> list[Page[Comment] | StoreError]:
    return await read_pages(connection, requests, _page)


async def _page(connection: Connection, request: PageRequest) -> Page[Comment]:
    query = request.query
    if not query.post_id:
        return await read_page(connection, request, sql.PAGE_OF_ALL_COMMENTS[query.order], sql.comment_of)
    statement = sql.PAGE_OF_COMMENTS[query.order]
    page = await read_page(connection, request, statement, sql.comment_of, post_id=query.post_id)
    # Where there is a comment there is its post; only an empty page leaves the question open.
    if not page.items and not await connection.fetch(post_sql.POST_IDS, ids=as_json([query.post_id])):
        raise PostNotFound(ids=[query.post_id], fields=["post_id"])
    return page


async def _update(connection: Connection, writes: Sequence[Write[Update]]) -> list[Comment | StoreError]:
    stored = await _locked_comments_by_id(connection, {write.argument.id for write in writes})
    now = now_microseconds()
    changed: list[tuple[Comment, Request | None]] = []

    def decision(write: Write[Update]) -> Comment:
        before = stored.get(write.argument.id)
        after = updated(write.argument, before, missing=CommentNotFound, now=now)
        if after is not before:
            # The next update of this batch finds what this one leaves.
            stored[after.id] = after
            changed.append((after, write.request))
        return after

    outcomes = decide(writes, decision)
    if changed:
        rows = [
            (n, *sql.row_of(comment), int(stored[comment.id] is comment))
            for n, (comment, _) in enumerate(changed)
        ]
        requests = request_ids((n, request) for n, (_, request) in enumerate(changed))
        await connection.write(sql.UPDATE_COMMENTS, updates=as_json(rows), requests=requests, now=now)
    return outcomes


async def _delete(
    connection: Connection, writes: Sequence[Write[Deletion]]
) -> list[Found[Comment] | StoreError]:
    ids = {id for write in writes for id in write.argument.ids}
    stored = await _locked_comments_by_id(connection, ids)
    gone: dict[int, Request | None] = {}

    def decision(write: Write[Deletion]) -> Found[Comment]:
        found = deleted(write.argument, stored, missing=CommentNotFound)
        for comment in found.items:
            del stored[comment.id]
            gone[comment.id] = write.request
        return found

    outcomes = decide(writes, decision)
    if gone:
        await connection.write(
            sql.DELETE_COMMENTS,
            ids=as_json(list(gone)),
            requests=request_ids(gone.items()),
            now=now_microseconds(),
        )
    return outcomes


async def _locked_comments_by_id(connection: Connection, ids: set[int]) -> dict[int, Comment]:
    rows = await connection.fetch(sql.LOCKED_COMMENTS_BY_ID, ids=as_json(list(ids)))
    return {row[0]: sql.comment_of(row) for row in rows}


_GET: Operation[Sequence[int], Mapping[int, Comment]] = Operation(_get)
_FIND: Operation[Sequence[int], Picked[Comment]] = Operation(_find)
_LIST: Operation[PageRequest, Page[Comment]] = Operation(_list)
_CREATE: WriteOperation[Sequence[CommentDraft], tuple[Comment, ...]] = WriteOperation(
    _create,
    Comment,
    answer_of=lambda comments: Found(items=comments),
    result_of=lambda found: found.items,
    only_adds=True,
)
_UPDATE: WriteOperation[Update, Comment] = WriteOperation(
    _update,
    Comment,
    answer_of=lambda comment: Found(items=(comment,)),
    result_of=lambda found: found.items[0],
)
_DELETE: WriteOperation[Deletion, Found[Comment]] = WriteOperation(
    _delete, Comment, answer_of=lambda found: found, result_of=lambda found: found
)
