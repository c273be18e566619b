"""The ceiling: grpc.aio on uvloop with typed messages, without a database.

Every response is created in advance and as large as that of the service. No service that uses grpc.aio can be
faster.
"""
# The methods have the names of the RPCs, which the .proto files document.
# ruff: noqa: D102, N802

import asyncio

import grpc
import uvloop
from storeapi.v1 import posts_pb2 as pb
from storeapi.v1.posts_pb2_grpc import PostServiceServicer, add_PostServiceServicer_to_server

from benchmarks.contenders.wire import new_row, post_message, serve_until_sigterm
from benchmarks.workloads import BATCH_POSTS, BODY, LIST_POSTS, SEEDED_POSTS

POST = post_message({"id": SEEDED_POSTS, **new_row(BODY)})
PAGE = pb.ListPostsResponse(posts=[POST] * LIST_POSTS, next_page_token="x" * 32)
FOUND = pb.BatchGetPostsResponse(posts=[POST] * BATCH_POSTS)
CREATED = pb.BatchCreatePostsResponse(posts=[POST] * BATCH_POSTS)

Context = grpc.aio.ServicerContext


class PostService(PostServiceServicer):
    """Returns prepared responses."""

    async def GetPost(self, request: pb.GetPostRequest, context: Context) -> pb.Post:
        return POST

    async def CreatePost(self, request: pb.CreatePostRequest, context: Context) -> pb.Post:
        return POST

    async def ListPosts(self, request: pb.ListPostsRequest, context: Context) -> pb.ListPostsResponse:
        return PAGE

    async def BatchGetPosts(
        self, request: pb.BatchGetPostsRequest, context: Context
    ) -> pb.BatchGetPostsResponse:
        return FOUND

    async def BatchCreatePosts(
        self, request: pb.BatchCreatePostsRequest, context: Context
    ) -> pb.BatchCreatePostsResponse:
        return CREATED


async def main() -> None:
    """Serves until SIGTERM."""
    server = grpc.aio.server()
    add_PostServiceServicer_to_server(PostService(), server)
    await serve_until_sigterm("ceiling", server)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
