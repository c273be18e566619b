"""Generated stubs of all services."""

import grpc
from storeapi.v1 import (
    admin_pb2_grpc,
    changes_pb2_grpc,
    comments_pb2,
    comments_pb2_grpc,
    posts_pb2,
    posts_pb2_grpc,
    transfer_pb2_grpc,
)

NO_READ_AHEAD = [("grpc.http2.bdp_probe", 0)]
"""Channel options that limit read-ahead of a stream to 64 KiB.

By default gRPC estimates the bandwidth-delay product and reads ahead up to 25 MB on a busy machine.
"""


class Stubs:
    """The stubs of all services, with shortcuts to create resources."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.posts = posts_pb2_grpc.PostServiceStub(channel)
        self.comments = comments_pb2_grpc.CommentServiceStub(channel)
        self.changes = changes_pb2_grpc.ChangeServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        self.transfers = transfer_pb2_grpc.TransferServiceStub(channel)

    async def create_post(self, body: str = "a post") -> posts_pb2.Post:
        return await self.posts.CreatePost(posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body)))

    async def create_comment(self, post_id: int, body: str = "a comment") -> comments_pb2.Comment:
        comment = comments_pb2.Comment(post_id=post_id, body=body)
        return await self.comments.CreateComment(comments_pb2.CreateCommentRequest(comment=comment))
