"""The one place that decides how long tests wait for what must happen.

A limit only ends a test that hangs, so it is generous, and it grows with the machine's load. No test
asserts that something is quick.
"""

import os
import time

_IDLE_SECONDS = 0.05
"""Time of `_seconds_of_work` on a machine that does nothing else, and that is not a fast one."""


def patience(seconds: float = 60) -> float:
    """How long to wait now for something that takes a fraction of `seconds` on an idle machine."""
    return seconds * max(1.0, _SLOWNESS, _load())


def _load() -> float:
    """Runnable processes for each core, on average over the last minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _seconds_of_work() -> float:
    """Measures a fixed amount of work: on a slow or loaded machine it takes longer."""
    start = time.perf_counter()
    sum(it * it for it in range(500_000))
    return time.perf_counter() - start


# Also what the load average does not tell: a slow processor, a limit on CPU time, a load that has just begun.
_SLOWNESS = _seconds_of_work() / _IDLE_SECONDS
