"""Wakes many waiters in small groups, so that they do not block the event loop.

One iteration of the event loop runs every task that is ready, and reads no socket before it ends. An event
that wakes a thousand tasks at once would block all other tasks until the last of them has run.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

WAKE_COUNT = 8
"""Number of waiters that are woken in one iteration of the event loop."""


async def paced(items: Iterable[T]) -> AsyncIterator[T]:
    """Yields items that wake one waiter each. Lets the event loop run after every WAKE_COUNT items."""
    for number, item in enumerate(items, 1):
        yield item
        if not number % WAKE_COUNT:
            await asyncio.sleep(0)


class Signal:
    """A recurring event that any number of tasks can wait for."""

    def __init__(self) -> None:
        """Starts without an event."""
        self.count = 0
        """Number of events so far. A waiter reads it before it reads the state."""
        self._waiting: dict[asyncio.Future[None], None] = {}

    def notify(self) -> None:
        """Wakes all waiters, WAKE_COUNT in each iteration of the event loop."""
        self.count += 1
        waiting, self._waiting = deque(self._waiting), {}
        self._wake(waiting)

    async def wait(self, seen: int) -> None:
        """Waits until there have been more than `seen` events."""
        if self.count == seen:
            future = asyncio.get_running_loop().create_future()
            self._waiting[future] = None
            try:
                await future
            finally:
                # A cancelled waiter must not stay in memory until the next event, which may be hours away.
                self._waiting.pop(future, None)

    def _wake(self, waiting: "deque[asyncio.Future[None]]") -> None:
        for _ in range(min(WAKE_COUNT, len(waiting))):
            future = waiting.popleft()
            if not future.done():
                future.set_result(None)
        if waiting:
            asyncio.get_running_loop().call_soon(self._wake, waiting)
