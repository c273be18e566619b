"""The command `store-service`. Exit codes: 0 fine, 1 it did not work, 2 a bad setting or a bad call."""

import click

from store_service.cli.copies import backup, restore
from store_service.cli.ending import EPILOG
from store_service.cli.keys import keys
from store_service.cli.looking import health, status
from store_service.cli.serving import check, migrate, serve


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="store-service", prog_name="store-service")
def main() -> None:
    """A posts-and-comments service over gRPC."""


COMMANDS: tuple[click.Command, ...] = (serve, migrate, check, keys, backup, restore, health, status)
for command in COMMANDS:
    main.add_command(command)
