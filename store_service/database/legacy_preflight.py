"""Finds objects that prevent an upgrade, before anything is changed.

A legacy database may have more than the tables that the upgrade knows: tables with the names of new tables,
triggers, foreign keys, constraints on bodies. None of them is dropped silently (docs/decisions/0026).
"""

# ruff: noqa: S608  # only our own names are inserted into statements

import re
from collections.abc import Collection, Iterator

import sqlalchemy

from store_service.database import own_objects, tables
from store_service.database.columns import column_names
from store_service.database.schema_objects import BEFORE, MADE_BY, UPGRADE_TABLES


def obstacles(connection: sqlalchemy.Connection, revision: str) -> list[str]:
    """Returns the objects that would make an upgrade fail, or that would stop working after it.

    Args:
        connection: The database.
        revision: Its revision. A database with an unknown revision has no tables of the service.

    Returns:
        One text for each object, which says what an operator has to do.
    """
    known = list(MADE_BY)
    later = known[known.index(revision) + 1 :] if revision in MADE_BY else known
    if not later:
        return []
    names = {name for step in later for name in MADE_BY[step]}
    on_sqlite = connection.dialect.name == "sqlite"
    in_the_way = _named_on_sqlite if on_sqlite else _named_on_postgresql
    found = [
        f"there is a {kind} {name}, and the upgrade creates an object of that name: rename or drop it"
        for kind, name in in_the_way(connection, names)
    ]
    if revision == BEFORE:
        attached = _attached_on_sqlite if on_sqlite else _attached_on_postgresql
        found.extend(f"{what} {why}" for what, why in (*_without_keys(connection), *attached(connection)))
    return found


def restore_obstacles(connection: sqlalchemy.Connection, revision: str) -> list[str]:
    """Returns what makes a SQLite file unsuitable for a restore: missing or unexpected objects.

    Other tables, and their indexes and views, are accepted.

    Args:
        connection: The file.
        revision: Its revision, one of MADE_BY.

    Returns:
        One text for each object, which says what an operator has to do. Includes `obstacles`.
    """
    found = obstacles(connection, revision)
    if revision == BEFORE:
        return found
    present = column_names(connection)
    service_tables = [name for name in tables.metadata.tables if name in present]
    found.extend(missing_objects(connection, revision))
    found.extend(f"{what} {why}" for what, why in _attached_on_sqlite(connection, service_tables))
    return found


COLUMNS_BEFORE = {"posts": {"id", "body"}, "comments": {"id", "body", "post_id"}}
"""The tables and columns of a legacy database."""


