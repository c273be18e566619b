"""A server in this process whose background work runs only when a test says so."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import pytest

from store_service.config import Config
from store_service.database.connect import Database
from store_service.server import serving
from store_service.service import background_steps, purge
from store_service.service.background_steps import BackgroundSteps, Work
from store_service.service.retention import Retention
from tests.support.errors import received_error
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout


class ManualSteps:
    """The background steps and the purge of a server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Disables the background tasks of servers that start from now on."""
        self._database: Database | None = None
        self._expected: Work | None = None

        async def begin(steps: BackgroundSteps) -> None:
            self._database = steps._database
            await asyncio.Event().wait()

        async def wait(_: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(BackgroundSteps, "run", begin)
        monkeypatch.setattr(Retention, "run", wait)

    @property
    def database(self) -> Database:
        assert self._database is not None
        return self._database

    async def step(self) -> bool:
        """Makes one step. Returns whether there was work."""
        found = await self.database.read(background_steps.FIND, None)
        if found is not None:
            await self.database.write(background_steps.STEP, found)
        return found is not None

    async def finish(self) -> None:
        """Makes all steps."""
        for _ in range(1000):
            if not await self.step():
                return
        raise AssertionError("the work does not end")

    async def purge(self, before: int) -> None:
        """Purges everything whose purge_time is before a time."""
        for _ in range(1000):
            if not await self.database.read(purge.EARLIEST, before):
                return
            await self.database.write(purge.PURGE, before)
        raise AssertionError("the purge does not end")


class DirectServer:
    """A server with its own event loop, for tests that are not asynchronous."""

    def __init__(self, runner: asyncio.Runner, channel: grpc.aio.Channel, steps: ManualSteps) -> None:
        """Takes the event loop, a channel to the server, and its background work."""
        self.runner = runner
        self.channel = channel
        self.stubs = Stubs(channel)
        self.steps = steps

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def attempt(self, method: Callable[..., Any], request: Any) -> Any:
        """Returns the response of a call, or its error."""

        async def call() -> Any:
            try:
                return await method(request, timeout=scaled_timeout())
            except grpc.RpcError as error:
                return received_error(error)

        return self.run(call())


@asynccontextmanager
async def _serve(config: Config) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        yield channel


@contextmanager
def direct_server(config: Config, steps: ManualSteps) -> Iterator[DirectServer]:
    """Runs a server until the end of the block."""
    with asyncio.Runner() as runner:
        context = _serve(config)
        channel = runner.run(context.__aenter__())
        try:
            yield DirectServer(runner, channel, steps)
        finally:
            runner.run(context.__aexit__(None, None, None))
