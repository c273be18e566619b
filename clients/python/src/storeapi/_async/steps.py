"""An iterator that can continue after an error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic

from storeapi.model import Item


class AsyncSteps(Generic[Item]):
    """An iterator whose steps can be repeated after an error or a timeout, unlike those of a generator."""

    def __init__(self, step: Callable[[], Awaitable[Item | None]]) -> None:
        """Takes the function that makes a step and returns None at the end."""
        self._step = step

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self._step, '__self__', self._step)!r})"

    def __aiter__(self) -> AsyncSteps[Item]:
        return self

    async def __anext__(self) -> Item:
        item = await self._step()
        if item is None:
            raise StopAsyncIteration
        return item
