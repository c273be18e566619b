"""Which rights a role of PostgreSQL lacks, asked before they are needed."""

from collections.abc import Collection, Sequence

import sqlalchemy

from store_service.database import legacy_preflight, tables
from store_service.errors import OperatorError

TO_READ = ("SELECT",)
"""What a read-only service needs on every table that it uses."""

TO_WRITE = ("SELECT", "INSERT", "UPDATE", "DELETE")
"""What any other service needs."""

TO_CLEAR_CHANGES = ("changes", "TRUNCATE")
"""Needed by a service that writes: it clears the change feed of a dump from another server."""

TABLES = tuple(name for name in tables.metadata.tables if name not in legacy_preflight.TRACES)
"""The tables that a service uses; of the version table of alembic it reads the one row."""


class MissingPrivilege(OperatorError):
    """The role does not have every right that it needs."""


def check_schema(connection: sqlalchemy.Connection) -> None:
    """Checks that there is a current schema; without one PostgreSQL just finds no table.

    Raises:
        MissingPrivilege: The role may use none that its search_path names.
    """
    if connection.exec_driver_sql("SELECT current_schema()").scalar_one() is None:
        role, path = connection.exec_driver_sql("SELECT current_user, current_setting('search_path')").one()
        raise MissingPrivilege(
            f"role {role} may not use any schema of its search_path, {path}: grant USAGE on a schema, or"
            " change the path with ALTER ROLE ... SET search_path"
        )


def may_read_version(connection: sqlalchemy.Connection) -> bool:
    """Whether the role may read the version table of alembic, or there is none."""
    return not connection.execute(_LACKED, {"tables": ["alembic_version"], "rights": ["SELECT"]}).all()


def check_upgrade(connection: sqlalchemy.Connection) -> None:
    """Makes sure that the role may upgrade the schema.

    Raises:
        MissingPrivilege: It may not create tables, or does not own one; or the server accepts no writes.
    """
    role, schema, may_create, is_read_only = connection.exec_driver_sql(
        "SELECT current_user, current_schema(), has_schema_privilege(current_schema(), 'CREATE'),"
        " current_setting('transaction_read_only') = 'on'"
    ).one()
    if is_read_only:
        raise MissingPrivilege(
            "the database accepts no writes, so its schema cannot be upgraded: it is a standby, or"
            " default_transaction_read_only is on"
        )
    found = [] if may_create else [f"has no right to CREATE in schema {schema}"]
    foreign_objects = connection.scalars(
        _NOT_OWNED, {"names": [*tables.metadata.tables, "alembic_version"]}
    ).all()
    if foreign_objects:
        found.append(f"is not the owner of {', '.join(foreign_objects)}")
    _refuse(role, found, "upgrade the schema: run `store-service migrate` as the role that owns the tables")


def check_service(connection: sqlalchemy.Connection, needed: Collection[str]) -> None:
    """Makes sure that the role may do with the tables what a service does.

    Args:
        connection: A database with the schema of this program.
        needed: TO_READ or TO_WRITE.

    Raises:
        MissingPrivilege: It lacks a right on a table, or policies would hide rows from it.
    """
    role = connection.exec_driver_sql("SELECT current_user").scalar_one()
    wanted = [(table, right) for right in needed for table in TABLES] + [("alembic_version", "SELECT")]
    if set(needed) > set(TO_READ):
        wanted.append(TO_CLEAR_CHANGES)
    lacked: dict[str, list[str]] = {}
    for table, right in connection.execute(
        _LACKED, {"tables": [table for table, _ in wanted], "rights": [right for _, right in wanted]}
    ):
        lacked.setdefault(right, []).append(table)
    found = [f"has no right to {right} on {', '.join(names)}" for right, names in lacked.items()]
    hidden = connection.scalars(_HIDDEN, {"names": list(TABLES)}).all()
    if hidden:
        found.append(f"is restricted by row level security on {', '.join(hidden)}")
    _refuse(role, found, "serve: GRANT what is missing")


def _refuse(role: str, found: Sequence[str], purpose: str) -> None:
    if found:
        raise MissingPrivilege(f"role {role} {', '.join(found)}, and so cannot {purpose}")


_OURS = (
    "FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
    " AND relkind IN ('r', 'p') AND relname = ANY (:names)"
)
_NOT_OWNED = sqlalchemy.text(
    f"SELECT relname {_OURS} AND NOT pg_has_role(relowner, 'USAGE') ORDER BY relname"
)
_HIDDEN = sqlalchemy.text(f"SELECT relname {_OURS} AND row_security_active(oid) ORDER BY relname")
_LACKED = sqlalchemy.text(
    'SELECT "table", "right" FROM unnest(CAST(:tables AS text[]), CAST(:rights AS text[]))'
    ' WITH ORDINALITY AS wanted ("table", "right", place)'
    " WHERE NOT has_table_privilege("
    """to_regclass(quote_ident(current_schema()) || '.' || "table"), "right") ORDER BY place"""
)
