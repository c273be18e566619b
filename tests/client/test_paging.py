"""Lists that are read page by page."""

import asyncio
import re
from datetime import UTC, datetime

import grpc
import pytest
import storeapi
from google.protobuf.timestamp_pb2 import Timestamp
from storeapi import CommentFilter, PostFilter
from storeapi.v1 import comments_pb2, filters_pb2, posts_pb2

KINDS = ["posts", "comments"]


def page(kind, ids, next_page_token=""):
    """A response with a page of resources that have only ids."""
    if kind == "posts":
        items = [posts_pb2.Post(id=id) for id in ids]
        return posts_pb2.ListPostsResponse(posts=items, next_page_token=next_page_token)
    items = [comments_pb2.Comment(id=id) for id in ids]
    return comments_pb2.ListCommentsResponse(comments=items, next_page_token=next_page_token)


@pytest.mark.parametrize("kind", KINDS)
async def test_list_reads_all_pages(client, server, kind):
    """Each page is requested with the token of the previous one. An empty page is not the end."""
    server.answer(page(kind, [1, 2], "t1"), page(kind, [], "t2"), page(kind, [3]))

    ids = [item.id async for item in getattr(client, kind).list()]

    assert ids == [1, 2, 3]
    assert [request.page_token for request in server.requests] == ["", "t1", "t2"]


@pytest.mark.parametrize("kind", KINDS)
async def test_list_requests_pages_lazily(client, server, kind):
    """Creating the iterator sends nothing."""
    server.answer(page(kind, [1, 2], "t1"))

    items = getattr(client, kind).list()
    calls_when_made = len(server.calls)
    ids = [(await anext(items)).id, (await anext(items)).id]

    assert calls_when_made == 0
    assert ids == [1, 2]
    assert len(server.calls) == 1


@pytest.mark.parametrize("method", ["list", "pages"])
async def test_every_page_of_posts_has_the_same_query(client, server, method):
    """Order, page size and start are sent with every page, because a token is bound to its query."""
    server.answer(page("posts", [2], "t2"), page("posts", [1]))

    _ = [
        item async for item in getattr(client.posts, method)(order_by="id desc", page_size=1, page_token="t1")
    ]

    assert server.requests == [
        posts_pb2.ListPostsRequest(order_by="id desc", page_size=1, page_token="t1"),
        posts_pb2.ListPostsRequest(order_by="id desc", page_size=1, page_token="t2"),
    ]


@pytest.mark.parametrize("method", ["list", "pages"])
async def test_every_page_of_comments_has_the_same_query(client, server, method):
    """The post is part of the query."""
    server.answer(page("comments", [2], "t2"), page("comments", [1]))

    _ = [
        item
        async for item in getattr(client.comments, method)(
            post_id=7, order_by="id desc", page_size=1, page_token="t1"
        )
    ]

    assert server.requests == [
        comments_pb2.ListCommentsRequest(post_id=7, order_by="id desc", page_size=1, page_token="t1"),
        comments_pb2.ListCommentsRequest(post_id=7, order_by="id desc", page_size=1, page_token="t2"),
    ]


@pytest.mark.parametrize("method", ["list", "pages"])
@pytest.mark.parametrize("kind", KINDS)
async def test_every_page_has_the_same_filter(client, server, kind, method):
    """Also after an empty page."""
    server.answer(page(kind, [], "t1"), page(kind, [1]))
    time = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    theirs = {
        "author": "ann",
        "labels": {"status": "new"},
        "create_time_from": Timestamp(seconds=int(time.timestamp()), nanos=678901000),
    }
    ours = {"author": "ann", "labels": {"status": "new"}, "create_time_from": time}
    filter, message = {
        "posts": (PostFilter(**ours), filters_pb2.PostFilter(**theirs)),
        "comments": (
            CommentFilter(**ours, reply_to_id=0),
            filters_pb2.CommentFilter(**theirs, reply_to_id=0),
        ),
    }[kind]

    _ = [it async for it in getattr(getattr(client, kind), method)(filter=filter, order_by="create_time")]

    request = type(server.requests[0])
    assert server.requests == [
        request(order_by="create_time", filter=message),
        request(order_by="create_time", filter=message, page_token="t1"),
    ]


@pytest.mark.parametrize(
    ("arguments", "order"),
    [({}, "thread"), ({"newest_first": True}, "thread desc"), ({"newest_first": False}, "thread")],
)
async def test_thread_is_a_list_in_its_order(client, server, arguments, order):
    """Of one post, with the arguments of a list."""
    server.answer(page("comments", [2], "t1"), page("comments", [1]))

    thread = client.comments.thread(
        7, **arguments, filter=CommentFilter(author="ann"), limit=2, page_size=1, page_token="t"
    )
    ids = [comment.id async for comment in thread]

    assert ids == [2, 1]
    assert server.requests == [
        comments_pb2.ListCommentsRequest(
            post_id=7,
            order_by=order,
            filter=filters_pb2.CommentFilter(author="ann"),
            page_size=1,
            page_token=token,
        )
        for token in ("t", "t1")
    ]


