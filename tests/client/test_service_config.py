"""The service config for clients in other languages: what plain gRPC makes of it, without this client."""

import asyncio
import json
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from storeapi.v1 import changes_pb2, changes_pb2_grpc, posts_pb2, posts_pb2_grpc

from tests.support.scripted_server import SERVICES, RpcScriptServer
from tests.support.server_process import ServerProcess

CONFIG = files("storeapi").joinpath("service_config.json").read_text()
OPTIONS = [("grpc.service_config", CONFIG), ("grpc.use_local_subchannel_pool", 1)]

POST = posts_pb2.Post(id=1, body="a")
GET = posts_pb2.GetPostRequest(id=1)
WATCH = changes_pb2.WatchRequest()
TOKEN = changes_pb2.WatchResponse(resume_token="here")

READS = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, server: RpcScriptServer) -> Callable[..., Any]:
    """Calls GetPost or Watch by a plain channel of one kind, with nothing but the config."""

    async def call_async(name: str) -> Any:
        async with grpc.aio.insecure_channel(server.target, options=OPTIONS) as channel:
            if name == "GetPost":
                return await posts_pb2_grpc.PostServiceStub(channel).GetPost(GET)
            return [it async for it in changes_pb2_grpc.ChangeServiceStub(channel).Watch(WATCH)]

    async def call_sync(name: str) -> Any:
        with grpc.insecure_channel(server.target, options=OPTIONS) as channel:
            if name == "GetPost":
                return await asyncio.to_thread(posts_pb2_grpc.PostServiceStub(channel).GetPost, GET)
            return await asyncio.to_thread(list, changes_pb2_grpc.ChangeServiceStub(channel).Watch(WATCH))

    return call_async if request.param == "async" else call_sync


@pytest.mark.parametrize(("method", "answer"), [("GetPost", POST), ("Watch", TOKEN)])
async def test_unavailable_call_is_retried(
    server: RpcScriptServer, call: Callable[..., Any], method: str, answer: Any
) -> None:
    """The caller does not notice a short outage, nor does a watch that starts."""
    server.refuse(grpc.StatusCode.UNAVAILABLE)
    server.refuse(grpc.StatusCode.UNAVAILABLE)
    server.answer(answer)

    answered = await call(method)

    assert answered == (answer if method == "GetPost" else [answer])
    assert server.methods == [method] * 3


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED])
async def test_permanent_error_is_not_retried_by_the_config(
    server: RpcScriptServer, call: Callable[..., Any], code: grpc.StatusCode
) -> None:
    """An answer that would be the same again is the caller's to deal with."""
    server.refuse(code)
    server.answer(POST)

    with pytest.raises(grpc.RpcError) as error:
        await call("GetPost")

    assert error.value.code() == code
    assert server.methods == ["GetPost"]


async def test_calls_wait_for_the_server_until_their_deadline_and_watch_forever() -> None:
    """Not longer than the config allows; a watch has no deadline."""
    config = json.loads(CONFIG.replace('"10s"', '"0.5s"'))  # ten seconds would only make the test long
    for part in config["methodConfig"]:
        # Retries would take as long, and so hide that nothing waits.
        del part["retryPolicy"]
    options = [("grpc.service_config", json.dumps(config))]
    with closing(socket.socket()) as bound:
        # The socket is bound and does not listen: the port is reserved, and connections are refused.
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            watch = changes_pb2_grpc.ChangeServiceStub(channel).Watch(WATCH)

            with pytest.raises(grpc.aio.AioRpcError) as error:
                await posts_pb2_grpc.PostServiceStub(channel).GetPost(GET)

            assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert not watch.done()
            watch.cancel()


def methods_of(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Service and method of each name in a part of the config."""
    return [(name["service"], name["method"]) for name in config["name"]]


def test_each_method_is_in_its_section() -> None:
    """Reads, writes and Watch are separate, so that callers without request_ids can remove the retries
    of writes.
    """
    methods = [
        ((service.full_name, method.name), method)
        for service in SERVICES.values()
        for method in service.methods
    ]
    streams = sorted(name for name, method in methods if method.server_streaming)
    reads = sorted(
        name
        for name, method in methods
        if method.GetOptions().idempotency_level == READS and name not in streams
    )
    writes = sorted(name for name, _ in methods if name not in reads + streams)

    parts = json.loads(CONFIG)["methodConfig"]

    assert [sorted(methods_of(part)) for part in parts] == [reads, writes, streams]
    assert [part.get("timeout") for part in parts] == ["10s", "10s", None]
    assert all(part["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"] for part in parts)


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[ServerProcess]:
    """A real server as a child process, not started yet."""
    process = ServerProcess(tmp_path, settings={"DATABASE_URL": "sqlite:///store.db"})
    yield process
    process.kill()


@pytest.mark.timeout(180)  # some starts, also on a machine that has other things to do
async def test_server_kill_fails_no_call(server_process: ServerProcess) -> None:
    """Callers that only use the service config see no error and create no duplicates."""
    server_process.start()
    # Started again where the callers look for it.
    server_process.settings["STORE_LISTEN"] = server_process.address
    told: dict[str, int] = {}
    stop, heard = asyncio.Event(), asyncio.Event()

    async def caller(posts: posts_pb2_grpc.PostServiceStub) -> None:
        while not stop.is_set():
            id = str(uuid.uuid4())
            request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=id), request_id=id)
            post = await posts.CreatePost(request)
            told[id] = post.id
            assert (await posts.GetPost(posts_pb2.GetPostRequest(id=post.id))).body == id
            heard.set()

    # A busy machine may take longer than ten seconds to start a server; how long calls wait is not told here.
    options = [("grpc.service_config", CONFIG.replace('"10s"', '"90s"'))]
    async with grpc.aio.insecure_channel(server_process.address, options=options) as channel:
        posts = posts_pb2_grpc.PostServiceStub(channel)
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(caller(posts))
            for _ in range(3):
                heard.clear()
                await heard.wait()
                await asyncio.to_thread(server_process.kill)
                await asyncio.to_thread(server_process.start)
            heard.clear()
            await heard.wait()
            stop.set()
        stored = await all_posts(posts)

    assert len(told) > 8
    assert sorted((post.body, post.id) for post in stored) == sorted(told.items())


async def all_posts(posts: posts_pb2_grpc.PostServiceStub) -> list[posts_pb2.Post]:
    """Everything that is stored."""
    found: list[posts_pb2.Post] = []
    token = ""
    while True:
        page = await posts.ListPosts(posts_pb2.ListPostsRequest(page_size=1000, page_token=token))
        found += page.posts
        if not (token := page.next_page_token):
            return found
