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
from store_service.model import Comment, CommentDraft, Deletion, Found, Page, PageRequest, Update
from store_service.store.batches import (
    FEW,
    check_answer_size,
    decide,
    deleted,
    now_microseconds,
    pick,
    updated,
)
from store_service.store.pages import read_page


class Comments:
    """Everything that can be done with comments. Errors are those of `store_service.errors`."""

    def __init__(self, store: Store) -> None:
        """Takes the open database."""
        self._store = store

    async def create_comments(
        self, drafts: Sequence[CommentDraft], *, keep: bool = True
    ) -> tuple[Comment, ...]:
        """Stores comments, all or none, and returns them in the order of the drafts."""
        check_answer_size(drafts)
        comments = await self._store.write(_CREATE, drafts, keep=keep)
        return comments if keep else tuple(_without_what_was_not_given(comment) for comment in comments)

    async def get_comment(self, id: int) -> Comment:
        """Returns one comment."""
        stored = await self._store.read(_GET, (id,))
        if id not in stored:
            raise CommentNotFound(ids=[id])
        return stored[id]

    async def get_comments(self, ids: Sequence[int], *, allow_missing: bool) -> Found[Comment]:
        """Returns comments in the order of `ids`."""
        stored = await self._store.read(_GET, ids)
        return pick(ids, stored, allow_missing=allow_missing, missing=CommentNotFound)

    async def list_comments(self, request: PageRequest) -> Page[Comment]:
        """Returns one page, of one post or of all."""
        return await self._store.read(_LIST, request)

    async def update_comment(self, update: Update, *, keep: bool = True) -> Comment:
        """Changes a comment and returns what it became."""
        comment = await self._store.write(_UPDATE, update, keep=keep)
        return comment if keep else replace(comment, update_time=None, version=0)

    async def delete_comments(self, deletion: Deletion, *, keep: bool = True) -> Found[Comment]:
        """Deletes comments, all or none, and returns them as they last were."""
        return await self._store.write(_DELETE, deletion, keep=keep)

    async def count_comments(self, post_ids: Sequence[int]) -> dict[int, int]:
        """How many comments each of these posts has; 0 also for what is no post."""
        counts = await self._store.read(_COUNT, post_ids)
        return {post_id: counts.get(post_id, 0) for post_id in post_ids}


def _without_what_was_not_given(comment: Comment) -> Comment:
    return replace(comment, id=0, create_time=None, update_time=None, version=0)


async def _create(
    connection: Connection, batches: Sequence[Sequence[CommentDraft]]
) -> list[tuple[Comment, ...] | StoreError]:
    post_ids = {draft.post_id for batch in batches for draft in batch}
    posts = {id for (id,) in await connection.fetch(post_sql.KEPT_POST_IDS, ids=as_json(list(post_ids)))}
    now = now_microseconds()
    accepted: list[CommentDraft] = []

    def decision(batch: Sequence[CommentDraft]) -> Sequence[CommentDraft]:
        missing: dict[int, str] = {}
        for draft in batch:
            if draft.post_id not in posts:
                missing.setdefault(draft.post_id, draft.field)
        if missing:
            raise PostNotFound(ids=list(missing), fields=list(missing.values()))
        accepted.extend(batch)
        return batch

    outcomes = decide(batches, decision)
    rows = await connection.fetch(
        sql.INSERT_COMMENTS,
        drafts=as_json([(n, draft.body, draft.post_id) for n, draft in enumerate(accepted)]),
        now=now,
    )
    # Ids count up in the order of the drafts; the order of RETURNING is nobody's promise.
    ids = iter(sorted(id for (id,) in rows))
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


async def _get(connection: Connection, batches: Sequence[Sequence[int]]) -> list[Mapping[int, Comment]]:
    # Everybody gets all that was found; each picks what it asked for.
    ids = {id for batch in batches for id in batch}
    fetch = connection.fetch_few if len(ids) <= FEW else connection.fetch
    rows = await fetch(sql.COMMENTS_BY_ID, ids=as_json(list(ids)))
    return [{row[0]: sql.comment_of(row) for row in rows}] * len(batches)


async def _list(connection: Connection, requests: Sequence[PageRequest]) -> list[Page[Comment] | StoreError]:
    pages: list[Page[Comment] | StoreError] = []
    for request in requests:
        try:
            pages.append(await _page(connection, request))
        except StoreError as error:
            pages.append(error)
    return pages


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


async def _update(connection: Connection, updates: Sequence[Update]) -> list[Comment | StoreError]:
    stored = await _locked_comments_by_id(connection, {update.id for update in updates})
    now = now_microseconds()
    changed: dict[int, Comment] = {}

    def decision(update: Update) -> Comment:
        before = stored.get(update.id)
        after = updated(update, before, missing=CommentNotFound, now=now)
        if after is not before:
            # The next update of this batch finds what this one leaves.
            stored[after.id] = changed[after.id] = after
        return after

    outcomes = decide(updates, decision)
    if changed:
        rows = [(n, it.id, it.body, it.update_time, it.version) for n, it in enumerate(changed.values())]
        await connection.fetch(sql.UPDATE_COMMENTS, changes=as_json(rows))
    return outcomes


async def _delete(connection: Connection, deletions: Sequence[Deletion]) -> list[Found[Comment] | StoreError]:
    ids = {id for deletion in deletions for id in deletion.ids}
    stored = await _locked_comments_by_id(connection, ids)
    gone: list[int] = []

    def decision(deletion: Deletion) -> Found[Comment]:
        found = deleted(deletion, stored, missing=CommentNotFound)
        for comment in found.items:
            del stored[comment.id]
            gone.append(comment.id)
        return found

    outcomes = decide(deletions, decision)
    if gone:
        await connection.fetch(sql.DELETE_COMMENTS, ids=as_json(gone))
    return outcomes


async def _count(connection: Connection, batches: Sequence[Sequence[int]]) -> list[Mapping[int, int]]:
    post_ids = {post_id for batch in batches for post_id in batch}
    rows = await connection.fetch(sql.COMMENT_COUNTS, post_ids=as_json(list(post_ids)))
    counts: dict[int, int] = dict(rows)
    return [counts] * len(batches)


async def _locked_comments_by_id(connection: Connection, ids: set[int]) -> dict[int, Comment]:
    rows = await connection.fetch(sql.LOCKED_COMMENTS_BY_ID, ids=as_json(list(ids)))
    return {row[0]: sql.comment_of(row) for row in rows}


_CREATE = Operation(_create)
_GET: Operation[Sequence[int], Mapping[int, Comment]] = Operation(_get)
_LIST: Operation[PageRequest, Page[Comment]] = Operation(_list)
_UPDATE: Operation[Update, Comment] = Operation(_update)
_DELETE: Operation[Deletion, Found[Comment]] = Operation(_delete)
_COUNT: Operation[Sequence[int], Mapping[int, int]] = Operation(_count)
