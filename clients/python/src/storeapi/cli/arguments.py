"""Arguments and options that several commands take."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

ID: Final = click.IntRange(min=1, max=2**63 - 1)
"""The id of a post or comment."""


def body_argument(command: Command) -> Command:
    """BODY, a text, or "-" for what is on stdin."""
    return click.argument("body", callback=_body)(command)


def ids_argument(command: Command) -> Command:
    """ID..., at least one."""
    return click.argument("ids", metavar="ID...", type=ID, nargs=-1, required=True)(command)


def etag_option(command: Command) -> Command:
    """--etag."""
    return click.option("--etag", default="", help="Only if this is still its etag.")(command)


def allow_missing_option(command: Command) -> Command:
    """--allow-missing."""
    return click.option("--allow-missing", is_flag=True, help="Ids that name nothing are no error.")(command)


def request_id_option(command: Command) -> Command:
    """--request-id."""
    help = (
        "Names this write, so that it can be tried again and is done once; without, each run is a new write."
    )
    return click.option("--request-id", metavar="UUID", callback=_text_of_uuid, type=click.UUID, help=help)(
        command
    )


def list_options(command: Command) -> Command:
    """--order-by, --limit and --page-size."""
    options = (
        click.option("--order-by", default="id", show_default=True, help='"id", or "id desc": newest first.'),
        click.option("--limit", type=click.IntRange(min=0), help="At most so many; without, all."),
        click.option(
            "--page-size",
            type=click.IntRange(min=1, max=1000),
            help="How many to ask for at once; without, what suits --limit.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def page_size_for(limit: int | None, page_size: int | None) -> int:
    """How many to ask for at once, so that no more is read than is printed, in few calls."""
    return page_size or min(limit or 1000, 1000)


def check_one_etag(ids: tuple[int, ...], etag: str) -> None:
    """An etag belongs to one thing."""
    if etag and len(ids) > 1:
        raise click.UsageError("--etag belongs to one id, and several are given", click.get_current_context())


def _body(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        if value == "-":
            return sys.stdin.buffer.read().decode()
        value.encode()
    except UnicodeError:
        raise click.BadParameter("this is not UTF-8", ctx, param) from None
    return value


def _text_of_uuid(ctx: click.Context, param: click.Parameter, value: uuid.UUID | None) -> str | None:
    return None if value is None else str(value)
