"""Shows on a terminal the progress of a command and what it waits for; elsewhere shows nothing."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import click

Report = Callable[[str, int, int], None]
"""Called with the phase, the amount done, and the total; a total of 0 is unknown."""

PATIENCE_SECONDS: Final = 1.0
"""How long a response may take before the command reports what it waits for."""


@contextmanager
def shown(*, in_bytes: bool) -> Iterator[Report]:
    """Gives the function to report progress to; what it shows is erased at the end of the block.

    Args:
        in_bytes: Whether bytes are counted, and not rows.
    """
    if not sys.stderr.isatty():
        yield lambda phase, done, total: None
        return
    # It takes longer to load than all the rest of the command.
    from rich.console import Console, RenderableType
    from rich.filesize import decimal
    from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn

    class Bar(BarColumn):
        def render(self, task: Task) -> RenderableType:  # type: ignore[override]  # or nothing
            # If the total is unknown, a bar has no meaning, and looks full without colours.
            return "" if task.total is None else super().render(task)

    def told(done: int, total: int, seconds: float) -> dict[str, str]:
        counted = decimal if in_bytes else "{:,}".format
        percentage = f"{done / total:.0%} " if total else ""
        rate = f" {counted(int(done / seconds))}/s" if done and seconds > 0 else ""
        left = timedelta(seconds=round(seconds * (total - done) / done)) if total and done else None
        return {
            "told": f"{percentage}{counted(done)}{rate}" if total or done else "",
            "left": "" if left is None else f"ETA {left}",
        }

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        Bar(bar_width=15),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def report(phase: str, done: int, total: int) -> None:
            same = next((task for task in bars.tasks if task.description == phase), None)
            state: dict[str, Any] = {"completed": done, "total": total or None}
            state |= told(done, total, (same.elapsed or 0.0) if same else 0.0)
            if same:
                bars.update(same.id, **state)
                return
            for before in bars.tasks:
                bars.remove_task(before.id)
            # This shows it at once, so that a phase is seen however short it is.
            bars.add_task(phase, **state)

        yield report


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Reports what the command waits for if the block takes longer than PATIENCE_SECONDS."""
    timer = threading.Timer(PATIENCE_SECONDS, click.echo, [f"waiting for {what}"], {"err": True})
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
