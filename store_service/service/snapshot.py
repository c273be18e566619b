"""The initial state of a watch: everything that is stored, page by page.

The pages are not one moment. A watch that has read them goes on with every change since before the first
page, so it is told again of what changed meanwhile, and ends with what is stored.
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
"""Most posts or comments in one message."""

PAGE_BYTES = 512 * 1024
"""A message ends before its bodies pass this. A watch whose caller does not read keeps some copies of it."""

FIRST_SIZE = 50
"""As many are asked for at first, as long as nobody knows how large they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPage:
    """Some of what is stored."""

    changes: tuple[Change, ...]
    resume_point: ResumePoint
    """Where a watch goes on that has been sent everything up to here."""
    is_last: bool


class Snapshot:
    """Reads everything that is stored."""

    def __init__(self, database: Database) -> None:
        """Takes the open database."""
        self._posts = Posts(database)
        self._comments = Comments(database)

    async def pages(self, resume_point: ResumePoint, filter: WatchFilter) -> AsyncIterator[SnapshotPage]:
        """What is left of the initial state, posts before their comments; nothing if nothing is left.

        The last page says so; it is empty when nothing is stored.
        """
        if resume_point.snapshot is None:
            return
        async for place, items in self._everything(resume_point.snapshot, filter):
            changes = tuple(_snapshot_of(item) for item in items)
            rest = ResumePoint(position=resume_point.position, snapshot=place)
            yield SnapshotPage(changes=changes, resume_point=rest, is_last=False)
        yield SnapshotPage(changes=(), resume_point=ResumePoint(position=resume_point.position), is_last=True)

    async def _everything(
        self, place: SnapshotCursor, filter: WatchFilter
    ) -> AsyncIterator[tuple[SnapshotCursor, Sequence[Post] | Sequence[Comment]]]:
        post_ids = sorted(filter.post_ids)
        pace = _Pace()
        if place.kind is ResourceKind.POST:
            if ResourceKind.POST in filter.kinds:
                pages = self._posts_of(place, post_ids, pace) if post_ids else self._all_posts(place, pace)
                async for posts in pages:
                    yield SnapshotCursor(kind=ResourceKind.POST, id=posts[-1].id), posts
            place = SnapshotCursor(kind=ResourceKind.COMMENT)
        if ResourceKind.COMMENT in filter.kinds:
            for post_id in [it for it in post_ids if it >= place.post_id] or ([] if post_ids else [0]):
                after = place.id if post_id == place.post_id else 0
                async for comments in self._comments_of(post_id, after, pace):
                    yield (
                        SnapshotCursor(kind=ResourceKind.COMMENT, post_id=post_id, id=comments[-1].id),
                        comments,
                    )

    async def _all_posts(self, place: SnapshotCursor, pace: "_Pace") -> AsyncIterator[Sequence[Post]]:
        query = Query(resource="posts")
        token = page_tokens.make(query, last_id=place.id)
        while token:
            page: Page[Post] = await self._posts.list_page(_request(query, token, pace))
            if page.items:
                pace.saw(page.items)
                yield page.items
            token = page.next_page_token

    async def _posts_of(
        self, place: SnapshotCursor, post_ids: Sequence[int], pace: "_Pace"
    ) -> AsyncIterator[Sequence[Post]]:
        left = [id for id in post_ids if id > place.id]
        while left:
            ids = left[: pace.count]
            try:
                found = await self._posts.get_many(ids, allow_missing=True)
            except ResponseTooLarge:
                # One post always fits.
                pace.slow_down()
                continue
            if len(ids) > 1 and _utf8_size(found.items) > PAGE_BYTES:
                pace.slow_down()
                continue
            if found.items:
                pace.saw(found.items)
                yield found.items
            left = left[len(ids) :]

    async def _comments_of(self, post_id: int, after: int, pace: "_Pace") -> AsyncIterator[Sequence[Comment]]:
        query = Query(resource="comments", post_id=post_id)
        token = page_tokens.make(query, last_id=after)
        while token:
            try:
                page: Page[Comment] = await self._comments.list_page(_request(query, token, pace))
            except PostNotFound:
                # It may be there later.
                return
            if page.items:
                pace.saw(page.items)
                yield page.items
            token = page.next_page_token


class _Pace:
    """How many to ask for, so that not much more is read than fits in a message."""

    def __init__(self) -> None:
        self.count = min(FIRST_SIZE, PAGE_SIZE)

    def saw(self, items: Sequence[Post] | Sequence[Comment]) -> None:
        """Learns from what was read: twice as many of what is small, no more than these of what is not."""
        if 2 * _utf8_size(items) < PAGE_BYTES:
            self.count = min(2 * self.count, PAGE_SIZE)
        else:
            self.count = len(items)

    def slow_down(self) -> None:
        """So many were too large."""
        self.count = max(self.count // 4, 1)


def _utf8_size(items: Sequence[Post] | Sequence[Comment]) -> int:
    return sum(len(concatenated_texts(item).encode()) for item in items)


def _request(query: Query, token: str, pace: _Pace) -> PageRequest:
    return PageRequest(query=query, page_size=pace.count, page_token=token, max_bytes=PAGE_BYTES)


def _snapshot_of(item: Post | Comment) -> Change:
    is_post = isinstance(item, Post)
    return Change(
        action=Action.SNAPSHOT,
        kind=ResourceKind.POST if is_post else ResourceKind.COMMENT,
        post_id=item.id if isinstance(item, Post) else item.post_id,
        resource=item,
        commit_time=item.update_time,
    )
