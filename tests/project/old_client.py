"""A program of a user with another Python and other libraries: `old_client.py ADDRESS SECONDS`.

No test imports it. It knows nothing but what the wheel brings, and prints which Python and
which libraries it met.
"""

import asyncio
import platform
import sys
from importlib.metadata import version

import grpc
import storeapi
from google.rpc import error_details_pb2, status_pb2
from storeapi.testing import ScriptedServer
from storeapi.v1 import (
    changes_pb2,
    changes_pb2_grpc,
    comments_pb2,
    comments_pb2_grpc,
    errors_pb2,
    posts_pb2,
    posts_pb2_grpc,
)

CALL_SECONDS = float(sys.argv[2])
"""A call that takes longer hangs."""


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
    with storeapi.connect(address, timeout=CALL_SECONDS) as client:
        request_id = "018f6b5e-6a1c-7c3e-9d2b-3f4a5b6c7d8e"
        post = client.posts.create(body="a post", request_id=request_id)
        assert client.posts.create(body="a post", request_id=request_id) == post
        comments = [client.comments.create(post_id=post.id, body=body) for body in ("one", "two")]
        assert list(client.comments.list(post_id=post.id, page_size=1)) == comments
        drafts = (storeapi.CommentDraft(post_id=post.id, body=body) for body in ("three", "four"))
        comments += client.comments.create_many(drafts)
        pages = client.comments.pages(post_id=post.id, page_size=3)
        assert [len(page.items) for page in pages] == [3, 1]
        assert client.comments.count([post.id]) == {post.id: 4}
        changed = client.posts.update(post.id, body="changed", etag=post.etag)
        assert client.posts.get(post.id) == changed
        watch_changes(client, changed)
        fail(client, post)


def watch_changes(client: storeapi.StoreClient, post: storeapi.Post) -> None:
    """What is there first, then what happens."""
    with client.changes.watch(start="initial_state", kinds=["post"], post_ids=[post.id]) as watch:
        change = next(watch)
        assert (change.action, change.kind, change.resource) == ("snapshot", "post", post)
        modified = client.posts.modify(post.id, lambda it: it.body + " again")
        change = next(watch)
        assert (change.action, change.resource, modified.body) == ("update", modified, "changed again")
        token = watch.resume_token
    client.posts.modify(post.id, lambda it: it.body.upper())
    batches = client.changes.watch(resume_token=token).batches()
    told = next(batch.changes for batch in batches if batch.changes)
    assert [change.id for change in told] == [post.id]


def fail(client: storeapi.StoreClient, post: storeapi.Post) -> None:
    """Errors with what belongs to them."""
    told: list[object] = []
    try:
        client.posts.update(post.id, body="changed again", etag=post.etag)
    except storeapi.EtagMismatch as error:
        told = [error.current_etag]
    assert told == [client.posts.get(post.id).etag]
    try:
        client.posts.delete(post.id)
    except storeapi.PostHasComments as error:
        told = [error.post_id, error.comment_count]
    assert told == [post.id, 4]
    try:
        client.posts.create(body="")
    except storeapi.FieldInvalid as error:
        told = [violation.field for violation in error.violations]
    assert told == ["post.body"]


def with_retries(address: str) -> None:
    """A write whose answer is lost happens once, and a service that is busy is asked again."""
    with ScriptedServer(upstream=address) as server:
        server.lose_answer("CreatePost")
        server.fail("GetPost", storeapi.DatabaseBusy(retry_after=0.01))
        with storeapi.connect(server.target, timeout=CALL_SECONDS) as client:
            post = client.posts.create(body="stored once")
            assert client.posts.get(post.id) == post
            assert [it.id for it in client.posts.list() if it.body == post.body] == [post.id]
        assert [len(server.calls_of(method)) for method in ("CreatePost", "GetPost")] == [2, 2]


async def with_the_client_for_asyncio(address: str) -> None:
    """The client for asyncio."""
    async with storeapi.connect_async(address, timeout=CALL_SECONDS) as client:
        posts = await client.posts.create_many(["one", "two", "three"])
        ids = {post.id for post in posts}
        assert [post async for post in client.posts.list(page_size=2) if post.id in ids] == list(posts)
        async with client.changes.watch(start="initial_state", post_ids=[posts[0].id]) as watch:
            assert (await anext(watch)).resource == posts[0]
            modified = await client.posts.modify(posts[0].id, lambda post: post.body + "!")
            assert (await anext(watch)).resource == modified
        deleted = await client.posts.delete_many(post.id for post in posts)
        assert deleted == (modified, *posts[1:])
        message = ""
        try:
            await client.posts.get(posts[0].id)
        except storeapi.PostNotFound as error:
            message = str(error)
        assert str(posts[0].id) in message


if __name__ == "__main__":
    with_the_stubs(sys.argv[1])
    with_the_client(sys.argv[1])
    with_retries(sys.argv[1])
    asyncio.run(with_the_client_for_asyncio(sys.argv[1]))
    # The test reads it.
    print(platform.python_version(), *map(version, ("protobuf", "grpcio", "googleapis-common-protos")))  # noqa: T201
