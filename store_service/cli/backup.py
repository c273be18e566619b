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
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
def backup(file: Path, force: bool) -> None:
    """Copy the database into FILE, also while a server runs.

    FILE holds the database as it was at one moment after the command began, with every write that was
    answered before. It appears when it is whole, checked and on disk; an error leaves nothing behind. For
    SQLite: PostgreSQL has pg_dump.
    """
    config = settings_or_exit()
    _only_for_files(config, "pg_dump makes a backup of it")
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
    """Put a copy of the backup FILE in the place of the database, while no server runs.

    FILE is checked first. The database before stays beside the new one, as store.db.before-restore-TIME. What
    was written after the backup is not in the new one; whoever has followed changes up to there is told to
    start again. For SQLite: PostgreSQL has pg_restore.
    """
    config = settings_or_exit()
    _only_for_files(config, "pg_restore puts a backup of pg_dump back")
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
        click.echo(f"the next start, or `store-service migrate`, brings it to schema {schema.HEAD}")
    if restored.kept is not None:
        click.echo(f"the database before is {restored.kept}")
    for log in restored.logs:
        click.echo(f"a log without its database is {log}")


def _only_for_files(config: Config, instead: str) -> None:
    from store_service.database import connect

    if not connect.is_sqlite(config.DATABASE_URL):
        fail(f"DATABASE_URL is a PostgreSQL database; {instead}", exit_code=2)
