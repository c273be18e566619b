"""How long a call may take, and who ends it."""

import asyncio
import math

import grpc
import pytest
import storeapi
from storeapi.v1 import posts_pb2

POST = posts_pb2.Post(id=1)
DRAFT = storeapi.CommentDraft(post_id=1, body="a")
PAGE = posts_pb2.ListPostsResponse()

# Every method of both groups, and the reply that it can read.
CALLS = {
    "posts.create": lambda c, **k: c.posts.create(body="a", **k),
    "posts.get": lambda c, **k: c.posts.get(1, **k),
    "posts.update": lambda c, **k: c.posts.update(1, body="a", **k),
    "posts.delete": lambda c, **k: c.posts.delete(1, **k),
    "posts.get_many": lambda c, **k: c.posts.get_many([1], **k),
    "posts.create_many": lambda c, **k: c.posts.create_many(["a"], **k),
    "posts.delete_many": lambda c, **k: c.posts.delete_many([1], **k),
    "posts.list": lambda c, **k: anext(c.posts.list(**k)),
    "posts.pages": lambda c, **k: anext(c.posts.pages(**k)),
    "comments.create": lambda c, **k: c.comments.create(post_id=1, body="a", **k),
    "comments.get": lambda c, **k: c.comments.get(1, **k),
    "comments.update": lambda c, **k: c.comments.update(1, body="a", **k),
    "comments.delete": lambda c, **k: c.comments.delete(1, **k),
    "comments.get_many": lambda c, **k: c.comments.get_many([1], **k),
    "comments.create_many": lambda c, **k: c.comments.create_many([DRAFT], **k),
    "comments.delete_many": lambda c, **k: c.comments.delete_many([1], **k),
    "comments.count": lambda c, **k: c.comments.count([1], **k),
    "comments.list": lambda c, **k: anext(c.comments.list(**k)),
    "comments.pages": lambda c, **k: anext(c.comments.pages(**k)),
}


async def seconds_left(server, call):
    """The deadline that the server sees; its answer does not matter."""
    server.refuse(grpc.StatusCode.ABORTED)
    with pytest.raises(storeapi.Conflict):
        await call
    return server.calls[-1].seconds_left


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_every_call_has_ten_seconds_unless_told_otherwise(client, server, call):
    """No call can hang for ever because somebody forgot a deadline."""
    left = await seconds_left(server, call(client))

    assert 5 < left < 11


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_every_call_can_have_a_deadline_of_its_own(client, server, call):
    """The method's timeout goes before the client's."""
    left = await seconds_left(server, call(client, timeout=100))

    assert 90 < left < 101


@pytest.mark.parametrize("wrong", [math.inf, math.nan, 9e9, 1e300, 0, -1, "5"], ids=str)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_timeout_that_is_none_is_refused(client, server, call, wrong):
    """By its name and before anything is sent: gRPC would store in no time, or give up at once."""
    with pytest.raises(
        ValueError, match=r"^timeout must be a number of seconds above 0 and at most 100,000,000"
    ):
        await call(client, timeout=wrong)

    assert server.calls == []


async def test_the_longest_timeout_can_be_waited_for(client, server):
    """What is allowed works."""
    server.answer(POST)

    assert (await client.posts.get(1, timeout=100_000_000)).id == 1


async def test_the_default_deadline_is_the_clients(make_client, server):
    """The client's timeout holds for every call that names none, also by saying so."""
    client = make_client(server.target, timeout=50)

    left = await seconds_left(server, client.posts.get(1))
    left_by_name = await seconds_left(server, client.posts.get(1, timeout=storeapi.CLIENT_DEFAULT))

    assert 40 < left < 51
    assert 40 < left_by_name < 51


async def test_none_is_no_deadline(make_client, server):
    """None means for ever, for one call as for all."""
    for_ever = 10 * 365 * 24 * 3600
    client = make_client(server.target, timeout=None)

    all_calls = await seconds_left(server, client.posts.get(1))
    one_call = await seconds_left(server, make_client(server.target).posts.get(1, timeout=None))

    assert all_calls is None or all_calls > for_ever
    assert one_call is None or one_call > for_ever


async def test_each_page_has_the_whole_deadline(client, server):
    """A long list is not cut off because its first pages took their time."""
    server.answer(posts_pb2.ListPostsResponse(next_page_token="t"), PAGE)

    _ = [post async for post in client.posts.list(timeout=100)]

    assert [90 < call.seconds_left < 102 for call in server.calls] == [True, True]


async def test_a_call_that_takes_too_long_is_given_up(client, server):
    """The caller gets an error at the deadline, whatever the server does."""
    server.hang()

    with pytest.raises(storeapi.DeadlineExceeded) as raised:
        await client.posts.get(1, timeout=0.05)

    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_cancelled_task_is_cancelled(async_client, server, asked):
    """asyncio's own cancellation passes through; as another error it would break whoever cancelled."""
    server.hang()
    task = asyncio.create_task(async_client.posts.get(1))
    await asked()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_timeout_of_asyncio_ends_a_call(async_client, server):
    """asyncio.wait_for around a call works as around everything else."""
    server.hang()

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(async_client.posts.get(1), timeout=0.05)


def test_the_default_shows_as_what_it_means():
    """help() and editors print a default by its repr."""
    assert repr(storeapi.CLIENT_DEFAULT) == "CLIENT_DEFAULT"
