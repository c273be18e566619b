"""Arguments and options that several commands take."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, TypeVar, cast

import click

Command = TypeVar("Command", bound=Callable[..., Any])

MAX_PAGE_SIZE: Final = 1000
"""The most that the service gives at once."""

ORDERS: Final = {"id": "id", "id-desc": "id desc"}
"""What --order-by takes, and how the API names it."""

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


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What `list` was asked for."""

    order_by: str
    """As the API names it."""
    limit: int | None
    """Maximum number of items; None if it was not given."""
    is_all: bool
    """Whether all of them were asked for."""
    given_page_size: int | None
    """Items in each call; None if it was not given."""

    @property
    def page_size(self) -> int:
        """Items to request in each call: the maximum page size, for few calls."""
        return self.given_page_size or MAX_PAGE_SIZE


def list_options(command: Command) -> Command:
    """--order-by, --limit, --all and --page-size, which the command gets as one Selection."""
    options = (
        click.option(
            "--order-by",
            type=click.Choice(list(ORDERS)),
            default="id",
            show_default=True,
            help="id-desc: newest first.",
        ),
        click.option("--limit", metavar="N", type=click.IntRange(min=0), help="Print at most N."),
        click.option("--all", "is_all", is_flag=True, help="Print all; the default without a terminal."),
        click.option(
            "--page-size",
            metavar="N",
            type=click.IntRange(min=1, max=MAX_PAGE_SIZE),
            help="Request N per page; the default depends on --limit.",
        ),
    )

    @wraps(command)
    def with_selection(
        *arguments: Any, order_by: str, limit: int | None, is_all: bool, page_size: int | None, **others: Any
    ) -> Any:
        if is_all and limit is not None:
            raise click.UsageError("--all and --limit exclude each other", click.get_current_context())
        selection = Selection(
            order_by=ORDERS[order_by], limit=limit, is_all=is_all, given_page_size=page_size
        )
        return command(*arguments, selection=selection, **others)

    decorated: Any = with_selection
    for option in reversed(options):
        decorated = option(decorated)
    return cast("Command", decorated)


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
