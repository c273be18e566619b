"""How clients connect, and what they close."""

import threading

import grpc
import grpc.aio
import pytest
import storeapi
from storeapi import AsyncStoreClient, StoreClient
from storeapi.v1 import posts_pb2, posts_pb2_grpc

POST = posts_pb2.Post(id=1)
REQUEST = posts_pb2.GetPostRequest(id=1)


async def finished(call):
    """The response of a raw stub of either kind."""
    return await call if hasattr(call, "__await__") else call


async def close(channel):
    closing = channel.close()
    if closing is not None:
        await closing


async def test_context_manager_closes_a_sync_client(server):
    """The client is what `with` gives, and its connection ends there."""
    server.answer(POST)

    with StoreClient(server.target) as client:
        client.posts.get(1)

    with pytest.raises(ValueError, match="closed"):
        client.raw.posts.GetPost(REQUEST)


async def test_context_manager_closes_an_async_client(server):
    """The client is what `async with` gives, and its connection ends there."""
    server.answer(POST)

    async with AsyncStoreClient(server.target) as client:
        await client.posts.get(1)

    # gRPC has no public name for this error.
    with pytest.raises(Exception, match="closed"):
        await client.raw.posts.GetPost(REQUEST)


async def test_closed_client_refuses_calls(client, server):
    """Both clients behave the same, and closing twice is allowed."""
    await client.close()
    await client.close()

    with pytest.raises(RuntimeError, match="client is closed"):
        await client.posts.get(1)

    assert server.calls == []


def test_close_from_another_thread_cancels_a_call(server):
    """Also just before gRPC starts the call, where gRPC raises another error."""
    client = storeapi.StoreClient(server.target)
    call = client.raw.posts.GetPost

    def close_and_call(*arguments, **keywords):
        closing = threading.Thread(target=client.close)
        closing.start()
        closing.join()
        return call(*arguments, **keywords)

    client.raw.posts.GetPost = close_and_call

    with pytest.raises(storeapi.Cancelled, match="the client was closed"):
        client.posts.get(1)


async def test_borrowed_channel_stays_open(make_client, make_channel, server):
    """The caller that created a channel closes it."""
    server.answer(POST, POST)
    channel = make_channel(server.target)
    client = make_client(channel=channel)
    await client.posts.get(1)

    await client.close()

    await finished(posts_pb2_grpc.PostServiceStub(channel).GetPost(REQUEST))
    assert server.methods == ["GetPost", "GetPost"]
    with pytest.raises(RuntimeError, match="client is closed"):
        await client.posts.get(1)
    await close(channel)


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"target": "elsewhere:1"}, "target"),
        ({"credentials": grpc.local_channel_credentials()}, "credentials"),
        ({"channel_options": [("grpc.max_send_message_length", 1)]}, "channel_options"),
        ({"target": "", "channel_options": [("a", 1)]}, "target and channel_options"),
    ],
)
async def test_borrowed_channel_accepts_no_settings(make_client, make_channel, keywords, name):
    """A setting that an existing channel cannot follow is refused, never ignored."""
    channel = make_channel("localhost:1")

    with pytest.raises(
        ValueError, match=f"^{name} cannot be set for a channel that is given: it has its own$"
    ):
        make_client(channel=channel, **keywords)

    await close(channel)


async def test_channel_of_the_other_kind_is_refused_at_once():
    """In the constructor, not at the first call."""
    sync_channel, async_channel = (
        grpc.insecure_channel("localhost:1"),
        grpc.aio.insecure_channel("localhost:1"),
    )

    with pytest.raises(TypeError, match=r"must be a grpc\.aio\.Channel, not a grpc\._channel\.Channel"):
        AsyncStoreClient(channel=sync_channel)
    with pytest.raises(TypeError, match=r"must be a grpc\.Channel, not a grpc\.aio"):
        StoreClient(channel=async_channel)

    await close(sync_channel)
    await close(async_channel)


async def test_credentials_make_the_connection_secure(make_client, server):
    """The server accepts secure connections only."""
    server.answer(POST)
    target = f"127.0.0.1:{server.local_port}"
    client = make_client(target, credentials=grpc.local_channel_credentials())

    post = await client.posts.get(1)

    assert post.id == 1


async def test_credentials_are_never_dropped(make_client, server):
    """There is no fallback to an insecure connection."""
    client = make_client(server.target, credentials=grpc.ssl_channel_credentials(), timeout=0.5)

    with pytest.raises(storeapi.Unavailable):
        await client.posts.get(1)

    assert server.calls == []


async def test_responses_above_4_mib_are_received(client, server):
    """A batch of long texts exceeds the default limit of gRPC."""
    body = "a" * (5 * 1024 * 1024)
    server.answer(posts_pb2.Post(id=1, body=body))

    post = await client.posts.get(1)

    assert post.body == body


@pytest.mark.parametrize("credentials", [None, grpc.local_channel_credentials()], ids=["plain", "secure"])
async def test_channel_options_override_those_of_the_client(make_client, server, credentials):
    """A caller can lower the receive limit; a larger message has its own error."""
    server.answer(posts_pb2.Post(id=1, body="a" * 2000))
    options = [("grpc.max_receive_message_length", 1000)]
    port = server.local_port if credentials else server.port
    client = make_client(f"127.0.0.1:{port}", credentials=credentials, channel_options=options)

    with pytest.raises(storeapi.ResourceExhausted, match="larger than max") as raised:
        await client.posts.get(1)

    assert (type(raised.value), raised.value.reason) == (storeapi.ResourceExhausted, "")


def test_async_client_needs_a_running_loop():
    """Without one, every call would fail later with an unclear error."""
    with pytest.raises(RuntimeError, match="inside of a coroutine"):
        AsyncStoreClient()
