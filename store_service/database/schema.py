"""Which schema a database has, and how it gets the one that this program needs.

The steps are alembic revisions in `migrations/versions`. All steps of one upgrade are one transaction:
either the database has the new schema afterwards, or it is as it was.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy
import structlog
from sqlalchemy import event

from store_service.database import contents, legacy_preflight, privileges, sqlite
from store_service.database.batch_queue import BatchOperation
from store_service.database.connect import ACQUIRE_SECONDS, Database, engine_to_look, is_missing, sync_engine
from store_service.database.connection import Connection
from store_service.database.driver_errors import named
from store_service.database.statements import Statement
from store_service.errors import DatabaseUnavailable, OperatorError, SchemaMismatch

BEFORE = legacy_preflight.BEFORE
"""The revision of a database that the application before this service made."""

KNOWN = tuple(legacy_preflight.MADE_BY)
"""Every revision that this program can bring to HEAD, and HEAD."""

HEAD = KNOWN[-1]
"""The revision that this program needs."""

EMPTY = "none"
"""What `current` says of a database without our tables."""

UNKNOWN = "unknown"
"""What `find_to_upgrade` says of a file that cannot be read before something in it is undone."""

OF_OTHERS = "a newer store-service made it, or another application"
"""Where a revision comes from that is not known, in words."""

Report = Callable[[str, int, int], None]
"""Called with the current step, the amount done, and the total."""

log = structlog.get_logger("store_service.database")


class ForeignSchema(OperatorError):
    """The database holds what is not ours, where ours is or would be."""


class ExtraColumns(ForeignSchema):
    """The tables of the application before have columns that it did not make."""


class WrongEncoding(OperatorError):
    """The database of PostgreSQL cannot store every text."""


def current(connection: sqlalchemy.Connection) -> str:
    """The revision that a database has: EMPTY, BEFORE, or what its version table says.

    Raises:
        ForeignSchema: It has no tables of ours but something else, or tables of our names with other columns.
    """
    inspector = sqlalchemy.inspect(connection)
    tables = set(inspector.get_table_names())
    if "alembic_version" in tables:
        if not any(it["name"] == "version_num" for it in inspector.get_columns("alembic_version")):
            raise ForeignSchema("the table alembic_version is not alembic's: rename or drop it")
        revision = connection.scalar(sqlalchemy.text("SELECT version_num FROM alembic_version"))
        if revision not in (None, BEFORE):
            return str(revision)
    present = tables & legacy_preflight.COLUMNS_BEFORE.keys()
    if not present:
        found = contents.foreign_objects(connection)
        if found:
            own = "a file" if connection.dialect.name == "sqlite" else "a database, or a schema,"
            raise ForeignSchema(
                f"the database belongs to another application: it contains {found}, and nothing of this"
                f" service; give the service {own} of its own"
            )
        return EMPTY
    for table, wanted in legacy_preflight.COLUMNS_BEFORE.items():
        columns = {column["name"] for column in inspector.get_columns(table)} if table in tables else set()
        if not wanted <= columns:
            difference = "is missing"
            if columns:
                found, expected = ", ".join(sorted(columns)), ", ".join(sorted(wanted))
                difference = f"has the columns {found}, where {expected} were expected"
            raise ForeignSchema(f"the database was not made by storeapi: table {table} {difference}")
    return BEFORE


def check(database_url: str, *, connect_timeout_seconds: float = ACQUIRE_SECONDS) -> None:
    """Makes sure that a database has the schema that this program needs. Changes nothing, makes no file.

    Raises:
        SchemaMismatch: It has another one.
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
    """The revision that a database has, if this program may bring it to HEAD. Changes nothing, makes no file.

    Args:
        database_url: SQLite or PostgreSQL.
        connect_timeout_seconds: How long opening a connection to PostgreSQL may take.
        upgrades: The role needs what an upgrade needs, if one is to come.
        serves: Rights that the role needs on the tables of this program's schema.
        move_extra_columns: As for `upgrade`.

    Raises:
        SchemaMismatch: It has a schema that this program does not know, most likely of a newer one.
        ForeignSchema: It is another application's, or has something that is in the way.
        WrongEncoding: It is in another encoding than UTF-8.
        rights.MissingPrivilege: The role lacks some, on PostgreSQL.
        ServiceError: It cannot be opened.
    """
    if is_missing(database_url):
        return EMPTY
    engine = engine_to_look(database_url, connect_timeout_seconds=connect_timeout_seconds)
    try:
        with engine.connect() as connection:
            on_postgresql = connection.dialect.name == "postgresql"
            if on_postgresql:
                _refuse_encoding(connection)
                privileges.check_schema(connection)
                if not privileges.may_read_version(connection):
                    privileges.check_service(connection, serves or privileges.TO_READ)
            revision = current(connection)
            # Nobody is told to upgrade what an upgrade will refuse.
            _refuse_obstacles(connection, revision, move_extra_columns=move_extra_columns)
            if on_postgresql and upgrades and revision != HEAD:
                privileges.check_upgrade(connection)
            if on_postgresql and serves and revision == HEAD:
                privileges.check_service(connection, serves)
    except sqlalchemy.exc.DBAPIError as error:
        raise named(_driver_error(error)) from error
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
    """As `find`, but UNKNOWN of a file in which a write was interrupted.

    Only a connection that writes can undo that, as any program's does that opens the file; `upgrade` looks
    then.
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
        if not sqlite.was_interrupted(error.__cause__):
            raise
        return UNKNOWN


def upgrade(
    database_url: str,
    *,
    connect_timeout_seconds: float = ACQUIRE_SECONDS,
    move_extra_columns: bool = False,
    report: Report | None = None,
) -> str:
    """Brings a database to the schema that this program needs; returns the revision that it had.

    The log says before and during an upgrade of posts and comments what is done.

    Args:
        database_url: SQLite or PostgreSQL.
        connect_timeout_seconds: How long opening a connection to PostgreSQL may take.
        move_extra_columns: Move columns that somebody has added to posts and comments of the application
            before to tables of their own, where their presence is refused otherwise.
        report: Is told what is being done, and how many rows of how many are done; 0 of 0 if unknown.

    Raises:
        SchemaMismatch: It has a schema that this program does not know, most likely of a newer one.
        ForeignSchema: It is another application's, or has something that is in the way.
        WrongEncoding: It is in another encoding than UTF-8.
        rights.MissingPrivilege: The role lacks some, on PostgreSQL.
        ServiceError: It cannot be opened, or somebody else is writing to it.
    """
    # On SQLite only a read-only check leaves another application's file and its log unchanged.
    found = find_to_upgrade(
        database_url, connect_timeout_seconds=connect_timeout_seconds, move_extra_columns=move_extra_columns
    )
    if found == HEAD:
        return HEAD
    engine = sync_engine(database_url, connect_timeout_seconds=connect_timeout_seconds)
    _set_up_transactions(engine)
    try:
        with engine.begin() as connection:
            # Another process may have upgraded it since.
            revision = current(connection)
            if revision != HEAD:
                _upgrade(connection, revision, move_extra_columns=move_extra_columns, report=report)
        return revision
    except sqlalchemy.exc.DBAPIError as error:
        raise named(_driver_error(error)) from error
    finally:
        engine.dispose()


async def look(database: Database) -> None:
    """Looks whether an open database answers and still has the schema that this program needs.

    Raises:
        SchemaMismatch: It has another one by now.
        ServiceError: It does not answer, or its file was deleted or replaced.
    """
    database.check()
    actual = await database.read(_REVISION, None)
    if actual != HEAD:
        raise SchemaMismatch(expected=HEAD, actual=actual)


async def _read_revision(connection: Connection, askers: Sequence[None]) -> list[str]:
    rows = await connection.fetch(_CURRENT)
    return [rows[0][0] if rows else EMPTY] * len(askers)


_CURRENT = Statement(
    sqlalchemy.select(sqlalchemy.column("version_num")).select_from(sqlalchemy.table("alembic_version"))
)
_REVISION: BatchOperation[None, str] = BatchOperation(_read_revision)


def _upgrade(
    connection: sqlalchemy.Connection, revision: str, *, move_extra_columns: bool, report: Report | None
) -> None:
    # Alembic takes longer to import than a start without an upgrade takes.
    from alembic import command
    from alembic.config import Config

    def tell(doing: str, done: int, total: int) -> None:
        # The log is for starts without a terminal.
        if rows >= ROWS_THAT_TAKE_LONG:
            log.info("upgrading", doing=doing, done=done, total=total)
        if report is not None:
            report(doing, done, total)

    config = Config(attributes={"connection": connection, "report": tell})
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
    """Some encodings of PostgreSQL lack most characters, or take any bytes for text."""
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise WrongEncoding(
            f"the database has the encoding {encoding}, in which not every text can be stored: make one with"
            " ENCODING 'UTF8' and move its tables there"
        )


def _refuse_obstacles(
    connection: sqlalchemy.Connection, revision: str, *, move_extra_columns: bool = False
) -> None:
    if revision not in (EMPTY, *KNOWN):
        return
    missing = [] if revision == EMPTY else legacy_preflight.lacking(connection, revision)
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
"""With so many posts and comments each step of an upgrade is logged."""

CACHE_BYTES = 64 * 1024 * 1024
"""Pages of SQLite that an upgrade keeps in memory."""

_ADVISORY_LOCK = 0x73746F7265
"""The number under which upgrades wait for each other on PostgreSQL; no other program of ours uses it."""


def _set_up_transactions(engine: sqlalchemy.Engine) -> None:
    """Makes transactions exclude every other upgrade from their start on, cover CREATE and DROP, and survive
    a power cut once they are committed.

    Python's driver for SQLite would begin one only before the first INSERT, and leave the statements before
    it outside (https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable).
    """
    is_sqlite = engine.dialect.name == "sqlite"

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: object) -> None:
        if is_sqlite:
            connection.isolation_level = None
            connection.execute(f"PRAGMA synchronous = {sqlite.SYNCHRONOUS_EXTRA}")
            # With SQLite's own 2 MiB most pages are written several times.
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


def _driver_error(error: sqlalchemy.exc.DBAPIError) -> Exception:
    return error.orig if isinstance(error.orig, Exception) else error
