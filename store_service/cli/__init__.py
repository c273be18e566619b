"""The command `store-service`. Exit codes: 0 fine, 1 it did not work, 2 a bad setting or a bad call."""

import sys
from typing import Any, NoReturn

import click

from store_service.cli.copies import backup, restore
from store_service.cli.ending import EPILOG, call_failed, fail
from store_service.cli.keys import keys
from store_service.cli.looking import health, status
from store_service.cli.serving import check, migrate, serve


class Program(click.Group):
    """A group whose wrong calls are told in one line, as everything else that fails."""

    def main(self, *arguments: Any, **keywords: Any) -> NoReturn:
        """Runs the command and ends the process, or the test that calls it."""
        keywords["standalone_mode"] = False
        try:
            # Of what ends early, such as --help, this is the exit code.
            code = super().main(*arguments, **keywords) or 0
        except click.Abort:
            # By Ctrl-C; a server that runs has a handler of its own.
            fail("interrupted")
        except click.ClickException as error:
            call_failed(error)
        sys.exit(code)


@click.group(
    cls=Program,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
)
@click.version_option(package_name="store-service", prog_name="store-service")
def main() -> None:
    """A posts-and-comments service over gRPC."""


COMMANDS: tuple[click.Command, ...] = (serve, migrate, check, keys, backup, restore, health, status)
for command in COMMANDS:
    main.add_command(command)
