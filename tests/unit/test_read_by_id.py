"""Reads by id for many batches: small batches share a statement, and memory is limited."""

import json
from collections.abc import Sequence
from typing import Any, cast

from store_service.database.connection import Connection
from store_service.database.posts import POSTS
from store_service.errors import ResponseTooLarge
from store_service.service.operations import INLINE_IDS, READ_IDS, read_by_id


class Rows:
    """A connection to a database that contains every post, all with the same body."""

    def __init__(self, body: str) -> None:
        self._body = body
        self.id_counts: list[int] = []
        """Number of ids of each statement."""

    async def fetch(self, _: object, *, ids: str) -> list[tuple[Any, ...]]:
        """Returns a row for each id."""
        parsed = json.loads(ids)
        self.id_counts.append(len(parsed))
        return [(id, self._body, 1, 1, 1, "", "", "") for id in parsed]

    fetch_inline = fetch


async def read(rows: Rows, batches: Sequence[Sequence[int]]) -> list[Any]:
    """Returns the outcome of each batch."""
    return list(await read_by_id(cast(Connection, rows), batches, POSTS.by_id, POSTS.from_row))


async def test_small_batches_are_one_statement() -> None:
    rows = Rows("a")
    found = await read(rows, [(n,) for n in range(1, INLINE_IDS)] + [range(1, 100)] * 50)

    assert rows.id_counts == [99]
    assert all(len(stored) == 99 for stored in found)


async def test_large_batches_are_read_one_after_another() -> None:
    """Four thousand bodies of 64 KiB are never in memory together. Each batch is too large for a response."""
    rows = Rows("x" * 65_536)
    found = await read(rows, [range(n * 1000 + 1, n * 1000 + 1001) for n in range(4)])

    assert rows.id_counts == [READ_IDS] * 4
    assert [type(outcome) for outcome in found] == [ResponseTooLarge] * 4


async def test_batch_that_fits_is_answered_beside_one_that_does_not() -> None:
    large, small = await read(Rows("x" * 65_536), [range(1, 101), (5, 7)])

    assert isinstance(large, ResponseTooLarge)
    assert sorted(small) == [5, 7]
