"""The command `store-service`. Exit codes: 0 fine, 1 it did not work, 2 a bad setting or a bad call."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from store_service import config as settings
from store_service import logs
from store_service.access.files import BadFile
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
        from store_service import security, server, supervisor

        # Before anything is made, and once for all processes.
        security.check(config)
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
    with _one_line_errors(config):
        from store_service import security
        from store_service.database import schema

        security.check(config)
        click.echo("settings: fine")
        schema.check(config.DATABASE_URL)
    click.echo("database: fine")
    click.echo(f"schema: {schema.HEAD}, fine")


_FILE = click.Path(path_type=Path)
_PEM = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@main.command(epilog=_EPILOG)
@click.argument("file", type=_FILE)
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
def backup(file: Path, force: bool) -> None:
    """Copy the database into FILE, also while a server runs.

    FILE holds the database as it was at one moment after the command began, with every write that was
    answered before. It appears when it is whole, checked and on disk; an error leaves nothing behind. For
    SQLite: PostgreSQL has pg_dump.
    """
    config = _settings()
    _only_for_files(config, "pg_dump makes a backup of it")
    started = time.monotonic()
    with _one_line_errors(config):
        from store_service.database import backup

        contents = backup.back_up(config.DATABASE_URL, file, force=force, progress=_show_progress)
    click.echo(
        f"{file}: {contents.size_bytes:,} bytes, {contents.posts:,} posts, {contents.comments:,} comments, "
        f"schema {contents.revision}, {time.monotonic() - started:.1f} s"
    )


@main.command(epilog=_EPILOG)
@click.argument("file", type=_FILE)
def restore(file: Path) -> None:
    """Put a copy of the backup FILE in the place of the database, while no server runs.

    FILE is checked first. The database before stays beside the new one, as store.db.before-restore-TIME. What
    was written after the backup is not in the new one; whoever has followed changes up to there is told to
    start again. For SQLite: PostgreSQL has pg_restore.
    """
    config = _settings()
    _only_for_files(config, "pg_restore puts a backup of pg_dump back")
    started = time.monotonic()
    with _one_line_errors(config):
        from store_service.database import backup, connect, schema

        restored = backup.restore(config.DATABASE_URL, file, progress=_show_progress)
        name = connect.name_of(config.DATABASE_URL)
    contents = restored.contents
    click.echo(
        f"{name}: {contents.size_bytes:,} bytes, {contents.posts:,} posts, {contents.comments:,} comments, "
        f"schema {contents.revision}, {time.monotonic() - started:.1f} s"
    )
    if contents.revision != schema.HEAD:
        click.echo(f"the next start, or `store-service migrate`, brings it to schema {schema.HEAD}")
    if restored.kept is not None:
        click.echo(f"the database before is {restored.kept}")


@main.command(epilog=_EPILOG)
@click.argument("address", required=False)
@click.option("--service", default="", help="Full name of a service; the whole server without.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, max=3600, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds in which it must answer.",
)
@click.option("--tls", is_flag=True, envvar="STOREAPI_TLS", help="Encrypt; any option below does too.")
@click.option("--tls-ca", type=_PEM, envvar="STOREAPI_TLS_CA", help="Authorities to trust.")
@click.option("--tls-cert", type=_PEM, envvar="STOREAPI_TLS_CERT", help="The caller's own certificate.")
@click.option("--tls-key", type=_PEM, envvar="STOREAPI_TLS_KEY", help="The key that belongs to it.")
@click.option("--tls-name", metavar="NAME", help="The name in the server's certificate.")
def health(
    address: str | None,
    service: str,
    timeout: float,
    tls: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_name: str | None,
) -> None:
    """Ask the server at ADDRESS whether it is well.

    Without ADDRESS it is the one on this machine, at STORE_LISTEN. Exit code 0: it says SERVING. 1: it says
    something else, or nothing. The variables STOREAPI_TLS, STOREAPI_TLS_CA, STOREAPI_TLS_CERT and
    STOREAPI_TLS_KEY of the environment mean what they mean to clients.
    """
    config = _settings()
    if bool(tls_cert) != bool(tls_key):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    if address is None and config.listen.endswith(":0"):
        raise click.UsageError("STORE_LISTEN lets the system choose the port, so ADDRESS is needed")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Nothing of the server is loaded: this is called every few seconds.
    from store_service import probe

    is_encrypted = tls or bool(tls_ca or tls_cert or tls_name)
    encryption = probe.Tls(ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_name)
    asked = address or probe.address_of(config.listen)
    try:
        probe.ask(asked, service=service, seconds=timeout, tls=encryption if is_encrypted else None)
    except probe.NotHealthy as error:
        click.echo(f"store-service: {error}", err=True)
        sys.exit(1)
    click.echo(f"{asked} is serving")


def _only_for_files(config: settings.Config, instead: str) -> None:
    from store_service.database import connect

    if not connect.is_sqlite(config.DATABASE_URL):
        click.echo(f"store-service: DATABASE_URL is a PostgreSQL database; {instead}", err=True)
        sys.exit(2)


def _show_progress(doing: str, done: int, total: int) -> None:
    """Tells somebody who waits at a terminal how far it is."""
    if sys.stderr.isatty():
        # The line is written over, and gone at the end.
        told = f"{doing} {done * 100 // max(total, 1)} %" if done < total else ""
        click.echo(f"\r{told:<16}\r{told}", nl=False, err=True)


@main.group(epilog=_EPILOG, invoke_without_command=True)
@click.pass_context
def keys(context: click.Context) -> None:
    """Make and list the API keys of STORE_API_KEYS_FILE."""
    context.obj = _settings()
    if context.invoked_subcommand is None:
        raise click.UsageError("Missing command: new or list.")


@keys.command("new", epilog=_EPILOG)
@click.argument("name")
@click.option("--rights", metavar="LIST", required=True, help="What it allows: some of read,write,watch.")
@click.pass_obj
def new_key(config: settings.Config, name: str, rights: str) -> None:
    """Make a key for the caller NAME, print it, and add its line to the file.

    The key is printed on stdout this once: the file has only its SHA-256. A running server takes it within
    two seconds. Several keys may have one name, so that a caller can move from one to the next. To take a
    key away, delete its line.
    """
    from store_service.access import keys as api_keys
    from store_service.access.caller import rights_from

    path = _keys_file(config)
    key = api_keys.new_key()
    try:
        api_keys.append(path, name=name, key=key, rights=rights_from(rights.split(",")))
    except (ValueError, OSError) as error:
        _fail(f"no key was made: {getattr(error, 'strerror', None) or error}")
    click.echo(key)


@keys.command("list", epilog=_EPILOG)
@click.pass_obj
def list_keys(config: settings.Config) -> None:
    """List the names that have keys or certificates, their rights, and how each hash begins."""
    from store_service.access import keys as api_keys

    try:
        ring = api_keys.parse(_keys_file(config).read_bytes())
    except (ValueError, OSError) as error:
        _fail(f"STORE_API_KEYS_FILE: {getattr(error, 'strerror', None) or error}")
    for line in ring.lines:
        click.echo(f"{line.name}\t{','.join(sorted(line.rights))}\t{line.digest.hex()[:8] or '-'}")


def _keys_file(config: settings.Config) -> Path:
    if not config.api_keys_file:
        click.echo(
            "store-service: STORE_API_KEYS_FILE: must be set, to the file that holds the keys", err=True
        )
        sys.exit(2)
    return Path(config.api_keys_file)


def _fail(problem: str) -> NoReturn:
    click.echo(f"store-service: {problem}", err=True)
    sys.exit(1)


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
    from store_service.database.copies import CopyFailed
    from store_service.database.schema import ForeignSchema
    from store_service.database.sqlite import DatabaseInUse, NoPlaceForDatabase, RestoreUnfinished
    from store_service.observing import CannotServeMetrics
    from store_service.server import CannotListen
    from store_service.supervisor import WorkerFailed

    expected = (
        *(DatabaseInUse, NoPlaceForDatabase, ForeignSchema, CannotListen, CannotServeMetrics, WorkerFailed),
        *(CopyFailed, RestoreUnfinished, StoreError),
    )
    try:
        yield
    except (BadFile, settings.BadSetting) as error:
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
