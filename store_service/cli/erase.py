"""`store-service erase`."""

import click

from store_service.cli import progress
from store_service.cli.errors import fail, one_line_errors, settings_or_exit
from store_service.cli.help import epilog
from store_service.cli.service_options import ServiceOptions, service_options


@click.command(
    epilog=epilog(
        "store-service erase user-4711 --mode anonymize --dry-run",
        "store-service erase user-4711 --mode delete --address store.internal:50051",
    )
)
@click.argument("author")
@click.option(
    "--mode",
    type=click.Choice(["anonymize", "delete"]),
    required=True,
    help="Whether replies of others stay (anonymize), or go too (delete).",
)
@click.option("--dry-run", is_flag=True, help="Count only.")
@click.option("--skip-rewrite", is_flag=True, help="Do not rewrite the SQLite file at the end.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@service_options
def erase(
    author: str,
    mode: str,
    dry_run: bool,
    skip_rewrite: bool,
    yes: bool,
    service: ServiceOptions,
) -> None:
    """Erase everything that AUTHOR wrote, for good.

    The running service at --address does the work, or the one of this machine at STORE_LISTEN. If --address
    is not given and no service runs there, the command works on the database itself. It can be repeated after
    an interruption. docs/privacy.md lists what is erased. The numbers are printed on stdout.
    """
    config = settings_or_exit()
    if not yes and not dry_run:
        click.confirm(f"Erase everything that {author} wrote? This cannot be undone", abort=True, err=True)
    from store_service.cli import admin_client, erase_client
    from store_service.model import EraseMode, Erasure

    erasure = Erasure(author=author, mode=EraseMode[mode.upper()], dry_run=dry_run, skip_rewrite=skip_rewrite)
    with one_line_errors(config), progress.shown(in_bytes=False) as report:
        try:
            counts = erase_client.erase_by_service(service, config, erasure, report)
        except admin_client.NoService as error:
            if service.address is not None:
                fail(str(error))
            counts = erase_client.erase_in_process(config, erasure, report)
        except admin_client.CallFailed as error:
            fail(str(error))
    for name, count in counts.items():
        click.echo(f"{name.replace('_', ' ')}: {count}")
