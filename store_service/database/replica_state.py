"""The states of the primary and of a replica at one moment, and the rules for replicas."""

from collections.abc import Sequence
from dataclasses import dataclass

from store_service.database import replica_sql as sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.changes import FEED_AT
from store_service.database.connection import Connection
from store_service.database.schema_objects import MADE_BY
from store_service.model import Position

_REVISION = tuple(MADE_BY)[-1]


class Refused(Exception):
    """A server is not a replica of the primary. The text is one line."""


@dataclass(frozen=True, slots=True)
class PrimaryState:
    """The primary at one moment."""

    store_id: str
    trimmed: Position
    time: int
    """Commit time of the change whose `seq` was the argument; 0 if the primary does not have it."""
    timeline: int
    cluster: int
    """The system identifier, which standbys have too."""
    log_end: int
    """The end of the write-ahead log on disk, in bytes."""
    newest_xid: int
    """The transaction of the newest committed change; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica at one moment."""

    store_id: str
    end: Position
    """The position of the last change up to which all transactions have ended."""
    is_standby: bool
    started: int
    """Start time of the postmaster, which identifies the server."""
    cluster: int
    log_end: int
    """The end of the part of the write-ahead log that is replayed, in bytes."""
    revision: str
    """The revision of the schema."""

    def check(self, primary: PrimaryState) -> None:
        """Checks that the server is a standby of the primary.

        Raises:
            Refused: It is not.
        """
        if not self.is_standby:
            raise Refused("the server is not a standby")
        if self.cluster != primary.cluster:
            raise Refused("it is not a standby of the server of DATABASE_URL: the system identifiers differ")
        if self.store_id != primary.store_id:
            raise Refused("it has another store than the database of DATABASE_URL")
        if self.revision != _REVISION:
            raise Refused(f"its schema has revision {self.revision}, this program needs {_REVISION}")


def check_history(end: Position, primary: PrimaryState) -> None:
    """Checks that the primary has the last change of a replica.

    Args:
        end: The last change of the replica.
        primary: A later state of the primary, read with the `seq` of that change.

    Raises:
        Refused: It does not: the replica has changes that the primary has lost.
    """
    if end > primary.trimmed and end.time != primary.time:
        raise Refused("it has changes that the database of DATABASE_URL does not have")


async def _primary(connection: Connection, seqs: Sequence[int]) -> list[PrimaryState]:
    states = []
    for seq in seqs:
        ((store_id, xid, trimmed_seq, _, _, _, _, *more),) = await connection.fetch(sql.PRIMARY, seq=seq)
        states.append(PrimaryState(store_id, Position(xid=xid, seq=trimmed_seq), *more))
    return states


async def _has_change(connection: Connection, positions: Sequence[Position]) -> list[bool]:
    outcomes = []
    for position in positions:
        ((_, xid, seq, _, _, _, _, time),) = await connection.fetch(FEED_AT, seq=position.seq)
        outcomes.append(time == position.time or (not time and position <= Position(xid=xid, seq=seq)))
    return outcomes


async def _replica(connection: Connection, calls: Sequence[None]) -> list[ReplicaState]:
    ((store_id, _, _, _, xid, seq, time, *more),) = await connection.fetch(sql.REPLICA)
    return [ReplicaState(store_id, Position(xid=xid, seq=seq, time=time), *more)] * len(calls)


PRIMARY: BatchOperation[int, PrimaryState] = BatchOperation(_primary)
"""Reads the state of the primary. The argument is the `seq` of a change."""

REPLICA: BatchOperation[None, ReplicaState] = BatchOperation(_replica, in_transaction=False)
"""Reads the state of a replica."""

HAS_CHANGE: BatchOperation[Position, bool] = BatchOperation(_has_change)
"""Whether a replica has a change, or has trimmed it."""
