"""`store-service serve`, `migrate` and `check`."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from store_service import grpc_core, interpreter, logs
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
@click.option("--worker", is_flag=True, hidden=True, help="Run as a worker; only for the supervisor.")
@click.option(
    "--metrics-listen",
    hidden=True,
    help="Address for metrics of a worker, or empty; only for the supervisor.",
)
@click.option("--writer-socket", hidden=True, default="", help="Socket of the writer process.")
@click.option(
    "--writer-listener", hidden=True, type=int, help="Run as the writer process with this descriptor."
)
def serve(
    listen: str | None,
    worker: bool,
    metrics_listen: str | None,
    writer_socket: str,
    writer_listener: int | None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Prints one line with the address on stdout as soon as calls succeed. The log goes to stderr. After the
    signal, running calls have STORE_SHUTDOWN_GRACE_SECONDS to finish; a second signal stops at once. With
    several STORE_WORKERS, SIGHUP reads the settings again and restarts the workers one after the other.
    """
    _open_missing_streams()
    given = {"listen": listen, "metrics_listen": metrics_listen}
    config = settings_or_exit(**{name: value for name, value in given.items() if value is not None})
    grpc_core.configure()
    with one_line_errors(config), logs.in_background(), _exit_on_signals():
        if writer_listener is not None:
            with interpreter.paused_during_imports():
                from store_service import writer_process

            writer_process.run(config, path=writer_socket, listener=writer_listener)
            return
        with interpreter.paused_during_imports():
            from store_service import credentials, lifecycle, supervisor

        # Before anything is created, and once for all processes.
        credentials.check(config)
        if config.workers > 1 and not worker:
            supervisor.run(config)
        else:
            lifecycle.run(config, is_worker=worker, writer_socket=writer_socket)


def _open_missing_streams() -> None:
    """Opens /dev/null for those of stdin, stdout and stderr that are closed, for example by `<&-`.

    Otherwise the next file or socket would get the descriptor of the stream, and log lines, for example,
    would be written to it.
    """
    # In the order of the descriptors, because the system assigns the lowest free one.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  # stays open


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Exits with code 0 at SIGTERM or SIGINT, until the server installs its own handlers.

    Without a handler, the signals would have no effect on the first process of a container.
    """

    def exit_at_once(*_: object) -> None:
        logs.flush()
        # An exception would not end a start that waits for an unresponsive database, because the cleanup
        # would wait too. A schema upgrade is one transaction, so it is either complete or not started.
        os._exit(0)

    previous = {number: signal.signal(number, exit_at_once) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@click.command(epilog=epilog("store-service migrate"))
@click.option(
    "--move-extra-columns",
    is_flag=True,
    help="Move columns that storeapi did not create to separate tables.",
)
def migrate(move_extra_columns: bool) -> None:
    """Upgrade the database schema.

    `serve` does the same at start unless STORE_AUTO_MIGRATE=false. A database of the storeapi application is
    upgraded in place and keeps all rows.
    """
    config = settings_or_exit()
    with one_line_errors(config), progress.shown(in_bytes=False) as report:
        from store_service.database import connect, engines, schema

        report(f"migrating {connect.database_name(config.DATABASE_URL)}", 0, 0)
        # Before the lock, so that no lock file is created beside a file of another application.
        connect.check_files(config.DATABASE_URL)
        engines.check_same_database(
            config.DATABASE_URL,
            config.DATABASE_DIRECT_URL,
            connect_timeout_seconds=config.connect_timeout_seconds,
        )
        schema.find_to_upgrade(
            config.upgrade_url,
            connect_timeout_seconds=config.connect_timeout_seconds,
            move_extra_columns=move_extra_columns,
        )
        with connect.sole_use(config.DATABASE_URL):
            previous = schema.upgrade(
                config.upgrade_url,
                connect_timeout_seconds=config.connect_timeout_seconds,
                move_extra_columns=move_extra_columns,
                report=report,
            )
    if previous == schema.HEAD:
        click.echo(f"schema {schema.HEAD} is up to date")
    else:
        click.echo(f"schema {schema.HEAD} (was {previous})")


@click.command(epilog=epilog("store-service check"))
def check() -> None:
    """Check whether `serve` works with these settings and this database. Changes nothing.

    If a service is running, its address and database are reported as in use.
    """
    config = settings_or_exit()
    grpc_core.configure()
    with one_line_errors(config):
        from store_service import credentials, startup
        from store_service.database import connect, schema, search_state
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
            pooling = asyncio.run(startup.try_to_open(config))
        if revision != schema.HEAD:
            raise SchemaMismatch(expected=schema.HEAD, actual=revision)
        click.echo("database: in use" if is_served else "database: fine")
        if pooling:
            click.echo(f"connection: {pooling}")
        click.echo(f"schema: {schema.HEAD}, fine")
        if config.search:
            click.echo(f"search index: {search_state.describe(config.DATABASE_URL)}")
        else:
            click.echo("search index: off")


def _show_preview(config: Config) -> None:
    """Prints what an upgrade of a database of the storeapi application would do."""
    from store_service.database import preview

    for line in preview.preview(
        config.DATABASE_URL, connect_timeout_seconds=config.connect_timeout_seconds
    ).lines():
        click.echo(f"upgrade: {line}")
