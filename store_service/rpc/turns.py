"""Turns for large messages on the event loop.

Decoding a large request or encoding a large response blocks the event loop for milliseconds. One large
message is processed at a time, and other tasks run before the next (docs/decisions/0032).
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LARGE_BYTES = 65_536
"""Larger messages wait for their turn. Smaller ones take less than half a millisecond."""

IDLE_ITERATIONS = 8
"""Consecutive iterations of the event loop without other tasks, after which the next turn begins."""

IDLE_ITERATION_SECONDS = 0.0001
"""An iteration that takes longer has run other tasks."""


class Turns:
    """A fair queue. One turn runs at a time, and the event loop runs other tasks between two turns."""

    def __init__(self) -> None:
        """Starts without waiting turns."""
        self._lock = asyncio.Lock()
        self._rest_until = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Runs the block after all earlier turns.

        Between two turns, other tasks run for twice the duration of the last turn, or until none is ready.
        gRPC accepts one call in each iteration of the event loop: with one iteration between turns, a
        thousand large messages would delay every new call until the last of them.
        """
        async with self._lock:
            await self._let_others_run()
            began = time.perf_counter()
            try:
                yield
            finally:
                now = time.perf_counter()
                self._rest_until = now + 2 * (now - began)

    async def _let_others_run(self) -> None:
        now, idle_iterations = time.perf_counter(), 0
        while idle_iterations < IDLE_ITERATIONS:
            began = now
            # At least once: two turns must not run in the same iteration.
            await asyncio.sleep(0)
            now = time.perf_counter()
            if now >= self._rest_until:
                return
            idle_iterations = idle_iterations + 1 if now - began < IDLE_ITERATION_SECONDS else 0
