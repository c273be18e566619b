"""Fixtures for pytest: `pytest_plugins = ["storeapi.testing.fixtures"]` in the topmost conftest.py.

    def test_what_is_stored_is_found(store_client):
        post = store_client.posts.create(body="Hello")
        assert store_client.posts.get(post.id) == post

`store_server` runs once for the whole session; with pytest-xdist, once for each worker. Each test that asks
for `empty_store` or `store_client` finds no posts, for what is left is deleted first: that takes a few
milliseconds, where a new server would take a second. Ids and the change feed go on all the same, and what
other fixtures stored on `store_server` is deleted too. `running_server()` gives a test a server of its own.

Without store-service these fixtures fail and say how to install it. They do not skip: a run in which every
test of the store was skipped looks like one in which they passed. `pytest.importorskip("store_service")` at
the top of a test module makes the other choice.
"""

from collections.abc import Iterator

import pytest

from storeapi import StoreClient
from storeapi.testing import RunningServer, ScriptedServer, ServerNotInstalled, running_server

__all__ = ["store_server", "empty_store", "store_client", "scripted_server"]

_AT_ONCE = 1000


@pytest.fixture(scope="session")
def store_server() -> Iterator[RunningServer]:
    """A real server for all tests; they see what the others stored."""
    try:
        with running_server() as server:
            yield server
    except ServerNotInstalled as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def empty_store(store_server: RunningServer) -> RunningServer:
    """The server of the session without a post or comment; for clients of your own, AsyncStoreClient too."""
    with _client(store_server) as client:
        _delete_everything(client)
    return store_server


@pytest.fixture
def store_client(empty_store: RunningServer) -> Iterator[StoreClient]:
    """A client of the server of the session, which has no post or comment at first."""
    with _client(empty_store) as client:
        yield client


@pytest.fixture
def scripted_server() -> Iterator[ScriptedServer]:
    """A server that fails on demand, without upstream."""
    with ScriptedServer() as server:
        yield server


def _client(server: RunningServer) -> StoreClient:
    """A client that the environment does not lead astray: STOREAPI_TLS may be set for another server."""
    return StoreClient(server.target, timeout=10.0, tls=False)


def _delete_everything(client: StoreClient) -> None:
    for page in client.posts.pages(page_size=_AT_ONCE):
        if page.items:
            client.posts.delete_many([post.id for post in page.items], force=True, allow_missing=True)
