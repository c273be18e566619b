"""The command `store-service`."""

import sys
from typing import Any, NoReturn

import click

from store_service.cli.backup import backup, restore
from store_service.cli.copy import copy
from store_service.cli.erase import erase
from store_service.cli.errors import fail, usage_failed
from store_service.cli.health import health
from store_service.cli.help import SETTINGS, Group, help_section
from store_service.cli.keys import keys
from store_service.cli.reindex import reindex
from store_service.cli.serve import check, migrate, serve
from store_service.cli.status import status

EPILOG = "\n\n".join(
    [
        help_section(
            "Examples:",
            "store-service serve",
            "store-service keys new billing --permissions read,write",
            "store-service backup /backups/today.db",
        ),
        help_section(
            "Exit codes:",
            "0  success",
            "1  failure or interruption",
            "2  invalid setting or invalid usage; nothing was done",
        ),
        help_section(
            "Tab completion, with one line in ~/.bashrc, ~/.zshrc or config.fish:",
            'eval "$(_STORE_SERVICE_COMPLETE=bash_source store-service)"',
            'eval "$(_STORE_SERVICE_COMPLETE=zsh_source store-service)"',
            "_STORE_SERVICE_COMPLETE=fish_source store-service | source",
        ),
        SETTINGS,
    ]
)


class Program(Group):
    """The top-level command. It prints usage errors in one line, like all other errors."""

    def main(self, *arguments: Any, **keywords: Any) -> NoReturn:
        """Runs the command and exits with its exit code."""
        keywords["standalone_mode"] = False
        try:
            # The result is the exit code of commands that end early, such as --help.
            code = super().main(*arguments, **keywords) or 0
        except click.Abort:
            # Ctrl-C. A running server has its own signal handler.
            fail("interrupted")
        except click.ClickException as error:
            usage_failed(error)
        sys.exit(code)


@click.group(
    cls=Program,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="store-service", prog_name="store-service")
def main() -> None:
    """A posts-and-comments service over gRPC."""


COMMANDS: tuple[click.Command, ...] = (
    serve,
    migrate,
    check,
    keys,
    backup,
    restore,
    copy,
    erase,
    reindex,
    health,
    status,
)
for command in COMMANDS:
    main.add_command(command)
