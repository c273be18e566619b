# Made from storeapi/_async/paging.py by tools/generate_sync.py: change that one, then `make protos`.
"""The lists of StoreClient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Generic

import grpc

from storeapi import _messages
from storeapi._connection import Timeout
from storeapi._sync.calls import Calls
from storeapi._sync.steps import Steps
from storeapi.model import Item, Page

MAX_PAGE: Final = 1000
"""The most that the service gives at once."""


class Pager(Generic[Item]):
    """Iterates over everything that a list holds, and asks for the next page when the one before is used up.

    Nothing is sent before the first step. A step that failed can be made again: nothing is skipped.
    """

    def __init__(
        self,
        calls: Calls,
        method: grpc.UnaryUnaryMultiCallable[Any, Any],
        request: Any,
        to_page: Callable[[Any], Page[Item]],
        timeout: Timeout,
        limit: int | None,
    ) -> None:
        """Clients make it; `request` is the one for the first page."""
        calls.attempts(timeout)  # Complains of a wrong one where it was given.
        self._calls = calls
        self._method = method
        self._request = request
        self._to_page = to_page
        self._timeout = timeout
        self._items: Iterator[Item] = iter(())
        self._limit = self._left = _messages.limit(limit)
        self._page_size = request.page_size
        self._is_last = limit == 0

    def __iter__(self) -> Pager[Item]:
        return self

    def __next__(self) -> Item:
        while True:
            for item in self._items:
                return item
            if self._is_last:
                raise StopIteration
            self._items = iter((self._next_page()).items)

    def pages(self) -> Iterator[Page[Item]]:
        """Iterates over the pages that are still to be asked for, for callers that hand pages on.

            for page in client.posts.list(page_size=100).pages():
                print(len(page.items), page.next_page_token)

        Its steps raise what the steps of the list raise, and can be made again like them.
        """
        return Steps(self._next_page_if_any)

    def _next_page_if_any(self) -> Page[Item] | None:
        return None if self._is_last else self._next_page()

    def _next_page(self) -> Page[Item]:
        if self._left is not None:
            self._request.page_size = min(self._page_size or MAX_PAGE, self._left)
        page = self._to_page(self._calls.unary(self._method, self._request, self._timeout))
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
        method = type(self._request).__name__.removesuffix("Request")
        return f"{type(self).__name__}({', '.join([method, *(f'{it}={fields[it]!r}' for it in fields)])})"
