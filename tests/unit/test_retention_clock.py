"""The retention clock: no row is deleted before its retention has elapsed, regardless of the wall clock."""

from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store_service.service import retention_clock
from store_service.service.retention_clock import JUMP_TOLERANCE_MICROSECONDS, RetentionClock

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOW = 1_800_000_000 * SECOND


def test_clock_jump_counts_after_a_retention_has_elapsed() -> None:
    clock = RetentionClock(7 * DAY, NOW, 0)
    assert clock.compare(NOW + 366 * DAY + SECOND, SECOND) == 366 * DAY

    for monotonic in (SECOND, 12 * HOUR, DAY):
        assert clock.unconfirmed(DAY, monotonic) == clock.unconfirmed(7 * DAY, monotonic) == 366 * DAY
    assert clock.compare(NOW + 367 * DAY + SECOND, DAY + SECOND) == 0
    assert clock.unconfirmed(DAY, DAY + SECOND) == 0
    assert clock.unconfirmed(7 * DAY, DAY + SECOND) == 366 * DAY
    assert clock.unconfirmed(7 * DAY, 7 * DAY + SECOND) == 0


def test_reverted_clock_jump_does_not_count() -> None:
    clock = RetentionClock(7 * DAY, NOW, 0)
    clock.compare(NOW + 366 * DAY, 0)
    clock.compare(NOW - HOUR, 0)
    assert clock.unconfirmed(DAY, 0) == 0
    clock.compare(NOW, 0)
    assert clock.unconfirmed(DAY, 0) == HOUR


def test_accumulated_drift_counts() -> None:
    """A small difference in each step adds up."""
    clock = RetentionClock(7 * DAY, NOW, 0)
    for step in range(1, 101):
        clock.compare(NOW + step * 11 * SECOND, step * 10 * SECOND)

    assert clock.unconfirmed(DAY, 1000 * SECOND) >= 100 * SECOND - JUMP_TOLERANCE_MICROSECONDS


def test_time_without_a_process_counts_as_a_jump() -> None:
    saved = RetentionClock(7 * DAY, NOW, 0).saved(HOUR)

    later = RetentionClock.restored(saved, longest=7 * DAY, wall=NOW + 3 * HOUR, monotonic=5)
    assert later.unconfirmed(DAY, 5) == 2 * HOUR
    earlier = RetentionClock.restored(saved, longest=7 * DAY, wall=NOW - DAY, monotonic=5)
    assert earlier.unconfirmed(DAY, 5) == 0


LATE = 3 * 7 * DAY // retention_clock.MAX_GAINS
"""Maximum delay of a deletion: one bucket, and two more for the time between two comparisons."""


@pytest.mark.parametrize(("up", "down"), [(HOUR, HOUR), (20 * MINUTE, 20 * MINUTE), (2 * HOUR, 10 * MINUTE)])
def test_many_suspends_do_not_keep_rows_forever(up: int, down: int) -> None:
    clock, wall, monotonic = RetentionClock(7 * DAY, NOW, 0), NOW, 0
    rows: list[tuple[int, int]] = []
    while wall < NOW + 366 * DAY:
        rows.append((wall, monotonic))
        wall, monotonic = wall + up, monotonic + up
        clock.compare(wall, monotonic)
        wall += down
        clock.compare(wall, monotonic)

        assert len(clock.gains) <= 2 * retention_clock.MAX_GAINS + 2
        rows = kept(rows, wall - clock.unconfirmed(7 * DAY, monotonic) - 7 * DAY)
        if rows:
            assert monotonic - rows[0][1] <= 7 * DAY + LATE


def test_many_restarts_do_not_keep_rows_forever() -> None:
    """A process restarts every 5 minutes, each time with another monotonic clock."""
    clock, wall, measured = RetentionClock(7 * DAY, NOW, 0), NOW, 0
    rows: list[tuple[int, int]] = []
    booted = 0
    while wall < NOW + 30 * DAY:
        rows.append((wall, measured))
        wall, measured = wall + 4 * MINUTE, measured + 4 * MINUTE
        clock.compare(wall, measured - booted)
        saved = clock.saved(measured - booted)
        wall += MINUTE
        booted = measured - wall % 977
        clock = RetentionClock.restored(saved, longest=7 * DAY, wall=wall, monotonic=measured - booted)

        assert len(clock.gains) <= 2 * retention_clock.MAX_GAINS + 2
        rows = kept(rows, wall - clock.unconfirmed(7 * DAY, measured - booted) - 7 * DAY)
        if rows:
            assert measured - rows[0][1] <= 7 * DAY + LATE


def kept(rows: list[tuple[int, int]], cutoff: int) -> list[tuple[int, int]]:
    """Returns the rows that are not before the cutoff, oldest first."""
    return rows[bisect_left(rows, (cutoff, 0)) :]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(0, 3 * DAY)),
        st.tuples(st.just("jump"), st.integers(-400 * DAY, 400 * DAY)),
        st.tuples(st.just("restart"), st.integers(0, 3 * DAY)),
        st.tuples(st.just("write"), st.just(0)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("max_gains", [2, retention_clock.MAX_GAINS])
@given(steps=steps)
@settings(max_examples=300)
def test_no_row_is_deleted_before_its_time(max_gains: int, steps: list[tuple[str, int]]) -> None:
    """Jumps and restarts in any order. After one retention without a jump the clock counts again."""
    true, offset, booted, retention = 0, NOW, 0, DAY
    clock = RetentionClock(7 * DAY, NOW, 0)
    rows: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention_clock, "MAX_GAINS", max_gains)
        for what, amount in [*steps, ("run", DAY), ("run", 0)]:
            if what == "run":
                true += amount
            elif what == "jump":
                offset += amount
            elif what == "write":
                rows.append((true, true + offset))
                continue
            else:
                clock.compare(true + offset, true - booted)
                saved = clock.saved(true - booted)
                true += amount
                booted = true - 7
                clock = RetentionClock.restored(saved, longest=7 * DAY, wall=true + offset, monotonic=7)
            clock.compare(true + offset, true - booted)
            cutoff = true + offset - clock.unconfirmed(retention, true - booted) - retention
            for written, stamp in rows:
                if stamp < cutoff:
                    assert true - written > retention - 2 * JUMP_TOLERANCE_MICROSECONDS

    assert clock.unconfirmed(retention, true - booted) == 0
