"""Splits a batch of any size into calls; used by both clients."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic

from storeapi import _arguments
from storeapi.model import Item

MAX_BATCH: Final = 1000
"""The maximum number of items in one call, unless the service is configured for less."""

FULL_BYTES: Final = 2 * 1024 * 1024
"""A call takes no more items once their texts have this size. With the last text, of at most 1 MiB, the
response, which repeats all texts, stays below 4 MiB."""


class BatchSplitter(Generic[Item]):
    """Splits the items of a batch into calls.

    A batch that the service refused as too large is put back and split again. The split depends only on the
    items and the limit, as if the limit had been known from the start: a repeated request with the same
    request id sends the same calls. A call ends after the item that fills it, so it does not depend on the
    items after it: a refused text can be corrected, and the calls before it stay done.
    """

    def __init__(self, items: Iterable[Item], length: Callable[[Item], int] | None = None) -> None:
        """Takes the items, and a function that returns the number of characters in the texts of an item."""
        self._items = iter(items)
        self._waiting: deque[Item] = deque()
        self._length = length

    def next(self, limit: int) -> list[Item]:
        """The items of the next call; an empty list at the end."""
        batch: list[Item] = []
        bytes_left = FULL_BYTES
        while len(batch) < limit and bytes_left > 0:
            if not self._waiting:
                # One at a time: an iterator may be infinite.
                for item in self._items:
                    self._waiting.append(item)
                    break
                else:
                    break
            if self._length is not None:
                # The maximum size of their UTF-8. An exact size would require to encode every text twice.
                bytes_left -= 4 * self._length(self._waiting[0])
            batch.append(self._waiting.popleft())
        return batch

    def put_back(self, batch: list[Item]) -> None:
        """Puts the last batch back."""
        self._waiting.extendleft(reversed(batch))


def split_ids(ids: Iterable[int], name: str = "ids") -> BatchSplitter[int]:
    """Splits a batch of ids."""
    return BatchSplitter(_arguments.id(it, f"each of {name}") for it in ids)


def split_texts(texts: Iterable[str], name: str) -> BatchSplitter[str]:
    """Splits a batch of short texts."""
    return BatchSplitter(_arguments.texts(texts, name))


def split_drafts(drafts: Iterable[Any], as_draft: Callable[[Any], Any]) -> BatchSplitter[Any]:
    """Splits a batch of drafts, which `as_draft` checks."""
    # A str is an iterable of str too, and each character would become a post.
    if isinstance(drafts, str):
        raise TypeError("drafts must be an iterable of several, such as a list, not a single str")
    return BatchSplitter(map(as_draft, drafts), _length_of_draft)


def _length_of_draft(draft: Any) -> int:
    texts = [
        _arguments.text(getattr(draft, name), f"{name} of a draft")
        for name in ("body", "author", "external_id")
    ]
    # Each label is a message of its own, with a few bytes more.
    labels = (
        len(key) + len(value) + 1
        for key, value in _arguments.labels(draft.labels, "labels of a draft").items()
    )
    return sum(map(len, texts)) + sum(labels)
