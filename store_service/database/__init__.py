"""The database layer: tables, statements, connections, batches and the schema. It contains all SQL and no
rules of posts and comments.

`metadata`, `post_table`, `comment_table`, `engine` and `database` have the meaning that they had in the
storeapi application. `engine` and `database` are created from the settings at their first use, which also
creates missing tables.
"""

from functools import cache
from typing import Any

import databases
import sqlalchemy

from store_service.database import search_tables  # noqa: F401  # `metadata` has them
from store_service.database.tables import comment_table, metadata, post_table

__all__ = ["comment_table", "database", "engine", "metadata", "post_table"]


@cache
def _engine() -> sqlalchemy.Engine:
    from store_service.config import config
    from store_service.database import engines, schema

    schema.upgrade(config.upgrade_url)
    return engines.sync_engine(config.DATABASE_URL)


@cache
def _database() -> databases.Database:
    from store_service.config import config
    from store_service.database import connect
    from store_service.database_url import parse

    _engine()
    options: dict[str, Any] = {}
    if not connect.is_sqlite(config.DATABASE_URL):
        url = parse(config.DATABASE_URL)
        hosts, ports = zip(*url.hosts, strict=True)
        options = {**url.login, "host": list(hosts), "port": list(ports)}
    return databases.Database(
        config.DATABASE_URL.partition("?")[0] if not options else "postgresql://",
        force_rollback=config.DB_FORCE_ROLL_BACK,
        **options,
    )


def __getattr__(name: str) -> Any:
    if name == "engine":
        return _engine()
    if name == "database":
        return _database()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
