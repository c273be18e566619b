"""The command `store-service`. Exit codes: 0 fine, 1 it did not work, 2 a bad setting or a bad call."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from store_service import config as settings
from store_service import logs
from store_service.errors import DatabaseBusy, DatabaseUnavailable, SchemaMismatch, StorageFull, StoreError

_EPILOG = "Settings come from the environment and from the file .env; the README lists them."


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="store-service", prog_name="store-service")
def main() -> None:
    """A posts-and-comments service over gRPC."""


@main.command(epilog=_EPILOG)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Address to serve on, instead of STORE_LISTEN; port 0 lets the system choose.",
)
@click.option(
    "--worker", is_flag=True, hidden=True, help="Be one of the processes that a supervisor started."
)
def serve(listen: str | None, worker: bool) -> None:
    """Serve until SIGTERM or SIGINT.

    Prints one line with the address on stdout as soon as calls succeed; logs go to stderr. Running
    calls have STORE_GRACE_SECONDS to finish after the signal; a second signal stops at once. With several
    STORE_WORKERS, SIGHUP restarts them one after the other, with settings read anew.
    """
    config = _settings(**({"listen": listen} if listen is not None else {}))
    # gRPC's core has lines of its own for what we tell in ours; it reads this when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with _one_line_errors(config):
        from store_service import server, supervisor

        if config.workers > 1 and not worker:
            supervisor.run(config)
        else:
            server.run(config, is_worker=worker)


@main.command(epilog=_EPILOG)
def migrate() -> None:
    """Bring the database's schema up to date.

    `serve` does the same by itself unless STORE_AUTO_MIGRATE=false. A database of the application before
    this service is upgraded in place and keeps every row.
    """
    config = _settings()
    with _one_line_errors(config):
        from store_service.database import connect, schema

        with connect.sole_use(config.DATABASE_URL):
            was = schema.upgrade(config.DATABASE_URL)
    click.echo(f"schema {schema.HEAD} (was {was})" if was != schema.HEAD else f"schema {was} is up to date")


@main.command(epilog=_EPILOG)
def check() -> None:
    """Tell whether settings, database and schema are fine, and change nothing."""
    config = _settings()
    click.echo("settings: fine")
    with _one_line_errors(config):
        from store_service.database import schema

        schema.check(config.DATABASE_URL)
    click.echo("database: fine")
    click.echo(f"schema: {schema.HEAD}, fine")


def _settings(**overrides: str) -> settings.Config:
    try:
        config = settings.load(**overrides)
    except settings.BadSetting as error:
        click.echo(f"store-service: {error}", err=True)
        sys.exit(2)
    logs.configure(level=config.log_level, format=config.log_format)
    for name in settings.unknown_variables(dict(os.environ)):
        click.echo(f"store-service: {name} is no setting, and is ignored", err=True)
    return config


@contextmanager
def _one_line_errors(config: settings.Config) -> Iterator[None]:
    """Ends the command with one line and exit code 1 when something expected is wrong."""
    from store_service.database.schema import ForeignSchema
    from store_service.database.sqlite import DatabaseInUse, NoPlaceForDatabase
    from store_service.server import CannotListen
    from store_service.supervisor import WorkerFailed

    expected = (DatabaseInUse, NoPlaceForDatabase, ForeignSchema, CannotListen, WorkerFailed, StoreError)
    try:
        yield
    except expected as error:
        click.echo(f"store-service: {_explained(error, config)}", err=True)
        sys.exit(1)


def _explained(error: Exception, config: settings.Config) -> str:
    """An error for whoever runs the command; its own text is for callers, who see no paths and no causes."""
    from store_service.database import connect, schema

    name = connect.name_of(config.DATABASE_URL)
    if isinstance(error, SchemaMismatch) and error.actual == schema.EMPTY:
        if connect.is_missing(config.DATABASE_URL):
            return f"there is no database {name} yet; `store-service migrate` makes it"
        return f"the database {name} is empty; `store-service migrate` makes its tables"
    if isinstance(error, SchemaMismatch):
        is_older = error.actual < error.expected
        return f"{error}; " + ("run `store-service migrate`" if is_older else "a newer store-service made it")
    if isinstance(error, DatabaseBusy | DatabaseUnavailable | StorageFull) and error.__cause__ is not None:
        cause = getattr(error.__cause__, "orig", error.__cause__)  # SQLAlchemy wraps the driver's error
        # What libpq says may have several lines: one for each address, and what to do about it.
        return f"cannot use the database {name}: {' '.join(str(cause).split())}"
    return str(error)
