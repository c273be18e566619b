"""Errors of the driver by their code."""

import sqlite3
import traceback
from contextlib import closing

import asyncpg
import pytest

from store_service.database.driver_errors import RetryTransaction, translate_error
from store_service.errors import DatabaseBusy, DatabaseUnavailable, StorageFull


def error_with(code: int | None, text: str = "some text") -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    if code is not None:
        error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "leaf"),
    [
        (sqlite3.SQLITE_BUSY, DatabaseBusy),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, DatabaseBusy),
        (sqlite3.SQLITE_BUSY_RECOVERY, DatabaseBusy),
        (sqlite3.SQLITE_LOCKED, DatabaseBusy),
        (sqlite3.SQLITE_FULL, StorageFull),
        (sqlite3.SQLITE_IOERR, DatabaseUnavailable),
        (sqlite3.SQLITE_IOERR_FSYNC, DatabaseUnavailable),
        (sqlite3.SQLITE_IOERR_SHORT_READ, DatabaseUnavailable),
        (sqlite3.SQLITE_CANTOPEN, DatabaseUnavailable),
        (sqlite3.SQLITE_CANTOPEN_ISDIR, DatabaseUnavailable),
        (sqlite3.SQLITE_CORRUPT, DatabaseUnavailable),
        (sqlite3.SQLITE_NOTADB, DatabaseUnavailable),
        (sqlite3.SQLITE_READONLY, DatabaseUnavailable),
        (sqlite3.SQLITE_READONLY_DBMOVED, DatabaseUnavailable),
    ],
)
def test_sqlite_code_selects_the_error(code: int, leaf: type[Exception]) -> None:
    """The primary code selects the error. Extended codes have the same meaning."""
    assert type(translate_error(error_with(code))) is leaf


@pytest.mark.parametrize(
    "code",
    [
        None,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY,
        sqlite3.SQLITE_MISUSE,
    ],
)
@pytest.mark.parametrize("text", ["database is locked", "database or disk is full", "disk I/O error"])
def test_error_text_is_ignored(code: int | None, text: str) -> None:
    """An error without a known code is a bug, whatever its text is."""
    error = error_with(code, text)

    assert translate_error(error) is error


def test_other_exceptions_are_unchanged() -> None:
    """Only the driver's errors are translated."""
    error = ValueError("database is locked")

    assert translate_error(error) is error


def test_real_error_has_a_code(tmp_path: object) -> None:
    """SQLite itself sets the codes that this module reads."""
    with pytest.raises(sqlite3.OperationalError) as raised:
        sqlite3.connect(f"file:{tmp_path}/no/such/folder/x.db?mode=ro", uri=True)

    assert type(translate_error(raised.value)) is DatabaseUnavailable


def test_values_in_driver_errors_are_removed() -> None:
    """The text of an error is logged, and bodies must not be logged."""
    with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(sqlite3.Error) as raised:
        connection.execute("SELECT CAST(x'73336372657480' AS TEXT) AS body").fetchall()
    assert "s3cret" in str(raised.value), "Python no longer includes the value, so nothing has to be removed"
    of_postgresql = asyncpg.CheckViolationError("new row violates check constraint")
    of_postgresql.detail = "Failing row contains (1, s3cret)."

    for error in (raised.value, of_postgresql):
        assert translate_error(error) is error
        assert "s3cret" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("index", ["requests_pkey", "posts_external_id_idx", "comments_external_id_idx"])
def test_key_that_was_created_concurrently_is_tried_again(index: str) -> None:
    """The next try finds the row of the other transaction. Any other duplicate is a bug."""
    error = asyncpg.UniqueViolationError("duplicate key value")
    error.constraint_name = index
    assert type(translate_error(error)) is RetryTransaction

    error.constraint_name = "posts_pkey"
    assert translate_error(error) is error


def test_row_that_is_too_large_for_an_index_is_not_unavailable() -> None:
    """A retry cannot succeed. PostgreSQL uses the same code if no transaction ids are left."""
    error = asyncpg.ProgramLimitExceededError("index row size 2728 exceeds btree version 4 maximum 2704")
    assert type(translate_error(error)) is DatabaseUnavailable

    error.constraint_name = "comments_thread_idx"
    assert translate_error(error) is error
