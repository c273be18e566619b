"""Settings of the Python interpreter: garbage collection (docs/decisions/0025) and thread switches."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_SECONDS = 0.0005
"""Time after which a thread that needs the interpreter lock interrupts another one.

With the default of 5 ms, the event loop waits that long for a thread that runs Python code, such as the one
that executes a batch of writes: 9 to 13 % fewer creates per second with 256 in flight (docs/decisions/0055).
"""


def switch_threads_often() -> None:
    """Applies SWITCH_SECONDS to this process."""
    sys.setswitchinterval(SWITCH_SECONDS)


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
