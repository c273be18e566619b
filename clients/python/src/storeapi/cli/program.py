"""The command with its global options and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from storeapi import StoreError, __version__
from storeapi.cli.exporting import export
from storeapi.cli.failures import MEANINGS, CommandFailed, ExitCode, exit_code, report
from storeapi.cli.help import Group, examples, help_section
from storeapi.cli.importing import import_
from storeapi.cli.resources import comments, posts
from storeapi.cli.settings import Settings, client_arguments
from storeapi.cli.watch import watch

Command = TypeVar("Command", bound=Callable[..., Any])

EPILOG = "\n\n".join(
    [
        examples(
            "storeapi posts create Hello",
            "storeapi posts list --order-by id-desc --limit 20",
            "storeapi --json comments list --post 1",
            "storeapi --target store.example.com:50051 --tls export all.jsonl",
        ),
        help_section("Exit codes:", *(f"{int(code):>3}  {MEANINGS[code]}" for code in ExitCode)),
        help_section(
            "Tab completion, by one line in ~/.bashrc, ~/.zshrc or config.fish:",
            'eval "$(_STOREAPI_COMPLETE=bash_source storeapi)"',
            'eval "$(_STOREAPI_COMPLETE=zsh_source storeapi)"',
            "_STOREAPI_COMPLETE=fish_source storeapi | source",
        ),
    ]
)

FILE = click.Path(dir_okay=False, path_type=Path)


class Program(Group):
    """A group that reports errors in one line and exits with the codes of `failures`."""

    def main(self, *arguments: Any, **keywords: Any) -> NoReturn:
        """Runs the command and raises SystemExit."""
        keywords["standalone_mode"] = False
        try:
            # The exit code of commands that end early, such as --help.
            code = super().main(*arguments, **keywords) or 0
        except click.Abort:
            code = ExitCode.INTERRUPTED
        except click.ClickException as error:
            ctx = error.ctx if isinstance(error, click.UsageError) else None
            is_json = ctx is not None and bool(ctx.find_root().params.get("as_json"))
            report(error, as_json=is_json)
            code = ExitCode.USAGE
        sys.exit(int(code))

    def invoke(self, ctx: click.Context) -> None:
        """Runs the command."""
        try:
            super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The rest of the output is flushed at exit, which must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(ExitCode.NO_READER)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.INTERRUPTED)
        except (StoreError, CommandFailed, OSError) as error:
            report(error, as_json=bool(ctx.params["as_json"]))
            ctx.exit(exit_code(error))


@click.group(
    cls=Program,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--target",
    metavar="HOST:PORT",
    help="Address of the service, or several with commas. Default: STOREAPI_TARGET or localhost:50051.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Deadline of a call with its retries. Default: STOREAPI_TIMEOUT or 10.",
)
@click.option(
    "--api-key-file",
    type=FILE,
    metavar="FILE",
    help="File with the API key, instead of STOREAPI_API_KEY. The key itself is not an option, because "
    "other users of the machine can see the options of running commands.",
)
@click.option("--tls/--no-tls", default=None, help="Use TLS, or not. Default: STOREAPI_TLS.")
@click.option("--tls-ca", type=FILE, metavar="FILE", help="Certificate authority. Default: STOREAPI_TLS_CA.")
@click.option("--tls-cert", type=FILE, metavar="FILE", help="Client certificate. Default: STOREAPI_TLS_CERT.")
@click.option("--tls-key", type=FILE, metavar="FILE", help="Its private key. Default: STOREAPI_TLS_KEY.")
@click.option("--no-retries", is_flag=True, help="Do not retry failed calls.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, errors too.")
@click.version_option(__version__, prog_name="storeapi", message="%(prog)s %(version)s")
@click.pass_context
def program(
    ctx: click.Context,
    target: str | None,
    timeout: float | None,
    api_key_file: Path | None,
    tls: bool | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    no_retries: bool,
    as_json: bool,
) -> None:
    r"""Posts and comments of the store service, from the command line.

    These options come before the command: storeapi --json posts list. Results go to stdout, everything else
    to stderr. Posts and comments are tables on a terminal; elsewhere they are lines of fields separated by
    tabs: id, post_id (of comments), create_time, update_time, etag, body, author, labels (a JSON object),
    external_id, of comments reply_to_id and depth, and delete_time and purge_time, with line ends, tabs and
    backslashes in texts as \n, \t and \\.
    """
    client = client_arguments(
        target=target,
        timeout=timeout,
        api_key_file=api_key_file,
        tls=tls,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        retries=not no_retries,
    )
    ctx.obj = Settings(client=client, json=as_json)


command: click.Command
for command in (posts, comments, watch, export, import_):
    program.add_command(command)
