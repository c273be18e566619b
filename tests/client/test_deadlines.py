"""Deadlines of calls, and cancellation."""

import asyncio
import math

import grpc
import pytest
import storeapi
from storeapi.v1 import posts_pb2

from tests.support.client_calls import CALLS

POST = posts_pb2.Post(id=1)
PAGE = posts_pb2.ListPostsResponse()


async def seconds_left(server, call):
    """The deadline that the server sees; its answer does not matter."""
    server.refuse(grpc.StatusCode.ABORTED)
    with pytest.raises(storeapi.Conflict):
        await call
    return server.calls[-1].seconds_left


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_call_has_a_default_deadline_of_ten_seconds(client, server, call):
    """No call can hang forever because of a forgotten deadline."""
    left = await seconds_left(server, call(client))

    assert 5 < left < 11


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_call_timeout_overrides_the_client_timeout(client, server, call):
    """The method's timeout goes before the client's."""
    left = await seconds_left(server, call(client, timeout=100))

    assert 90 < left < 101


@pytest.mark.parametrize("wrong", [math.inf, math.nan, 9e9, 1e300, 0, -1, "5"], ids=str)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_invalid_timeout_is_refused(client, server, call, wrong):
    """By name, before anything is sent."""
    with pytest.raises(
        ValueError, match=r"^timeout must be a number of seconds above 0 and at most 100,000,000"
    ):
        await call(client, timeout=wrong)

    assert server.calls == []


async def test_longest_valid_timeout_works(client, server):
    server.answer(POST)

    assert (await client.posts.get(1, timeout=100_000_000)).id == 1


async def test_client_timeout_is_the_default_of_its_calls(make_client, server):
    """For every call without its own timeout, and when it is passed explicitly."""
    client = make_client(server.target, timeout=50)

    left = await seconds_left(server, client.posts.get(1))
    left_by_name = await seconds_left(server, client.posts.get(1, timeout=storeapi.CLIENT_DEFAULT))

    assert 40 < left < 51
    assert 40 < left_by_name < 51


async def test_none_means_no_deadline(make_client, server):
    """For one call and for the client."""
    for_ever = 10 * 365 * 24 * 3600
    client = make_client(server.target, timeout=None)

    all_calls = await seconds_left(server, client.posts.get(1))
    one_call = await seconds_left(server, make_client(server.target).posts.get(1, timeout=None))

    assert all_calls is None or all_calls > for_ever
    assert one_call is None or one_call > for_ever


async def test_each_page_has_the_full_timeout(client, server):
    """A long list does not fail because its first pages were slow."""
    server.answer(posts_pb2.ListPostsResponse(next_page_token="t"), PAGE)

    _ = [post async for post in client.posts.list(timeout=100)]

    assert [90 < call.seconds_left < 102 for call in server.calls] == [True, True]


async def test_call_fails_at_its_deadline(client, server):
    """Whatever the server does."""
    server.hang()

    with pytest.raises(storeapi.DeadlineExceeded) as raised:
        await client.posts.get(1, timeout=0.05)

    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_cancelled_task_is_cancelled(async_client, server, asked):
    """CancelledError is not converted."""
    server.hang()
    task = asyncio.create_task(async_client.posts.get(1))
    await asked()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_asyncio_timeout_ends_a_call(async_client, server):
    """asyncio.wait_for works around a call."""
    server.hang()

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(async_client.posts.get(1), timeout=0.05)


def test_the_default_shows_as_what_it_means():
    """help() and editors print a default by its repr."""
    assert repr(storeapi.CLIENT_DEFAULT) == "CLIENT_DEFAULT"
