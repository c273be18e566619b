"""The output of the command: JSON lines with --json, tables on a terminal, tab-separated lines elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

import click

from storeapi.cli import tables, text
from storeapi.cli.arguments import Selection, order_name
from storeapi.model import Resource, SearchResult


def rfc3339(time: datetime | None) -> str | None:
    """A time as in proto JSON, in UTC; None stays None."""
    if time is None:
        return None
    return time.astimezone(timezone.utc).replace(tzinfo=None).isoformat() + "Z"


def record(resource: Resource) -> dict[str, Any]:
    """A post or comment with the field names of the API; an unknown time is null."""
    return {name: _in_json(getattr(resource, name)) for name in tables.field_names(type(resource))}


def _in_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339(value)
    return dict(value) if isinstance(value, Mapping) else value


def as_line(fields: dict[str, Any], *, for_terminal: bool = False) -> bytes:
    """A JSON object as one line of UTF-8; for a terminal, control characters are escaped too."""
    line = json.dumps(fields, ensure_ascii=False)
    return (text.in_json(line) if for_terminal else line).encode() + b"\n"


def print_json(fields: dict[str, Any]) -> None:
    """Prints a JSON object as one line, in UTF-8 regardless of the locale."""
    sys.stdout.flush()
    sys.stdout.buffer.write(as_line(fields, for_terminal=sys.stdout.isatty()))


def print_items(items: Iterable[Resource], *, as_json: bool) -> None:
    """Prints posts or comments as they arrive."""
    if as_json:
        for item in items:
            print_json(record(item))
    elif sys.stdout.isatty():
        tables.print_all(items)
    else:
        for item in items:
            click.echo("\t".join(text.field(_in_line(value)) for value in record(item).values()))


def _in_line(value: object) -> str:
    """A value as a field of a line: labels as a JSON object, and nothing for an unknown time or no labels."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True) if value else ""
    return "" if value is None else str(value)


def print_results(results: Iterable[SearchResult[Any]], *, as_json: bool) -> None:
    """Prints the results of a search as they arrive: the id and the snippet, with marked matches."""
    for result in results:
        if as_json:
            snippet = [{"text": it.text, "is_match": it.is_match} for it in result.snippet]
            print_json({**record(result.resource), "snippet": snippet})
        elif sys.stdout.isatty():
            parts = [click.style(text.field(it.text), bold=it.is_match or None) for it in result.snippet]
            click.echo(f"{click.style(str(result.resource.id), dim=True)}  {''.join(parts)}")
        else:
            click.echo(f"{result.resource.id}\t{text.field(result.marked())}")


def print_list(
    list_items: Callable[..., Iterable[Resource]],
    query: dict[str, Any],
    selection: Selection,
    *,
    as_json: bool,
) -> None:
    """Prints a list; on a terminal without a limit, one screen and how to print more.

    Args:
        list_items: The client's method.
        query: Its arguments that only one resource type has.
        selection: Its other arguments.
        as_json: Print JSON lines.
    """
    is_limited = as_json or selection.is_all or selection.limit is not None or not sys.stdout.isatty()
    limit = selection.limit if is_limited else tables.items_to_fill_screen()
    items = list_items(**query, order_by=selection.order_by, limit=limit, page_size=selection.page_size)
    if is_limited:
        print_items(items, as_json=as_json)
    elif tables.print_screenful(items):
        # On stdout: it belongs to the table, and no program parses it.
        newest = f"; --order-by {order_name(selection.order_by)}-desc prints the newest first"
        newest = "" if selection.order_by.endswith(" desc") else newest
        click.echo(f"More: --limit N or --all{newest}")


def print_counts(counts: dict[int, int], *, of: str, counted: str, as_json: bool) -> None:
    """Prints a number for each id, in the order of `counts`.

    Args:
        counts: The numbers by id.
        of: What the ids are of: "post".
        counted: What was counted: "comment".
        as_json: Print JSON lines.
    """
    for id, count in counts.items():
        if as_json:
            print_json({f"{of}_id": id, f"{counted}_count": count})
        else:
            click.echo(f"{id}\t{count}")


def print_count(count: int, *, counted: str, as_json: bool) -> None:
    """Prints one number."""
    if as_json:
        print_json({f"{counted}_count": count})
    else:
        click.echo(str(count))
