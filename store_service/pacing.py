"""Wakes many waiters a few at a time.

Everything that is ready runs in one round of the event loop, and the loop reads no sockets before the round
ends. An event that makes a thousand callers ready at once would block all others for as long as these take
together.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

WAKE_COUNT = 8
"""Waiters that are woken in one round of the event loop."""


async def paced(items: Iterable[T]) -> AsyncIterator[T]:
    """Yields items that each make a waiter ready, with a round of the event loop after every WAKE_COUNT."""
    for number, item in enumerate(items, 1):
        yield item
        if not number % WAKE_COUNT:
            await asyncio.sleep(0)


class News:
    """An event that happens again and again, and that any number of tasks wait for."""

    def __init__(self) -> None:
        """Has not happened yet."""
        self.count = 0
        """How often the event has happened. A waiter reads it before it reads the state."""
        self._waiting: dict[asyncio.Future[None], None] = {}

    def tell(self) -> None:
        """Wakes all waiters, WAKE_COUNT in each round of the event loop."""
        self.count += 1
        waiting, self._waiting = deque(self._waiting), {}
        self._wake(waiting)

    async def wait(self, seen: int) -> None:
        """Waits until the event has happened more than `seen` times."""
        if self.count == seen:
            future = asyncio.get_running_loop().create_future()
            self._waiting[future] = None
            try:
                await future
            finally:
                # A waiter that gave up must not stay until the next event, which may be hours away.
                self._waiting.pop(future, None)

    def _wake(self, waiting: "deque[asyncio.Future[None]]") -> None:
        for _ in range(min(WAKE_COUNT, len(waiting))):
            future = waiting.popleft()
            if not future.done():
                future.set_result(None)
        if waiting:
            asyncio.get_running_loop().call_soon(self._wake, waiting)
