"""Translates errors of the drivers by their codes, never by their texts."""

import sqlite3
import sys

from store_service.errors import (
    DatabaseBusy,
    DatabaseUnavailable,
    SchemaMismatch,
    ServiceError,
    StorageFull,
    StoreMoving,
)

REFUSED_STATE = "SM001"
"""The SQLSTATE of writes to a store that moves to another database; see `write_mode.py`."""

REFUSED_TEXT = "the store moves"
"""The text of the same error on SQLite, whose triggers have no code of their own."""


class StatementCancelled(Exception):
    """A statement was cancelled because all callers that waited for it have left."""


class NotificationsUnavailable(Exception):
    """LISTEN is not possible: the server is a standby, or a pooler gives each transaction another session."""


class RetryTransaction(Exception):
    """The database rolled a transaction back because of another one. The next try may succeed."""


def driver_errors() -> tuple[type[Exception], ...]:
    """Returns the errors that the drivers in use raise. A database that cannot be reached may also raise
    OSError.

    asyncpg is an extra, and a process without a PostgreSQL database does not import it.
    """
    asyncpg = sys.modules.get("asyncpg")
    if asyncpg is None:
        return sqlite3.Error, OSError
    return (
        sqlite3.Error,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,  # a connection was lost during an operation
        OSError,
    )


# Primary result codes, https://www.sqlite.org/rescode.html
_SQLITE: dict[int, type[ServiceError]] = {
    sqlite3.SQLITE_BUSY: DatabaseBusy,
    sqlite3.SQLITE_LOCKED: DatabaseBusy,
    sqlite3.SQLITE_PROTOCOL: DatabaseBusy,
    sqlite3.SQLITE_FULL: StorageFull,
    sqlite3.SQLITE_IOERR: DatabaseUnavailable,
    sqlite3.SQLITE_CANTOPEN: DatabaseUnavailable,
    sqlite3.SQLITE_CORRUPT: DatabaseUnavailable,
    sqlite3.SQLITE_NOTADB: DatabaseUnavailable,
    sqlite3.SQLITE_PERM: DatabaseUnavailable,
    sqlite3.SQLITE_READONLY: DatabaseUnavailable,
}

# SQLSTATEs, https://www.postgresql.org/docs/current/errcodes-appendix.html; two characters name a class.
_POSTGRESQL: dict[str, type[ServiceError]] = {
    "08": DatabaseUnavailable,  # connection exception
    "25006": DatabaseUnavailable,  # read-only transaction: this server is no longer the primary
    "25P02": DatabaseUnavailable,  # a failed transaction was not ended: the connection is unusable
    "25P03": DatabaseUnavailable,  # idle in transaction for too long: the connection was closed
    "0LP01": DatabaseUnavailable,  # the role may not be used
    "0P000": DatabaseUnavailable,  # the role does not exist
    "26000": DatabaseUnavailable,  # a prepared statement does not exist: a pooler has switched sessions
    "28": DatabaseUnavailable,  # authentication failed, such as after a password change
    "3F000": DatabaseUnavailable,  # the schema does not exist
    "42501": DatabaseUnavailable,  # the role lacks a privilege: see privileges.py
    "42704": DatabaseUnavailable,  # a role, or another object that the service does not create, is missing
    "3D000": DatabaseUnavailable,  # the database does not exist
    "42P05": DatabaseUnavailable,  # a prepared statement of another client: a pooler has switched sessions
    "53100": StorageFull,  # disk full
    "53": DatabaseUnavailable,  # too many connections, out of memory
    "54000": DatabaseUnavailable,  # no transaction ids are left
    "55P03": DatabaseBusy,  # lock timeout
    "57014": DatabaseBusy,  # statement timeout
    "57": DatabaseUnavailable,  # shutting down, starting up
    "58": DatabaseUnavailable,  # I/O error
    REFUSED_STATE: StoreMoving,
    "XX001": DatabaseUnavailable,  # data corrupted
}

_CREATED_CONCURRENTLY = ("requests_pkey", "posts_external_id_idx", "comments_external_id_idx")
"""Unique indexes of keys that callers choose. If another transaction has just stored the same key, the next
try finds its row."""


def translate_error(error: Exception) -> Exception:
    """Returns the error of the service for an error of a driver, or the same error if it is unexpected.

    The caller raises the result `from` the driver's error, so that the log has both. Stored values are
    removed from the driver's error.
    """
    _remove_values(error)
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        # The low byte is the primary code. The other bits refine it, as in SQLITE_IOERR_FSYNC.
        if code == sqlite3.SQLITE_INTERRUPT:
            return StatementCancelled()
        if code == sqlite3.SQLITE_CONSTRAINT_TRIGGER and str(error) == REFUSED_TEXT:
            return StoreMoving()
        leaf = _SQLITE.get(code & 0xFF) if code is not None else None
        return leaf() if leaf is not None else error
    state = getattr(error, "sqlstate", None)
    asyncpg = sys.modules.get("asyncpg")
    if asyncpg is not None and isinstance(error, asyncpg.InvalidCachedStatementError):
        # A column has another type. asyncpg prepares the statement again.
        return RetryTransaction()
    if state is not None and state.startswith("40"):  # serialization failure, deadlock
        return RetryTransaction()
    constraint = getattr(error, "constraint_name", None)
    if state == "23505" and constraint in _CREATED_CONCURRENTLY:
        return RetryTransaction()
    if state == "54000" and constraint:
        # A row is too large for an index, which no other try changes.
        return error
    if state in ("42P01", "42703"):  # a table or column does not exist: the schema was changed
        return SchemaMismatch(expected="this program's", actual="another")
    if state is not None:
        leaf = _POSTGRESQL.get(state) or _POSTGRESQL.get(state[:2])
        return leaf() if leaf is not None else error
    # asyncpg's own errors without a state, except those about wrong arguments, and errors of the operating
    # system mean that the connection is lost. psycopg's errors have the attribute; it is None then.
    lost = isinstance(error, driver_errors()) and not isinstance(error, ValueError)
    return DatabaseUnavailable() if lost or hasattr(error, "sqlstate") else error


def _remove_values(error: Exception) -> None:
    """Removes stored values from an error, because its text and traceback are logged."""
    if isinstance(error, sqlite3.Error):
        # Could not decode to UTF-8 column 'body' with text '...'
        if str(error).startswith("Could not decode"):
            error.args = ("a text in the database is not UTF-8",)
    elif str(getattr(error, "sqlstate", None))[:2] in ("22", "23") and getattr(error, "detail", None):
        # Failing row contains (1, ...)
        error.detail = None  # type: ignore[attr-defined]  # asyncpg's errors have it, psycopg's have `diag`
