"""The rules of posts. Each write reads what it needs, decides in Python, and writes what was decided;
the transaction around it makes the three one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from store_service.database import comments as comment_sql
from store_service.database import posts as sql
from store_service.database.connect import Store
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.database.workers import LATER, Operation
from store_service.errors import PostHasComments, PostNotFound, StoreError
from store_service.model import Deletion, Found, Page, PageRequest, Post, PostDraft, Request, Update, Write
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
from store_service.store.removal import Removable, removable, remove_comments
from store_service.store.requests import WriteOperation, request_ids


class Posts:
    """Everything that can be done with posts. Errors are those of `store_service.errors`."""

    def __init__(self, store: Store, *, after_deletion: Callable[[], None] = lambda: None) -> None:
        """Takes the open database, and what to call when posts may have been marked for removal."""
        self._store = store
        self._after_deletion = after_deletion

    async def create_posts(
        self, drafts: Sequence[PostDraft], *, request: Request | None = None, keep: bool = True
    ) -> tuple[Post, ...]:
        """Stores posts, all or none, and returns them in the order of the drafts."""
        size = check_answer_size(drafts)
        posts = await _CREATE.do(self._store, drafts, request, keep=keep, size=size)
        return posts if keep else tuple(_without_what_was_not_given(post) for post in posts)

    async def get_post(self, id: int) -> Post:
        """Returns one post."""
        stored = await self._store.read(_GET, (id,))
        if id not in stored:
            raise PostNotFound(ids=[id])
        return stored[id]

    async def get_posts(self, ids: Sequence[int], *, allow_missing: bool) -> Found[Post]:
        """Returns posts in the order of `ids`."""
        picked = await self._store.read(_FIND, ids)
        return picked.found(allow_missing=allow_missing)

    async def list_posts(self, request: PageRequest) -> Page[Post]:
        """Returns one page."""
        return await self._store.read(_LIST, request)

    async def update_post(self, update: Update, *, request: Request | None = None, keep: bool = True) -> Post:
        """Changes a post and returns what it became."""
        post = await _UPDATE.do(self._store, update, request, keep=keep, size=size_of_update(update))
        return post if keep else replace(post, update_time=None, version=0)

    async def delete_posts(
        self, deletion: Deletion, *, request: Request | None = None, keep: bool = True
    ) -> Found[Post]:
        """Deletes posts, all or none, and returns them as they last were."""
        size = size_of_deletion(deletion)
        try:
            deleted = await _DELETE.do(self._store, deletion, request, keep=keep, size=size)
        except PostHasComments as error:
            # The writer has only seen that there are some: to count them takes time that grows with them.
            counts = await count_comments(self._store, error.comment_counts)
            raise PostHasComments(
                comment_counts={post_id: max(count, 1) for post_id, count in counts.items()}
            ) from None
        if deletion.force:
            self._after_deletion()
        return deleted


def _without_what_was_not_given(post: Post) -> Post:
    return replace(post, id=0, create_time=None, update_time=None, version=0)


async def _create(
    connection: Connection, writes: Sequence[Write[Sequence[PostDraft]]]
) -> list[tuple[Post, ...]]:
    drafts = [(draft, write.request) for write in writes for draft in write.argument]
    now = now_microseconds()
    rows = await connection.write(
        sql.INSERT_POSTS,
        drafts=as_json([(n, draft.body) for n, (draft, _) in enumerate(drafts)]),
        requests=request_ids((n, request) for n, (_, request) in enumerate(drafts)),
        now=now,
    )
    ids = iter([id for (id,) in rows])
    return [
        tuple(
            Post(id=next(ids), body=draft.body, create_time=now, update_time=now, version=1)
            for draft in write.argument
        )
        for write in writes
    ]


async def _get(
    connection: Connection, batches: Sequence[Sequence[int]]
) -> list[Mapping[int, Post] | StoreError]:
    return await read_by_id(connection, batches, sql.POSTS_BY_ID, sql.post_of)


async def _find(connection: Connection, batches: Sequence[Sequence[int]]) -> list[Picked[Post] | StoreError]:
    return await find_by_id(connection, batches, sql.POSTS_BY_ID, sql.post_of, PostNotFound)


async def _list(connection: Connection, requests: Sequence[PageRequest]) -> list[Page[Post] | StoreError]:
    return await read_pages(connection, requests, _page)


async def _page(connection: Connection, request: PageRequest) -> Page[Post]:
    statement = sql.PAGE_OF_POSTS[request.query.order]
    return await read_page(connection, request, statement, sql.post_of)


async def _update(connection: Connection, writes: Sequence[Write[Update]]) -> list[Post | StoreError]:
    stored = await _locked_posts_by_id(connection, {write.argument.id for write in writes})
    now = now_microseconds()
    changed: list[tuple[Post, Request | None]] = []

    def decision(write: Write[Update]) -> Post:
        before = stored.get(write.argument.id)
        after = updated(write.argument, before, missing=PostNotFound, now=now)
        if after is not before:
            # The next update of this batch finds what this one leaves.
            stored[after.id] = after
            changed.append((after, write.request))
        return after

    outcomes = decide(writes, decision)
    if changed:
        rows = [(n, *sql.row_of(post), int(stored[post.id] is post)) for n, (post, _) in enumerate(changed)]
        requests = request_ids((n, request) for n, (_, request) in enumerate(changed))
        await connection.write(sql.UPDATE_POSTS, updates=as_json(rows), requests=requests, now=now)
    return outcomes


async def _delete(
    connection: Connection, writes: Sequence[Write[Deletion]]
) -> list[Found[Post] | StoreError]:
    stored = await _locked_posts_by_id(connection, {id for write in writes for id in write.argument.ids})
    rows = await connection.fetch(comment_sql.COMMENTED_POSTS, post_ids=as_json(list(stored)))
    commented = {id for (id,) in rows}
    marked, found = await _planned(connection, writes, commented)
    gone: dict[int, Request | None] = {}

    def decision(write: Write[Deletion]) -> Found[Post]:
        deletion = write.argument
        answer = deleted(deletion, stored, missing=PostNotFound)
        with_comments = [post.id for post in answer.items if post.id in commented]
        if with_comments and not deletion.force:
            raise PostHasComments(comment_counts=dict.fromkeys(with_comments, 1))
        # Only a deletion that is executed is deferred. A validate_only call has been checked completely.
        if write.keep and not found.complete.union(marked).issuperset(with_comments):
            return LATER  # type: ignore[no-any-return]  # it is Any
        for post in answer.items:
            del stored[post.id]
            if write.keep:
                gone[post.id] = write.request
        return answer

    outcomes = decide(writes, decision)
    requests, now = request_ids(gone.items()), now_microseconds()
    comment_ids = [id for post_id in gone.keys() & found.complete for id in found.comments.get(post_id, ())]
    await remove_comments(connection, comment_ids, gone)
    if gone.keys() - marked:
        await connection.fetch(sql.CHECK_KEYS_BY_INDEX)
        ids = as_json(list(gone.keys() - marked))
        await connection.write(sql.DELETE_POSTS, ids=ids, requests=requests, now=now)
    if gone.keys() & marked:
        ids = as_json(list(gone.keys() & marked))
        await connection.write(sql.MARK_POSTS, ids=ids, requests=requests, now=now)
    return outcomes


async def _planned(
    connection: Connection, writes: Sequence[Write[Deletion]], commented: set[int]
) -> tuple[set[int], Removable]:
    """Which posts are marked, and which comments are removed now, together no more than one transaction may.

    The first deletion is always done. Of the others those are whose comments fit too.
    """
    wanted = [
        commented.intersection(write.argument.ids) for write in writes if write.argument.force and write.keep
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


async def _locked_posts_by_id(connection: Connection, ids: set[int]) -> dict[int, Post]:
    rows = await connection.fetch(sql.LOCKED_POSTS_BY_ID, ids=as_json(list(ids)))
    return {row[0]: sql.post_of(row) for row in rows}


_GET: Operation[Sequence[int], Mapping[int, Post]] = Operation(_get)
_FIND: Operation[Sequence[int], Picked[Post]] = Operation(_find)
_LIST: Operation[PageRequest, Page[Post]] = Operation(_list)
_CREATE: WriteOperation[Sequence[PostDraft], tuple[Post, ...]] = WriteOperation(
    _create,
    Post,
    answer_of=lambda posts: Found(items=posts),
    result_of=lambda found: found.items,
    only_adds=True,
    is_one_write=True,
)
_UPDATE: WriteOperation[Update, Post] = WriteOperation(
    _update, Post, answer_of=lambda post: Found(items=(post,)), result_of=lambda found: found.items[0]
)
_DELETE: WriteOperation[Deletion, Found[Post]] = WriteOperation(
    _delete, Post, answer_of=lambda found: found, result_of=lambda found: found
)
