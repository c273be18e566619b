"""Names the errors of the drivers, by code and never by text."""

import sqlite3

from store_service.errors import DatabaseBusy, DatabaseUnavailable, SchemaMismatch, ServiceError, StorageFull


class StatementCancelled(Exception):
    """A statement was ended because everybody who waited for it has gone."""


class NotificationsUnavailable(Exception):
    """The server is a standby, where LISTEN fails by nature."""


class RetryTransaction(Exception):
    """The database has undone the transaction because of another one; it may succeed at the next try."""


try:
    import asyncpg
except ImportError:  # pragma: no cover  # PostgreSQL is an extra
    DRIVER_ERRORS: tuple[type[Exception], ...] = (sqlite3.Error, OSError)
else:
    DRIVER_ERRORS = (
        sqlite3.Error,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,  # a connection that was lost in the midst of something
        OSError,
    )
"""What drivers raise; a database that is gone shows as OSError too."""

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

# SQLSTATEs, https://www.postgresql.org/docs/current/errcodes-appendix.html; two characters are a class.
_POSTGRESQL: dict[str, type[ServiceError]] = {
    "08": DatabaseUnavailable,  # connection exception
    "25006": DatabaseUnavailable,  # read-only transaction: this server is no longer the primary
    "25P02": DatabaseUnavailable,  # a transaction that failed was not ended: the connection is of no use
    "25P03": DatabaseUnavailable,  # idle in transaction for too long: the connection was closed
    "0LP01": DatabaseUnavailable,  # a role that may not be used
    "0P000": DatabaseUnavailable,  # a role that is not there
    "26000": DatabaseUnavailable,  # a prepared statement is not there: a pooler has given us another session
    "28": DatabaseUnavailable,  # the password is no longer right
    "3F000": DatabaseUnavailable,  # no such schema
    "42501": DatabaseUnavailable,  # the role has no right to do this: see rights.py
    "42704": DatabaseUnavailable,  # a role, or another object that our statements do not create, is missing
    "3D000": DatabaseUnavailable,  # no such database
    "42P05": DatabaseUnavailable,  # a prepared statement of another client exists already; the same pooler
    "53100": StorageFull,  # disk full
    "53": DatabaseUnavailable,  # too many connections, out of memory
    "54000": DatabaseUnavailable,  # no transaction ids are left
    "55P03": DatabaseBusy,  # lock timeout
    "57014": DatabaseBusy,  # statement timeout
    "57": DatabaseUnavailable,  # shutting down, starting up
    "58": DatabaseUnavailable,  # I/O error
    "XX001": DatabaseUnavailable,  # data corrupted
}


def named(error: Exception) -> Exception:
    """What an error of a driver means, or the error itself when it means a bug of ours.

    The caller raises it `from` the error, so that the log tells both; what the error says of stored values is
    taken out of it.
    """
    _forget_values(error)
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        # The low byte is the primary code; the rest says more, as in SQLITE_IOERR_FSYNC.
        if code == sqlite3.SQLITE_INTERRUPT:
            return StatementCancelled()
        leaf = _SQLITE.get(code & 0xFF) if code is not None else None
        return leaf() if leaf is not None else error
    state = getattr(error, "sqlstate", None)
    if state is not None and state.startswith("40"):  # serialization failure, deadlock
        return RetryTransaction()
    if state == "23505" and getattr(error, "constraint_name", None) == "requests_pkey":
        # Another process has done the same request meanwhile; the next try finds its answer.
        return RetryTransaction()
    if state in ("42P01", "42703"):  # a table or column is not there: somebody has changed the schema
        return SchemaMismatch(expected="this program's", actual="another")
    if state is not None:
        leaf = _POSTGRESQL.get(state) or _POSTGRESQL.get(state[:2])
        return leaf() if leaf is not None else error
    # asyncpg's own errors without a state (but not of wrong arguments), and those of the operating system:
    # the connection is lost or never was. psycopg's errors have a state, which is None then.
    lost = isinstance(error, DRIVER_ERRORS) and not isinstance(error, ValueError)
    return DatabaseUnavailable() if lost or hasattr(error, "sqlstate") else error


def _forget_values(error: Exception) -> None:
    """Takes bodies out of an error, for its text and traceback end in the log."""
    if isinstance(error, sqlite3.Error):
        # Could not decode to UTF-8 column 'body' with text '...'
        if str(error).startswith("Could not decode"):
            error.args = ("a text in the database is no UTF-8",)
    elif str(getattr(error, "sqlstate", None))[:2] in ("22", "23") and getattr(error, "detail", None):
        # Failing row contains (1, ...)
        error.detail = None  # type: ignore[attr-defined]  # asyncpg's errors have it, psycopg's have `diag`
