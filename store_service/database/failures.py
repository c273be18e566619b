"""Names the errors of the drivers, by code and never by text."""

import sqlite3

from store_service.errors import DatabaseBusy, DatabaseUnavailable, StorageFull, StoreError

# Primary result codes, https://www.sqlite.org/rescode.html
_SQLITE: dict[int, type[StoreError]] = {
    sqlite3.SQLITE_BUSY: DatabaseBusy,
    sqlite3.SQLITE_LOCKED: DatabaseBusy,
    sqlite3.SQLITE_FULL: StorageFull,
    sqlite3.SQLITE_IOERR: DatabaseUnavailable,
    sqlite3.SQLITE_CANTOPEN: DatabaseUnavailable,
    sqlite3.SQLITE_CORRUPT: DatabaseUnavailable,
    sqlite3.SQLITE_NOTADB: DatabaseUnavailable,
    sqlite3.SQLITE_PERM: DatabaseUnavailable,
    sqlite3.SQLITE_READONLY: DatabaseUnavailable,
    sqlite3.SQLITE_PROTOCOL: DatabaseBusy,
}


def named(error: Exception) -> Exception:
    """What an error of a driver means, or the error itself when it means a bug of ours.

    The caller raises it `from` the error, so that the log tells both.
    """
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        # The low byte is the primary code; the rest says more, as in SQLITE_IOERR_FSYNC.
        leaf = _SQLITE.get(code & 0xFF) if code is not None else None
        return leaf() if leaf is not None else error
    return error
