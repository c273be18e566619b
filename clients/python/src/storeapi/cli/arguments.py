"""Arguments and options that several commands take."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import Any, Final, TypeVar, cast

import click

from storeapi._resources import ResourceType

Command = TypeVar("Command", bound=Callable[..., Any])

MAX_PAGE_SIZE: Final = 1000
"""The maximum page size of the service."""

ORDERS: Final = {"id": "id", "id-desc": "id desc"}
"""The values of --order-by, and their names in the API."""

ID: Final = click.IntRange(min=1, max=2**63 - 1)
"""The id of a post or comment."""


def field_parameters(
    resource_type: ResourceType[Any], *, for_update: bool = False
) -> Callable[[Command], Command]:
    """An argument for each required field of a draft, and an option for each optional one.

    Args:
        resource_type: Defines the fields.
        for_update: Only the fields that an update can change; an option that is not given is None.
    """

    def decorate(command: Command) -> Command:
        for field in reversed(fields(resource_type.draft)):
            if for_update and field.name in resource_type.immutable:
                continue
            reading: dict[str, Any] = {"type": ID} if field.type is int else {"callback": _text}
            if field.default is MISSING:
                command = click.argument(field.name, **reading)(command)
            else:
                option = f"--{field.name.replace('_', '-')}"
                default = None if for_update else field.default
                command = click.option(option, default=default, help=f"Its {field.name}.", **reading)(command)
        return command

    return decorate


def ids_argument(command: Command) -> Command:
    """ID..., at least one."""
    return click.argument("ids", metavar="ID...", type=ID, nargs=-1, required=True)(command)


def etag_option(command: Command) -> Command:
    """--etag."""
    return click.option("--etag", default="", help="Fail unless this is the current etag.")(command)


def allow_missing_option(command: Command) -> Command:
    """--allow-missing."""
    return click.option("--allow-missing", is_flag=True, help="Ignore ids that do not exist.")(command)


def request_id_option(command: Command) -> Command:
    """--request-id."""
    help = (
        "Id of this write: a second run with the same id and arguments has no further effect. "
        "Default: a new id."
    )
    return click.option("--request-id", metavar="UUID", callback=_text_of_uuid, type=click.UUID, help=help)(
        command
    )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The options of `list`."""

    order_by: str
    """The order, as the API names it."""
    limit: int | None
    """Maximum number of items; None if it was not given."""
    is_all: bool
    """Whether --all was given."""
    given_page_size: int | None
    """Items in each call; None if it was not given."""

    @property
    def page_size(self) -> int:
        """Items to request in each call: the maximum page size, for few calls."""
        return self.given_page_size or MAX_PAGE_SIZE


def list_options(command: Command) -> Command:
    """--order-by, --limit, --all and --page-size, passed to the command as one Selection."""
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
    """Fails if --etag is given with several ids."""
    if etag and len(ids) > 1:
        raise click.UsageError("--etag requires exactly one id", click.get_current_context())


def _text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        # An option cannot be "-": stdin can be read only once.
        if value == "-" and isinstance(param, click.Argument):
            return sys.stdin.buffer.read().decode()
        value.encode()
    except UnicodeError:
        raise click.BadParameter("not valid UTF-8", ctx, param) from None
    return value


def _text_of_uuid(ctx: click.Context, param: click.Parameter, value: uuid.UUID | None) -> str | None:
    return None if value is None else str(value)
