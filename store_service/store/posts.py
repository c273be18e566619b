"""The rules of posts. Each write reads what it needs, decides in Python, and writes what was decided;
the transaction around it makes the three one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from store_service.database import comments as comment_sql
from store_service.database import posts as sql
from store_service.database.connect import Store
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.database.workers import Operation
from store_service.errors import PostHasComments, PostNotFound, StoreError
from store_service.model import Deletion, Found, Page, PageRequest, Post, PostDraft, Update
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


class Posts:
    """Everything that can be done with posts. Errors are those of `store_service.errors`."""

    def __init__(self, store: Store) -> None:
        """Takes the open database."""
        self._store = store

    async def create_posts(self, drafts: Sequence[PostDraft], *, keep: bool = True) -> tuple[Post, ...]:
        """Stores posts, all or none, and returns them in the order of the drafts."""
        check_answer_size(drafts)
        posts = await self._store.write(_CREATE, drafts, keep=keep)
        return posts if keep else tuple(_without_what_was_not_given(post) for post in posts)

    async def get_post(self, id: int) -> Post:
        """Returns one post."""
        stored = await self._store.read(_GET, (id,))
        if id not in stored:
            raise PostNotFound(ids=[id])
        return stored[id]

    async def get_posts(self, ids: Sequence[int], *, allow_missing: bool) -> Found[Post]:
        """Returns posts in the order of `ids`."""
        stored = await self._store.read(_GET, ids)
        return pick(ids, stored, allow_missing=allow_missing, missing=PostNotFound)

    async def list_posts(self, request: PageRequest) -> Page[Post]:
        """Returns one page."""
        return await self._store.read(_LIST, request)

    async def update_post(self, update: Update, *, keep: bool = True) -> Post:
        """Changes a post and returns what it became."""
        post = await self._store.write(_UPDATE, update, keep=keep)
        return post if keep else replace(post, update_time=None, version=0)

    async def delete_posts(self, deletion: Deletion, *, keep: bool = True) -> Found[Post]:
        """Deletes posts, all or none, and returns them as they last were."""
        return await self._store.write(_DELETE, deletion, keep=keep)


def _without_what_was_not_given(post: Post) -> Post:
    return replace(post, id=0, create_time=None, update_time=None, version=0)


async def _create(connection: Connection, batches: Sequence[Sequence[PostDraft]]) -> list[tuple[Post, ...]]:
    drafts = [draft for batch in batches for draft in batch]
    now = now_microseconds()
    rows = await connection.fetch(
        sql.INSERT_POSTS, drafts=as_json([(n, draft.body) for n, draft in enumerate(drafts)]), now=now
    )
    # Ids count up in the order of the drafts; the order of RETURNING is nobody's promise.
    ids = iter(sorted(id for (id,) in rows))
    return [
        tuple(
            Post(id=next(ids), body=draft.body, create_time=now, update_time=now, version=1)
            for draft in batch
        )
        for batch in batches
    ]


async def _get(connection: Connection, batches: Sequence[Sequence[int]]) -> list[Mapping[int, Post]]:
    # Everybody gets all that was found; each picks what it asked for.
    ids = {id for batch in batches for id in batch}
    fetch = connection.fetch_few if len(ids) <= FEW else connection.fetch
    rows = await fetch(sql.POSTS_BY_ID, ids=as_json(list(ids)))
    return [{row[0]: sql.post_of(row) for row in rows}] * len(batches)


async def _list(connection: Connection, requests: Sequence[PageRequest]) -> list[Page[Post] | StoreError]:
    pages: list[Page[Post] | StoreError] = []
    for request in requests:
        try:
            statement = sql.PAGE_OF_POSTS[request.query.order]
            pages.append(await read_page(connection, request, statement, sql.post_of))
        except StoreError as error:
            pages.append(error)
    return pages


async def _update(connection: Connection, updates: Sequence[Update]) -> list[Post | StoreError]:
    stored = await _locked_posts_by_id(connection, {update.id for update in updates})
    now = now_microseconds()
    changed: dict[int, Post] = {}

    def decision(update: Update) -> Post:
        before = stored.get(update.id)
        after = updated(update, before, missing=PostNotFound, now=now)
        if after is not before:
            # The next update of this batch finds what this one leaves.
            stored[after.id] = changed[after.id] = after
        return after

    outcomes = decide(updates, decision)
    if changed:
        rows = [(n, it.id, it.body, it.update_time, it.version) for n, it in enumerate(changed.values())]
        await connection.fetch(sql.UPDATE_POSTS, changes=as_json(rows))
    return outcomes


async def _delete(connection: Connection, deletions: Sequence[Deletion]) -> list[Found[Post] | StoreError]:
    ids = {id for deletion in deletions for id in deletion.ids}
    stored = await _locked_posts_by_id(connection, ids)
    counts: dict[int, int] = dict(
        await connection.fetch(comment_sql.COMMENT_COUNTS, post_ids=as_json(list(stored)))
    )
    gone: list[int] = []

    def decision(deletion: Deletion) -> Found[Post]:
        found = deleted(deletion, stored, missing=PostNotFound)
        commented = {post.id: counts[post.id] for post in found.items if post.id in counts}
        if commented and not deletion.force:
            raise PostHasComments(comment_counts=commented)
        for post in found.items:
            del stored[post.id]
            gone.append(post.id)
        return found

    outcomes = decide(deletions, decision)
    commented = [id for id in gone if id in counts]
    if commented:
        await connection.fetch(comment_sql.DELETE_COMMENTS_OF_POSTS, post_ids=as_json(commented))
    if gone:
        await connection.fetch(sql.DELETE_POSTS, ids=as_json(gone))
    return outcomes


async def _locked_posts_by_id(connection: Connection, ids: set[int]) -> dict[int, Post]:
    rows = await connection.fetch(sql.LOCKED_POSTS_BY_ID, ids=as_json(list(ids)))
    return {row[0]: sql.post_of(row) for row in rows}


_CREATE = Operation(_create, one_statement=True)
_GET: Operation[Sequence[int], Mapping[int, Post]] = Operation(_get)
_LIST: Operation[PageRequest, Page[Post]] = Operation(_list)
_UPDATE: Operation[Update, Post] = Operation(_update)
_DELETE: Operation[Deletion, Found[Post]] = Operation(_delete)
