"""The stores from which a store was copied, and the positions of their changes in it.

A copied change keeps its `seq` and its time. Its `xid` is SHIFT less than in the former store. So the order
of the copied changes stays, and all changes that the new store adds come after them, whatever the numbers of
its transactions are (docs/decisions/0056).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import select

from store_service.database.statements import Statement
from store_service.database.tables import feed_table

SHIFT = 2**50
"""More transactions than a server ever begins. 8,000 copies of copies fit into 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerStore:
    """A store from which this one was copied."""

    store_id: str
    copy_id: str
    """The id of the copy."""
    end_xid: int
    """With `end_seq` the position of the last change that was copied from it, as it is in this store."""
    end_seq: int


def to_text(stores: Sequence[FormerStore]) -> str:
    """Returns the value of the column, the last store first."""
    return json.dumps([asdict(it) for it in stores])


def from_text(text: str | None) -> list[FormerStore]:
    """Returns the stores in a value of the column."""
    return [FormerStore(**it) for it in json.loads(text or "[]")]


FORMER_STORES = Statement(select(feed_table.c.former_stores))
"""The value of the column."""
