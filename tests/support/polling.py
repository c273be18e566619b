"""Waiting for a condition that no event reports."""

import asyncio
import time
from collections.abc import Callable

from tests.support.timeouts import scaled_timeout


def wait_until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Polls a condition of another process, such as a file or a socket. Blocks the event loop."""
    end = time.monotonic() + scaled_timeout(seconds)
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.01)


async def eventually(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """Polls a condition of this process that no event reports, and lets other tasks run."""
    async with asyncio.timeout(scaled_timeout(seconds)):
        while not condition():  # noqa: ASYNC110  # no event reports the condition
            await asyncio.sleep(0.002)
