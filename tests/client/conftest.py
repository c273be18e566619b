"""A real gRPC server that follows a script, and the two clients as one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
from storeapi import AsyncStoreClient, StoreClient, _retries
from storeapi.testing import ScriptedServer

from tests.support.scripted_server import (
    AwaitableClient,
    RpcScriptServer,
)
from tests.support.timeouts import scaled_timeout


@pytest.fixture
def server() -> Iterator[RpcScriptServer]:
    server = RpcScriptServer()
    yield server
    server.stop()


@pytest.fixture(params=["sync", "async"])
async def make_client(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Any]]:
    """Makes clients of one kind, both called with await, and closes them."""
    clients: list[Any] = []

    def make(*arguments: Any, **keywords: Any) -> Any:
        if request.param == "async":
            clients.append(AsyncStoreClient(*arguments, **keywords))
        else:
            clients.append(AwaitableClient(StoreClient(*arguments, **keywords)))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
def make_channel(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """Makes channels of the kind that `make_client`'s clients take; to be closed by the test."""
    is_async = request.node.callspec.params["make_client"] == "async"
    return grpc.aio.insecure_channel if is_async else grpc.insecure_channel


@pytest.fixture
async def client(make_client: Callable[..., Any], server: RpcScriptServer) -> Any:
    return make_client(server.target)


@pytest.fixture
async def async_client(server: RpcScriptServer) -> AsyncIterator[AsyncStoreClient]:
    async with AsyncStoreClient(server.target) as client:
        yield client


@pytest.fixture
def asked(server: RpcScriptServer) -> Callable[[], Any]:
    """Waits until the server has got a call."""
    return lambda: asyncio.to_thread(server.asked.wait, scaled_timeout())


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    """The scripted server that the client distribution offers to its users."""
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the pauses between attempts: their existence is under test, not their length."""
    monkeypatch.setattr(_retries, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(_retries, "LONGEST_PAUSE_SECONDS", 0.01)
