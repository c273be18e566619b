"""Sets whether the store accepts writes while it is copied."""

from store_service.database.connect import Database
from store_service.database.job_queue import LARGE_JOB_BYTES
from store_service.database.write_mode import SET_WRITE_MODE
from store_service.errors import ReadOnly
from store_service.model import WriteMode


async def set_write_mode(database: Database, mode: WriteMode) -> None:
    """Sets the mode for all processes. Returns when every write that was accepted before is committed.

    Raises:
        ReadOnly: The server is in read-only mode.
        ServiceError: The database is busy or unavailable.
    """
    if database.read_only:
        raise ReadOnly
    # A larger job has a batch of its own.
    await database.write(SET_WRITE_MODE, mode, size=LARGE_JOB_BYTES + 1)
