"""Chooses the replica that answers a call."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any

import structlog

from store_service.database.batch_operation import Argument, BatchOperation, Result
from store_service.database.batch_queue import BatchQueue
from store_service.database.consistency import CallConsistency, Outcome
from store_service.database.postgresql import open_backend
from store_service.database.replica import Replica
from store_service.database.replica_state import PRIMARY
from store_service.database_url import parse
from store_service.errors import DatabaseBusy, DatabaseUnavailable, SchemaMismatch
from store_service.model import Seen
from store_service.observability.batches import BatchObserver, ObserverFactory

log = structlog.get_logger("store_service.database")


class Replicas:
    """The replicas of a service."""

    def __init__(
        self,
        urls: Sequence[str],
        primary: BatchQueue,
        *,
        max_lag_seconds: float,
        observe: ObserverFactory,
        **options: Any,
    ) -> None:
        """Takes how the replicas are opened.

        Args:
            urls: The URL of each replica.
            primary: The readers of the primary.
            max_lag_seconds: The lag above which a replica is not used.
            observe: Returns the observer of a batch queue.
            options: Further arguments of `postgresql.open_backend`.
        """
        self.all: list[Replica] = []
        for url in urls:
            name = ",".join(f"{host}:{port}" for host, port in parse(url).hosts)
            opening = partial(
                open_backend,
                _for_standbys(url),
                observe=_observer_of_reader(f"replica {name}", observe),
                force_roll_back=False,
                read_only=True,
                **options,
            )
            look_at_primary = partial(primary.execute, PRIMARY)
            self.all.append(Replica(name, opening, look_at_primary, max_lag_seconds=max_lag_seconds))
        self._turns = count()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follows all replicas until the end of the block."""
        tasks = [asyncio.create_task(it.run(), name=f"replica {it.name}") for it in self.all]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def read(
        self, call: CallConsistency, operation: BatchOperation[Argument, Result], argument: Argument
    ) -> Outcome[Result] | None:
        """Runs an operation on the replica that answers the call.

        Returns None if the primary has to answer the rest of the call, because no replica meets its
        requirements, or because the replica has failed.
        """
        replica = call.replica if isinstance(call.replica, Replica) else await self._choose(call.at_least)
        if replica is not None:
            try:
                for position in call.changes:
                    await replica.check_change(position)
                call.changes = ()
                outcome = await replica.read(operation, argument)
            except (DatabaseUnavailable, DatabaseBusy, SchemaMismatch, TimeoutError) as error:
                log.debug("replica failed, reading from the primary", replica=replica.name, error=repr(error))
            else:
                call.replica = replica
                return outcome
        call.replica = None
        call.may_lag = False
        return None

    async def _choose(self, at_least: Seen) -> Replica | None:
        used = [it for it in self.all if it.is_used]
        able = [it for it in used if it.has(at_least)] if at_least.xid else used
        if able:
            return able[next(self._turns) % len(able)]
        best = max(used, key=lambda it: it.ended_xid, default=None)
        return best if best is not None and await best.has_soon(at_least) else None


def _for_standbys(url: str) -> str:
    """Returns a URL whose hosts are used only if they are standbys, unless it names another condition."""
    if "target_session_attrs" in parse(url).options:
        return url
    return f"{url}{'&' if '?' in url else '?'}target_session_attrs=standby"


def _observer_of_reader(name: str, observe: ObserverFactory) -> ObserverFactory:
    def observer(queue: str) -> BatchObserver | None:
        return observe(name) if queue == "reader" else None

    return observer
