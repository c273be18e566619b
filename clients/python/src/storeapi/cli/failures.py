"""Reports of errors: one line on stderr, and an exit code."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from typing import Any, Final

import click

from storeapi import errors
from storeapi.cli.text import one_line
from storeapi.cli.words import os_error_reason, with_option_names
from storeapi.errors import StoreError


class ExitCode(enum.IntEnum):
    """Every exit code of the command; `MEANINGS` explains them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNAVAILABLE = 5
    INTERRUPTED = 130
    NO_READER = 141
    TERMINATED = 143


MEANINGS: Final[Mapping[ExitCode, str]] = {
    ExitCode.OK: "success",
    ExitCode.FAILED: "the service refused, or something else failed",
    ExitCode.USAGE: "invalid usage; nothing was sent",
    ExitCode.NOT_FOUND: "a post or comment does not exist",
    ExitCode.CONFLICT: "conflict: other etag, has comments, not deleted, request or id taken",
    ExitCode.UNAVAILABLE: "the service could not be reached, or is busy or too slow; try again",
    ExitCode.INTERRUPTED: "Ctrl-C",
    ExitCode.NO_READER: "the reader of the output closed it (| head)",
    ExitCode.TERMINATED: "SIGTERM",
}
"""The meanings of the exit codes, for --help and the documentation."""

BY_ERROR: Final[tuple[tuple[type[StoreError], ExitCode], ...]] = (
    (errors.NotFound, ExitCode.NOT_FOUND),
    (errors.Conflict, ExitCode.CONFLICT),
    (errors.AlreadyExists, ExitCode.CONFLICT),
    (errors.PostHasComments, ExitCode.CONFLICT),
    (errors.NotDeleted, ExitCode.CONFLICT),
    (errors.RequestIdReused, ExitCode.CONFLICT),
    (errors.ConnectionFailed, ExitCode.FAILED),
    (errors.Unavailable, ExitCode.UNAVAILABLE),
    (errors.DeadlineExceeded, ExitCode.UNAVAILABLE),
    (errors.Cancelled, ExitCode.UNAVAILABLE),
    (errors.WatchLimit, ExitCode.UNAVAILABLE),
    (StoreError, ExitCode.FAILED),
)
"""The exit code of each error of the service; the first match counts."""


class CommandFailed(Exception):
    """The command fails with its own message."""

    def __init__(self, message: str, *, exit_code: ExitCode = ExitCode.FAILED) -> None:
        """Takes the message and the exit code. An error of the service goes into `__cause__`."""
        super().__init__(message)
        self.exit_code = exit_code


def exit_code(error: Exception) -> ExitCode:
    """The exit code after an error."""
    if isinstance(error, CommandFailed):
        return error.exit_code
    if isinstance(error, click.ClickException):
        return ExitCode.USAGE
    return next((code for kind, code in BY_ERROR if isinstance(error, kind)), ExitCode.FAILED)


def report(error: Exception, *, as_json: bool) -> None:
    """Prints an error as one line to stderr."""
    if as_json:
        click.echo(json.dumps({"error": _record(error)}), err=True)
    else:
        click.echo(f"error: {one_line(_sentence(error))}", err=True)


def _sentence(error: Exception) -> str:
    if isinstance(error, StoreError):
        reason = error.reason or error.code.name
        return f"{reason}: {with_option_names(str(error))}{_hint(error)}"
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{os_error_reason(error)}"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{error.format_message()} (see '{error.ctx.command_path} --help')"
    if isinstance(error, click.ClickException):
        return error.format_message()
    return str(error)


def _hint(error: StoreError) -> str:
    """How to handle the error."""
    if isinstance(error, errors.InternalError) and error.call_id:
        return f" (call {error.call_id})"
    if isinstance(error, errors.CredentialsMissing):
        return " (STOREAPI_API_KEY, or a file with it after --api-key-file)"
    # It is unknown whether the write took effect.
    if error.request_id and exit_code(error) == ExitCode.UNAVAILABLE:
        return f" (to retry safely: --request-id {error.request_id})"
    return ""


def _record(error: Exception) -> dict[str, Any]:
    cause = error if isinstance(error, StoreError) else error.__cause__
    record: dict[str, Any] = {
        "exit_code": int(exit_code(error)),
        "reason": "",
        "message": _sentence(error) if cause is not error else str(error),
        "code": "",
        "violations": [],
        "metadata": {},
        "call_id": None,
        "request_id": "",
        "retry_after": None,
    }
    if isinstance(cause, StoreError):
        violations = cause.violations if isinstance(cause, errors.InvalidRequest) else ()
        record |= {
            "reason": cause.reason,
            "code": cause.code.name,
            "violations": [{"field": it.field, "description": it.description} for it in violations],
            "metadata": cause.metadata,
            "call_id": cause.call_id,
            "request_id": cause.request_id,
            "retry_after": cause.retry_after,
        }
    return record
