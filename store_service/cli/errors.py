"""Reads the settings for commands, and reports their errors in one line."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from store_service import config as settings
from store_service import logs
from store_service.auth.watched_file import BadFile
from store_service.env_file import ENV_FILE, variables_of_file
from store_service.errors import (
    BadSetting,
    DatabaseBusy,
    DatabaseUnavailable,
    OperatorError,
    SchemaMismatch,
    ServiceError,
    StorageFull,
)


def settings_or_exit(**overrides: str) -> settings.Config:
    """Returns the settings. An invalid setting ends the command with one line and exit code 2."""
    try:
        config = settings.load(**overrides)
        names_in_file = variables_of_file()
    except BadSetting as error:
        fail(str(error), exit_code=2)
    logs.configure(level=config.log_level, format=config.log_format)
    for name in settings.unknown_variables(os.environ):
        click.echo(f"store-service: {name} is not a setting and is ignored", err=True)
    for name in settings.unknown_variables(names_in_file):
        click.echo(f"store-service: {ENV_FILE}: {name} is not a setting and is ignored", err=True)
    return config


@contextmanager
def one_line_errors(config: settings.Config) -> Iterator[None]:
    """Ends the command with one line and exit code 1 or 2 if the block raises an expected error."""
    try:
        yield
    except (BadFile, BadSetting) as error:
        fail(str(error), exit_code=2)
    except OperatorError as error:
        fail(str(error))
    except ServiceError as error:
        fail(_operator_message(error, config))


def _operator_message(error: ServiceError, config: settings.Config) -> str:
    """Returns the message for the operator. The text of the error is for callers and has no paths."""
    from store_service.database import connect, schema, sqlite_file

    name = connect.database_name(config.DATABASE_URL)
    if isinstance(error, SchemaMismatch) and error.actual == schema.EMPTY:
        if connect.is_missing(config.DATABASE_URL):
            return f"the database {name} does not exist; `store-service migrate` creates it"
        return f"the database {name} is empty; `store-service migrate` creates its tables"
    if isinstance(error, SchemaMismatch):
        if error.actual in schema.KNOWN:
            return f"{error}; run `store-service migrate`"
        return f"{error}; this program does not know it: {schema.OF_OTHERS}"
    if isinstance(error, DatabaseBusy | DatabaseUnavailable | StorageFull) and error.__cause__ is not None:
        cause = getattr(error.__cause__, "orig", error.__cause__)  # SQLAlchemy wraps the error of the driver.
        if sqlite_file.was_interrupted(cause):
            return f"a write to the database {name} was interrupted; run `store-service migrate` to undo it"
        # Messages of libpq may have several lines: one for each address, and hints.
        text = re.sub(r"\[Errno -?\d+\] ", "", str(cause))
        return f"cannot use the database {name}: {' '.join(text.split())}"
    return str(error)


def usage_failed(error: click.ClickException) -> NoReturn:
    """Ends the command with one line about the usage error and exit code 2."""
    # The message has several lines if Click lists choices.
    text = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text += f" (see '{error.ctx.command_path} --help')"
    fail(text, exit_code=2)


def fail(problem: str, *, exit_code: int = 1) -> NoReturn:
    """Prints one line to stderr and ends the command."""
    click.echo(f"store-service: {problem}", err=True)
    sys.exit(exit_code)
