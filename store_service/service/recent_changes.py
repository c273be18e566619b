"""The last change batches in memory, for watches that are up to date."""

from bisect import bisect_right

from store_service.model import Position
from store_service.service.changes import ChangeBatch

MAX_BYTES = 4 * 1024 * 1024
"""Maximum size of the change batches in memory. The last one may exceed it."""


class RecentChanges:
    """The last change batches of the feed, without gaps.

    There are thousands of batches if each write is committed alone, and every watch looks for its position
    after each of them. So no method looks at all of them.
    """

    def __init__(self) -> None:
        """Creates it without a position: it knows nothing until `start`."""
        self._batches: list[ChangeBatch] = []
        self._size = 0
        """Sum of the sizes of the batches."""
        self._start: Position | None = None

    def start(self, position: Position | None) -> None:
        """Removes all batches. The next batch is after a position; None if it is not known."""
        self._batches.clear()
        self._size = 0
        self._start = position

    def add(self, batch: ChangeBatch) -> None:
        """Adds the next batch."""
        self._batches.append(batch)
        self._size += batch.size
        if any(it.is_erased for it in batch.changes):
            # Another process may have removed content of earlier changes. Watches read them again.
            self.forget()
        while len(self._batches) > 1 and self._size > MAX_BYTES:
            removed = self._batches.pop(0)
            self._size -= removed.size
            self._start = removed.end

    def forget(self) -> None:
        """Removes all batches. Called when content was removed from stored changes."""
        if self._batches:
            self.start(self._batches[-1].end)

    def after(self, position: Position) -> tuple[bool, ChangeBatch | None]:
        """Returns whether memory has what follows a position, and the next batch of it if there is one.

        Memory must contain the position itself. Otherwise the position can be of a lost history: it may have
        been read before a failover in which the database lost changes, and the batches in memory after it.
        """
        if self._start is None or position < self._start:
            return False, None
        index = bisect_right(self._batches, position, key=_end)
        last = self._batches[index - 1].end if index else self._start
        if index == len(self._batches):
            return last.is_same(position), None
        batch = self._batches[index]
        return batch.last_until(position, last).is_same(position), batch.after(position)


def _end(batch: ChangeBatch) -> Position:
    return batch.end
