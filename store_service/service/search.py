"""Searches posts and comments. The indexes return candidates; the stored texts decide.

So both engines return the same, also where an index has less than the text (docs/decisions/0049).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from store_service.database import comments as comment_sql
from store_service.database import posts as post_sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.resource_sql import ResourceSql
from store_service.database.search_entries import match_of
from store_service.database.statements import as_json
from store_service.errors import PostNotFound
from store_service.model import (
    Comment,
    Post,
    Query,
    ResourceKind,
    SearchPage,
    SearchRequest,
    SearchResult,
    concatenated_texts,
)
from store_service.search import SearchQuery, snippet, tokenize
from store_service.service import page_tokens
from store_service.service.pages import MAX_EXAMINED_ROWS, MAX_PAGE_BYTES, utf8_size
from store_service.service.scans import filter_values
from store_service.service.search_index import SearchIndex
from store_service.service.search_scan import FIND, LAST_ID, Find

FETCH_ROWS = 100
"""Maximum number of rows that one statement reads."""

MAX_ROUNDS = 30
"""Maximum number of jobs that look for the rows of one page. A page can be short."""

RANKED_MATCHES = 500
"""Number of matches that are ranked together, the newest ones first."""

MAX_RANKED_BYTES = 4 * 1024 * 1024
"""Maximum size of the bodies of matches that are ranked together."""

_HIGHEST_SCORE = 2**62

R = TypeVar("R", Post, Comment)


@dataclass(slots=True)
class _Candidates(Generic[R]):
    """Resources that match the filter, in descending order of ids."""

    resources: Sequence[R]
    before: int
    """The resources before this id follow."""
    is_end: bool = False


@dataclass(frozen=True, slots=True)
class _ById:
    """Resources to read."""

    query: Query
    ids: Sequence[int]


class ResourceSearch(Generic[R]):
    """Searches one type of resource."""

    def __init__(
        self, database: Database, index: SearchIndex, kind: ResourceKind, statements: ResourceSql[R]
    ) -> None:
        """Takes the open database, the index, the kind of the resource, and its statements."""
        self._database = database
        self._index = index
        self._kind = kind
        self._from_row: Callable[[Sequence[Any]], R] = statements.from_row
        self._by_ids: BatchOperation[_ById, Sequence[Any]] = BatchOperation(partial(_read_each, statements))

    async def page(self, request: SearchRequest) -> SearchPage[R]:
        """Returns one page.

        Raises:
            SearchDisabled, SearchIndexNotReady: See `SearchIndex.ready`.
            PageTokenInvalid: The token is damaged.
            PageTokenMismatch: The token belongs to a different query.
            PostNotFound: The post whose comments are searched does not exist.
        """
        cursor: Any = page_tokens.read(request.page_token, request.query) if request.page_token else None
        await self._index.ready()
        if request.query.order == "relevance":
            page = await self._ranked(request, *(cursor or (LAST_ID, _HIGHEST_SCORE, 0)))
        else:
            page = await self._newest(request, cursor if cursor is not None else LAST_ID)
        post_id = request.query.post_id
        if post_id and not page.results and not await self._database.read(_POST_EXISTS, post_id):
            raise PostNotFound(ids=[post_id], fields=["post_id"])
        return page

    async def _newest(self, request: SearchRequest, before: int) -> SearchPage[R]:
        results: list[SearchResult[R]] = []
        size = 0
        async for found in self._candidates(request, before, request.page_size + 1):
            before = found.before
            for result in await asyncio.to_thread(_results, found.resources, request.parsed):
                size += utf8_size(concatenated_texts(result.resource))
                if results and (len(results) == request.page_size or size > MAX_PAGE_BYTES):
                    token = page_tokens.make(request.query, results[-1].resource.id)
                    return SearchPage(results=tuple(results), next_page_token=token)
                results.append(result)
            if found.is_end:
                return SearchPage(results=tuple(results), next_page_token="")
        return SearchPage(results=tuple(results), next_page_token=page_tokens.make(request.query, before))

    async def _ranked(self, request: SearchRequest, before: int, score: int, id: int) -> SearchPage[R]:
        """Returns a page of the newest matches before an id, those with the highest scores first.

        Those that have been returned have a higher score than `score`, or the same and a higher id than `id`.
        """
        scores: list[tuple[int, int]] = []
        shown: list[tuple[int, int]]
        size, end, is_end = 0, before, False
        async for found in self._candidates(request, before, RANKED_MATCHES):
            if before == LAST_ID and found.resources:
                # Resources that are created before the next page do not change the ranking.
                before = found.resources[0].id + 1
            end, is_end = found.before, found.is_end
            for one, points in await asyncio.to_thread(_scores, found.resources, request.parsed):
                scores.append((points, one.id))
                size += len(one.body)
                if len(scores) == RANKED_MATCHES or size > MAX_RANKED_BYTES:
                    end, is_end = one.id, False
                    break
            else:
                if not is_end:
                    continue
            break
        left = sorted([it for it in scores if it < (score, id)], reverse=True)
        shown = left[: request.page_size]
        results, is_whole = await self._shown(request, [id for _, id in shown])
        if is_whole and len(shown) == len(left):
            token = "" if is_end else page_tokens.make(request.query, (end, _HIGHEST_SCORE, 0))
        else:
            last: int = shown[-1][1] if is_whole else results[-1].resource.id
            points = next(points for points, id in shown if id == last)
            token = page_tokens.make(request.query, (before, points, last))
        return SearchPage(results=tuple(results), next_page_token=token)

    async def _shown(self, request: SearchRequest, ids: Sequence[int]) -> tuple[list[SearchResult[R]], bool]:
        """Returns the results with these ids that fit into a page, and whether they are all."""
        resources = await self._read(request.query, ids)
        results: list[SearchResult[R]] = []
        size = 0
        for result in await asyncio.to_thread(_results, resources, request.parsed):
            size += utf8_size(concatenated_texts(result.resource))
            if results and size > MAX_PAGE_BYTES:
                return results, False
            results.append(result)
        return results, True

    async def _candidates(
        self, request: SearchRequest, before: int, count: int
    ) -> AsyncIterator[_Candidates[R]]:
        """Yields the resources that the index and the filter return, about `count` if all of them match."""
        query = request.query
        match = match_of(request.parsed, query.filter, query.post_id)
        examined = skipped = matched = 0
        for _ in range(MAX_ROUNDS):
            limit = FETCH_ROWS if skipped or matched >= count else min(count - matched, FETCH_ROWS)
            found = await self._database.read(FIND, Find(self._kind, match, before, limit))
            resources = await self._read(query, found.ids)
            yield _Candidates(resources, found.before, found.is_end)
            before = found.before
            examined += len(found.ids)
            matched += len(resources)
            skipped += len(found.ids) - len(resources)
            if found.is_end or examined >= MAX_EXAMINED_ROWS:
                return

    async def _read(self, query: Query, ids: Sequence[int]) -> list[R]:
        """Returns those of these resources that match the filter, in the order of the ids."""
        if not ids:
            return []
        rows = await self._database.read(self._by_ids, _ById(query, ids))
        by_id = {row[0]: self._from_row(row) for row in rows if row[1] is not None}
        return [by_id[id] for id in ids if id in by_id]


class Searches:
    """The searches of all types of resources."""

    def __init__(self, database: Database, index: SearchIndex) -> None:
        """Takes the open database, and the index."""
        self.posts: ResourceSearch[Post] = ResourceSearch(database, index, ResourceKind.POST, post_sql.POSTS)
        self.comments: ResourceSearch[Comment] = ResourceSearch(
            database, index, ResourceKind.COMMENT, comment_sql.COMMENTS
        )


async def _read_each(
    statements: ResourceSql[Any], connection: Connection, jobs: Sequence[_ById]
) -> list[Sequence[Any]]:
    return [
        await connection.fetch(statements.list.by_ids, ids=as_json(list(job.ids)), **filter_values(job.query))
        for job in jobs
    ]


def _results(resources: Sequence[R], query: SearchQuery) -> list[SearchResult[R]]:
    results = []
    for it in resources:
        tokens = tokenize(it.body)
        if query.matches(tokens):
            results.append(SearchResult(resource=it, snippet=snippet(it.body, tokens, query)))
    return results


def _scores(resources: Sequence[R], query: SearchQuery) -> list[tuple[R, int]]:
    scores = []
    for it in resources:
        tokens = tokenize(it.body)
        if query.matches(tokens):
            scores.append((it, query.score(tokens)))
    return scores


async def _posts_exist(connection: Connection, ids: Sequence[int]) -> list[bool]:
    found = {id for (id,) in await connection.fetch(post_sql.POST_IDS, ids=as_json(list(set(ids))))}
    return [id in found for id in ids]


_POST_EXISTS: BatchOperation[int, bool] = BatchOperation(_posts_exist)
