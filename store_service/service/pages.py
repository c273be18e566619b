"""Pages of any query, cut before they are too large for a message."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from store_service.database.batch_operation import DEFERRED
from store_service.database.connection import Connection
from store_service.database.statements import Statement
from store_service.errors import InvalidRequest, NotFound, ServiceError
from store_service.model import Comment, Page, PageRequest, Post, concatenated_texts
from store_service.service import page_tokens
from store_service.service.changes import feed_state
from store_service.service.operations import MAX_HELD_BYTES

MAX_PAGE_BYTES = 3 * 1024 * 1024
"""A page ends before its bodies pass this, so that it stays below gRPC's 4 MiB for a message."""

FETCH_ROWS = 200
"""Rows read at once, so that a page of large bodies does not read far beyond where it is cut."""

MAX_EXAMINED_ROWS = 5000
"""A page ends, however short it is, when so many rows have been read for it, most of them of posts that are
deleted and whose rows are not removed yet."""

_FIRST = {"id": -(2**63), "id desc": 2**63 - 1}
"""Where the first page starts, by order."""


R = TypeVar("R", Post, Comment)


async def read_pages(
    connection: Connection,
    requests: Sequence[PageRequest],
    read: Callable[[Connection, PageRequest], Awaitable[Page[R]]],
) -> list[Page[R] | ServiceError]:
    """Reads the page of each request with `read`. A first page has the resume token for a watch.

    Equal requests share one page. Pages after MAX_HELD_BYTES are DEFERRED: many requests for large pages
    must not fill the memory.
    """
    resume_token = ""
    if not all(request.page_token for request in requests):
        # Before any page is read: what a page does not show, a watch from here tells.
        state = await feed_state(connection)
        resume_token = state.resume_token(state.end)
    pages: dict[PageRequest, Page[R] | ServiceError] = {}
    held = 0
    for request in dict.fromkeys(requests):
        if held >= MAX_HELD_BYTES:
            break
        try:
            page = await read(connection, request)
        except (InvalidRequest, NotFound) as error:
            # Of this request alone; what happens to the connection happens to all. Its traceback would keep
            # the pages of others.
            pages[request] = error.with_traceback(None)
        else:
            pages[request] = page if request.page_token else replace(page, resume_token=resume_token)
            if len(requests) > 1:
                held += _memory_size(page.items)
    return [pages.get(request, DEFERRED) for request in requests]


async def read_page(
    connection: Connection,
    request: PageRequest,
    statement: Statement,
    resource_of: Callable[[Any], R],
    **values: int,
) -> Page[R]:
    """Reads one page with a statement that takes `after`, `limit` and `values`; rows without a body are
    passed over.

    Raises:
        PageTokenInvalid: The token is damaged.
        PageTokenMismatch: The token belongs to another query.
    """
    query = request.query
    after = page_tokens.last_id(request.page_token, query) if request.page_token else _FIRST[query.order]
    max_bytes = request.max_bytes or MAX_PAGE_BYTES
    items: list[R] = []
    size = examined = passed_over = 0
    while examined < MAX_EXAMINED_ROWS:
        # One more than is wanted tells whether there is a next page.
        limit = FETCH_ROWS if passed_over else min(request.page_size + 1 - len(items), FETCH_ROWS)
        rows = await connection.fetch(statement, after=after, limit=limit, **values)
        for row in rows:
            if row[1] is None:
                passed_over += 1
                continue
            item = resource_of(row)
            size += _utf8_size(concatenated_texts(item))
            if items and (len(items) == request.page_size or size > max_bytes):
                return Page(items=tuple(items), next_page_token=page_tokens.make(query, last_id=items[-1].id))
            items.append(item)
        if len(rows) < limit:
            return Page(items=tuple(items), next_page_token="")
        after = rows[-1][0]
        examined += len(rows)
    return Page(items=tuple(items), next_page_token=page_tokens.make(query, last_id=after))


def _utf8_size(text: str) -> int:
    """Size on the wire, with room for the other fields."""
    return len(text.encode()) + 64


def _memory_size(items: Sequence[Post] | Sequence[Comment]) -> int:
    """What a page takes: its texts, each of which may take four times its size on the wire, and the rest."""
    return sum([sys.getsizeof(concatenated_texts(item)) for item in items]) + 256 * len(items)
