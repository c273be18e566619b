"""How new the answer of a call has to be, and what the call has seen (docs/decisions/0050).

The RPC layer sets the requirements of the current call. `Database` obeys them, and records what the call has
seen of the change feed. Without requirements nothing is recorded and no further statement is executed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from store_service.database import replica_sql as sql
from store_service.database.batch_operation import DEFERRED, Argument, BatchOperation, Result
from store_service.database.connection import Connection
from store_service.errors import ServiceError, StandbyBehind
from store_service.model import NOTHING_SEEN, Position, Seen

WAIT_SECONDS = 0.1
"""Maximum time that a read waits until a standby has what the caller has seen."""

POLL_SECONDS = 0.002
"""Time between two looks at a standby while reads wait for it."""

Outcome = tuple[Result | ServiceError, Seen]
"""The outcome of a job, and what its connection has seen."""


@dataclass(slots=True, kw_only=True)
class CallConsistency:
    """The requirements of one call, and what it has seen."""

    may_lag: bool = False
    """Whether replicas may answer the rest of the call. It ends when the primary has answered a part."""
    at_least: Seen = NOTHING_SEEN
    """What the answer has to include."""
    changes: tuple[Position, ...] = ()
    """Changes that a replica must have, with the same commit times. Positions have no timeline."""
    replica: object | None = None
    """The replica that has answered a part of the call. Another one could be older."""
    seen: Seen = NOTHING_SEEN
    """What the call has seen so far."""

    def require(self, what: Seen | Position) -> None:
        """Adds a requirement."""
        timeline = self.at_least.timeline
        if isinstance(what, Seen):
            timeline = max(timeline, what.timeline)
        elif what.time:
            self.changes += (what,)
        # Of a position it is not known whether it is before or after a failover.
        self.at_least = Seen(timeline=timeline, xid=max(self.at_least.xid, what.xid))

    def result_of(self, outcome: Outcome[Result]) -> Result:
        """Records what was seen, and returns the result of a job or raises its error."""
        result, seen = outcome
        self.seen = max(self.seen, seen)
        if isinstance(result, ServiceError):
            raise result
        return result


_current: ContextVar[CallConsistency | None] = ContextVar("store_service_consistency", default=None)

set_current = _current.set
"""Sets the requirements of the task of a call."""

current = _current.get
"""Returns the requirements of the call of this task; None if it has none."""


def is_on_replica() -> bool:
    """Whether a replica answers the call of this task."""
    call = _current.get()
    return call is not None and call.replica is not None


def leave_replica() -> None:
    """Lets the primary answer the rest of the call of this task."""
    call = _current.get()
    if call is not None:
        call.replica = None
        call.may_lag = False


class SeenOperations:
    """Makes operations that also return what their connection has seen. Their outcomes are `Outcome`."""

    def __init__(self, look: Callable[[Connection], Awaitable[Seen]], *, looks_before: bool = False) -> None:
        """Takes the function that looks, and whether it is called before an operation, not after it."""
        self._look = look
        self._looks_before = looks_before
        self._made: dict[BatchOperation[Any, Any], BatchOperation[Any, Any]] = {}

    def of(self, operation: BatchOperation[Argument, Result]) -> BatchOperation[Argument, Outcome[Result]]:
        """Returns the operation for another one; the same for each call."""
        if operation not in self._made:
            self._made[operation] = replace(operation, run=self._run_of(operation))
        made: BatchOperation[Argument, Outcome[Result]] = self._made[operation]
        return made

    def _run_of(self, operation: BatchOperation[Any, Any]) -> Callable[..., Awaitable[list[Any]]]:
        async def run(connection: Connection, arguments: Sequence[Any]) -> list[Any]:
            connection.xid = None
            before = await self._look(connection) if self._looks_before else None
            outcomes = await operation.run(connection, arguments)
            seen = await self._look(connection) if before is None else before
            return [it if it is DEFERRED else (it, seen) for it in outcomes]

        return run


async def seen_on_primary(connection: Connection) -> Seen:
    """Returns what a connection to the primary sees: its own write, or else the newest committed change."""
    if connection.timeline is None:
        ((connection.timeline,),) = await connection.fetch(sql.TIMELINE)
    xid = connection.xid
    if xid is None:
        ((xid,),) = await connection.fetch(sql.NEWEST_XID)
    return Seen(timeline=connection.timeline, xid=xid)


async def _have(connection: Connection, requirements: Sequence[Seen]) -> list[bool]:
    ((_, is_standby, _, ended_xid),) = await connection.fetch(sql.SHOWN)
    return [not is_standby or it.xid <= ended_xid for it in requirements]


_HAS: BatchOperation[Seen, bool] = BatchOperation(_have)
"""Whether the server has what a caller has seen. A primary has."""


async def wait_until_seen(
    call: CallConsistency, read: Callable[[BatchOperation[Seen, bool], Seen], Awaitable[bool]]
) -> None:
    """Waits until a server has what a call requires.

    Raises:
        StandbyBehind: It does not have it after WAIT_SECONDS.
    """
    if not call.at_least.xid:
        return
    late_at = time.monotonic() + WAIT_SECONDS
    while not await read(_HAS, call.at_least):
        if time.monotonic() > late_at:
            raise StandbyBehind
        await asyncio.sleep(POLL_SECONDS)
    call.at_least = NOTHING_SEEN
