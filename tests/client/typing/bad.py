"""Type errors, one per marked line. The comment "expect" names the error code of mypy."""

# ruff: noqa: T201 - programs of users print.

import grpc.aio
import storeapi
from storeapi import (
    AsyncStoreClient,
    Change,
    CommentDraft,
    CommentFilter,
    CommentUpdate,
    Post,
    PostFilter,
    StoreClient,
)
from storeapi.testing import ScriptedServer
from storeapi.v1 import comments_pb2, posts_pb2


def values(post: Post, change: Change) -> None:
    number: int = post.body  # expect: assignment
    print(number)
    post.body = "changed"  # expect: misc
    print(post.create_time.year)  # expect: union-attr
    print(post.post_id)  # expect: attr-defined
    post.labels["a"] = "b"  # expect: index
    print(change.resource.body)  # expect: union-attr
    print(change.action == "deleted")  # expect: comparison-overlap
    CommentDraft(1, "a")  # expect: call-arg
    CommentDraft(post_id=1)  # expect: call-arg


def arguments(client: StoreClient) -> None:
    client.comments.create(1, "positional")  # expect: call-arg
    client.posts.create(body=1)  # expect: arg-type
    client.posts.create(body="a", etag="b")  # expect: call-arg
    client.posts.get("1")  # expect: arg-type
    client.posts.get(1, timeout="5")  # expect: arg-type
    client.posts.update()  # expect: call-arg
    client.posts.update(1, labels=["a"])  # expect: arg-type
    client.posts.update(1, set_labels={"a": 1})  # expect: dict-item
    client.posts.update_many([CommentUpdate(id=1)])  # expect: list-item
    client.posts.create("a", reply_to_id=1)  # expect: call-arg
    client.posts.list(filter=CommentFilter())  # expect: arg-type
    client.comments.count([1], PostFilter())  # expect: arg-type
    client.comments.thread()  # expect: call-arg
    PostFilter(reply_to_id=1)  # expect: call-arg
    client.posts.list(post_id=1)  # expect: call-arg
    client.posts.list(limit="5")  # expect: arg-type
    client.posts.modify(1, lambda post: post.id)  # expect: return-value
    client.posts.delete_many(["1"])  # expect: list-item
    client.comments.undelete(1, force=True)  # expect: call-arg
    client.comments.create_many(["text"])  # expect: list-item


def watching(client: StoreClient) -> None:
    client.changes.watch(kinds=["posts"])  # expect: list-item
    client.changes.watch(start="beginning")  # expect: arg-type
    client.changes.watch(resume_token=b"token")  # expect: arg-type
    client.changes.watch(post_filter=CommentFilter())  # expect: arg-type
    for batch in client.changes.watch().batches():
        print(batch.kind)  # expect: attr-defined


def clients() -> None:
    StoreClient(50051)  # expect: arg-type
    StoreClient("localhost:50051", 5.0)  # expect: call-arg
    StoreClient(channel=grpc.aio.insecure_channel("localhost:50051"))  # expect: arg-type
    storeapi.connect_async(retries="no")  # expect: arg-type
    storeapi.typo()  # expect: attr-defined


def errors(client: StoreClient) -> None:
    try:
        client.posts.get(1)
    except storeapi.PostNotFound as error:
        print(error.comment_id)  # expect: attr-defined
    except storeapi.InvalidRequest as error:
        error.fields["post.body"] = "better"  # expect: index
    except storeapi.StoreError as error:
        print(error.retry_after + 1)  # expect: operator


def raw(client: StoreClient) -> None:
    posts_pb2.GetPostRequest(ids=[1])  # expect: call-arg
    client.raw.posts.GetPost(comments_pb2.GetCommentRequest(id=1))  # expect: arg-type


async def for_asyncio(client: AsyncStoreClient, for_threads: StoreClient) -> None:
    client.posts.create(body="a")  # expect: unused-coroutine
    print(client.posts.get(1).body)  # expect: attr-defined
    post: Post = client.posts.get(1)  # expect: assignment
    print(post)
    await for_threads.posts.get(1)  # expect: misc
    list(client.posts.list())  # expect: call-overload
    with client:  # expect: attr-defined
        print("open")


def watches(client: StoreClient) -> None:
    client.changes.watch(kinds=["unknown"])  # expect: list-item


def tests_of_users(server: ScriptedServer) -> None:
    server.fail("GetPost", "PostNotFound")  # expect: arg-type
