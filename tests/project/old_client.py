"""A program of a user who has the oldest libraries: `old_client.py ADDRESS`. No test imports it.

It knows nothing but what the wheel brings, and prints which libraries it met.
"""

import asyncio
import sys
from importlib.metadata import version

import grpc
import storeapi
from google.rpc import error_details_pb2, status_pb2
from storeapi.v1 import (
    changes_pb2,
    changes_pb2_grpc,
    comments_pb2,
    comments_pb2_grpc,
    errors_pb2,
    posts_pb2,
    posts_pb2_grpc,
)

CALL_SECONDS = 30


def with_the_stubs(address: str) -> None:
    """Messages and stubs, without the client."""
    with grpc.insecure_channel(address) as channel:
        posts = posts_pb2_grpc.PostServiceStub(channel)
        comments = comments_pb2_grpc.CommentServiceStub(channel)

        draft = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="é"))
        post = posts.CreatePost(draft, timeout=CALL_SECONDS)
        assert (post.body, post.HasField("create_time")) == ("é", True)
        comment = comments_pb2.Comment(post_id=post.id, body="a comment")
        created = comments.CreateComment(
            comments_pb2.CreateCommentRequest(comment=comment), timeout=CALL_SECONDS
        )
        change = posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=post.id), update_mask={"paths": ["body"]})
        change.post.body = "changed"
        assert posts.UpdatePost(change, timeout=CALL_SECONDS).body == "changed"
        counted = comments_pb2.CountCommentsRequest(post_ids=[post.id])
        assert dict(comments.CountComments(counted, timeout=CALL_SECONDS).counts) == {post.id: 1}
        page = comments.ListComments(comments_pb2.ListCommentsRequest(post_id=post.id), timeout=CALL_SECONDS)
        assert list(page.comments) == [created]
        posts.CreatePost(draft, timeout=CALL_SECONDS)
        start = changes_pb2.WatchRequest(resume_token=page.resume_token)
        watch = changes_pb2_grpc.ChangeServiceStub(channel).Watch(start, timeout=CALL_SECONDS)
        told = next(list(response.changes) for response in watch if response.changes)
        assert [(change.action, change.post.body) for change in told] == [(changes_pb2.ACTION_CREATE, "é")]
        watch.cancel()

        try:
            posts.DeletePost(posts_pb2.DeletePostRequest(id=post.id), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
            info = error_details_pb2.ErrorInfo()
            assert status.details[0].Unpack(info)
            known = errors_pb2.ErrorReason.Value(f"ERROR_REASON_{info.reason}")
            assert known == errors_pb2.ERROR_REASON_POST_HAS_COMMENTS
        else:
            raise AssertionError("a post with comments was deleted without force")


def with_the_client(address: str) -> None:
    """The client for threads."""
    with storeapi.StoreClient(address, timeout=CALL_SECONDS) as client:
        request_id = "018f6b5e-6a1c-7c3e-9d2b-3f4a5b6c7d8e"
        post = client.posts.create(body="a post", request_id=request_id)
        assert client.posts.create(body="a post", request_id=request_id) == post
        comments = [client.comments.create(post_id=post.id, body=body) for body in ("one", "two")]
        assert list(client.comments.list(post_id=post.id, page_size=1)) == comments
        changed = client.posts.update(post.id, body="changed", etag=post.etag)
        assert client.posts.get(post.id) == changed
        try:
            client.posts.update(post.id, body="changed again", etag=post.etag)
        except storeapi.EtagMismatch:
            pass
        else:
            raise AssertionError("an old etag was taken")
        fields = []
        try:
            client.posts.create(body="")
        except storeapi.FieldInvalid as error:
            fields = [violation.field for violation in error.violations]
        assert fields == ["post.body"]


async def with_the_client_for_asyncio(address: str) -> None:
    """The client for asyncio."""
    async with storeapi.AsyncStoreClient(address, timeout=CALL_SECONDS) as client:
        posts = await client.posts.create_many(["one", "two", "three"])
        ids = {post.id for post in posts}
        assert [post async for post in client.posts.list(page_size=2) if post.id in ids] == list(posts)
        assert await client.posts.delete_many(ids=[post.id for post in posts]) == posts
        message = ""
        try:
            await client.posts.get(posts[0].id)
        except storeapi.PostNotFound as error:
            message = str(error)
        assert str(posts[0].id) in message


if __name__ == "__main__":
    with_the_stubs(sys.argv[1])
    with_the_client(sys.argv[1])
    asyncio.run(with_the_client_for_asyncio(sys.argv[1]))
    # The test reads it.
    print(version("protobuf"), version("grpcio"), version("googleapis-common-protos"))  # noqa: T201
