"""The options that select posts and comments: those of `list`, the counts and `watch`. Times are in ISO 8601,
in UTC unless they have an offset.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from functools import wraps
from typing import Any, cast

import click

from storeapi._resources import COMMENTS, ResourceType
from storeapi.cli.arguments import Command, label_option, show_deleted_option, text_option


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The values of the options."""

    given: Mapping[str, Any]
    """By the names of the fields of filters; those that were given."""

    def filter(self, resource_type: ResourceType[Any]) -> Any:
        """The filter of posts or comments; None if it would have no condition."""
        names = {it.name for it in fields(resource_type.filter)}
        conditions = {name: value for name, value in self.given.items() if name in names}
        return resource_type.filter(**conditions) if conditions else None


def _time(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        # Python 3.10 does not know Z.
        time = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", value))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a time such as 2026-11-22 or 2026-11-22T12:00:00Z", ctx, param
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def filter_options(
    *resource_types: ResourceType[Any], is_about_replies: bool = False
) -> Callable[[Command], Command]:
    """The options of the conditions of these resource types, passed to the command as Conditions.

    Args:
        resource_types: Defines the conditions.
        is_about_replies: Whether the command selects by `reply_to_id` in another way.
    """
    options = [
        text_option("--author", "author", "Only of this author."),
        label_option("--label", "labels", "Only with this label; repeatable."),
        click.option(
            "--created-from",
            "create_time_from",
            metavar="TIME",
            callback=_time,
            help="Only created at this time or later: 2026-11-22, or 2026-11-22T12:00:00Z.",
        ),
        click.option(
            "--created-before",
            "create_time_before",
            metavar="TIME",
            callback=_time,
            help="Only created before this time.",
        ),
        show_deleted_option,
    ]
    if COMMENTS in resource_types and not is_about_replies:
        help = "Only comments that reply to this one; 0: only comments at the top level."
        options.append(
            click.option("--reply-to", "reply_to_id", metavar="ID", type=click.IntRange(min=0), help=help)
        )

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_conditions(*arguments: Any, **values: Any) -> Any:
            names = {it.name for kind in resource_types for it in fields(kind.filter)}
            given = {name: values.pop(name) for name in names & values.keys()}
            given = {
                name: value
                for name, value in given.items()
                if value not in (None, "", {}) and value is not False
            }
            return command(*arguments, conditions=Conditions(given=given), **values)

        decorated: Any = with_conditions
        for option in reversed(options):
            decorated = option(decorated)
        return cast("Command", decorated)

    return decorate
