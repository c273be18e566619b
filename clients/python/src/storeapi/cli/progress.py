"""Shows the progress of a command on a terminal; elsewhere shows nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

Report = Callable[[str, int, "float | None"], None]
"""Called with the phase, the number of items done, and the fraction done: 0 to 1, None if unknown."""


@contextmanager
def shown(*, prints: bool) -> Iterator[Report]:
    """Yields the function to report progress with; the display is erased at the end of the block.

    Args:
        prints: Whether results go to stdout; on the same terminal no progress is shown.
    """
    if not sys.stderr.isatty() or (prints and sys.stdout.isatty()):
        yield lambda phase, done, part: None
        return
    # Imported here: it takes longer to import than the rest of the command.
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn

    class Bar(BarColumn):
        def render(self, task: Task) -> RenderableType:  # type: ignore[override]  # or nothing
            # Without a total the bar has no meaning, and looks full without colours.
            return "" if task.total is None else super().render(task)

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        Bar(bar_width=15),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def report(phase: str, done: int, part: float | None) -> None:
            same = next((task for task in bars.tasks if task.description == phase), None)
            told, left = _summary(done, part, (same.elapsed or 0.0) if same else 0.0)
            state: dict[str, Any] = {
                "completed": part or 0.0,
                "total": None if part is None else 1.0,
                "told": told,
                "left": left,
            }
            if same:
                # The end of a phase is shown, however short it is.
                bars.update(same.id, refresh=part == 1.0, **state)
                return
            for before in bars.tasks:
                bars.remove_task(before.id)
            # This displays the phase at once, however short it is.
            bars.add_task(phase, **state)

        yield report


def _summary(done: int, part: float | None, seconds: float) -> tuple[str, str]:
    """The amount done and its rate, and the remaining time at this rate."""
    percentage = "" if part is None else f"{part:.0%} "
    rate = f" {done / seconds:,.0f}/s" if done and seconds > 0 else ""
    left = f"ETA {timedelta(seconds=round(seconds * (1 - part) / part))}" if part else ""
    return f"{percentage}{done:,}{rate}", left
