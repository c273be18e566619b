"""Measures the lag of the event loop."""

import asyncio
import time

from store_service.observability.metrics import EventLoopMetrics

INTERVAL_SECONDS = 0.1
"""Time between two measurements."""


async def measure_event_loop_lag(metrics: EventLoopMetrics) -> None:
    """Sleeps repeatedly and observes how late the event loop resumes the task, until it is cancelled."""
    try:
        while True:
            metrics.due = due = time.monotonic() + INTERVAL_SECONDS
            await asyncio.sleep(INTERVAL_SECONDS)
            # Timers of the loop may be a fraction of a millisecond early.
            metrics.lags.observe(max(time.monotonic() - due, 0.0))
    finally:
        metrics.due = None
