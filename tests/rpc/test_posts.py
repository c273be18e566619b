"""PostService, over a real channel."""

import grpc

from storeapi.v1 import posts_pb2 as pb
from tests.support import Stubs, failure


async def test_a_created_post_can_be_read(stubs: Stubs) -> None:
    """What was stored is what is read, with everything that the server added."""
    created = await stubs.create_post("hello")

    assert created.body == "hello"
    assert await stubs.posts.GetPost(pb.GetPostRequest(id=created.id)) == created


async def test_a_missing_post_is_not_found(stubs: Stubs) -> None:
    """An id that names no post is an error with the id in it."""
    error = await failure(stubs.posts.GetPost(pb.GetPostRequest(id=42)))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "POST_NOT_FOUND")
    assert error.metadata["post_id"] == "42"
