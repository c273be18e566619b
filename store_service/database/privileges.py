"""Checks the privileges of a role of PostgreSQL before they are needed."""

from collections.abc import Collection, Sequence

import sqlalchemy

from store_service.database import schema_objects, tables
from store_service.errors import OperatorError

TO_READ = ("SELECT",)
"""Privileges of a read-only service on all tables."""

TO_WRITE = ("SELECT", "INSERT", "UPDATE", "DELETE")
"""Privileges of a service that writes on all tables."""

TO_CLEAR_CHANGES = ("changes", "TRUNCATE")
"""Table and privilege that a service that writes needs to clear the change feed of a dump from another
server."""

TABLES = tuple(name for name in tables.metadata.tables if name not in schema_objects.UPGRADE_TABLES)
"""The tables that a service uses. It also reads the version table of alembic."""


class MissingPrivilege(OperatorError):
    """The role lacks a privilege that it needs."""


def check_schema(connection: sqlalchemy.Connection) -> None:
    """Checks that there is a current schema. Without one, PostgreSQL reports only missing tables.

    Raises:
        MissingPrivilege: The role may not use any schema of its search_path.
    """
    if connection.exec_driver_sql("SELECT current_schema()").scalar_one() is None:
        role, path = connection.exec_driver_sql("SELECT current_user, current_setting('search_path')").one()
        raise MissingPrivilege(
            f"role {role} may not use any schema of its search_path, {path}: grant USAGE on a schema, or"
            " change the path with ALTER ROLE ... SET search_path"
        )


def may_read_version(connection: sqlalchemy.Connection) -> bool:
    """Whether the role may read the version table of alembic, or the table does not exist."""
    return not connection.execute(_LACKED, {"tables": ["alembic_version"], "privileges": ["SELECT"]}).all()


def check_upgrade(connection: sqlalchemy.Connection) -> None:
    """Checks that the role may upgrade the schema.

    Raises:
        MissingPrivilege: The role may not create tables or does not own a table, or the server accepts no
            writes.
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
    found = [] if may_create else [f"lacks the privilege CREATE on schema {schema}"]
    foreign_objects = connection.scalars(
        _NOT_OWNED, {"names": [*tables.metadata.tables, "alembic_version"]}
    ).all()
    if foreign_objects:
        found.append(f"is not the owner of {', '.join(foreign_objects)}")
    _refuse(role, found, "upgrade the schema: run `store-service migrate` as the role that owns the tables")


def check_service(connection: sqlalchemy.Connection, needed: Collection[str]) -> None:
    """Checks that the role has the privileges that a service needs on the tables.

    Args:
        connection: A database with the schema of this program.
        needed: TO_READ or TO_WRITE.

    Raises:
        MissingPrivilege: The role lacks a privilege on a table, or policies would hide rows from it.
    """
    role = connection.exec_driver_sql("SELECT current_user").scalar_one()
    required = [(table, privilege) for privilege in needed for table in TABLES]
    required.append(("alembic_version", "SELECT"))
    if set(needed) > set(TO_READ):
        required.append(TO_CLEAR_CHANGES)
    lacked: dict[str, list[str]] = {}
    for table, privilege in connection.execute(
        _LACKED,
        {"tables": [table for table, _ in required], "privileges": [privilege for _, privilege in required]},
    ):
        lacked.setdefault(privilege, []).append(table)
    found = [f"lacks the privilege {privilege} on {', '.join(names)}" for privilege, names in lacked.items()]
    hidden = connection.scalars(_HIDDEN, {"names": list(TABLES)}).all()
    if hidden:
        found.append(f"is restricted by row level security on {', '.join(hidden)}")
    _refuse(role, found, "serve: grant the missing privileges")


def _refuse(role: str, found: Sequence[str], purpose: str) -> None:
    if found:
        raise MissingPrivilege(f"role {role} {', '.join(found)}, and so cannot {purpose}")


_SERVICE_TABLES = (
    "FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
    " AND relkind IN ('r', 'p') AND relname = ANY (:names)"
)
_NOT_OWNED = sqlalchemy.text(
    f"SELECT relname {_SERVICE_TABLES} AND NOT pg_has_role(relowner, 'USAGE') ORDER BY relname"
)
_HIDDEN = sqlalchemy.text(f"SELECT relname {_SERVICE_TABLES} AND row_security_active(oid) ORDER BY relname")
_LACKED = sqlalchemy.text(
    'SELECT "table", privilege FROM unnest(CAST(:tables AS text[]), CAST(:privileges AS text[]))'
    ' WITH ORDINALITY AS required ("table", privilege, number)'
    " WHERE NOT has_table_privilege("
    """to_regclass(quote_ident(current_schema()) || '.' || "table"), privilege) ORDER BY number"""
)
