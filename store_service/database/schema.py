"""Finds the schema revision of a database, and upgrades the database to the revision of this program.

The steps are alembic revisions in `migrations/versions`. An upgrade is one transaction: afterwards the
database has the new schema or is unchanged.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import sqlalchemy
import structlog

from store_service.database import contents, legacy_preflight, privileges, schema_objects, sqlite_file
from store_service.database.batch_operation import BatchOperation
from store_service.database.columns import column_names
from store_service.database.connect import ACQUIRE_SECONDS, Database, is_missing
from store_service.database.connection import Connection
from store_service.database.driver_errors import translate_error
from store_service.database.engines import read_only_engine
from store_service.database.statements import Statement
from store_service.database.upgrade_engine import upgrade_engine
from store_service.errors import DatabaseUnavailable, OperatorError, SchemaMismatch

BEFORE = schema_objects.BEFORE
"""The revision of a legacy database."""

KNOWN = tuple(schema_objects.MADE_BY)
"""All revisions that this program can upgrade to HEAD, and HEAD."""

HEAD = KNOWN[-1]
"""The revision that this program needs."""

EMPTY = "none"
"""The result of `current` for a database without tables of the service."""

UNKNOWN = "unknown"
"""The result of `find_to_upgrade` for a file with an interrupted write."""

OF_OTHERS = "a newer store-service made it, or another application"
"""Text about the origin of an unknown revision."""

Report = Callable[[str, int, int], None]
"""Called with the current step, the amount done, and the total."""

log = structlog.get_logger("store_service.database")


class ForeignSchema(OperatorError):
    """The database belongs to another application, or contains objects that prevent an upgrade."""


class ExtraColumns(ForeignSchema):
    """The tables of a legacy database have columns that storeapi did not create."""


class WrongEncoding(OperatorError):
    """The PostgreSQL database cannot store every text."""


def current(connection: sqlalchemy.Connection) -> str:
    """Returns the revision of a database: EMPTY, BEFORE, or the revision in its version table.

    Raises:
        ForeignSchema: The database belongs to another application, or its tables have other columns.
    """
    tables = column_names(connection)
    if "alembic_version" in tables:
        if "version_num" not in tables["alembic_version"]:
            raise ForeignSchema("the table alembic_version does not belong to alembic: rename or drop it")
        revision = connection.scalar(sqlalchemy.text("SELECT version_num FROM alembic_version"))
        if revision not in (None, BEFORE):
            return str(revision)
    present = tables.keys() & legacy_preflight.COLUMNS_BEFORE.keys()
    if not present:
        found = contents.foreign_objects(connection)
        if found:
            own = "a file" if connection.dialect.name == "sqlite" else "a database, or a schema,"
            raise ForeignSchema(
                f"the database belongs to another application: it contains {found}, and nothing of this"
                f" service; give the service {own} of its own"
            )
        return EMPTY
    for table, expected in legacy_preflight.COLUMNS_BEFORE.items():
        columns = tables.get(table, set())
        if not expected <= columns:
            difference = "is missing"
            if columns:
                found, names = ", ".join(sorted(columns)), ", ".join(sorted(expected))
                difference = f"has the columns {found}, where {names} were expected"
            raise ForeignSchema(f"the database was not made by storeapi: table {table} {difference}")
    return BEFORE


def check(database_url: str, *, connect_timeout_seconds: float = ACQUIRE_SECONDS) -> None:
    """Checks that a database has the schema that this program needs. Changes nothing and creates no file.

    Raises:
        SchemaMismatch: The database has another schema.
        ServiceError, ForeignSchema, WrongEncoding: As for `find`.
    """
    revision = find(database_url, connect_timeout_seconds=connect_timeout_seconds)
    if revision != HEAD:
        raise SchemaMismatch(expected=HEAD, actual=revision)


def find(
    database_url: str,
    *,
    connect_timeout_seconds: float = ACQUIRE_SECONDS,
    upgrades: bool = False,
    serves: Collection[str] = (),
    move_extra_columns: bool = False,
) -> str:
    """Returns the revision of a database after checking that nothing prevents its use or upgrade.

    Changes nothing and creates no file.

    Args:
        database_url: SQLite or PostgreSQL.
        connect_timeout_seconds: How long opening a connection to PostgreSQL may take.
        upgrades: Check the privileges for an upgrade, if one is necessary.
        serves: Privileges that the role needs on the tables of the current schema.
        move_extra_columns: As for `upgrade`.

    Raises:
        SchemaMismatch: A table or column of the schema does not exist.
        ForeignSchema: The database belongs to another application, or contains objects that prevent an
            upgrade.
        WrongEncoding: The encoding of the database is not UTF-8.
        privileges.MissingPrivilege: The role of PostgreSQL lacks privileges.
        ServiceError: The database cannot be opened.
    """
    if is_missing(database_url):
        return EMPTY
    engine = read_only_engine(database_url, connect_timeout_seconds=connect_timeout_seconds)
    try:
        with engine.connect() as connection:
            on_postgresql = connection.dialect.name == "postgresql"
            if on_postgresql:
                _refuse_encoding(connection)
                privileges.check_schema(connection)
                if not privileges.may_read_version(connection):
                    privileges.check_service(connection, serves or privileges.TO_READ)
            revision = current(connection)
            # An upgrade is not recommended for a database that it would refuse.
            _refuse_obstacles(connection, revision, move_extra_columns=move_extra_columns)
            if on_postgresql and upgrades and revision != HEAD:
                privileges.check_upgrade(connection)
            if on_postgresql and serves and revision == HEAD:
                privileges.check_service(connection, serves)
    except sqlalchemy.exc.DBAPIError as error:
        raise translate_error(_driver_error(error)) from error
    finally:
        engine.dispose()
    return revision


def find_to_upgrade(
    database_url: str,
    *,
    connect_timeout_seconds: float = ACQUIRE_SECONDS,
    upgrades: bool = True,
    serves: Collection[str] = (),
    move_extra_columns: bool = False,
) -> str:
    """Same as `find`, but returns UNKNOWN for a file with an interrupted write.

    Only a connection that can write rolls the write back. `upgrade` opens one, and then finds the revision.
    """
    try:
        return find(
            database_url,
            connect_timeout_seconds=connect_timeout_seconds,
            upgrades=upgrades,
            serves=serves,
            move_extra_columns=move_extra_columns,
        )
    except DatabaseUnavailable as error:
        if not sqlite_file.was_interrupted(error.__cause__):
            raise
        return UNKNOWN


def upgrade(
    database_url: str,
    *,
    connect_timeout_seconds: float = ACQUIRE_SECONDS,
    move_extra_columns: bool = False,
    report: Report | None = None,
) -> str:
    """Upgrades a database to the schema that this program needs. Returns the revision before the upgrade.

    Logs the progress of an upgrade of posts and comments.

    Args:
        database_url: SQLite or PostgreSQL.
        connect_timeout_seconds: How long opening a connection to PostgreSQL may take.
        move_extra_columns: Move columns of a legacy database that storeapi did not create to separate tables.
            Otherwise such columns are refused.
        report: Called with the current step, the rows done, and the total; 0 and 0 if unknown.

    Raises:
        SchemaMismatch: This program does not know the schema; most likely a newer one created it.
        ForeignSchema: The database belongs to another application, or contains objects that prevent an
            upgrade.
        WrongEncoding: The encoding of the database is not UTF-8.
        privileges.MissingPrivilege: The role of PostgreSQL lacks privileges.
        ServiceError: The database cannot be opened, or another process writes to it.
    """
    # On SQLite only a read-only connection leaves the file and the log of another application unchanged.
    found = find_to_upgrade(
        database_url, connect_timeout_seconds=connect_timeout_seconds, move_extra_columns=move_extra_columns
    )
    if found == HEAD:
        return HEAD
    engine = upgrade_engine(database_url, connect_timeout_seconds=connect_timeout_seconds)
    try:
        with engine.begin() as connection:
            # Another process may have upgraded it meanwhile.
            revision = current(connection)
            if revision != HEAD:
                _upgrade(connection, revision, move_extra_columns=move_extra_columns, report=report)
        return revision
    except sqlalchemy.exc.DBAPIError as error:
        raise translate_error(_driver_error(error)) from error
    finally:
        engine.dispose()


async def look(database: Database) -> None:
    """Checks that an open database responds and still has the schema that this program needs.

    Raises:
        SchemaMismatch: The database has another schema by now.
        ServiceError: The database does not respond, or its file was deleted or replaced.
    """
    database.check()
    actual = await database.read(_REVISION, None)
    if actual != HEAD:
        raise SchemaMismatch(expected=HEAD, actual=actual)


async def _read_revision(connection: Connection, calls: Sequence[None]) -> list[str]:
    rows = await connection.fetch(_CURRENT)
    return [rows[0][0] if rows else EMPTY] * len(calls)


_CURRENT = Statement(
    sqlalchemy.select(sqlalchemy.column("version_num")).select_from(sqlalchemy.table("alembic_version"))
)
_REVISION: BatchOperation[None, str] = BatchOperation(_read_revision)


def _upgrade(
    connection: sqlalchemy.Connection, revision: str, *, move_extra_columns: bool, report: Report | None
) -> None:
    # Importing alembic takes longer than a start without an upgrade.
    from alembic import command
    from alembic.config import Config

    def report_step(doing: str, done: int, total: int) -> None:
        # The log lines are for starts without a terminal.
        if rows >= ROWS_THAT_TAKE_LONG:
            log.info("upgrading", doing=doing, done=done, total=total)
        if report is not None:
            report(doing, done, total)

    config = Config(attributes={"connection": connection, "report": report_step})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    if revision not in (EMPTY, *KNOWN):
        raise SchemaMismatch(expected=HEAD, actual=revision)
    _refuse_obstacles(connection, revision, move_extra_columns=move_extra_columns)

    rows = 0
    if revision == BEFORE:
        posts, comments = connection.exec_driver_sql(
            "SELECT (SELECT count(*) FROM posts), (SELECT count(*) FROM comments)"
        ).one()
        rows = posts + comments
        log.info("upgrading the schema", was=revision, to=HEAD, posts=posts, comments=comments)
        command.stamp(config, BEFORE)
    command.upgrade(config, HEAD)
    log.info("schema upgraded", was=revision, now=HEAD)


def _refuse_encoding(connection: sqlalchemy.Connection) -> None:
    """Refuses encodings other than UTF-8: they lack most characters or accept any bytes as text."""
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise WrongEncoding(
            f"the database has the encoding {encoding}, which cannot store every text: create one with"
            " ENCODING 'UTF8' and move the tables there"
        )


def _refuse_obstacles(
    connection: sqlalchemy.Connection, revision: str, *, move_extra_columns: bool = False
) -> None:
    if revision not in (EMPTY, *KNOWN):
        return
    missing = [] if revision == EMPTY else legacy_preflight.missing_objects(connection, revision)
    if missing:
        raise ForeignSchema(
            f"the version table names schema {revision}, but {'; '.join(missing)}: the database belongs to"
            " another application, or its schema was changed"
        )
    found = legacy_preflight.obstacles(connection, revision)
    if found:
        raise ForeignSchema(f"the database cannot be upgraded as it is: {'; '.join(found)}")
    extra = (
        legacy_preflight.extra_columns(connection) if revision == BEFORE and not move_extra_columns else {}
    )
    if extra:
        what = "; ".join(f"{table} has {', '.join(names)}" for table, names in extra.items())
        raise ExtraColumns(
            f"the database has columns that storeapi did not create: {' '.join(what.split())}; if it belongs"
            " to storeapi, `store-service migrate --move-extra-columns` moves them to separate tables"
        )


ROWS_THAT_TAKE_LONG = 10_000
"""Number of posts and comments from which each step of an upgrade is logged."""


def _driver_error(error: sqlalchemy.exc.DBAPIError) -> Exception:
    return error.orig if isinstance(error.orig, Exception) else error
