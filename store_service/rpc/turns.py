"""Turns for large pieces of work on the event loop.

Decoding a large request or encoding a large response takes milliseconds in which nothing else runs. One piece
runs at a time, and the event loop serves everybody else before the next (docs/decisions/0032).
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LARGE_BYTES = 65_536
"""A larger message waits for its turn; a smaller one takes less than half a millisecond."""

QUIET_ROUNDS = 8
"""After so many rounds of the event loop in which nothing else ran, the next piece of work begins."""

QUIET_SECONDS = 0.0001
"""A round that takes longer has done something else."""


class Turns:
    """A fair queue: one piece of large work at a time, with the event loop running in between."""

    def __init__(self) -> None:
        """Nothing waits."""
        self._lock = asyncio.Lock()
        self._rest_until = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Runs the block when everything that came before is done.

        Everybody else has twice as long in between as the last piece took, or until nothing else is ready:
        gRPC accepts one call in each round of the event loop, so one round in between would let a thousand
        large pieces delay every new call until the last of them.
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
        now, quiet_rounds = time.perf_counter(), 0
        while quiet_rounds < QUIET_ROUNDS:
            began = now
            # At least once, so that no two pieces run in the same round.
            await asyncio.sleep(0)
            now = time.perf_counter()
            if now >= self._rest_until:
                return
            quiet_rounds = quiet_rounds + 1 if now - began < QUIET_SECONDS else 0
