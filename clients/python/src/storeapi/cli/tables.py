"""Posts and comments as people read them on a terminal; nothing is wider than it, and nothing is cut off."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Final

import click

from storeapi.cli import text
from storeapi.model import Comment, Post

if TYPE_CHECKING:
    from rich.console import Console

ROWS_AT_ONCE: Final = 200
"""Rows that are read before the first of them is printed, to know how wide their columns are."""

GAP: Final = 2
"""Blanks between two columns."""

BODY_WIDTH_FOR_TIMES: Final = 40
"""Times are shown as such if this leaves so many columns to the body, otherwise as ages."""

LEAST_BODY_WIDTH: Final = 24
"""With less room for the body, each post or comment has lines of its own instead of a row."""

LEAST_WIDTH: Final = 20
"""A terminal that is narrower wraps the lines itself."""

AGES: Final = ((365 * 86_400, "y"), (86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
"""Units of an age, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where things are on a line."""

    width: int
    """Columns of the terminal."""
    columns: tuple[tuple[str, int], ...]
    """Names and widths of the columns before the body."""
    has_times: bool
    """Whether times are shown, to the second, or ages."""

    @property
    def indent(self) -> int:
        """Where the body begins in a row."""
        return sum(width + GAP for _, width in self.columns)

    @property
    def has_rows(self) -> bool:
        """Whether there is room for rows."""
        return self.width - self.indent >= LEAST_BODY_WIDTH

    def header(self) -> str:
        """The line with the names of the columns."""
        names = [f"{name.upper():<{width + GAP}}" for name, width in self.columns]
        return "".join([*names, "BODY"])


def print_all(items: Iterable[Post | Comment]) -> None:
    """Prints posts or comments as they arrive."""
    for lines in _lines(iter(items)):
        click.echo("\n".join(lines))


def items_to_fill_screen() -> int:
    """How many posts or comments `print_screenful` needs to know whether there are more than it prints."""
    return max(_screen_lines(), 1) + 1


def print_screenful(items: Iterable[Post | Comment]) -> bool:
    """Prints as many as the terminal shows at once, at least one; returns whether there are more.

    The last two lines of the terminal are left to the caller and to the shell's prompt.
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


def _lines(items: Iterator[Post | Comment]) -> Iterator[list[str]]:
    """The lines of each item, after the header where there is one to show."""
    now = datetime.now(timezone.utc)
    width = max(shutil.get_terminal_size().columns, LEAST_WIDTH)
    layout: Layout | None = None
    while some := list(islice(items, ROWS_AT_ONCE)):
        before, layout = layout, _layout(some, now, width, layout)
        header = [layout.header()] if layout.has_rows and layout != before else []
        for item in some:
            cells = _cells(item, now, layout.has_times)
            yield [
                *header,
                *(_row(cells, item.body, layout) if layout.has_rows else _block(cells, item.body, layout)),
            ]
            header = []


def _layout(items: Sequence[Post | Comment], now: datetime, width: int, before: Layout | None) -> Layout:
    """The layout for some items; columns never become narrower than they were before."""
    for has_times in (True, False):
        rows = [_cells(item, now, has_times) for item in items]
        if before is not None and before.has_times == has_times:
            rows.append({name: " " * width for name, width in before.columns})
        columns = tuple((name, max(len(name), *(len(row[name]) for row in rows))) for name in rows[0])
        layout = Layout(width=width, columns=columns, has_times=has_times)
        if width - layout.indent >= BODY_WIDTH_FOR_TIMES:
            break
    return layout


def _cells(item: Post | Comment, now: datetime, has_times: bool) -> dict[str, str]:
    """The columns of an item besides its body."""
    time = _to_the_second if has_times else _age
    return {
        "id": str(item.id),
        **({"post_id": str(item.post_id)} if isinstance(item, Comment) else {}),
        "created": time(item.create_time, now),
        "updated": time(item.update_time, now),
        "etag": text.one_line(item.etag),
    }


def _row(cells: dict[str, str], body: str, layout: Layout) -> list[str]:
    head = "".join(f"{cells[name]:<{width + GAP}}" for name, width in layout.columns)
    first, *rest = _wrapped(body, layout.width - layout.indent)
    return [f"{head}{first}".rstrip(), *(f"{'':{layout.indent}}{line}".rstrip() for line in rest)]


def _block(cells: dict[str, str], body: str, layout: Layout) -> list[str]:
    """An item over several lines, with an empty one at its end."""
    head = [""]
    for name, cell in cells.items():
        told = f"{name} {cell}"
        if head[-1] and len(head[-1]) + GAP + len(told) > layout.width:
            head.append("")
        head[-1] += f"{'':{GAP if head[-1] else 0}}{told}"
    return [*head, *(f"{'':{GAP}}{line}".rstrip() for line in _wrapped(body, layout.width - GAP)), ""]


def _wrapped(body: str, width: int) -> list[str]:
    """The lines of a body, none of them wider than `width`."""
    # It takes longer to load than all the rest of the command.
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
            told = f"{abs(seconds) // size}{unit}"
            # The service's clock may be ahead of this one.
            return f"{told} ago" if seconds > 0 else f"in {told}"
    return "now"