@pytest.mark.parametrize("method", ["list", "pages"])
@pytest.mark.parametrize("kind", KINDS)
async def test_list_without_arguments_is_complete_and_oldest_first(client, server, kind, method):
    """The order is sent explicitly; the page size is that of the service."""
    server.answer(page(kind, []))

    _ = [item async for item in getattr(getattr(client, kind), method)()]

    assert server.requests == [type(server.requests[0])(order_by="id")]


async def test_pages_have_their_token(client, server):
    """A caller can pass a page on together with the token of the next one."""
    server.answer(page("posts", [1], "t1"), page("posts", []))

    pages = [page async for page in client.posts.pages()]

    assert pages == [
        storeapi.Page(items=(storeapi.Post(id=1, body=""),), next_page_token="t1"),
        storeapi.Page(items=(), next_page_token=""),
    ]


@pytest.mark.parametrize("kind", KINDS)
async def test_failed_page_is_raised_at_its_step(client, server, kind):
    """Earlier resources are not lost."""
    server.answer(page(kind, [1], "t1"))
    server.refuse(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_MISMATCH")

    items = getattr(client, kind).list()
    first = await anext(items)

    assert first.id == 1
    with pytest.raises(storeapi.PageTokenMismatch):
        await anext(items)


@pytest.mark.parametrize("method", ["list", "pages"])
@pytest.mark.parametrize("kind", KINDS)
async def test_failed_step_can_be_repeated(client, server, kind, method):
    """It neither loses resources nor ends the list."""
    server.answer(page(kind, [1], "t1"))
    server.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    server.answer(page(kind, [2]))

    steps = getattr(getattr(client, kind), method)()
    await anext(steps)
    with pytest.raises(storeapi.RateLimited):
        await anext(steps)
    second = await anext(steps)

    assert [item.id for item in (second.items if method == "pages" else [second])] == [2]
    assert [item async for item in steps] == []
    assert [request.page_token for request in server.requests] == ["", "t1", "t1"]


@pytest.mark.parametrize("method", ["list", "pages"])
async def test_cancelled_step_can_be_repeated(async_client, server, method):
    """asyncio.wait_for around a step."""
    server.hang()
    server.answer(page("posts", [1]))

    steps = getattr(async_client.posts, method)()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(steps), 0.05)

    assert len([item async for item in steps]) == 1


@pytest.mark.parametrize(
    ("limit", "page_size", "sizes"),
    [(0, 0, []), (2, 0, [2]), (5, 2, [2, 2, 1]), (4, 2, [2, 2]), (2, 3, [2]), (None, 0, [0])],
)
@pytest.mark.parametrize("resource", ["posts", "comments"])
async def test_limit_is_never_exceeded(client, server, resource, limit, page_size, sizes):
    """No more is requested than is returned, and nothing for a limit of 0."""
    page, item = {
        "posts": (posts_pb2.ListPostsResponse, posts_pb2.Post),
        "comments": (comments_pb2.ListCommentsResponse, comments_pb2.Comment),
    }[resource]
    for size in sizes:
        items = [item(id=1)] * (size or 3)
        server.answer(page(**{resource: items}, next_page_token="t" if limit else ""))

    found = [it async for it in getattr(client, resource).list(limit=limit, page_size=page_size)]

    assert len(found) == (3 if limit is None else limit)
    assert [request.page_size for request in server.requests] == sizes


async def test_limit_applies_to_pages(client, server):
    """The last page has a token to continue."""
    for _ in range(2):
        server.answer(posts_pb2.ListPostsResponse(posts=[posts_pb2.Post(id=1)], next_page_token="t"))

    pages = [it async for it in client.posts.pages(limit=2, page_size=1)]

    assert [len(it.items) for it in pages] == [1, 1]
    assert pages[-1].next_page_token == "t"


@pytest.mark.parametrize(("limit", "error"), [(-1, ValueError), ("5", TypeError)])
async def test_invalid_limit_is_refused_at_once(client, limit, error):
    """Where the mistake is made."""
    with pytest.raises(error, match="limit must"):
        client.posts.list(limit=limit)


async def test_list_has_a_readable_repr(client):
    """In a debugger, or at the prompt."""
    shown = repr(client.posts.list(order_by="id desc", limit=5))
    pages = repr(client.comments.list(post_id=1, page_size=2).pages())
    filtered = repr(client.posts.list(filter=PostFilter(author="ann", labels={"status": "new"})))

    assert re.fullmatch(r"(Async)?Pager\(ListPosts, order_by='id desc', limit=5\)", shown)
    assert re.fullmatch(
        r"(Async)?Steps\((Async)?Pager\(ListComments, page_size=2, order_by='id', post_id=1\)\)", pages
    )
    assert 'filter=(author: "ann" labels { key: "status" value: "new" })' in filtered