def is_text(body: bytes) -> bool:
    """Whether bytes are valid UTF-8."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def extra_columns(connection: sqlalchemy.Connection) -> dict[str, list[str]]:
    """Returns the columns that were added to the tables of a legacy database, by table."""
    inspector = sqlalchemy.inspect(connection)
    found = {
        table: [it["name"] for it in inspector.get_columns(table) if it["name"] not in known]
        for table, known in COLUMNS_BEFORE.items()
    }
    return {table: names for table, names in found.items() if names}


def missing_objects(connection: sqlalchemy.Connection, revision: str) -> list[str]:
    """Returns the objects of a revision that a database does not have.

    Args:
        connection: The database.
        revision: One of MADE_BY. Columns, triggers and unique indexes are checked only for the last one.
    """
    known = list(MADE_BY)
    made = {name for step in known[: known.index(revision) + 1] for name in MADE_BY[step]}
    present = column_names(connection)
    found = []
    for name, table in tables.metadata.tables.items():
        # Tables of an upgrade may be dropped when they are not needed any more.
        if name not in made or name in UPGRADE_TABLES:
            continue
        if name not in present:
            found.append(f"there is no table {name}")
        elif revision == known[-1]:
            missing = set(table.columns.keys()) - present[name]
            if table.info.get("fts5") and connection.dialect.name == "sqlite":
                # The rowid is the id.
                missing.discard("id")
            if missing:
                found.append(f"table {name} has no column {', '.join(sorted(missing))}")
    return found or (sorted(own_objects.missing(connection)) if revision == known[-1] else [])


_TRIGGER = "may change what the service writes: drop it"
_KEY = "may refuse deletions of the rows that it refers to: drop the foreign key, or the table"
_RULE = "may refuse what the service writes: drop it"
_KEYLESS = "so ids may be missing, duplicate or not numbers: create the table as storeapi does"
_POLICY = "may hide or refuse what the service writes: drop it"
_FORCED = "may hide or refuse what the service writes: disable it"
_COLUMNS = "uses columns that the upgrade changes: drop it, and create it again afterwards"


def _named_on_sqlite(connection: sqlalchemy.Connection, names: set[str]) -> Iterator[tuple[str, str]]:
    rows = connection.exec_driver_sql("SELECT type, name FROM sqlite_master ORDER BY name")
    triggers = own_objects.LABEL_TRIGGERS["sqlite"].keys() & names
    for kind, name in rows:
        # Triggers have a namespace of their own. Names are case-insensitive in SQLite.
        if _is_taken(kind, name.lower(), triggers if kind == "trigger" else names):
            yield kind, name


def _named_on_postgresql(connection: sqlalchemy.Connection, names: set[str]) -> Iterator[tuple[str, str]]:
    rows = connection.exec_driver_sql(
        "SELECT CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'view' WHEN 'i' THEN 'index'"
        " WHEN 'S' THEN 'sequence' WHEN 'c' THEN 'type' WHEN 'f' THEN 'foreign table' ELSE 'table' END,"
        " relname"
        f" FROM pg_class WHERE relnamespace = {_SCHEMA}"
        # The row type of a table has the name of the table.
        f" UNION ALL SELECT 'type', typname FROM pg_type WHERE typnamespace = {_SCHEMA} AND typrelid = 0"
        f" UNION ALL SELECT 'trigger', tgname FROM pg_trigger WHERE tgrelid IN {_TABLES}"
        " UNION ALL SELECT 'function', proname FROM pg_proc"
        f" WHERE pronamespace = {_SCHEMA} AND proname IN ('store_changes_notify', 'store_labels') ORDER BY 2"
    )
    yield from ((kind, name) for kind, name in rows if _is_taken(kind, name, names))


def _is_taken(kind: str, name: str, names: set[str]) -> bool:
    """Whether an object has a name that the upgrade needs. The version table of alembic is allowed."""
    return name in names or (name == "alembic_version" and kind not in ("table", "trigger"))


def _without_keys(connection: sqlalchemy.Connection) -> Iterator[tuple[str, str]]:
    """Yields tables whose columns have the right names but other types or keys than in a legacy database."""
    inspector = sqlalchemy.inspect(connection)
    for table in ("posts", "comments"):
        columns = inspector.get_columns(table)
        numbers = {it["name"] for it in columns if isinstance(it["type"], sqlalchemy.Integer)}
        if inspector.get_pk_constraint(table)["constrained_columns"] != ["id"] or "id" not in numbers:
            yield f"table {table} has no INTEGER PRIMARY KEY id,", _KEYLESS
        if table == "comments" and "post_id" not in numbers:
            yield "column post_id of comments is not an INTEGER,", _KEYLESS


_SCHEMA = "(SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
_TABLES = f"(SELECT oid FROM pg_class WHERE relnamespace = {_SCHEMA} AND relname IN ('posts', 'comments'))"


def _attached_on_sqlite(
    connection: sqlalchemy.Connection, names: Collection[str] = ("posts", "comments")
) -> Iterator[tuple[str, str]]:
    """Yields triggers, foreign keys and constraints on tables, except those of the service; by default on the
    tables of a legacy database."""
    own = own_objects.on_sqlite(connection)
    table_names = "(" + ", ".join(f"'{name}'" for name in names) + ")"
    for name, table in connection.exec_driver_sql(
        "SELECT name, tbl_name FROM sqlite_master"
        f" WHERE type = 'trigger' AND lower(tbl_name) IN {table_names} ORDER BY 1"
    ):
        if ("trigger", name) not in own:
            yield f"trigger {name} on {table}", _TRIGGER
    # Constraints on columns that the upgrade moves are removed with the columns.
    moved = extra_columns(connection) if set(names) == COLUMNS_BEFORE.keys() else {}
    referring = {
        (name, table)
        for name, table, column in connection.exec_driver_sql(
            'SELECT it.name, lower(key."table"), key."from"'
            " FROM sqlite_master AS it, pragma_foreign_key_list(it.name) AS key"
            f""" WHERE it.type = 'table' AND lower(key."table") IN {table_names}"""
            " AND NOT (it.name = 'comments' AND lower(key.\"from\") = 'post_id')"
        )
        if column not in moved.get(name, ())
    }
    for name, table in sorted(referring):
        yield f"table {name}, which refers to {table},", _KEY
    for table in names:
        # The list of indexes, because SQLite stores no names of constraints. The primary key is expected.
        for name, origin in connection.exec_driver_sql(
            f"""SELECT name, origin FROM pragma_index_list('{table}') WHERE "unique" AND origin <> 'pk'"""
        ).all():
            columns = connection.exec_driver_sql("SELECT name FROM pragma_index_info(?)", (name,)).scalars()
            if set(columns) & set(moved.get(table, ())) or ("index", name) in own:
                continue
            what = f"UNIQUE constraint of {table}" if origin == "u" else f"unique index {name} of {table}"
            yield what, _RULE
    for table in names:
        for rule in sqlalchemy.inspect(connection).get_check_constraints(table):
            if set(re.findall(r"\w+", rule["sqltext"])) & set(moved.get(table, ())):
                continue
            yield f"CHECK constraint {rule['name'] or ''} of {table}".replace("  ", " "), _RULE


def _attached_on_postgresql(connection: sqlalchemy.Connection) -> Iterator[tuple[str, str]]:
    """Yields the objects that depend on the tables of a legacy database. Other indexes are kept."""
    for what, why, statement in _QUERIES:
        for row in connection.exec_driver_sql(statement):
            yield what.format(*row), why


def _is_moved(table: str, numbers: str) -> str:
    """Returns SQL: whether the upgrade moves one of these columns, and removes the constraint with it."""
    return (
        f"({table} IN {_TABLES} AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = {table}"
        f" AND attnum = ANY ({numbers}) AND attname NOT IN ('id', 'body', 'post_id')))"
    )


_QUERIES = (
    (
        "trigger {} on {}",
        _TRIGGER,
        "SELECT tgname, tgrelid::regclass::text FROM pg_trigger"
        f" WHERE tgrelid IN {_TABLES} AND NOT tgisinternal ORDER BY 1",
    ),
    (
        "rule {} on {}",
        _TRIGGER,
        f"SELECT rulename, ev_class::regclass::text FROM pg_rewrite WHERE ev_class IN {_TABLES} ORDER BY 1",
    ),
    (
        "table {}, which refers to {},",
        _KEY,
        "SELECT DISTINCT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint"
        f" WHERE contype = 'f' AND confrelid IN {_TABLES} AND NOT (conrelid IN {_TABLES}"
        " AND conrelid::regclass::text = 'comments' AND confrelid::regclass::text = 'posts')"
        f" AND NOT {_is_moved('conrelid', 'conkey')} ORDER BY 1",
    ),
    (
        "unique index {} of {}",
        _RULE,
        "SELECT indexrelid::regclass::text, indrelid::regclass::text FROM pg_index"
        f" WHERE indrelid IN {_TABLES} AND indisunique AND NOT indisprimary"
        f" AND NOT {_is_moved('indrelid', 'indkey')} ORDER BY 1",
    ),
    (
        "{} constraint {} of {}",
        _RULE,
        "SELECT CASE contype WHEN 'x' THEN 'EXCLUDE' ELSE 'CHECK' END, conname, conrelid::regclass::text"
        f" FROM pg_constraint WHERE contype IN ('c', 'x') AND conrelid IN {_TABLES}"
        f" AND NOT {_is_moved('conrelid', 'conkey')} ORDER BY 2",
    ),
    (
        "policy {} of {}",
        _POLICY,
        f"SELECT polname, polrelid::regclass::text FROM pg_policy WHERE polrelid IN {_TABLES} ORDER BY 1",
    ),
    (
        # Without a policy it hides all rows. If it is not forced, it does not apply to the owner.
        "FORCE ROW LEVEL SECURITY of {}",
        _FORCED,
        f"SELECT oid::regclass::text FROM pg_class WHERE oid IN {_TABLES} AND relforcerowsecurity ORDER BY 1",
    ),
    (
        "publication {}, which names columns of {},",
        _COLUMNS,
        "SELECT DISTINCT pubname, prrelid::regclass::text FROM pg_depend AS needs"
        " JOIN pg_publication_rel AS it"
        " ON needs.classid = 'pg_publication_rel'::regclass AND it.oid = needs.objid"
        " JOIN pg_publication ON pg_publication.oid = prpubid"
        f" WHERE needs.refobjid IN {_TABLES} AND needs.refobjsubid > 0 ORDER BY 1",
    ),
    (
        "function {}",
        _COLUMNS,
        "SELECT DISTINCT objid::regprocedure::text FROM pg_depend"
        f" WHERE classid = 'pg_proc'::regclass AND refobjid IN {_TABLES} AND refobjsubid > 0 ORDER BY 1",
    ),
    (
        "table {}, which has rows of {} in a column,",
        _COLUMNS,
        "SELECT DISTINCT it.oid::regclass::text, typrelid::regclass::text FROM pg_type JOIN pg_attribute"
        " ON atttypid IN (pg_type.oid, typarray) JOIN pg_class AS it ON it.oid = attrelid"
        f" WHERE typrelid IN {_TABLES} AND it.relkind IN ('r', 'p') AND NOT attisdropped ORDER BY 1",
    ),
    (
        "view {}",
        _COLUMNS,
        "SELECT DISTINCT it.ev_class::regclass::text FROM pg_depend AS needs JOIN pg_rewrite AS it"
        " ON needs.classid = 'pg_rewrite'::regclass AND it.oid = needs.objid"
        f" WHERE needs.refobjid IN {_TABLES} AND it.ev_class NOT IN {_TABLES} ORDER BY 1",
    ),
)
