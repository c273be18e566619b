"""Shows the progress of a command, and what it waits for, if stderr is a terminal."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import click

Report = Callable[[str, int, int], None]
"""Takes the phase, the amount done, and the total amount; 0 if the total is unknown."""

PATIENCE_SECONDS: Final = 1.0
"""How long a response may take before the command reports what it waits for."""


@contextmanager
def shown(*, in_bytes: bool) -> Iterator[Report]:
    """Yields the function that reports progress. The display is erased at the end of the block.

    Args:
        in_bytes: Whether the amounts are bytes; otherwise they are rows.
    """
    if not sys.stderr.isatty():
        yield lambda phase, done, total: None
        return
    # Imported late, because the import takes longer than the rest of the command.
    from rich.console import Console, RenderableType
    from rich.filesize import decimal
    from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn

    class Bar(BarColumn):
        def render(self, task: Task) -> RenderableType:  # type: ignore[override]  # or an empty text
            # A bar without a total would look full on a terminal without colours.
            return "" if task.total is None else super().render(task)

    def fields(done: int, total: int, seconds: float) -> dict[str, str]:
        format_amount = decimal if in_bytes else "{:,}".format
        percentage = f"{done / total:.0%} " if total else ""
        rate = f" {format_amount(int(done / seconds))}/s" if done and seconds > 0 else ""
        left = timedelta(seconds=round(seconds * (total - done) / done)) if total and done else None
        return {
            "amount": f"{percentage}{format_amount(done)}{rate}" if total or done else "",
            "left": "" if left is None else f"ETA {left}",
        }

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        Bar(bar_width=15),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def report(phase: str, done: int, total: int) -> None:
            current = next((task for task in bars.tasks if task.description == phase), None)
            state: dict[str, Any] = {"completed": done, "total": total or None}
            state |= fields(done, total, (current.elapsed or 0.0) if current else 0.0)
            if current:
                bars.update(current.id, **state)
                return
            for previous in bars.tasks:
                bars.remove_task(previous.id)
            # This refreshes the display, so that short phases are shown too.
            bars.add_task(phase, **state)

        yield report


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Prints what the command waits for if the block takes longer than PATIENCE_SECONDS."""
    timer = threading.Timer(PATIENCE_SECONDS, click.echo, [f"waiting for {what}"], {"err": True})
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
