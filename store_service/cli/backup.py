"""`store-service backup` and `restore`."""

import time
from pathlib import Path

import click

from store_service.cli import progress
from store_service.cli.errors import fail, one_line_errors, settings_or_exit
from store_service.cli.help import epilog
from store_service.config import Config

_FILE = click.Path(path_type=Path)


@click.command(epilog=epilog("store-service backup /backups/today.db"))
@click.argument("file", type=_FILE)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def backup(file: Path, force: bool) -> None:
    """Copy the database to FILE, also while a server runs.

    FILE has the state of the database at one moment after the start of the command, with every write that had
    a response before. It appears only when it is complete, checked and on disk; an error leaves no file. Only
    for SQLite; use pg_dump for PostgreSQL.
    """
    config = settings_or_exit()
    _require_sqlite(config, "use pg_dump")
    started = time.monotonic()
    with one_line_errors(config), progress.shown(in_bytes=True) as report:
        from store_service.database import backup

        contents = backup.back_up(config.DATABASE_URL, file, force=force, progress=report)
    click.echo(
        f"{file}: {contents.size_bytes:,} bytes, {contents.posts:,} posts, {contents.comments:,} comments, "
        f"schema {contents.revision}, {time.monotonic() - started:.1f} s"
    )


@click.command(epilog=epilog("store-service restore /backups/today.db"))
@click.argument("file", type=_FILE)
def restore(file: Path) -> None:
    """Replace the database with a copy of the backup FILE, while no server runs.

    FILE is checked first. The previous database is kept beside the new one, as store.db.before-restore-TIME.
    The new database does not have the writes after the backup, and watches that have received them must start
    again. Only for SQLite; use pg_restore for PostgreSQL.
    """
    config = settings_or_exit()
    _require_sqlite(config, "use pg_restore")
    started = time.monotonic()
    with one_line_errors(config), progress.shown(in_bytes=True) as report:
        from store_service.database import backup, connect, schema

        restored = backup.restore(config.DATABASE_URL, file, progress=report)
        name = connect.database_name(config.DATABASE_URL)
    contents = restored.contents
    click.echo(
        f"{name}: {contents.size_bytes:,} bytes, {contents.posts:,} posts, {contents.comments:,} comments, "
        f"schema {contents.revision}, {time.monotonic() - started:.1f} s"
    )
    if contents.revision != schema.HEAD:
        click.echo(f"the next start, or `store-service migrate`, upgrades it to schema {schema.HEAD}")
    if restored.kept is not None:
        click.echo(f"the previous database is {restored.kept}")
    for log in restored.logs:
        click.echo(f"a log without a database is {log}")


def _require_sqlite(config: Config, hint: str) -> None:
    from store_service.database import connect

    if not connect.is_sqlite(config.DATABASE_URL):
        fail(f"DATABASE_URL is a PostgreSQL database; {hint}", exit_code=2)
