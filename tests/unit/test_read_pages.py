"""Reads of pages for many requests: equal pages are read once, and memory is limited."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from store_service.database.batch_operation import DEFERRED
from store_service.database.connection import Connection
from store_service.errors import PostNotFound
from store_service.model import Page, PageRequest, Post, Query
from store_service.service.operations import MAX_HELD_BYTES
from store_service.service.pages import MAX_EXAMINED_ROWS, read_pages

NO_CONNECTION = cast(Connection, None)
"""Not used, because no page is a first page."""


@dataclass
class Reads:
    """Reads pages of one post whose body is as long as the page size."""

    page_sizes: list[int] = field(default_factory=list)

    async def __call__(self, _: Connection, request: PageRequest) -> Page[Post]:
        self.page_sizes.append(request.page_size)
        post = Post(id=1, body="x" * request.page_size, create_time=1, update_time=1, version=1)
        return Page(items=(post,), next_page_token="")


def requests(*sizes: int) -> list[PageRequest]:
    """Returns requests for pages of the given sizes."""
    return [PageRequest(query=Query(resource="posts"), page_size=it, page_token="t") for it in sizes]


async def outcomes(sizes: Sequence[int], read: Any) -> list[Any]:
    """Returns the outcome of each request."""
    return list(await read_pages(NO_CONNECTION, requests(*sizes), read))


async def test_requests_for_the_same_page_are_read_once() -> None:
    """Results are in the order of the requests."""
    reads = Reads()
    pages = await outcomes([5, 6, 5, 5], reads)

    assert reads.page_sizes == [5, 6]
    assert [len(page.items[0].body) for page in pages] == [5, 6, 5, 5]
    assert pages[0] is pages[2] is pages[3]


async def test_pages_above_the_memory_limit_are_deferred() -> None:
    reads = Reads()
    half = MAX_HELD_BYTES // 2
    pages = await outcomes([half, half + 1, half + 2, half, 7], reads)

    assert reads.page_sizes == [half, half + 1]
    assert [page is DEFERRED for page in pages] == [False, False, True, False, True]
    (alone,) = await outcomes([2 * MAX_HELD_BYTES], reads)
    assert alone is not DEFERRED


async def test_pages_above_the_limit_of_skipped_rows_are_deferred() -> None:
    """So other reads run between pages whose filters match few rows."""
    half = MAX_EXAMINED_ROWS // 2

    async def read(_: Connection, request: PageRequest) -> Page[Post]:
        return Page(items=(), next_page_token="", skipped_rows=request.page_size)

    pages = await outcomes([half, half + 1, half + 2, half], read)

    assert [page is DEFERRED for page in pages] == [False, False, True, False]
    assert DEFERRED not in await outcomes([1] * 1000, read)


async def test_many_small_pages_are_read_together() -> None:
    """None of a thousand small pages is deferred."""
    pages = await outcomes(range(1, 1001), Reads())

    assert DEFERRED not in pages


async def test_error_does_not_keep_other_pages_in_memory() -> None:
    """An error has no traceback, which would refer to the pages."""
    reads = Reads()

    async def read(connection: Connection, request: PageRequest) -> Page[Post]:
        if request.page_size == 404:
            raise PostNotFound(ids=[404])
        return await reads(connection, request)

    page, error = await outcomes([5, 404], read)

    assert page.items
    assert isinstance(error, PostNotFound)
    assert error.__traceback__ is None
