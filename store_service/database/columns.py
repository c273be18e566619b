"""Finds the names of the tables and columns of a database."""

import sqlalchemy

_ON_SQLITE = """
SELECT it.name, "column".name FROM sqlite_master AS it, pragma_table_xinfo(it.name) AS "column"
WHERE it.type = 'table' AND it.name NOT LIKE 'sqlite~_%' ESCAPE '~' AND "column".hidden <> 1
"""
"""Without the hidden columns of virtual tables."""

# The inspector of SQLAlchemy takes ten times as long, because it also finds types and defaults.
_ON_POSTGRESQL = """
SELECT relname, attname
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
WHERE relkind IN ('r', 'p') AND pg_table_is_visible(pg_class.oid) AND nspname <> 'pg_catalog'
"""
"""A table may have no columns."""


def column_names(connection: sqlalchemy.Connection) -> dict[str, set[str]]:
    """Returns the columns of each table that a statement finds without the name of a schema."""
    found: dict[str, set[str]] = {}
    statement = _ON_SQLITE if connection.dialect.name == "sqlite" else _ON_POSTGRESQL
    for table, column in connection.exec_driver_sql(statement):
        columns = found.setdefault(table, set())
        if column is not None:
            columns.add(column)
    return found
