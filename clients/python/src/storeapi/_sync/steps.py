# Made from storeapi/_async/steps.py by tools/generate_sync.py: change that one, then `make protos`.
"""An iterator that can continue after an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from storeapi.model import Item


class Steps(Generic[Item]):
    """An iterator whose steps can be repeated after an error or a timeout, unlike those of a generator."""

    def __init__(self, step: Callable[[], Item | None]) -> None:
        """Takes the function that makes a step and returns None at the end."""
        self._step = step

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self._step, '__self__', self._step)!r})"

    def __iter__(self) -> Steps[Item]:
        return self

    def __next__(self) -> Item:
        item = self._step()
        if item is None:
            raise StopIteration
        return item
