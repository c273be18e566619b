"""Reads the initial state of a watch: all stored resources that match its filter, in pages.

The pages are not a snapshot of one moment. After the last page the watch receives every change since before
the first page, including changes that the pages already show. After these changes its state is complete.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from store_service.database.connect import Database
from store_service.errors import PostNotFound, ResponseTooLarge
from store_service.model import (
    Action,
    Change,
    Comment,
    Page,
    PageRequest,
    Post,
    Query,
    ResourceKind,
    ResumePoint,
    SnapshotCursor,
    WatchFilter,
    concatenated_texts,
)
from store_service.service import page_tokens
from store_service.service.comments import Comments
from store_service.service.posts import Posts

PAGE_SIZE = 500
"""Maximum number of posts or comments in one page."""

PAGE_BYTES = 512 * 1024
"""Maximum size of the bodies of a page. If the caller does not read, several copies stay in memory."""

FIRST_SIZE = 50
"""Number of resources in the first read, before their sizes are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPage:
    """A part of the initial state."""

    changes: tuple[Change, ...]
    resume_point: ResumePoint
    """Where a watch that has received this page continues."""
    is_last: bool


class Snapshot:
    """Reads the initial state of watches."""

    def __init__(self, database: Database) -> None:
        """Takes the open database."""
        self._posts = Posts(database)
        self._comments = Comments(database)

    async def pages(self, resume_point: ResumePoint, filter: WatchFilter) -> AsyncIterator[SnapshotPage]:
        """Yields the rest of the initial state, posts before comments; nothing if it is complete.

        The last page is always empty.
        """
        if resume_point.snapshot is None:
            return
        async for cursor, items in self._resources(resume_point.snapshot, filter):
            changes = tuple(_snapshot_change(item) for item in items)
            rest = ResumePoint(position=resume_point.position, snapshot=cursor)
            yield SnapshotPage(changes=changes, resume_point=rest, is_last=False)
        yield SnapshotPage(changes=(), resume_point=ResumePoint(position=resume_point.position), is_last=True)

    async def _resources(
        self, cursor: SnapshotCursor, filter: WatchFilter
    ) -> AsyncIterator[tuple[SnapshotCursor, Sequence[Post] | Sequence[Comment]]]:
        post_ids = sorted(filter.post_ids)
        page_size = _PageSize()
        if cursor.kind is ResourceKind.POST:
            if ResourceKind.POST in filter.kinds:
                pages = (
                    self._posts_by_id(cursor, post_ids, page_size)
                    if post_ids
                    else self._all_posts(cursor, page_size)
                )
                async for posts in pages:
                    yield SnapshotCursor(kind=ResourceKind.POST, id=posts[-1].id), posts
            cursor = SnapshotCursor(kind=ResourceKind.COMMENT)
        if ResourceKind.COMMENT in filter.kinds:
            for post_id in [it for it in post_ids if it >= cursor.post_id] or ([] if post_ids else [0]):
                after = cursor.id if post_id == cursor.post_id else 0
                async for comments in self._comments_of_post(post_id, after, page_size):
                    yield (
                        SnapshotCursor(kind=ResourceKind.COMMENT, post_id=post_id, id=comments[-1].id),
                        comments,
                    )

    async def _all_posts(
        self, cursor: SnapshotCursor, page_size: "_PageSize"
    ) -> AsyncIterator[Sequence[Post]]:
        query = Query(resource="posts")
        token = page_tokens.make(query, last_id=cursor.id)
        while token:
            page: Page[Post] = await self._posts.list_page(_page_request(query, token, page_size))
            if page.items:
                page_size.adapt(page.items)
                yield page.items
            token = page.next_page_token

    async def _posts_by_id(
        self, cursor: SnapshotCursor, post_ids: Sequence[int], page_size: "_PageSize"
    ) -> AsyncIterator[Sequence[Post]]:
        remaining = [id for id in post_ids if id > cursor.id]
        while remaining:
            ids = remaining[: page_size.count]
            try:
                found = await self._posts.get_many(ids, allow_missing=True)
            except ResponseTooLarge:
                # A single post always fits.
                page_size.reduce()
                continue
            if len(ids) > 1 and _utf8_size(found.items) > PAGE_BYTES:
                page_size.reduce()
                continue
            if found.items:
                page_size.adapt(found.items)
                yield found.items
            remaining = remaining[len(ids) :]

    async def _comments_of_post(
        self, post_id: int, after: int, page_size: "_PageSize"
    ) -> AsyncIterator[Sequence[Comment]]:
        query = Query(resource="comments", post_id=post_id)
        token = page_tokens.make(query, last_id=after)
        while token:
            try:
                page: Page[Comment] = await self._comments.list_page(_page_request(query, token, page_size))
            except PostNotFound:
                # A watch may name a post that does not exist yet.
                return
            if page.items:
                page_size.adapt(page.items)
                yield page.items
            token = page.next_page_token


class _PageSize:
    """The number of resources to read next, so that little more is read than fits into a page."""

    def __init__(self) -> None:
        self.count = min(FIRST_SIZE, PAGE_SIZE)

    def adapt(self, items: Sequence[Post] | Sequence[Comment]) -> None:
        """Doubles the size after a small page. After a large page the next one has as many resources."""
        if 2 * _utf8_size(items) < PAGE_BYTES:
            self.count = min(2 * self.count, PAGE_SIZE)
        else:
            self.count = len(items)

    def reduce(self) -> None:
        """Reduces the size after a page that was too large."""
        self.count = max(self.count // 4, 1)


def _utf8_size(items: Sequence[Post] | Sequence[Comment]) -> int:
    return sum(len(concatenated_texts(item).encode()) for item in items)


def _page_request(query: Query, token: str, page_size: _PageSize) -> PageRequest:
    return PageRequest(query=query, page_size=page_size.count, page_token=token, max_bytes=PAGE_BYTES)


def _snapshot_change(item: Post | Comment) -> Change:
    is_post = isinstance(item, Post)
    return Change(
        action=Action.SNAPSHOT,
        kind=ResourceKind.POST if is_post else ResourceKind.COMMENT,
        post_id=item.id if isinstance(item, Post) else item.post_id,
        resource=item,
        commit_time=item.update_time,
    )
