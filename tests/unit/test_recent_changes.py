"""The change batches in memory: a watch finds what follows its position, whatever the number of batches."""

from itertools import pairwise
from typing import Any

from store_service.model import Position
from store_service.service.changes import ChangeBatch
from store_service.service.recent_changes import MAX_BYTES, RecentChanges

BATCHES = 10_000


class CountingBatch(ChangeBatch):
    """A batch that counts how often its position and size are read."""

    reads = 0

    def __getattribute__(self, name: str) -> Any:
        if name in ("positions", "size"):
            CountingBatch.reads += 1
        return super().__getattribute__(name)


def batch(number: int, count: int = 1, size: int = 200) -> CountingBatch:
    """The batch of transaction `number`, whose changes are numbered from 10 times this number."""
    positions = tuple(Position(xid=number, seq=10 * number + it, time=number) for it in range(count))
    # Their content does not matter.
    return CountingBatch(changes=(), positions=positions, partial=False, size=size)


def filled(batches: int, **of_each: int) -> RecentChanges:
    """The batches 1 to `batches`."""
    recent = RecentChanges()
    recent.start(Position(xid=0, seq=0))
    for number in range(1, batches + 1):
        recent.add(batch(number, **of_each))
    return recent


def test_every_position_is_followed_by_the_next_change() -> None:
    recent = filled(50, count=3)
    positions = [Position(xid=0, seq=0), *(it for n in range(1, 51) for it in batch(n, 3).positions)]

    for position, following in pairwise(positions):
        is_known, found = recent.after(position)
        assert is_known
        assert found is not None
        assert found.positions[0] == following
    assert recent.after(positions[-1]) == (True, None)


def test_position_of_another_history_is_not_known() -> None:
    """Its number is in memory, with another time; or it is between two changes, or before the first."""
    recent = filled(5)
    recent.start(Position(xid=5, seq=50, time=5))
    for number in (6, 7):
        recent.add(batch(number))

    known = [
        Position(xid=5, seq=50, time=5),
        Position(xid=6, seq=60, time=6),
        Position(xid=7, seq=70, time=7),
    ]
    others = [Position(xid=it.xid, seq=it.seq, time=9) for it in known]
    others += [Position(xid=6, seq=61, time=6), Position(xid=4, seq=40, time=4)]

    assert [recent.after(it)[0] for it in known] == [True] * 3
    assert [recent.after(it)[0] for it in others] == [False] * 5


def test_oldest_batches_leave_when_memory_is_full() -> None:
    recent = filled(10, size=MAX_BYTES // 4)

    known = [recent.after(batch(it).end)[0] for it in range(1, 11)]

    # Four batches are left, and the position before them.
    assert known == [False] * 5 + [True] * 5


def test_cost_does_not_grow_with_the_number_of_batches() -> None:
    """A watch looks after each batch, and a single caller makes a batch with each write."""
    recent = filled(BATCHES)
    positions = [batch(it).end for it in (1, BATCHES // 2, BATCHES - 1, BATCHES)]

    CountingBatch.reads = 0
    for position in positions:
        recent.after(position)
    assert CountingBatch.reads < 40 * len(positions)

    CountingBatch.reads = 0
    recent.add(batch(BATCHES + 1))
    assert CountingBatch.reads < 10
