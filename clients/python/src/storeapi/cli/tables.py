"""Tables of posts and comments for a terminal. Lines are wrapped to its width, and nothing is truncated."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import click

from storeapi.cli import text
from storeapi.model import Resource

if TYPE_CHECKING:
    from rich.console import Console

ORDER: Final = ("id", "post_id", "create_time", "update_time", "etag", "body")
"""The first fields of tables and lines; posts have no post_id. A table has the others only if a resource has
a value for them."""

LAST: Final = ("delete_time", "purge_time")
"""The last fields of lines, in which programs count the fields."""

TIME_NAMES: Final = {
    "create_time": "created",
    "update_time": "updated",
    "delete_time": "deleted",
    "purge_time": "purge",
}
"""The columns of times."""

NAMES: Final = {**TIME_NAMES, "reply_to_id": "reply_to"}
"""The columns with another name than the field."""

ROWS_AT_ONCE: Final = 200
"""Rows that are read before the first of them is printed, to determine the widths of the columns."""

GAP: Final = 2
"""Blanks between two columns."""

BODY_WIDTH_FOR_TIMES: Final = 40
"""Times are shown as timestamps if the body has at least this width then, otherwise as ages."""

LEAST_BODY_WIDTH: Final = 24
"""If the body has less width, each post or comment is printed as a block of lines instead of a row."""

LEAST_WIDTH: Final = 20
"""On a narrower terminal, the terminal wraps the lines."""

AGES: Final = ((365 * 86_400, "y"), (86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
"""Units of an age, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Positions on a line."""

    width: int
    """Width of the terminal."""
    fields: tuple[str, ...]
    """Names of the fields before the body."""
    columns: tuple[tuple[str, int], ...]
    """Names and widths of the columns before the body."""
    has_times: bool
    """Whether times are shown as timestamps, not as ages."""

    @property
    def indent(self) -> int:
        """The column at which the body starts in a row."""
        return sum(width + GAP for _, width in self.columns)

    @property
    def has_rows(self) -> bool:
        """Whether the terminal is wide enough for rows."""
        return self.width - self.indent >= LEAST_BODY_WIDTH

    def header(self) -> str:
        """The line with the names of the columns."""
        names = [f"{name.upper():<{width + GAP}}" for name, width in self.columns]
        return "".join([*names, "BODY"])


def print_all(items: Iterable[Resource]) -> None:
    """Prints posts or comments as they arrive."""
    for lines in _lines(iter(items)):
        click.echo("\n".join(lines))


def items_to_fill_screen() -> int:
    """The number of resources that `print_screenful` needs to detect that there are more."""
    return max(_screen_lines(), 1) + 1


def print_screenful(items: Iterable[Resource]) -> bool:
    """Prints as many as fit on the terminal, at least one; returns whether there are more.

    The last two lines of the terminal are for the caller and the prompt of the shell.
    """
    room = _screen_lines()
    printed = 0
    for lines in _lines(iter(items)):
        if printed and printed + len(lines) > room:
            return True
        click.echo("\n".join(lines))
        printed += len(lines)
    return False


def _screen_lines() -> int:
    return shutil.get_terminal_size().lines - 2


def _lines(items: Iterator[Resource]) -> Iterator[list[str]]:
    """The lines of each resource, with the header before the first."""
    now = datetime.now(timezone.utc)
    width = max(shutil.get_terminal_size().columns, LEAST_WIDTH)
    layout: Layout | None = None
    while some := list(islice(items, ROWS_AT_ONCE)):
        before, layout = layout, _layout(some, now, width, layout)
        header = [layout.header()] if layout.has_rows and layout != before else []
        for item in some:
            cells = _cells(item, layout.fields, now, layout.has_times)
            yield [
                *header,
                *(_row(cells, item.body, layout) if layout.has_rows else _block(cells, item.body, layout)),
            ]
            header = []


def _layout(items: Sequence[Resource], now: datetime, width: int, before: Layout | None) -> Layout:
    """The layout for some resources; columns never become narrower or fewer."""
    shown = tuple(
        name
        for name in field_names(type(items[0]))
        if name != "body"
        and (
            name in ORDER
            or (before is not None and name in before.fields)
            or any(getattr(item, name) for item in items)
        )
    )
    for has_times in (True, False):
        rows = [_cells(item, shown, now, has_times) for item in items]
        if before is not None and before.has_times == has_times:
            rows.append({name: " " * width for name, width in before.columns})
        columns = tuple((name, max(len(name), *(len(row.get(name, "")) for row in rows))) for name in rows[0])
        layout = Layout(width=width, fields=shown, columns=columns, has_times=has_times)
        if width - layout.indent >= BODY_WIDTH_FOR_TIMES:
            break
    return layout


def field_names(kind: type[Any]) -> tuple[str, ...]:
    """The fields of a resource type in the order of lines: those in ORDER, then all others, then LAST."""
    names = [it.name for it in fields(kind) if it.name not in LAST]
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return (*names, *(it.name for it in fields(kind) if it.name in LAST))


def _cells(item: Resource, names: Sequence[str], now: datetime, has_times: bool) -> dict[str, str]:
    """The columns of a resource before its body."""
    time = _to_the_second if has_times else _age
    return {
        NAMES.get(name, name): (
            time(getattr(item, name), now) if name in TIME_NAMES else _cell(getattr(item, name))
        )
        for name in names
    }


def _cell(value: object) -> str:
    if isinstance(value, Mapping):
        value = " ".join(f"{key}={label}" for key, label in sorted(value.items()))
    return text.one_line(str(value)) or "-"


def _row(cells: dict[str, str], body: str, layout: Layout) -> list[str]:
    head = "".join(f"{cells[name]:<{width + GAP}}" for name, width in layout.columns)
    first, *rest = _wrapped(body, layout.width - layout.indent)
    return [f"{head}{first}".rstrip(), *(f"{'':{layout.indent}}{line}".rstrip() for line in rest)]


def _block(cells: dict[str, str], body: str, layout: Layout) -> list[str]:
    """A resource as several lines, the last one empty."""
    head = [""]
    for name, cell in cells.items():
        shown = f"{name} {cell}"
        if head[-1] and len(head[-1]) + GAP + len(shown) > layout.width:
            head.append("")
        head[-1] += f"{'':{GAP if head[-1] else 0}}{shown}"
    return [*head, *(f"{'':{GAP}}{line}".rstrip() for line in _wrapped(body, layout.width - GAP)), ""]


def _wrapped(body: str, width: int) -> list[str]:
    """The lines of a body, each at most `width` wide."""
    # Imported here: it takes longer to import than the rest of the command.
    from rich.text import Text

    return [line.plain.rstrip() for line in Text(text.lines(body)).wrap(_console(), width)]


@cache
def _console() -> Console:
    from rich.console import Console

    return Console()


def _to_the_second(time: datetime | None, now: datetime) -> str:
    return "-" if time is None else time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _age(time: datetime | None, now: datetime) -> str:
    if time is None:
        return "-"
    seconds = int((now - time).total_seconds())
    for size, unit in AGES:
        if abs(seconds) >= size:
            shown = f"{abs(seconds) // size}{unit}"
            # The clock of the service may be ahead.
            return f"{shown} ago" if seconds > 0 else f"in {shown}"
    return "now"
