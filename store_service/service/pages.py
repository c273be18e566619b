"""Reads the pages of lists. A page ends before it is too large for a message."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from store_service.database.batch_operation import DEFERRED
from store_service.database.connection import Connection
from store_service.database.resource_sql import ResourceSql
from store_service.errors import InvalidRequest, NotFound, ServiceError
from store_service.model import Comment, Page, PageRequest, Post, Query, RevisionsRequest, concatenated_texts
from store_service.service import page_tokens
from store_service.service.changes import feed_state
from store_service.service.merged_scan import MergedScan
from store_service.service.operations import MAX_HELD_BYTES
from store_service.service.scans import Cursor, Scan, scan_of

MAX_PAGE_BYTES = 3 * 1024 * 1024
"""Maximum size of the bodies of a page. It keeps the message below the 4 MiB of gRPC."""

FETCH_ROWS = 200
"""Number of rows that one statement reads. It limits how many rows after the end of the page are read."""

MAX_EXAMINED_ROWS = 5000
"""A page ends after it has read this number of rows, even if it is short: rows that do not match the filter,
or that are deleted and not removed yet, are read and skipped."""

R = TypeVar("R", Post, Comment)
Request = TypeVar("Request", PageRequest, RevisionsRequest)


async def read_pages(
    connection: Connection,
    requests: Sequence[Request],
    read: Callable[[Connection, Request], Awaitable[Page[R]]],
) -> list[Page[R] | ServiceError]:
    """Reads the page of each request with `read`. A first page has a resume token.

    Equal requests share one page. Pages after MAX_HELD_BYTES are DEFERRED, because many requests for large
    pages must not fill the memory; and pages after MAX_EXAMINED_ROWS rows that did not match, because other
    reads of the batch wait for them.
    """
    resume_token = ""
    if not all(request.page_token for request in requests):
        # Read before the pages, so that a watch from this token receives every change that they do not show.
        state = await feed_state(connection)
        resume_token = state.resume_token(state.end)
    pages: dict[Request, Page[R] | ServiceError] = {}
    held = skipped = 0
    for request in dict.fromkeys(requests):
        if held >= MAX_HELD_BYTES or skipped >= MAX_EXAMINED_ROWS:
            break
        try:
            page = await read(connection, request)
        except (InvalidRequest, NotFound) as error:
            # These errors concern one request; other errors fail the batch. The traceback is removed, because
            # it would keep the pages of other requests in memory.
            pages[request] = error.with_traceback(None)
        else:
            pages[request] = page if request.page_token else replace(page, resume_token=resume_token)
            skipped += page.skipped_rows
            if len(requests) > 1:
                held += _memory_size(page.items)
    return [pages.get(request, DEFERRED) for request in requests]


async def read_page(connection: Connection, request: PageRequest, sql: ResourceSql[R]) -> Page[R]:
    """Reads one page. Skips rows without a body.

    Raises:
        PageTokenInvalid: The token is damaged.
        PageTokenMismatch: The token belongs to a different query.
    """
    if not request.query.filter.show_deleted:
        return await _read_page(connection, request, sql)
    # Otherwise a row that moves between the two tables could be read twice, or not at all.
    async with connection.snapshot():
        return await _read_page(connection, request, sql)


async def _read_page(connection: Connection, request: PageRequest, sql: ResourceSql[R]) -> Page[R]:
    query = request.query
    cursor = page_tokens.read(request.page_token, query) if request.page_token else None
    scan, from_row = _scan_of(connection, sql, query, cursor)
    max_bytes = request.max_bytes or MAX_PAGE_BYTES
    items: list[R] = []
    size = examined = skipped = 0
    while examined < MAX_EXAMINED_ROWS:
        # One row more than the page holds shows whether there is a next page.
        limit = FETCH_ROWS if skipped else min(request.page_size + 1 - len(items), FETCH_ROWS)
        rows = await scan.read(limit)
        for row in rows:
            if row[1] is None:
                skipped += 1
                continue
            item = from_row(row)
            size += utf8_size(concatenated_texts(item))
            if items and (len(items) == request.page_size or size > max_bytes):
                token = page_tokens.make(query, scan.cursor_after(items[-1]))
                return Page(items=tuple(items), next_page_token=token, skipped_rows=skipped)
            items.append(item)
        if scan.has_more and len(items) == request.page_size:
            token = page_tokens.make(query, scan.cursor_after(items[-1]))
            return Page(items=tuple(items), next_page_token=token, skipped_rows=skipped)
        if scan.at_end:
            return Page(items=tuple(items), next_page_token="", skipped_rows=skipped)
        examined += max(len(rows), 1)
    token = page_tokens.make(query, scan.cursor)
    return Page(items=tuple(items), next_page_token=token, skipped_rows=skipped)


def _scan_of(
    connection: Connection, sql: ResourceSql[R], query: Query, cursor: Cursor | None
) -> tuple[Scan, Callable[[Sequence[Any]], R]]:
    """Returns the scan of a query, and the function that converts its rows."""
    scan = scan_of(connection, sql.list, query, cursor, sql.names)
    if not query.filter.show_deleted:
        return scan, sql.from_row
    deleted = scan_of(connection, sql.deleted.list, query, cursor, sql.deleted.names)
    return MergedScan(connection, query, (scan, deleted), sql.deleted), sql.deleted.from_row


def utf8_size(text: str) -> int:
    """Returns the size of a resource with this text on the wire, including its other fields."""
    return len(text.encode()) + 64


def _memory_size(items: Sequence[Post] | Sequence[Comment]) -> int:
    """Returns the approximate size in memory. A string can take four times its size on the wire."""
    return sum([sys.getsizeof(concatenated_texts(item)) for item in items]) + 256 * len(items)
