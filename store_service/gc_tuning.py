"""Excludes long-lived objects from garbage collection (docs/decisions/0025)."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_during_imports() -> Iterator[None]:
    """Disables the garbage collector during the imports of the block and freezes the new objects.

    The collector would traverse these objects repeatedly during the imports, which takes a fifth of the CPU
    time of a start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def freeze_current_objects() -> None:
    """Collects garbage once, and excludes all remaining objects from later collections.

    A full collection would take 50 ms, during which no call makes progress.
    """
    gc.collect()
    gc.freeze()
