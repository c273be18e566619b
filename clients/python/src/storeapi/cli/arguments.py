"""Arguments and options that several commands take."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, Final, TypeVar, cast

import click

from storeapi._resources import ResourceType
from storeapi.cli.tables import field_names

Command = TypeVar("Command", bound=Callable[..., Any])

MAX_PAGE_SIZE: Final = 1000
"""The maximum page size of the service."""

SEARCH_LIMIT: Final = 20
"""Results of a search without --limit and --all."""

ORDERS: Final = ("id", "id desc", "create_time", "create_time desc")
"""The orders of all lists, as the API names them."""

THREAD_ORDERS: Final = ("thread", "thread desc")
"""The orders of the comments of one post."""

_HELP: Final = {
    "author": "The author.",
    "external_id": "Its key in your system, unique among the posts or comments.",
    "reply_to_id": "The comment of the same post to reply to.",
    "return_existing": "If one with this external id exists, print it instead of an error.",
}
"""The help of the options of fields."""

ID: Final = click.IntRange(min=1, max=2**63 - 1)
"""The id of a post or comment."""


def field_parameters(resource_type: ResourceType[Any]) -> Callable[[Command], Command]:
    """An argument for each required field of a draft, and an option for each optional one."""
    types = {it.name: it.type for it in fields(resource_type.draft)}

    def decorate(command: Command) -> Command:
        for name in reversed(field_names(resource_type.draft)):
            if name in resource_type.required:
                command = click.argument(name, **_reading(types[name]))(command)
            else:
                command = _field_option(name, types[name])(command)
        return command

    return decorate


def update_parameters(resource_type: ResourceType[Any]) -> Callable[[Command], Command]:
    """BODY, an option for each other field that an update can change, and options for single labels."""

    def decorate(command: Command) -> Command:
        remove = "Remove this label; repeatable."
        command = click.option("--remove-label", "remove_labels", metavar="KEY", multiple=True, help=remove)(
            command
        )
        command = label_option("--set-label", "set_labels", "Add or change a label; repeatable.")(command)
        for name in reversed(resource_type.updatable):
            if name == "body":
                command = click.argument(name, required=False, callback=_text)(command)
            elif name != "labels":
                command = _field_option(name, resource_type.draft_fields[name])(command)
        return command

    return decorate


def label_option(option: str, name: str, help: str) -> Callable[[Command], Command]:
    """A repeatable option KEY=VALUE, passed to the command as a dict."""
    return click.option(option, name, metavar="KEY=VALUE", multiple=True, callback=_labels, help=help)


def text_option(option: str, name: str, help: str) -> Callable[[Command], Command]:
    """An option with a text."""
    return click.option(option, name, callback=_text, help=help)


def _field_option(name: str, kind: object) -> Callable[[Command], Command]:
    """The option of an optional field; the command gets only what was given."""
    if kind == Mapping[str, str]:
        return label_option("--label", name, "A label; repeatable.")
    option = f"--{name.removesuffix('_id') if kind is int else name}".replace("_", "-")
    if kind is bool:
        return click.option(option, name, is_flag=True, help=_HELP[name])
    if kind is str:
        return text_option(option, name, _HELP[name])
    return click.option(option, name, metavar="ID", help=_HELP[name], **_reading(kind))


def _reading(kind: object) -> dict[str, Any]:
    """How the value of an argument or option is read."""
    return {"type": ID} if kind is int else {"callback": _text}


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that were given; the client has defaults for the others."""
    return {name: value for name, value in values.items() if value not in (None, (), {})}


def ids_argument(command: Command) -> Command:
    """ID..., at least one."""
    return click.argument("ids", metavar="ID...", type=ID, nargs=-1, required=True)(command)


def force_option(resource_type: ResourceType[Any]) -> Callable[[Command], Command]:
    """--force."""
    what = {"post": "Delete their comments too.", "comment": "Delete the replies to them too."}
    return click.option("--force", is_flag=True, help=what[resource_type.name])


def show_deleted_option(command: Command) -> Command:
    """--show-deleted."""
    help = "Also those that are deleted and can be restored."
    return click.option("--show-deleted", is_flag=True, help=help)(command)


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


def list_options(orders: Sequence[str]) -> Callable[[Command], Command]:
    """--order-by, --limit, --all and --page-size, passed to the command as one Selection."""
    by_name = {order_name(it): it for it in orders}
    options = (
        click.option(
            "--order-by",
            type=click.Choice(list(by_name)),
            default="id",
            show_default=True,
            help="With -desc the newest first.",
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

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_selection(
            *arguments: Any,
            order_by: str,
            limit: int | None,
            is_all: bool,
            page_size: int | None,
            **others: Any,
        ) -> Any:
            if is_all and limit is not None:
                raise click.UsageError("--all and --limit exclude each other", click.get_current_context())
            order = by_name[order_by]
            if order in THREAD_ORDERS and others.get("post_id") is None:
                raise click.UsageError(f"--order-by {order_by} requires --post", click.get_current_context())
            selection = Selection(order_by=order, limit=limit, is_all=is_all, given_page_size=page_size)
            return command(*arguments, selection=selection, **others)

        decorated: Any = with_selection
        for option in reversed(options):
            decorated = option(decorated)
        return cast("Command", decorated)

    return decorate


def query_argument(command: Command) -> Command:
    """QUERY."""
    return click.argument("query", **_reading(str))(command)


def search_options(command: Command) -> Command:
    """--relevance, --limit and --all, passed to the command as `order_by` and `limit`."""

    @wraps(command)
    def with_values(*arguments: Any, relevance: bool, limit: int | None, is_all: bool, **others: Any) -> Any:
        if is_all and limit is not None:
            raise click.UsageError("--all and --limit exclude each other", click.get_current_context())
        if limit is None and not is_all:
            limit = SEARCH_LIMIT
        order_by = "relevance" if relevance else "id desc"
        return command(*arguments, order_by=order_by, limit=limit, **others)

    decorated: Any = with_values
    for option in (
        click.option("--all", "is_all", is_flag=True, help="Print all results."),
        click.option(
            "--limit",
            metavar="N",
            type=click.IntRange(min=0),
            help=f"Print at most N results; {SEARCH_LIMIT} by default.",
        ),
        click.option("--relevance", is_flag=True, help="Print the best of the newest matches first."),
    ):
        decorated = option(decorated)
    return cast("Command", decorated)


def order_name(order: str) -> str:
    """The value of --order-by for an order of the API."""
    return order.replace("_", "-").replace(" ", "-")


def check_update(fields: Mapping[str, Any]) -> None:
    """Fails if an update changes nothing, or a label in two ways."""
    if not given(fields):
        raise click.UsageError("update requires BODY or an option", click.get_current_context())
    if both := set(fields["set_labels"]) & set(fields["remove_labels"]):
        raise click.UsageError(
            f"the label {min(both)!r} is in --set-label and in --remove-label", click.get_current_context()
        )


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


def _labels(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for value in values:
        key, separator, label = value.partition("=")
        if not separator:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE", ctx, param)
        if key in labels:
            raise click.BadParameter(f"the label {key!r} is given twice", ctx, param)
        labels[key] = label
        _text(ctx, param, value)
    return labels


def _text_of_uuid(ctx: click.Context, param: click.Parameter, value: uuid.UUID | None) -> str | None:
    return None if value is None else str(value)
