"""Checks that the database accepts writes: with a probe at regular intervals, and after each failed write.

A read does not show this: reads can succeed while the disk is full or broken, or after the server has become
read-only. Errors because of locks or of invalid requests say nothing about the storage and are ignored here.
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
"""Minimum pause between two probes."""

log = structlog.get_logger("store_service.database")


class WriterHealth:
    """Whether writes succeed."""

    def __init__(self, database: Database) -> None:
        """Takes the open database."""
        self._database = database
        self._failed = asyncio.Event()
        """Set if a write of a caller has failed since the last probe."""
        self._failure: ServiceError | None = None
        self._unhandled = RepeatedFailure(
            log, "cannot probe the writer", end_event="writer probe works again"
        )
        database.after_failed_write(self._failed.set)

    def check(self) -> None:
        """Checks the result of the last probes.

        Raises:
            StorageFull, DatabaseUnavailable: The last two writes failed, and the second one was a probe.
        """
        if self._failure is not None:
            raise type(self._failure)() from self._failure.__cause__

    async def run(self) -> None:
        """Probes until it is cancelled. Returns at once if the server is in read-only mode."""
        if self._database.read_only:
            return
        is_doubtful = False
        while True:
            if not is_doubtful:
                is_doubtful = await self._fails_within(PROBE_SECONDS)
            try:
                await self._database.write(PROBE, None)
            except (DatabaseUnavailable, StorageFull) as error:
                # A single failure can be due to a session that has ended. The next probe has a new session.
                if is_doubtful:
                    self._failure = error
                is_doubtful = True
            except ServiceError:
                # Other transactions hold locks, so the probe did not reach the storage.
                pass
            except Exception as error:
                # An unhandled exception must not end this task, or the health status would never change.
                self._unhandled.failed(exc_info=error)
                if is_doubtful:
                    self._failure = DatabaseUnavailable()
                    self._failure.__cause__ = error
                is_doubtful = True
            else:
                self._unhandled.ended()
                self._failure = None
                is_doubtful = False
            await asyncio.sleep(RETRY_SECONDS)

    async def _fails_within(self, seconds: float) -> bool:
        """Waits until a write fails, at most `seconds`. Returns whether one has failed."""
        try:
            async with asyncio.timeout(seconds):
                await self._failed.wait()
        except TimeoutError:
            return False
        finally:
            self._failed.clear()
        return True


async def _probe(connection: Connection, calls: Sequence[None]) -> Sequence[None]:
    await connection.probe()
    return calls


PROBE: BatchOperation[None, None] = BatchOperation(_probe, insert_only=True, name="probe")
