"""What the command prints: JSON lines for scripts, a table on a terminal, tab-separated lines elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import islice
from typing import Any, Final

import click

from storeapi.cli import text
from storeapi.model import Comment, Post

ROWS_AT_ONCE: Final = 200
"""A table ends after so many rows and another begins, so that a long list shows before all of it is there."""

COLUMNS: Final = ("id", "post_id", "create_time", "update_time", "etag", "body")
"""The columns of tables and lines; posts have no post_id."""


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
        _print_tables(items)
    else:
        for item in items:
            click.echo("\t".join(text.field(it) for it in _cells(item).values()))


def print_counts(counts: dict[int, int], *, as_json: bool) -> None:
    """Prints how many comments posts have, in the order of `counts`."""
    for post_id, count in counts.items():
        if as_json:
            print_json({"post_id": post_id, "comment_count": count})
        else:
            click.echo(f"{post_id}\t{count}")


def _cells(item: Post | Comment) -> dict[str, str]:
    fields = record(item)
    return {name: str(fields[name] or "") for name in COLUMNS if name in fields}


def _print_tables(items: Iterable[Post | Comment]) -> None:
    # It takes longer to load than all the rest of the command.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    width = console.width
    remaining = iter(items)
    while rows := [_cells(item) for item in islice(remaining, ROWS_AT_ONCE)]:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        needed = 0
        for name in rows[0]:
            is_body = name == "body"
            table.add_column(name, no_wrap=not is_body, overflow="fold")
            needed += 20 if is_body else max(len(name), *(len(row[name]) for row in rows)) + 2
        for row in rows:
            table.add_row(*(Text(text.lines(it) if name == "body" else it) for name, it in row.items()))
        # A terminal that is too narrow wraps the lines itself; nothing is cut off.
        console.width = max(width, needed)
        console.print(table)


@contextmanager
def progress(what: str, *, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Shows how far something is on stderr, if that is a terminal; gives the function that advances it."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
