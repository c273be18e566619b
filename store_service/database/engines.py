"""Opens blocking connections, for migrations, checks and scripts."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy.pool import NullPool

from store_service.database import sqlite_file
from store_service.database.connect import ACQUIRE_SECONDS, is_sqlite
from store_service.database.driver_errors import translate_error
from store_service.database_url import PostgresqlUrl, parse
from store_service.errors import OperatorError


def sync_engine(database_url: str, *, connect_timeout_seconds: float = ACQUIRE_SECONDS) -> sqlalchemy.Engine:
    """Returns a blocking engine for migrations and scripts. RPCs never use it.

    Args:
        database_url: SQLite or PostgreSQL.
        connect_timeout_seconds: Maximum time to connect to one address of a PostgreSQL host,
            in whole seconds, at least 2, as libpq counts.
    """
    if is_sqlite(database_url):
        return sqlalchemy.create_engine(database_url, connect_args={"check_same_thread": False})
    return sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=partial(_connected, parse(database_url), connect_timeout_seconds),
        # No column has this type, and each engine would look for it.
        use_native_hstore=False,
    )


def _connected(url: PostgresqlUrl, connect_timeout_seconds: float) -> Any:
    """Opens a connection of psycopg. If there are several hosts, a host that accepts writes is preferred."""
    # psycopg is an extra, so it is imported only when it is used.
    import psycopg

    given: dict[str, Any] = {
        "host": ",".join(host for host, _ in url.hosts),
        "port": ",".join(str(port) for _, port in url.hosts),
        "user": url.user,
        "password": url.password,
        "dbname": url.database,
        # Without it, a host that accepts the connection and does not respond would block for minutes.
        "connect_timeout": max(2, math.ceil(connect_timeout_seconds)),
        # For a database in SQL_ASCII psycopg would otherwise return even names as bytes.
        "client_encoding": "UTF8",
        # A pooler may run the next transaction in another session, without the prepared statements.
        "prepare_threshold": None,
        # libpq would try TLS by default. The migration could then succeed where the service fails.
        "sslmode": "disable",
        **url.options,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if len(url.hosts) > 1 and "target_session_attrs" not in url.options:
        try:
            return psycopg.connect(**given, target_session_attrs="read-write")
        except psycopg.OperationalError:
            # A read-only service can use a standby.
            pass
    return psycopg.connect(**given)


class OtherDatabase(OperatorError):
    """DATABASE_DIRECT_URL leads to another database than DATABASE_URL."""


def check_same_database(database_url: str, direct_url: str, *, connect_timeout_seconds: float) -> None:
    """Checks that two URLs lead to the same schema of the same PostgreSQL server, if the second is not empty.

    Raises:
        OtherDatabase: They do not.
        ServiceError: A database cannot be opened.
    """
    if not direct_url:
        return
    found = []
    for url in (database_url, direct_url):
        engine = sync_engine(url, connect_timeout_seconds=connect_timeout_seconds)
        try:
            with engine.connect() as connection:
                found.append(connection.exec_driver_sql(_IDENTITY).one())
        except sqlalchemy.exc.DBAPIError as error:
            cause = error.orig if isinstance(error.orig, Exception) else error
            raise translate_error(cause) from error
        finally:
            engine.dispose()
    if found[0] != found[1]:
        raise OtherDatabase(
            "DATABASE_DIRECT_URL leads to another server, database or schema than DATABASE_URL"
        )


_IDENTITY = """
SELECT pg_postmaster_start_time(), oid, current_schema() FROM pg_database WHERE datname = current_database()
"""


def read_only_engine(
    database_url: str, *, connect_timeout_seconds: float = ACQUIRE_SECONDS
) -> sqlalchemy.Engine:
    """Returns a blocking engine that changes no SQLite file, whether a server uses it or not.

    `connect_timeout_seconds` is as for `sync_engine`.

    The last connection to a SQLite file writes the log into the file and removes the log, if it can write. A
    second connection that checkpoints while a server runs can damage the file; the lock file prevents it.
    """
    if not is_sqlite(database_url):
        return sync_engine(database_url, connect_timeout_seconds=connect_timeout_seconds)
    path = sqlite_file.database_path(database_url)
    return sqlalchemy.create_engine(
        "sqlite://",
        creator=lambda: sqlite_file.read_only_connection(path, _read_only_mode(path)),
        poolclass=NullPool,
    )


def _read_only_mode(path: Path) -> str:
    try:
        # A running server has a log. Without a log, `mode=ro` would create one, or fail without permissions.
        return "immutable=1" if sqlite_file.lacks_its_log(path) else "mode=ro"
    except OSError:
        return "mode=ro"  # SQLite then reports the error
