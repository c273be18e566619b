"""Whether the storage takes writes: probed from time to time, and after each write that it has failed.

A read does not tell: a disk that has failed or is full, or a server that has become read-only, may go on
answering reads. Locks of others and wrong requests say nothing about the storage, and change nothing here.
"""

import asyncio
from collections.abc import Sequence

import structlog

from store_service.database.batch_operation import BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.errors import DatabaseUnavailable, ServiceError, StorageFull
from store_service.repeated_failure import RepeatedFailure

PROBE_SECONDS = 10.0
"""Pause between two probes when nothing fails."""

RETRY_SECONDS = 1.0
"""Least pause between two probes."""

log = structlog.get_logger("store_service.database")


class WriterHealth:
    """Knows how the last writes have ended."""

    def __init__(self, database: Database) -> None:
        """Takes the open database."""
        self._database = database
        self._failed = asyncio.Event()
        """A write of a caller has failed since the last probe."""
        self._failure: ServiceError | None = None
        self._bug = RepeatedFailure(log, "cannot probe the writer", end_event="writer probe works again")
        database.after_failed_write(self._failed.set)

    def check(self) -> None:
        """Makes sure that writes work, as far as is known.

        Raises:
            StorageFull, DatabaseUnavailable: The last two failed, the second of which was a probe.
        """
        if self._failure is not None:
            raise type(self._failure)() from self._failure.__cause__

    async def run(self) -> None:
        """Probes until it is cancelled. Where callers may not write, there is nothing to probe."""
        if self._database.read_only:
            return
        is_doubtful = False
        while True:
            if not is_doubtful:
                is_doubtful = await self._fails_within(PROBE_SECONDS)
            try:
                await self._database.write(_PROBE, None)
            except (DatabaseUnavailable, StorageFull) as error:
                # One that fails alone may have met a session that was ended; the next one has another.
                if is_doubtful:
                    self._failure = error
                is_doubtful = True
            except ServiceError:
                # Others hold locks: the storage was not reached.
                pass
            except Exception as error:
                # Health must not keep its last answer because this task has ended.
                self._bug.failed(exc_info=error)
                if is_doubtful:
                    self._failure = DatabaseUnavailable()
                    self._failure.__cause__ = error
                is_doubtful = True
            else:
                self._bug.ended()
                self._failure = None
                is_doubtful = False
            await asyncio.sleep(RETRY_SECONDS)

    async def _fails_within(self, seconds: float) -> bool:
        """Waits until a write fails, or the time is over; whether it was the former."""
        try:
            async with asyncio.timeout(seconds):
                await self._failed.wait()
        except TimeoutError:
            return False
        finally:
            self._failed.clear()
        return True


async def _probe(connection: Connection, asked: Sequence[None]) -> Sequence[None]:
    await connection.probe()
    return asked


_PROBE: BatchOperation[None, None] = BatchOperation(_probe, insert_only=True)
