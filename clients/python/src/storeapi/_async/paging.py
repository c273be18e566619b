"""The lists of AsyncStoreClient."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Generic

import grpc
import grpc.aio

from storeapi import _arguments
from storeapi._async.calls import AsyncCalls
from storeapi._async.steps import AsyncSteps
from storeapi._connection import Timeout
from storeapi._resources import rpc_of, shown
from storeapi.model import Item, Page

MAX_PAGE_SIZE: Final = 1000
"""The maximum page size of the service."""


class AsyncPager(Generic[Item]):
    """Iterates over the resources of a list, and requests each page when it is needed.

    Nothing is sent before the first step. A step that failed can be repeated: nothing is skipped.
    """

    def __init__(
        self,
        calls: AsyncCalls,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, Any],
        request: Any,
        to_page: Callable[[Any], Page[Item]],
        timeout: Timeout,
        limit: int | None,
    ) -> None:
        """Called by the client; `request` is the one for the first page."""
        calls.attempts(timeout)  # Raises for an invalid timeout now, not at the first step.
        self._calls = calls
        self._method = method
        self._request = request
        self._to_page = to_page
        self._timeout = timeout
        self._items: Iterator[Item] = iter(())
        self._limit = self._left = _arguments.limit(limit)
        self._page_size = request.page_size
        self._is_last = limit == 0

    def __aiter__(self) -> AsyncPager[Item]:
        return self

    async def __anext__(self) -> Item:
        while True:
            for item in self._items:
                return item
            if self._is_last:
                raise StopAsyncIteration
            self._items = iter((await self._next_page()).items)

    def pages(self) -> AsyncIterator[Page[Item]]:
        """Iterates over the remaining pages.

            async for page in client.posts.list(page_size=100).pages():
                print(len(page.items), page.next_page_token)

        Its steps raise the errors of the list, and can be repeated like them.
        """
        return AsyncSteps(self._next_page_if_any)

    async def _next_page_if_any(self) -> Page[Item] | None:
        return None if self._is_last else await self._next_page()

    async def _next_page(self) -> Page[Item]:
        if self._left is not None:
            self._request.page_size = min(self._page_size or MAX_PAGE_SIZE, self._left)
        page = self._to_page(await self._calls.unary(self._method, self._request, self._timeout))
        self._request.page_token = page.next_page_token
        self._is_last = not page.next_page_token
        if self._left is not None:
            self._left -= len(page.items)
            self._is_last |= self._left <= 0
        return page

    def __repr__(self) -> str:
        fields = {it.name: value for it, value in self._request.ListFields()}
        if self._limit is not None:
            fields["limit"] = self._limit
        parts = [rpc_of(self._request), *(f"{name}={shown(value)}" for name, value in fields.items())]
        return f"{type(self).__name__}({', '.join(parts)})"
