"""Finds objects of other applications in a database without tables of the service (docs/decisions/0034). A
database with such objects is never changed."""

from collections.abc import Iterator

import sqlalchemy

MAX_NAMED = 5
"""Maximum number of objects in a message."""


def foreign_objects(connection: sqlalchemy.Connection) -> str:
    """Returns the objects of a database without tables of this service, as text; empty if there are none.

    On PostgreSQL only the schema in which tables are created counts (`current_schema()`), without objects of
    extensions. The version table of alembic does not count.
    """
    on_sqlite = connection.dialect.name == "sqlite"
    found = list(_objects_on_sqlite(connection) if on_sqlite else _objects_on_postgresql(connection))
    named = [f"{kind} {' '.join(name.split())}" for kind, name in found if name != "alembic_version"]
    more = [f"{len(named) - MAX_NAMED} more"] if len(named) > MAX_NAMED else []
    return ", ".join([*named[:MAX_NAMED], *more])


def _objects_on_sqlite(connection: sqlalchemy.Connection) -> Iterator[tuple[str, str]]:
    # Another application may have set these numbers before it creates tables.
    for pragma in ("application_id", "user_version"):
        number = connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one()
        if number:
            yield pragma, str(number)
    yield from (
        (kind, name)
        for kind, name in connection.exec_driver_sql(
            "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'view', 'trigger')"
            r" AND name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY rowid"
        )
    )


def _objects_on_postgresql(connection: sqlalchemy.Connection) -> Iterator[tuple[str, str]]:
    yield from (
        (kind, name)
        for kind, name in connection.exec_driver_sql(
            "SELECT CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'"
            " WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence' ELSE 'table' END, relname"
            " FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')"
            " AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
            # Except objects of an extension, or of a column.
            " AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass"
            " AND objid = pg_class.oid AND deptype IN ('a', 'e', 'i')) ORDER BY pg_class.oid"
        )
    )
