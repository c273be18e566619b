"""What the command prints: JSON lines for scripts, a table on a terminal, tab-separated lines elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any, Final

import click

from storeapi.cli import tables, text
from storeapi.cli.arguments import Selection
from storeapi.model import Comment, Post

FIELDS: Final = ("id", "post_id", "create_time", "update_time", "etag", "body")
"""The fields of lines, in their order; posts have no post_id."""


def rfc3339(time: datetime | None) -> str | None:
    """A time as in proto JSON, in UTC; None stays None."""
    if time is None:
        return None
    return time.astimezone(timezone.utc).replace(tzinfo=None).isoformat() + "Z"


def record(item: Post | Comment) -> dict[str, Any]:
    """A post or comment under the names of the API; what is not known is null."""
    post_id = {"post_id": item.post_id} if isinstance(item, Comment) else {}
    return {
        "id": item.id,
        **post_id,
        "body": item.body,
        "create_time": rfc3339(item.create_time),
        "update_time": rfc3339(item.update_time),
        "etag": item.etag,
    }


def as_line(fields: dict[str, Any], *, for_terminal: bool = False) -> bytes:
    """One JSON object as one line of UTF-8; the same object with more escapes if a terminal shows it."""
    line = json.dumps(fields, ensure_ascii=False)
    return (text.in_json(line) if for_terminal else line).encode() + b"\n"


def print_json(fields: dict[str, Any]) -> None:
    """Prints one JSON object as one line; in UTF-8 whatever the locale says, for that is what JSON is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(as_line(fields, for_terminal=sys.stdout.isatty()))


def print_items(items: Iterable[Post | Comment], *, as_json: bool) -> None:
    """Prints posts or comments as they come."""
    if as_json:
        for item in items:
            print_json(record(item))
    elif sys.stdout.isatty():
        tables.print_all(items)
    else:
        for item in items:
            fields = record(item)
            click.echo("\t".join(text.field(str(fields[name] or "")) for name in FIELDS if name in fields))


def print_list(
    list_items: Callable[..., Iterable[Post | Comment]], selection: Selection, *, as_json: bool
) -> None:
    """Prints what was selected; a terminal on which it is not limited gets one screen and how to get more.

    Args:
        list_items: The client's method, with what it needs besides the selection.
        selection: What to list.
        as_json: Print JSON lines.
    """
    is_limited = as_json or selection.is_all or selection.limit is not None or not sys.stdout.isatty()
    limit = selection.limit if is_limited else tables.items_to_fill_screen()
    items = list_items(order_by=selection.order_by, limit=limit, page_size=selection.page_size)
    if is_limited:
        print_items(items, as_json=as_json)
    elif tables.print_screenful(items):
        # On stdout: it belongs to the table, and no program parses it.
        newest = "" if selection.order_by == "id desc" else "; --order-by id-desc prints the newest first"
        click.echo(f"More: --limit N or --all{newest}")


def print_counts(counts: dict[int, int], *, as_json: bool) -> None:
    """Prints how many comments posts have, in the order of `counts`."""
    for post_id, count in counts.items():
        if as_json:
            print_json({"post_id": post_id, "comment_count": count})
        else:
            click.echo(f"{post_id}\t{count}")
