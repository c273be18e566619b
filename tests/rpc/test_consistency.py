"""The metadata of consistency without replicas, where every read sees every write."""

import grpc
import pytest
from storeapi.v1 import posts_pb2

from tests.support.errors import expect_error
from tests.support.stubs import Stubs
from tests.support.watches import current_token

GET = posts_pb2.GetPostRequest(id=1)


@pytest.mark.parametrize("mode", ["strong", "eventual"])
async def test_read_is_answered_as_without_metadata(
    stubs: Stubs, channel: grpc.aio.Channel, mode: str
) -> None:
    """No token is sent, and a valid one is accepted."""
    post = await stubs.create_post()
    at_least = ("at-least", await current_token(channel))

    for metadata in ([at_least], [("consistency", mode)], [at_least, ("consistency", mode), at_least]):
        call = stubs.posts.GetPost(posts_pb2.GetPostRequest(id=post.id), metadata=metadata)

        assert await call == post
        assert "consistency-token" not in dict(await call.trailing_metadata())


@pytest.mark.parametrize("values", [["Strong"], [""], ["at-least"], ["strong", "eventual"]])
async def test_unknown_consistency_is_refused(stubs: Stubs, values: list[str]) -> None:
    metadata = [("consistency", it) for it in values]

    error = await expect_error(stubs.posts.GetPost(GET, metadata=metadata))

    assert (error.reason, error.fields) == ("FIELD_INVALID", ["consistency"])


async def test_token_is_checked_before_a_write_is_executed(stubs: Stubs) -> None:
    request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="a"))

    error = await expect_error(stubs.posts.CreatePost(request, metadata=[("at-least", "x")]))

    assert (error.reason, error.fields) == ("CONSISTENCY_TOKEN_INVALID", ["at-least"])
    assert not (await stubs.posts.ListPosts(posts_pb2.ListPostsRequest())).posts


async def test_one_damaged_token_of_several_is_refused(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    metadata = [("at-least", await current_token(channel)), ("at-least", "x")]

    error = await expect_error(stubs.posts.GetPost(GET, metadata=metadata))

    assert error.reason == "CONSISTENCY_TOKEN_INVALID"
