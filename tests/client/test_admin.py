"""`client.admin`: both clients against a real server."""

from collections.abc import Iterator
from typing import Any

import pytest
import storeapi
from storeapi import EraseProgress
from storeapi.testing import RunningServer, running_server


@pytest.fixture(scope="module")
def real() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@pytest.fixture
async def client(make_client: Any, real: RunningServer) -> Any:
    return make_client(real.target)


async def read(steps: Any) -> list[EraseProgress]:
    return [it async for it in steps]


async def test_erase_author_yields_progress(client: Any) -> None:
    """The last progress is complete; a dry run has the same numbers and changes nothing."""
    post = await client.posts.create("mine", author="ann")
    other = await client.posts.create("not mine", author="bob")
    comment = await client.comments.create(post_id=other.id, body="mine too", author="ann")

    planned = await read(client.admin.erase_author("ann", mode="anonymize", validate_only=True))
    assert (await client.posts.get(post.id)).body == "mine"
    erased = await read(client.admin.erase_author("ann", mode="anonymize", skip_rewrite=True))
    again = await read(client.admin.erase_author("ann", mode="delete"))

    for steps, count in ((planned, 1), (erased, 1), (again, 0)):
        assert [it.complete for it in steps] == [False] * (len(steps) - 1) + [True]
        assert (steps[-1].posts, steps[-1].comments) == (count, count)
        assert steps[-1].progress == 1
    with pytest.raises(storeapi.PostNotFound):
        await client.posts.get(post.id)
    with pytest.raises(storeapi.CommentNotFound):
        await client.comments.get(comment.id)
    assert (await client.posts.get(other.id)).author == "bob"


async def test_erasure_that_is_closed_ends(client: Any) -> None:
    """It yields nothing more."""
    await client.posts.create("mine", author="cat")
    async with client.admin.erase_author("cat", mode="delete") as erasure:
        assert not (await anext(erasure)).complete
    assert await read(erasure) == []
    assert (await read(client.admin.erase_author("cat", mode="delete")))[-1].complete


async def test_invalid_arguments_are_errors(client: Any) -> None:
    """The service checks the author; the client knows the modes."""
    with pytest.raises(storeapi.FieldInvalid):
        await read(client.admin.erase_author("", mode="delete"))
    with pytest.raises(ValueError, match="mode must be"):
        client.admin.erase_author("ann", mode="hide")
