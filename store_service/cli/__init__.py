"""The command `store-service`."""

import sys
from typing import Any, NoReturn

import click

from store_service.cli.backup import backup, restore
from store_service.cli.errors import call_failed, fail
from store_service.cli.health import health
from store_service.cli.help import SETTINGS, Group, help_section
from store_service.cli.keys import keys
from store_service.cli.serve import check, migrate, serve
from store_service.cli.status import status

EPILOG = "\n\n".join(
    [
        help_section(
            "Examples:",
            "store-service serve",
            "store-service keys new billing --rights read,write",
            "store-service backup /backups/today.db",
        ),
        help_section(
            "Exit codes:",
            "0  success",
            "1  failure or interruption",
            "2  invalid setting or invalid usage; nothing was done",
        ),
        help_section(
            "Tab completion, by one line in ~/.bashrc, ~/.zshrc or config.fish:",
            'eval "$(_STORE_SERVICE_COMPLETE=bash_source store-service)"',
            'eval "$(_STORE_SERVICE_COMPLETE=zsh_source store-service)"',
            "_STORE_SERVICE_COMPLETE=fish_source store-service | source",
        ),
        SETTINGS,
    ]
)


class Program(Group):
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
)
@click.version_option(package_name="store-service", prog_name="store-service")
def main() -> None:
    """A posts-and-comments service over gRPC."""


COMMANDS: tuple[click.Command, ...] = (serve, migrate, check, keys, backup, restore, health, status)
for command in COMMANDS:
    main.add_command(command)
