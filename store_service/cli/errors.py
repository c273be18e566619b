"""How commands begin and end: settings read, and failures told in one line."""

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
    """The settings; a bad one ends the command with one line and exit code 2."""
    try:
        config = settings.load(**overrides)
        names_in_file = settings.variables_of_file()
    except BadSetting as error:
        fail(str(error), exit_code=2)
    logs.configure(level=config.log_level, format=config.log_format)
    for name in settings.unknown_variables(os.environ):
        click.echo(f"store-service: {name} is no setting, and is ignored", err=True)
    for name in settings.unknown_variables(names_in_file):
        click.echo(f"store-service: {settings.ENV_FILE}: {name} is no setting, and is ignored", err=True)
    return config


@contextmanager
def one_line_errors(config: settings.Config) -> Iterator[None]:
    """Ends the command with one line, and exit code 1 or 2, when something expected is wrong."""
    try:
        yield
    except (BadFile, BadSetting) as error:
        fail(str(error), exit_code=2)
    except OperatorError as error:
        fail(str(error))
    except ServiceError as error:
        fail(_explained(error, config))


def _explained(error: ServiceError, config: settings.Config) -> str:
    """An error for whoever runs the command; its own text is for callers, who see no paths and no causes."""
    from store_service.database import connect, schema, sqlite

    name = connect.database_name(config.DATABASE_URL)
    if isinstance(error, SchemaMismatch) and error.actual == schema.EMPTY:
        if connect.is_missing(config.DATABASE_URL):
            return f"there is no database {name} yet; `store-service migrate` makes it"
        return f"the database {name} is empty; `store-service migrate` makes its tables"
    if isinstance(error, SchemaMismatch):
        if error.actual in schema.KNOWN:
            return f"{error}; run `store-service migrate`"
        return f"{error}; this program does not know it: {schema.OF_OTHERS}"
    if isinstance(error, DatabaseBusy | DatabaseUnavailable | StorageFull) and error.__cause__ is not None:
        cause = getattr(error.__cause__, "orig", error.__cause__)  # SQLAlchemy wraps the driver's error
        if sqlite.was_interrupted(cause):
            return f"a write to the database {name} was interrupted; run `store-service migrate` to undo it"
        # What libpq says may have several lines: one for each address, and what to do about it.
        text = re.sub(r"\[Errno -?\d+\] ", "", str(cause))
        return f"cannot use the database {name}: {' '.join(text.split())}"
    return str(error)


def call_failed(error: click.ClickException) -> NoReturn:
    """Ends a command that was called wrongly with one line and exit code 2."""
    # Of several lines, where Click lists what there is to choose from.
    text = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text += f" (see '{error.ctx.command_path} --help')"
    fail(text, exit_code=2)


def fail(problem: str, *, exit_code: int = 1) -> NoReturn:
    """Ends the command with one line."""
    click.echo(f"store-service: {problem}", err=True)
    sys.exit(exit_code)
