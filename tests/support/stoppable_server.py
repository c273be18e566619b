"""A server in this process that a test stops."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from store_service.config import Config
from store_service.server import RunningServer, serving


@dataclass
class StoppableServer:
    """A server that a test can stop."""

    running: RunningServer
    stop_now: asyncio.Event
    task: "asyncio.Task[None]"

    def stop(self) -> "asyncio.Task[None]":
        """Starts the shutdown. The task ends when the server has stopped."""
        self.stop_now.set()
        return self.task


@asynccontextmanager
async def stoppable_server(config: Config) -> AsyncIterator[StoppableServer]:
    """A server that runs until `stop` or the end of the block."""
    ready: asyncio.Future[RunningServer] = asyncio.get_running_loop().create_future()
    stop_now = asyncio.Event()

    async def serve() -> None:
        async with serving(config) as running:
            ready.set_result(running)
            await stop_now.wait()

    task = asyncio.create_task(serve())
    await asyncio.wait([ready, task], return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        await task
    try:
        yield StoppableServer(ready.result(), stop_now, task)
    finally:
        stop_now.set()
        await task
