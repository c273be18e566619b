"""Waiting for a condition that no event reports."""

import asyncio
import time
from collections.abc import Callable

from tests.support.timeouts import scaled_timeout


def wait_until(condition: Callable[[], object], *, seconds: float = 60, pause: float = 0.01) -> None:
    """Polls a condition of another process, such as a file or a socket. Blocks the event loop.

    `pause` is the time between two tests of a condition that costs the other process much.
    """
    end = time.monotonic() + scaled_timeout(seconds)
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(pause)


async def eventually(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """Polls a condition of this process that no event reports, and lets other tasks run."""
    async with asyncio.timeout(scaled_timeout(seconds)):
        while not condition():  # noqa: ASYNC110  # no event reports the condition
            await asyncio.sleep(0.002)
