"""Fixtures of the tests of the RPC layer."""

import asyncio
from typing import Any

import grpc
import pytest

from store_service.service.background_steps import BackgroundSteps
from store_service.service.retention import Retention
from store_service.service.search_index import SearchIndex
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs
from tests.support.write_queue import WriteQueue


@pytest.fixture(params=["Post", "Comment"])
async def api(request: pytest.FixtureRequest, stubs: Stubs) -> ResourceApi:
    """Each of the two services in turn. New comments belong to an existing post."""
    if request.param == "Post":
        return ResourceApi("Post", stubs)
    return ResourceApi("Comment", stubs, post_id=(await stubs.create_post()).id)


@pytest.fixture
async def posts(stubs: Stubs) -> ResourceApi:
    """PostService alone."""
    return ResourceApi("Post", stubs)


@pytest.fixture
async def comments(stubs: Stubs) -> ResourceApi:
    """CommentService alone, with a post for new comments."""
    return ResourceApi("Comment", stubs, post_id=(await stubs.create_post()).id)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The handler of every method by path. The start of the server fills it."""
    methods: dict[str, Any] = {}
    add = grpc.aio._server.Server.add_generic_rpc_handlers

    def record(server: Any, handlers: Any) -> None:
        for handler in handlers:
            methods.update(handler._method_handlers)
        add(server, handlers)

    monkeypatch.setattr(grpc.aio._server.Server, "add_generic_rpc_handlers", record)
    return methods


@pytest.fixture(autouse=True)
def no_retention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables retention and removal in tests that count jobs, so that only callers create jobs."""

    async def wait_forever(_: object) -> None:
        await asyncio.Event().wait()

    if "write_queue" in request.fixturenames:
        # Before a server starts, whatever the order of the fixtures.
        monkeypatch.setattr(Retention, "run", wait_forever)
        monkeypatch.setattr(BackgroundSteps, "run", wait_forever)
        monkeypatch.setattr(SearchIndex, "run", wait_forever)


@pytest.fixture
def write_queue(monkeypatch: pytest.MonkeyPatch) -> WriteQueue:
    """The jobs of the writer."""
    return WriteQueue(monkeypatch)
