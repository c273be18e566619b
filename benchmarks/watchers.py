"""`python -m benchmarks.watchers ADDRESS COUNT`: opens COUNT watches in one process and measures their lag.

Prints `watching` when every watch has begun. Reads until stdin closes, and then prints JSON: `changes`, the
smallest number of changes that a watch has received; `complete`, whether all have received the same last
change; `lag_s`, the longest time from a change to its arrival; `latency_ms`, the median of these times.
"""

import asyncio
import json
import statistics
import sys
import time
from dataclasses import dataclass, field

import grpc
from storeapi.v1 import changes_pb2 as pb
from storeapi.v1 import changes_pb2_grpc

WATCHES_PER_CHANNEL = 10

QUIET_SECONDS = 1.0
"""The program ends when stdin is closed and nothing has arrived for this time."""


@dataclass
class Seen:
    """What one watch has received."""

    changes: int = 0
    last: tuple[int, int] = (0, 0)
    lags: list[float] = field(default_factory=list)
    arrived: float = 0.0


async def watch(channel: grpc.aio.Channel, begun: asyncio.Event, seen: Seen) -> None:
    """Reads until it is cancelled."""
    responses = changes_pb2_grpc.ChangeServiceStub(channel).Watch(pb.WatchRequest())
    await responses.read()
    begun.set()
    while True:
        response = await responses.read()
        if response.changes:
            seen.arrived = time.time()
            first, last = response.changes[0], response.changes[-1]
            # The first change of a response has the largest lag.
            seen.lags.append(seen.arrived - first.commit_time.ToNanoseconds() / 1e9)
            seen.changes += len(response.changes)
            seen.last = (last.kind, last.id)


async def main(address: str, count: int) -> None:
    """Opens the watches, waits for the end, and prints the results."""
    channels = [
        # By default, channels to one address share a connection.
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(0, count, WATCHES_PER_CHANNEL)
    ]
    seen = [Seen() for _ in range(count)]
    begun = [asyncio.Event() for _ in range(count)]
    tasks = [
        asyncio.create_task(watch(channels[n // WATCHES_PER_CHANNEL], begun[n], seen[n]))
        for n in range(count)
    ]
    await asyncio.gather(*(event.wait() for event in begun))
    print("watching", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    # A watch has no end, so the last change has arrived when nothing arrives any more.
    while time.time() - max(it.arrived for it in seen) < QUIET_SECONDS:  # noqa: ASYNC110
        await asyncio.sleep(QUIET_SECONDS / 10)
    for task in tasks:
        task.cancel()
    lags = [lag for it in seen for lag in it.lags]
    found = {
        "changes": min(it.changes for it in seen),
        "complete": len({(it.changes, it.last) for it in seen}) == 1,
        "lag_s": max(lags, default=0.0),
        "latency_ms": statistics.median(lags) * 1000 if lags else 0.0,
    }
    print(json.dumps(found), flush=True)
    for channel in channels:
        await channel.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
