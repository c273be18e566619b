"""Metrics how late the event loop is, from within."""

import asyncio
import time

from store_service.observability.metrics import EventLoopMetrics

EVERY_SECONDS = 0.1
"""How often it looks."""


async def measure_event_loop_lag(measure: EventLoopMetrics) -> None:
    """Asks the loop to come by, again and again, and counts how late it does, until it is cancelled."""
    try:
        while True:
            measure.due = due = time.monotonic() + EVERY_SECONDS
            await asyncio.sleep(EVERY_SECONDS)
            # Timers of the loop may be a fraction of a millisecond early.
            measure.lags.observe(max(time.monotonic() - due, 0.0))
    finally:
        measure.due = None
