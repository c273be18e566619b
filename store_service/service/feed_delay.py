"""Measures for how long another transaction has delayed the change feed of PostgreSQL, and finds it.

The feed ends before the oldest transaction of the server that has a number and is still running, also one of
another program or in another database (docs/decisions/0011). Watches and searches wait for it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog

from store_service.database import feed_delay as sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.errors import ServiceError
from store_service.observability.metrics import FeedMetrics
from store_service.repeated_failure import RepeatedFailure

INTERVAL_SECONDS = 5.0
"""Time between two measurements."""

LOGGED_SECONDS = 5.0
"""Delay from which the transaction is looked up and logged."""

log = structlog.get_logger("store_service.feed")


class FeedDelay:
    """Measures the delay at regular intervals."""

    def __init__(self, database: Database, metrics: FeedMetrics | None) -> None:
        """Takes the open database, and the metrics if enabled."""
        self._database = database
        self._metrics = metrics or FeedMetrics()
        self._delay = RepeatedFailure(
            log, "a transaction delays the change feed", end_event="the change feed is not delayed any more"
        )

    async def run(self) -> None:
        """Measures until it is cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            try:
                await self.measure()
            except ServiceError:
                # The health of the service reports a database that cannot be read.
                self._metrics.delay_seconds = 0.0

    async def measure(self) -> None:
        """Measures once, and logs the transaction that causes a long delay.

        Raises:
            ServiceError: The database cannot be read.
        """
        seconds, holder = await self._database.read(_MEASURE, None)
        self._metrics.delay_seconds = seconds
        if seconds >= LOGGED_SECONDS:
            self._delay.failed(**holder)
        else:
            self._delay.ended()


async def _measure(connection: Connection, calls: Sequence[None]) -> list[tuple[float, dict[str, Any]]]:
    seconds, holder = 0.0, dict[str, Any]()
    for now, commit_time in await connection.fetch(sql.FIRST_DELAYED):
        seconds = max((now - commit_time) / 1_000_000, 0.0)
    if seconds >= LOGGED_SECONDS:
        for row in await connection.fetch(sql.OLDEST_TRANSACTION):
            holder = dict(zip(sql.OLDEST_TRANSACTION_FIELDS, row, strict=True))
    return [(seconds, holder)] * len(calls)


_MEASURE = BatchOperation(_measure)
