"""Timeouts of tests.

A timeout only ends a test that hangs. It is generous and grows with the load of the machine. No test asserts
that something is fast.
"""

import os
import time

IS_LONG_RUN = bool(os.environ.get("STORE_TEST_LONG"))
"""Whether randomized and load tests run long, as in `make torture`."""


_IDLE_SECONDS = 0.05
"""Duration of `_seconds_of_work` on a slow idle machine."""


def scaled_timeout(seconds: float = 60) -> float:
    """Returns a timeout that is `seconds` on an idle machine and longer on a loaded one."""
    return seconds * max(1.0, _SLOWNESS, _load())


def _load() -> float:
    """Runnable processes per core, averaged over the last minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _seconds_of_work() -> float:
    """Measures the duration of a fixed amount of work."""
    start = time.perf_counter()
    sum(it * it for it in range(500_000))
    return time.perf_counter() - start


# Covers what the load average does not show: a slow processor, a CPU quota, a load that has just started.
_SLOWNESS = _seconds_of_work() / _IDLE_SECONDS
