"""Programs as users write them. No checker may find anything here; the test beside this folder asks them.

`assert_type` fails for Any too, so these lines also say that nothing is left untyped.
"""

# ruff: noqa: T201 - programs of users print.

import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from datetime import datetime

import grpc
import storeapi
from storeapi import (
    CLIENT_DEFAULT,
    Action,
    AsyncStoreClient,
    Change,
    ChangeBatch,
    Comment,
    CommentDraft,
    CommentFilter,
    CommentNode,
    CommentUpdate,
    Found,
    Kind,
    Page,
    Pager,
    Post,
    PostDraft,
    PostFilter,
    PostUpdate,
    Start,
    StoreClient,
    Timeout,
    comment_tree,
)
from storeapi.testing import Call, ScriptedServer, running_server
from storeapi.v1 import changes_pb2, comments_pb2, posts_pb2

# typing has it from Python 3.11 on; grpcio brings this one.
from typing_extensions import assert_type  # noqa: UP035


def posts(client: StoreClient) -> None:
    assert_type(client.posts.create(body="a", request_id=str(uuid.uuid4())), Post)
    assert_type(client.posts.create(body="a", request_id=uuid.uuid4()), Post)
    assert_type(client.posts.create("a", request_id=uuid.uuid4()), Post)
    assert_type(client.posts.get(1, timeout=2), Post)
    assert_type(client.posts.update(1, body="b", etag="c", validate_only=True), Post)
    assert_type(client.posts.modify(1, lambda post: post.body + "!"), Post)
    assert_type(client.posts.modify(1, shortened), Post)
    assert_type(client.posts.modify(1, lambda post: replace(post, body="b")), Post)
    assert_type(client.posts.create_many([PostDraft(body="one"), "two"]), tuple[Post, ...])
    assert_type(client.posts.delete(1, force=True, allow_missing=True), Post)
    assert_type(client.posts.create("a", labels={"b": "c"}, external_id="d", return_existing=True), Post)
    assert_type(client.posts.undelete(1, request_id=uuid.uuid4()), Post)
    assert_type(client.posts.revisions(1, show_deleted=True), Pager[Post])
    assert_type(client.posts.get(1, show_deleted=True).purge_time, datetime | None)
    assert_type(client.posts.get(external_id="d"), Post)
    assert_type(client.posts.update(1, set_labels={"b": "e"}, remove_labels=["f"]), Post)
    assert_type(client.posts.update_many([PostUpdate(id=1, labels={})]), tuple[Post, ...])
    assert_type(client.posts.count(PostFilter(author="ann")), int)
    found = client.posts.get_many({1, 2}, external_ids=["d"], allow_missing=True)
    assert_type(found, Found[Post])
    assert_type(found[0], Post)
    assert_type(found.missing_ids, tuple[int, ...])
    several: tuple[Post, ...] = found
    print(several)
    assert_type(client.posts.create_many(line.strip() for line in ("one", "two")), tuple[Post, ...])
    assert_type(client.posts.delete_many(range(1, 3)), tuple[Post, ...])


def shortened(post: Post) -> str | None:
    return post.body[:10] if len(post.body) > 10 else None


def comments(client: StoreClient) -> None:
    assert_type(client.comments.create(post_id=1, body="a"), Comment)
    drafts = (CommentDraft(post_id=1, body=body) for body in ("one", "two"))
    assert_type(client.comments.create_many(drafts), tuple[Comment, ...])
    assert_type(client.comments.modify(1, lambda comment: comment.body.upper()), Comment)
    assert_type(client.comments.count([1, 2]), dict[int, int])
    assert_type(client.comments.delete(1, force=True).is_tombstone, bool)
    assert_type(client.comments.delete_many([1], force=True), tuple[Comment, ...])
    assert_type(client.comments.count_all(CommentFilter(reply_to_id=0)), int)
    assert_type(client.comments.count_replies([1], CommentFilter()), dict[int, int])
    assert_type(client.comments.update_many([CommentUpdate(id=1, body="b")]), tuple[Comment, ...])
    thread = client.comments.thread(1, newest_first=True)
    assert_type(thread, Pager[Comment])
    for node in comment_tree(thread):
        assert_type(node.comment, Comment)
        assert_type(node.replies, list[CommentNode])


def lists(client: StoreClient) -> Iterator[str]:
    pager = client.posts.list(order_by="id desc", page_size=100)
    assert_type(pager, Pager[Post])
    for post in pager:
        assert_type(post, Post)
        yield post.body
    for page in client.comments.list(post_id=1).pages():
        assert_type(page, Page[Comment])
    first = next(client.posts.pages(page_size=20))
    assert_type(first.items, tuple[Post, ...])
    assert_type(first.next_page_token + first.resume_token, str)
    yield from sorted(comment.body for comment in client.comments.list(limit=5))


def values(post: Post, comment: Comment) -> None:
    assert_type(post.create_time, datetime | None)
    assert_type(comment.post_id, int)
    assert_type(post.labels, Mapping[str, str])
    print(comment.reply_to_id + comment.depth, post.labels.get("status", ""))
    assert_type(storeapi.__version__, str)
    by_post: Mapping[int, list[Comment]] = {post.id: [comment]}
    assert len({post}) == len(by_post)


