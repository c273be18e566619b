"""What stays as long as the process is kept from the garbage collector (docs/decisions/0025)."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_during_imports() -> Iterator[None]:
    """Lets nobody look for garbage in what is imported in the block, now or later.

    The collector would walk through all of it time and again while it grows, a fifth of the CPU of a start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def freeze_current_objects() -> None:
    """Collects once, and takes what is left out of what is walked through from now on.

    A full collection would take 50 milliseconds, in which no call gets on.
    """
    gc.collect()
    gc.freeze()
