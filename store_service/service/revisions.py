"""Reads the former versions of posts and comments."""

from dataclasses import replace
from typing import TypeVar

from store_service.database.connection import Connection
from store_service.database.revisions import FIELDS, RevisionSql
from store_service.model import Comment, Page, Post, RevisionsRequest, concatenated_texts
from store_service.service import page_tokens
from store_service.service.pages import FETCH_ROWS, MAX_PAGE_BYTES, utf8_size
from store_service.service.scans import LAST_ID

R = TypeVar("R", Post, Comment)


async def read_revisions(
    connection: Connection, request: RevisionsRequest, sql: RevisionSql, resource: R
) -> Page[R]:
    """Reads one page of the former versions of a resource, newest first.

    Raises:
        PageTokenInvalid: The token is damaged.
        PageTokenMismatch: The token belongs to a different query.
    """
    before = page_tokens.read(request.page_token, request.query) if request.page_token else LAST_ID
    items: list[R] = []
    size = 0
    while True:
        limit = min(request.page_size + 1 - len(items), FETCH_ROWS)
        rows = await connection.fetch(sql.page, id=request.id, before=before, limit=limit)
        for row in rows:
            version = replace(resource, **dict(zip(FIELDS, row, strict=True)))
            size += utf8_size(concatenated_texts(version))
            if items and (len(items) == request.page_size or size > MAX_PAGE_BYTES):
                token = page_tokens.make(request.query, items[-1].version)
                return Page(items=tuple(items), next_page_token=token)
            items.append(version)
        if len(rows) < limit:
            return Page(items=tuple(items), next_page_token="")
        before = items[-1].version
