"""Fixtures of the tests of the wire."""

import asyncio

import pytest

from store_service.store.keeping import Keeping
from store_service.store.removal import Remover
from tests.rpc.helpers import Side, Taken
from tests.support import Stubs


@pytest.fixture(params=["Post", "Comment"])
async def side(request: pytest.FixtureRequest, stubs: Stubs) -> Side:
    """Each of the two services in turn; comments belong to a post that is there."""
    if request.param == "Post":
        return Side("Post", stubs)
    return Side("Comment", stubs, post_id=(await stubs.create_post()).id)


@pytest.fixture
async def posts(stubs: Stubs) -> Side:
    """PostService alone."""
    return Side("Post", stubs)


@pytest.fixture
async def comments(stubs: Stubs) -> Side:
    """CommentService alone, with a post that new comments belong to."""
    return Side("Comment", stubs, post_id=(await stubs.create_post()).id)


@pytest.fixture(autouse=True)
def nothing_is_too_old(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where work is counted it is the work of callers: the service deletes nothing meanwhile."""

    async def keeps_everything(_: object) -> None:
        await asyncio.Event().wait()

    if "taken" in request.fixturenames:
        # Before there is a server, whichever fixture a test asks for first.
        monkeypatch.setattr(Keeping, "run", keeps_everything)
        monkeypatch.setattr(Remover, "run", keeps_everything)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """What the workers take, and what waits for them."""
    return Taken(monkeypatch)
