"""`store-service serve`, `migrate` and `check`."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from store_service import gc_tuning, logs
from store_service.cli import progress
from store_service.cli.errors import one_line_errors, settings_or_exit
from store_service.cli.help import epilog
from store_service.config import Config


@click.command(epilog=epilog("store-service serve", "store-service serve --listen 127.0.0.1:0"))
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Address to serve on, instead of STORE_LISTEN; port 0 lets the system choose.",
)
@click.option(
    "--worker", is_flag=True, hidden=True, help="Be one of the processes that a supervisor started."
)
@click.option(
    "--metrics-listen",
    hidden=True,
    help="Address for metrics, which a supervisor gives its workers; or empty.",
)
def serve(listen: str | None, worker: bool, metrics_listen: str | None) -> None:
    """Serve until SIGTERM or SIGINT.

    Prints one line with the address on stdout as soon as calls succeed; logs go to stderr. Running
    calls have STORE_SHUTDOWN_GRACE_SECONDS to finish after the signal; a second signal stops at once.
    With several STORE_WORKERS, SIGHUP restarts them one after the other, with settings read anew.
    """
    _open_streams()
    given = {"listen": listen, "metrics_listen": metrics_listen}
    config = settings_or_exit(**{name: value for name, value in given.items() if value is not None})
    # gRPC's core has lines of its own for what we tell in ours; it reads this when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with one_line_errors(config), logs.in_background(), _ended_by_signals():
        with gc_tuning.paused_during_imports():
            from store_service import credentials, server, supervisor

        # Before anything is made, and once for all processes.
        credentials.check(config)
        if config.workers > 1 and not worker:
            supervisor.run(config)
        else:
            server.run(config, is_worker=worker)


def _open_streams() -> None:
    """Opens what this process was started without, as by `<&-`: of stdin, stdout and stderr.

    Otherwise the next file or socket would get its number, and lines of the log for instance, or libuv, which
    knows nothing of it, would reach the wrong one.
    """
    # In this order: the system gives the lowest number that is free.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  # for as long as the process


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGINT end the process at once, with exit code 0, until a server has its own way.

    Without it they would do nothing in a container, where the first process has only those that it asks for.
    """

    def end(*_: object) -> None:
        logs.drain()
        # Not an exception: whoever waits for a database that does not answer would wait on to tidy up. A
        # change of the schema is one transaction, so nothing is half done.
        os._exit(0)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command(epilog=epilog("store-service migrate"))
@click.option(
    "--move-extra-columns",
    is_flag=True,
    help="Move columns that storeapi did not create to separate tables.",
)
def migrate(move_extra_columns: bool) -> None:
    """Bring the database's schema up to date.

    `serve` does the same by itself unless STORE_AUTO_MIGRATE=false. A database of the application before
    this service is upgraded in place and keeps every row.
    """
    config = settings_or_exit()
    with one_line_errors(config), progress.shown(in_bytes=False) as report:
        from store_service.database import connect, schema

        report(f"migrating {connect.database_name(config.DATABASE_URL)}", 0, 0)
        # Before the lock, whose file would else be made beside a file of another application.
        connect.check_files(config.DATABASE_URL)
        schema.find_to_upgrade(
            config.DATABASE_URL,
            connect_timeout_seconds=config.connect_timeout_seconds,
            move_extra_columns=move_extra_columns,
        )
        with connect.sole_use(config.DATABASE_URL):
            was = schema.upgrade(
                config.DATABASE_URL,
                connect_timeout_seconds=config.connect_timeout_seconds,
                move_extra_columns=move_extra_columns,
                report=report,
            )
    click.echo(f"schema {schema.HEAD} (was {was})" if was != schema.HEAD else f"schema {was} is up to date")


@click.command(epilog=epilog("store-service check"))
def check() -> None:
    """Check whether `serve` works with these settings and this database. Changes nothing.

    Also beside a service that runs, which then has the address and the database.
    """
    config = settings_or_exit()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with one_line_errors(config):
        from store_service import credentials, startup
        from store_service.database import connect, schema
        from store_service.errors import SchemaMismatch

        credentials.check(config)
        click.echo("settings: fine")
        is_served = connect.is_in_use(config.DATABASE_URL)
        click.echo(f"address: {startup.check_addresses(config, may_be_in_use=is_served is not False)}")
        with progress.waiting(f"the database {connect.database_name(config.DATABASE_URL)}"):
            try:
                revision = startup.check_database(config)
            except schema.ExtraColumns:
                _show_preview(config)
                raise
            if revision == schema.BEFORE:
                _show_preview(config)
            asyncio.run(startup.try_to_open(config))
        if revision != schema.HEAD:
            raise SchemaMismatch(expected=schema.HEAD, actual=revision)
        click.echo("database: in use" if is_served else "database: fine")
    click.echo(f"schema: {schema.HEAD}, fine")


def _show_preview(config: Config) -> None:
    """Prints what an upgrade of a database of the application before would do."""
    from store_service.database import preview

    for line in preview.preview(
        config.DATABASE_URL, connect_timeout_seconds=config.connect_timeout_seconds
    ).lines():
        click.echo(f"upgrade: {line}")
