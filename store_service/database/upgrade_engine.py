"""The engine on which schema upgrades run."""

from typing import Any

import sqlalchemy
from sqlalchemy import event

from store_service.database.engines import sync_engine
from store_service.database.sqlite import SYNCHRONOUS_EXTRA

CACHE_BYTES = 64 * 1024 * 1024
"""Size of SQLite's page cache during an upgrade."""

_ADVISORY_LOCK = 0x73746F7265
"""The advisory lock of PostgreSQL that upgrades hold, so that only one runs at a time."""


def upgrade_engine(database_url: str, *, connect_timeout_seconds: float) -> sqlalchemy.Engine:
    """Returns a blocking engine for an upgrade.

    Its transactions exclude all other upgrades from their start, include CREATE and DROP, and survive a power
    cut once they are committed.

    Python's driver for SQLite would begin a transaction only before the first INSERT, and run earlier
    statements outside of it (https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable).
    """
    engine = sync_engine(database_url, connect_timeout_seconds=connect_timeout_seconds)
    is_sqlite = engine.dialect.name == "sqlite"

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: object) -> None:
        if is_sqlite:
            connection.isolation_level = None
            connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS_EXTRA}")
            connection.execute("PRAGMA secure_delete = 1")
            # With SQLite's default of 2 MiB most pages are written several times.
            connection.execute(f"PRAGMA cache_size = -{CACHE_BYTES // 1024}")

    @event.listens_for(engine, "begin")
    def _begin(connection: sqlalchemy.Connection) -> None:
        if is_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        # It may be off for the role or the database.
        connection.exec_driver_sql(
            "SELECT set_config('synchronous_commit', 'on', true)"
            " WHERE current_setting('synchronous_commit') = 'off'"
        )

    return engine
