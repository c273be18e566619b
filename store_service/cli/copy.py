"""`store-service copy`."""

from collections.abc import Callable
from functools import partial

import click

from store_service.cli import progress
from store_service.cli.errors import fail, one_line_errors, settings_or_exit
from store_service.cli.help import epilog
from store_service.cli.service_options import ServiceOptions, service_options
from store_service.config import Config
from store_service.model import WriteMode


@click.command(
    epilog=epilog(
        "store-service copy sqlite:///store.db postgresql://db/store --dry-run",
        "store-service copy sqlite:///store.db postgresql://db/store",
        "store-service copy sqlite:///store.db postgresql://db/store --undo",
    )
)
@click.argument("source")
@click.argument("target")
@click.option("--dry-run", is_flag=True, help="Check both databases and count the rows only.")
@click.option("--undo", is_flag=True, help="Let SOURCE accept writes again. TARGET is not changed.")
@service_options
def copy(source: str, target: str, dry_run: bool, undo: bool, service: ServiceOptions) -> None:
    """Copy the store in SOURCE to TARGET, also while a service runs on SOURCE.

    SOURCE and TARGET are database URLs: one SQLite and one PostgreSQL, or both PostgreSQL. TARGET must be
    empty, or have an unfinished copy of SOURCE, which is then continued. At the end SOURCE refuses writes:
    start the service on TARGET, and point the clients at it. docs/copying.md has the whole procedure. If
    SOURCE is a SQLite file in use, the command calls the service at --address, or the one of this machine at
    STORE_LISTEN.
    """
    config = settings_or_exit(DATABASE_URL=source, DATABASE_DIRECT_URL="", DATABASE_READ_URL="")
    target_config = settings_or_exit(DATABASE_URL=target, DATABASE_DIRECT_URL="", DATABASE_READ_URL="")
    from store_service.cli import admin_client, copy_client

    set_mode = partial(copy_client.set_mode, service, config)
    try:
        if undo:
            with one_line_errors(config):
                set_mode(WriteMode.NORMAL)
            click.echo("SOURCE accepts writes")
            return
        _copy(config, target_config, set_mode, dry_run=dry_run)
    except (admin_client.NoService, admin_client.CallFailed) as error:
        fail(str(error))


def _copy(config: Config, target: Config, set_mode: Callable[[WriteMode], None], *, dry_run: bool) -> None:
    from store_service.database import connect, copying

    name = connect.database_name(target.DATABASE_URL)
    seconds = config.connect_timeout_seconds
    with one_line_errors(config), progress.shown(in_bytes=False) as report:
        plan = copying.plan(
            config.DATABASE_URL, target.DATABASE_URL, dry_run=dry_run, connect_timeout_seconds=seconds
        )
        if dry_run or plan.is_finished:
            copied = None
        else:
            copied = copying.copy(
                config.DATABASE_URL,
                target.DATABASE_URL,
                set_mode=set_mode,
                report=report,
                connect_timeout_seconds=seconds,
            )
    for table, count in (plan.counts if copied is None else copied.counts).items():
        click.echo(f"{table}: {count:,}")
    if copied is not None:
        click.echo(f"compared: {copied.compared:,} rows, all equal")
        click.echo(f"SOURCE refused writes for {copied.refused_seconds:.3f} s until TARGET was complete")
    elif dry_run and not plan.is_finished:
        click.echo(f"resume tokens: {'stay valid' if plan.keeps_tokens else 'are refused by TARGET'}")
        click.echo(
            "TARGET has an unfinished copy, which will be continued"
            if plan.is_continued
            else "TARGET is empty"
        )
        return
    click.echo("TARGET is complete. SOURCE refuses writes. Next steps:")
    click.echo(f"  1. start the service with DATABASE_URL={name} (with the password)")
    click.echo("  2. point the clients, or the proxy before them, at it; waiting writes then succeed")
    click.echo("  3. stop the service on SOURCE when nothing calls it any more")
