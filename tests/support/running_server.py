"""A server in this process with its own settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from store_service.config import Config
from store_service.server import RunningServer, serving
from tests.support.stubs import Stubs


@asynccontextmanager
async def server_with(config: Config, **settings: Any) -> AsyncIterator[tuple[RunningServer, Stubs]]:
    """A server with changed settings, and stubs on a channel to it."""
    async with (
        serving(config.model_copy(update=settings)) as server,
        grpc.aio.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        yield server, Stubs(channel)
