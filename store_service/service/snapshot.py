"""Reads the initial state of a watch: all stored resources that match its filter, in pages.

The pages are not a snapshot of one moment. After the last page the watch receives every change since before
the first page, including changes that the pages already show. After these changes its state is complete.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from store_service.database.batch_operation import DEFERRED, BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.errors import (
    PostNotFound,
    ResponseTooLarge,
    ResumeTokenForeign,
    ServiceError,
    StandbyBehind,
)
from store_service.model import (
    Action,
    Change,
    Comment,
    Page,
    PageRequest,
    Position,
    Post,
    Query,
    ResourceFilter,
    ResourceKind,
    ResumePoint,
    SnapshotCursor,
    WatchFilter,
    concatenated_texts,
)
from store_service.service import page_tokens
from store_service.service.changes import check_seen, newest_position
from store_service.service.comments import COMMENTS
from store_service.service.posts import POSTS
from store_service.service.resource_operations import Operations

R = TypeVar("R", Post, Comment)
Argument = TypeVar("Argument")
Result = TypeVar("Result")

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
        self._database = database

    async def pages(self, resume_point: ResumePoint, filter: WatchFilter) -> AsyncIterator[SnapshotPage]:
        """Yields the rest of the initial state, posts before comments; nothing if it is complete.

        A page is empty if none of the rows that were read matches. The last page is always empty.

        Raises:
            ResumeTokenForeign: The store has lost changes that an earlier page contains.
        """
        if resume_point.snapshot is None:
            return
        position = resume_point.position
        reader = _Reader(self._database, resume_point)
        async for cursor, items in reader.resources(resume_point.snapshot, filter):
            changes = tuple(_snapshot_change(item) for item in items)
            rest = ResumePoint(position=position, snapshot=cursor, seen=reader.seen)
            yield SnapshotPage(changes=changes, resume_point=rest, is_last=False)
        end = ResumePoint(position=position, seen=reader.seen)
        yield SnapshotPage(changes=(), resume_point=end, is_last=True)


class _Reader:
    """Reads the resources of one initial state."""

    def __init__(self, database: Database, resume_point: ResumePoint) -> None:
        """Takes the open database, and where the initial state begins or continues."""
        self._database = database
        self._position = resume_point.position
        self._page_size = PageSize()
        self.seen: Position | None = resume_point.seen
        """See `ResumePoint.seen`."""

    async def resources(
        self, cursor: SnapshotCursor, filter: WatchFilter
    ) -> AsyncIterator[tuple[SnapshotCursor, Sequence[Post] | Sequence[Comment]]]:
        """Yields pages, and the cursor after each."""
        post_ids = sorted(filter.post_ids)
        if cursor.kind is ResourceKind.POST:
            if ResourceKind.POST in filter.kinds:
                pages = (
                    self._posts_by_id(cursor, post_ids, filter.post_filter)
                    if post_ids
                    else self._all_posts(cursor, filter.post_filter)
                )
                async for last_id, posts in pages:
                    yield SnapshotCursor(kind=ResourceKind.POST, id=last_id), posts
            cursor = SnapshotCursor(kind=ResourceKind.COMMENT)
        if ResourceKind.COMMENT in filter.kinds:
            for post_id in [it for it in post_ids if it >= cursor.post_id] or ([] if post_ids else [0]):
                after = cursor.id if post_id == cursor.post_id else 0
                async for last_id, comments in self._comments_of_post(post_id, after, filter.comment_filter):
                    yield SnapshotCursor(kind=ResourceKind.COMMENT, post_id=post_id, id=last_id), comments

    def _all_posts(self, cursor: SnapshotCursor, filter: ResourceFilter) -> "_Pages[Post]":
        return self._pages(_POST_PAGE, Query(resource="posts", filter=filter), cursor.id)

    def _comments_of_post(self, post_id: int, after: int, filter: ResourceFilter) -> "_Pages[Comment]":
        query = Query(resource="comments", post_id=post_id, filter=filter)
        return self._pages(_COMMENT_PAGE, query, after)

    async def _posts_by_id(
        self, cursor: SnapshotCursor, post_ids: Sequence[int], filter: ResourceFilter
    ) -> "_Pages[Post]":
        remaining = [id for id in post_ids if id > cursor.id]
        while remaining:
            ids = remaining[: self._page_size.count]
            try:
                found = await self._find_posts(ids, show_deleted=filter.show_deleted)
            except ResponseTooLarge:
                # A single post always fits.
                self._page_size.reduce()
                continue
            if len(ids) > 1 and texts_size(found) > PAGE_BYTES:
                self._page_size.reduce()
                continue
            if found:
                self._page_size.adapt(found)
            yield ids[-1], [post for post in found if filter.matches(post)]
            remaining = remaining[len(ids) :]

    async def _find_posts(self, ids: Sequence[int], *, show_deleted: bool) -> Sequence[Post]:
        selection = await self._read(_POSTS_BY_ID, ids)
        found = selection.result(allow_missing=True)
        if not show_deleted or not found.missing_ids:
            return found.items
        # A post that is restored between the two reads is in the changes after the initial state.
        deleted = await self._read(_DELETED_POSTS, found.missing_ids)
        restorable = [deleted[id] for id in found.missing_ids if id in deleted]
        return sorted([*found.items, *restorable], key=lambda it: it.id)

    async def _pages(
        self, operation: "PositionedRead[PageRequest, Page[R]]", query: Query, after: int
    ) -> "_Pages[R]":
        token = page_tokens.make(query, after)
        while token:
            request = PageRequest(
                query=query, page_size=self._page_size.count, page_token=token, max_bytes=PAGE_BYTES
            )
            page = await self._read(operation, request)
            token = page.next_page_token
            if page.items:
                self._page_size.adapt(page.items)
                yield page.items[-1].id, page.items
            elif token:
                last_id = page_tokens.read(token, query)
                assert isinstance(last_id, int)
                yield last_id, ()

    async def _read(self, operation: "PositionedRead[Argument, Result]", argument: Argument) -> Result:
        result, newest = await self._database.read(operation, (argument, self.seen))
        if newest is not None and newest > self._position:
            self.seen = newest
        return result


class PageSize:
    """The number of resources to read next, so that little more is read than fits into a page."""

    def __init__(self) -> None:
        """Starts small, before the size of rows is known."""
        self.count = min(FIRST_SIZE, PAGE_SIZE)

    def adapt(self, items: Sequence[Post | Comment]) -> None:
        """Doubles the size after a small page. After a large page the next one has as many resources."""
        if 2 * texts_size(items) < PAGE_BYTES:
            self.count = min(2 * self.count, PAGE_SIZE)
        else:
            self.count = len(items)

    def reduce(self) -> None:
        """Reduces the size after a page that was too large."""
        self.count = max(self.count // 4, 1)


def texts_size(items: Sequence[Post | Comment]) -> int:
    """Returns the bytes of all texts of resources."""
    return sum(len(concatenated_texts(item).encode()) for item in items)


def _snapshot_change(item: Post | Comment) -> Change:
    is_post = isinstance(item, Post)
    return Change(
        action=Action.SNAPSHOT,
        kind=ResourceKind.POST if is_post else ResourceKind.COMMENT,
        post_id=item.id if isinstance(item, Post) else item.post_id,
        resource=item,
        commit_time=item.update_time,
    )


_Pages: TypeAlias = AsyncIterator[tuple[int, Sequence[R]]]
"""Pages, each with the id up to which it has been read."""

PositionedRead: TypeAlias = BatchOperation[tuple[Argument, Position | None], tuple[Result, Position | None]]
"""A read that also takes and returns the position up to which pages may contain changes."""


def with_position(operation: BatchOperation[Argument, Result]) -> PositionedRead[Argument, Result]:
    """Returns a read that checks that the changes of earlier pages still exist.

    The check and the newest position are read after the page on the same connection, which means on the same
    server: the page contains no change after this position.
    """

    async def run(
        connection: Connection, jobs: Sequence[tuple[Argument, Position | None]]
    ) -> list[tuple[Result, Position | None] | ServiceError]:
        outcomes = await operation.run(connection, [argument for argument, _ in jobs])
        newest = await newest_position(connection)
        results: list[tuple[Result, Position | None] | ServiceError] = []
        for (_, seen), outcome in zip(jobs, outcomes, strict=True):
            if outcome is DEFERRED or isinstance(outcome, ServiceError):
                results.append(outcome)
                continue
            try:
                if seen is not None:
                    await check_seen(connection, seen)
                results.append((outcome, newest))
            except (ResumeTokenForeign, StandbyBehind) as error:
                results.append(error)
        return results

    return BatchOperation(run)


async def _comment_pages(
    connection: Connection, requests: Sequence[PageRequest]
) -> list[Page[Comment] | ServiceError]:
    """Reads pages of comments. A watch may name a post that does not exist yet; its page is empty."""
    nothing: Page[Comment] = Page(items=(), next_page_token="")
    return [
        nothing if isinstance(outcome, PostNotFound) else outcome
        for outcome in await _COMMENTS.list.run(connection, requests)
    ]


_POSTS, _COMMENTS = Operations(POSTS), Operations(COMMENTS)
_POST_PAGE = with_position(_POSTS.list)
_POSTS_BY_ID = with_position(_POSTS.find)
_DELETED_POSTS = with_position(_POSTS.deleted)
_COMMENT_PAGE = with_position(BatchOperation(_comment_pages))
