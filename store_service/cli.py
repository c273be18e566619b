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
    calls have STORE_GRACE_SECONDS to finish after the signal; a second signal stops at once.
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


@main.command(epilog=_EPILOG)
@click.argument("address", metavar="[ADDRESS]", default="")
@click.option("--once", is_flag=True, help="Print one page and exit, for scripts.")
@click.option(
    "--every",
    "every_seconds",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks, from which rates are made.",
)
def status(address: str, once: bool, every_seconds: float) -> None:
    """Show calls, latencies, batches and lag of a running service.

    ADDRESS is where it serves metrics, HOST:PORT or unix:PATH; STORE_METRICS_LISTEN when it is left out.
    Ctrl-C ends it.
    """
    address = address or _settings().metrics_listen
    if not address:
        click.echo("store-service: name the ADDRESS, or set STORE_METRICS_LISTEN to it", err=True)
        sys.exit(2)
    from store_service.metrics import page
    from store_service.metrics.scrape import NoMetrics

    try:
        settings.check_address(address)
    except ValueError as error:
        click.echo(f"store-service: ADDRESS {error}", err=True)
        sys.exit(2)
    try:
        page.show(address, every_seconds=every_seconds, once=once)
    except NoMetrics as error:
        click.echo(f"store-service: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        # The page stays on the screen.
        return


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
    from store_service.observing import CannotServeMetrics
    from store_service.server import CannotListen
    from store_service.supervisor import WorkerFailed

    expected = (
        DatabaseInUse,
        NoPlaceForDatabase,
        ForeignSchema,
        CannotListen,
        CannotServeMetrics,
        WorkerFailed,
        StoreError,
    )
    try:
        yield
    except settings.BadSetting as error:
        click.echo(f"store-service: {error}", err=True)
        sys.exit(2)
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
