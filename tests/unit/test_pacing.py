"""Many waiters are woken in small groups, one group in each iteration of the event loop."""

import asyncio
from collections.abc import Awaitable, Callable

from store_service.pacing import WAKE_COUNT, Signal, paced

WAITERS = 10 * WAKE_COUNT


async def most_in_a_round(wait: Callable[[], Awaitable[object]], wake: Callable[[], Awaitable[None]]) -> int:
    """Starts and wakes WAITERS tasks. Returns the maximum number that ran in one iteration."""
    woken = 0

    async def waiter() -> None:
        nonlocal woken
        await wait()
        woken += 1

    tasks = [asyncio.ensure_future(waiter()) for _ in range(WAITERS)]
    await asyncio.sleep(0)
    waking = asyncio.ensure_future(wake())
    most = before = 0
    while woken < WAITERS:
        await asyncio.sleep(0)
        most, before = max(most, woken - before), woken
    await asyncio.gather(waking, *tasks)
    return most


async def test_signal_wakes_a_few_waiters_per_iteration() -> None:
    """One event wakes all waiters."""
    signal = Signal()

    async def notify() -> None:
        signal.notify()

    assert await most_in_a_round(lambda: signal.wait(0), notify) <= WAKE_COUNT


async def test_paced_items_let_the_event_loop_run() -> None:
    """Each item wakes one waiter."""
    futures = [asyncio.get_running_loop().create_future() for _ in range(WAITERS)]
    waiting = iter(futures)

    async def wake() -> None:
        async for future in paced(futures):
            future.set_result(None)

    assert await most_in_a_round(lambda: next(waiting), wake) <= WAKE_COUNT


async def test_past_signal_is_not_awaited() -> None:
    signal = Signal()
    signal.notify()

    await signal.wait(0)
    assert signal.count == 1


async def test_cancelled_waiters_are_forgotten() -> None:
    """A cancelled waiter does not stay in memory until the next event."""
    signal = Signal()
    waiting = asyncio.ensure_future(signal.wait(0))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])

    assert not signal._waiting
