"""How changes are divided into change batches."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store_service.service.changes import BATCH_BYTES, BATCH_ROWS, MAX_TRANSACTION_BYTES, first_batch_length

BESIDE = 120
"""Bytes of a change that are counted besides its body."""

Rows = list[tuple[int, int, int, int]]


def rows(*transactions: list[int]) -> Rows:
    """Returns rows of transactions whose changes have the given encoded sizes."""
    sizes = [(xid, size - BESIDE) for xid, each in enumerate(transactions, start=10) for size in each]
    return [(xid, seq, size, 0) for seq, (xid, size) in enumerate(sizes, start=1)]


def test_no_changes_make_no_change_batch() -> None:
    assert first_batch_length([], BATCH_ROWS) == (0, False)


def test_small_transactions_share_a_change_batch() -> None:
    """A batch has at most BATCH_BYTES."""
    assert first_batch_length(rows([200], [200, 200], [200]), BATCH_ROWS) == (4, False)
    assert first_batch_length(rows([BATCH_BYTES - 400], [200, 200]), BATCH_ROWS) == (3, False)
    assert first_batch_length(rows([BATCH_BYTES - 400], [200, 201]), BATCH_ROWS) == (1, False)


def test_transaction_that_does_not_fit_waits_for_the_next_change_batch() -> None:
    found = rows([200], [BATCH_BYTES], [200])

    assert first_batch_length(found, BATCH_ROWS) == (1, False)
    assert first_batch_length(found[1:], BATCH_ROWS) == (1, False)


def test_transaction_of_up_to_2_mib_is_not_split() -> None:
    """A larger one is split."""
    change = BATCH_BYTES // 2
    count = MAX_TRANSACTION_BYTES // change

    assert first_batch_length(rows([change] * count, [200]), BATCH_ROWS) == (count, False)
    assert first_batch_length(rows([change] * (count - 1) + [change + 1]), BATCH_ROWS) == (2, True)


def test_rest_of_a_large_transaction_is_not_partial() -> None:
    """The last part is not partial, and later transactions can share its batch."""
    assert first_batch_length(rows([200] * 3, [200]), BATCH_ROWS) == (4, False)


def test_too_large_change_comes_alone() -> None:
    huge = MAX_TRANSACTION_BYTES + 1

    assert first_batch_length(rows([huge]), BATCH_ROWS) == (1, False)
    assert first_batch_length(rows([huge], [200]), BATCH_ROWS) == (1, False)
    assert first_batch_length(rows([huge, 200]), BATCH_ROWS) == (1, True)


def test_possibly_incomplete_transaction_waits_for_the_next_change_batch() -> None:
    """If there are as many rows as the limit, the last transaction may be incomplete."""
    found = rows([200, 200], [200, 200])

    assert first_batch_length(found, 4) == (2, False)
    assert first_batch_length(found, 5) == (4, False)


def test_transaction_above_the_read_limit_comes_in_parts() -> None:
    """The rows up to the limit are a partial batch."""
    assert first_batch_length(rows([200] * 6)[:4], 4) == (4, True)


@given(
    st.lists(
        st.lists(st.integers(BESIDE, MAX_TRANSACTION_BYTES + 10) | st.integers(BESIDE, 5000), min_size=1),
        max_size=12,
    ),
    st.integers(2, 20),
)
def test_change_batches_contain_every_change_in_order(transactions: list[list[int]], limit: int) -> None:
    """A batch that is not partial ends with a transaction."""
    feed = rows(*transactions)
    last = {index for index, (one, two) in enumerate(pairwise(feed)) if one[0] != two[0]} | {len(feed) - 1}
    position = 0
    while position < len(feed):
        read = feed[position : position + limit]
        count, partial = first_batch_length(read, limit)

        assert 1 <= count <= len(read)
        batch = read[:count]
        position += count
        if partial:
            assert len({xid for xid, *_ in batch}) == 1
            assert position - 1 not in last or count == limit
        else:
            assert position - 1 in last
        assert count == 1 or sum(size + BESIDE for _, _, size, _ in batch) <= MAX_TRANSACTION_BYTES

    assert first_batch_length(feed[position:], limit) == (0, False)


@pytest.mark.parametrize("count", [1, 2, BATCH_ROWS - 1])
def test_change_batch_holds_many_small_transactions(count: int) -> None:
    """Only rows and bytes limit their number."""
    assert first_batch_length(rows(*([BESIDE + 1] for _ in range(count))), BATCH_ROWS) == (
        min(count, BATCH_BYTES // (BESIDE + 1)),
        False,
    )