def changes(client: StoreClient, token: str | None) -> None:
    with client.changes.watch(
        resume_token=token, start="initial_state", kinds=("post",), post_ids=[1]
    ) as watch:
        for change in watch:
            print(described(change), watch.resume_token or "")
    for batch in client.changes.watch(start="earliest").batches():
        assert_type(batch, ChangeBatch)
        assert_type([change.id for change in batch], list[int])
        if batch.initial_state_complete and not batch.heartbeat:
            assert_type(batch.resume_token, str)


def described(change: Change) -> str:
    """Takes a change apart in both ways: by what was done, and by what it was done to."""
    match change.action:
        case "create" | "snapshot":
            verb = "there is"
        case "update":
            verb = "changed"
        case "delete":
            verb = "gone"
        case "undelete":
            verb = "there is again"
        case "unknown":
            return ""
    match change.resource:
        case Post(body=body):
            return f"{verb}: {body}"
        case Comment(body=body, post_id=post_id):
            return f"{verb} on {post_id}: {body}"
        case None:
            return f"{verb} at {change.commit_time}"


def matched(change: Change) -> str:
    match change:
        case Change(action="delete", kind="post", id=id):
            return f"post {id} is gone"
        case Change(resource=Post() as post):
            return assert_type(post, Post).body
        case _:
            return ""


def settings(action: Action, start: Start, timeout: Timeout = CLIENT_DEFAULT) -> None:
    kind: Kind = "unknown"
    client = storeapi.connect(
        ["a.example:50051", "b.example:50051"],
        timeout=None,
        retries=False,
        api_key="secret",
        tls_ca=b"-----BEGIN",
        channel_options=[*storeapi.CHANNEL_OPTIONS, ("grpc.lb_policy_name", "pick_first")],
    )
    assert_type(client, StoreClient)
    client.changes.watch(start=start, kinds=["post"], heartbeat_seconds=2, timeout=timeout).close()
    client.posts.get(1, timeout=timeout)
    print(action, kind)
    client.close()
    StoreClient("a.example:443", credentials=grpc.ssl_channel_credentials()).close()
    StoreClient(channel=grpc.insecure_channel("localhost:50051")).close()


def errors(client: StoreClient) -> None:
    try:
        client.posts.delete(1)
    except storeapi.PostHasComments as error:
        assert_type(error.comment_count, int | None)
        assert_type(error.post_ids, tuple[int, ...])
    except storeapi.PostNotFound as error:
        assert_type(error.post_id, int | None)
        assert_type(error.missing_ids, tuple[int, ...])
    except storeapi.EtagMismatch as error:
        assert_type(error.current_etag, str)
    except storeapi.InvalidRequest as error:
        assert_type(error.fields, Mapping[str, str])
        assert_type([violation.field for violation in error.violations], list[str])
    except storeapi.ResumeTokenExpired as error:
        assert_type(error.earliest_resume_token, str)
    except (storeapi.Unavailable, storeapi.DeadlineExceeded) as error:
        assert_type(error.retry_after, float | None)
        assert_type(error.request_id, str)
    except storeapi.StoreError as error:
        assert_type(error.code, grpc.StatusCode)
        assert_type(error.call_id, str | None)
        assert_type(error.metadata, dict[str, str])


def raw(client: StoreClient) -> None:
    reply = client.raw.posts.BatchGetPosts(posts_pb2.BatchGetPostsRequest(ids=[1], allow_missing=True))
    assert_type(reply, posts_pb2.BatchGetPostsResponse)
    assert_type(list(reply.missing_ids), list[int])
    counts = client.raw.comments.CountComments(comments_pb2.CountCommentsRequest(post_ids=[1]), timeout=1)
    assert_type(counts.counts[1], int)
    for response in client.raw.changes.Watch(changes_pb2.WatchRequest()):
        assert_type(response, changes_pb2.WatchResponse)


async def for_asyncio(client: AsyncStoreClient) -> AsyncIterator[Post]:
    assert_type(await client.posts.create(body="a"), Post)
    assert_type(await client.posts.modify(1, shortened, timeout=3), Post)
    assert_type(await client.posts.create_many(str(number) for number in range(3)), tuple[Post, ...])
    assert_type(await client.comments.count(range(3)), dict[int, int])
    assert_type([comment.id async for comment in client.comments.list(post_id=1)], list[int])
    assert_type(await anext(client.posts.pages(page_size=20)), Page[Post])
    async for page in client.posts.list().pages():
        assert_type(page, Page[Post])
    async with client.changes.watch(kinds=["comment"]) as watch:
        async for change in watch:
            assert_type(change, Change)
    async for batch in client.changes.watch().batches():
        assert_type(batch.changes, tuple[Change, ...])
    reply = await client.raw.posts.GetPost(posts_pb2.GetPostRequest(id=1))
    assert_type(reply, posts_pb2.Post)
    async for post in client.posts.list():
        yield post


async def program() -> None:
    async with storeapi.connect_async("localhost:50051", timeout=5) as client:
        assert_type(client, AsyncStoreClient)
        bodies = [post.body async for post in for_asyncio(client)]
        assert_type(bodies, list[str])


def tests_of_users() -> None:
    with ScriptedServer() as server, storeapi.connect(server.target) as client:
        server.fail("GetPost", storeapi.DatabaseBusy(retry_after=0.1), times=2)
        server.fail("GetPost", grpc.StatusCode.UNAVAILABLE)
        server.answer("GetPost", Post(id=1, body="a"))
        assert_type(client.posts.get(1), Post)
        assert_type(server.calls, tuple[Call, ...])
    with running_server({"STORE_MAX_BODY_BYTES": "100"}) as running:
        assert_type(running.target, str)
