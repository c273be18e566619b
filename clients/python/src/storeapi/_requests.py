"""The requests of a call with a stream of requests, which are added while the call runs.

Written twice, because waiting differs between asyncio and threads.
"""

import asyncio
import queue
from typing import Any


class AsyncRequests:
    """The requests of a call of asyncio: an asynchronous iterator."""

    def __init__(self) -> None:
        """Starts without requests."""
        self._waiting: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, request: Any) -> None:
        """Adds a request."""
        self._waiting.put_nowait(request)

    def end(self) -> None:
        """Ends the requests; ending them again has no effect."""
        self._waiting.put_nowait(None)

    def __aiter__(self) -> "AsyncRequests":
        return self

    async def __anext__(self) -> Any:
        request = await self._waiting.get()
        if request is None:
            raise StopAsyncIteration
        return request


class Requests:
    """The requests of a call of threads: an iterator, which a thread of gRPC reads."""

    def __init__(self) -> None:
        """Starts without requests."""
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, request: Any) -> None:
        """Adds a request."""
        self._waiting.put(request)

    def end(self) -> None:
        """Ends the requests; ending them again has no effect."""
        self._waiting.put(None)

    def __iter__(self) -> "Requests":
        return self

    def __next__(self) -> Any:
        request = self._waiting.get()
        if request is None:
            raise StopIteration
        return request
