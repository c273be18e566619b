"""The configurations in deploy/proxies, run by the proxies that they are for."""

import asyncio
import http.client
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import trustme
from storeapi.v1 import changes_pb2
from storeapi.v1 import posts_pb2 as pb

from tests.support.certificates import TlsFiles, channel_credentials
from tests.support.errors import expect_error
from tests.support.polling import eventually, wait_until
from tests.support.proxies import DELIVERED, delivered_proxy
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout
from tests.support.unreliable_proxy import forwarder

CALLER = "127.0.0.9"
"""An address of this machine that is not the one of the proxy."""


@dataclass(frozen=True)
class Delivered:
    """A proxy in front of a service that trusts it."""

    address: str
    authority: trustme.CA
    service: ServerProcess

    def peers_of(self, method: str) -> list[str]:
        """The peers of the calls of a method that the service has logged."""
        lines = (json.loads(line) for line in self.service.stderr().splitlines())
        return [it["peer"] for it in lines if it.get("method", "").endswith(f"/{method}")]

    @asynccontextmanager
    async def stubs(self, address: str = "") -> AsyncIterator[Stubs]:
        """Stubs on a new connection to the proxy, or to an address in front of it."""
        async with grpc.aio.secure_channel(
            address or self.address,
            channel_credentials(self.authority),
            [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)],
        ) as channel:
            yield Stubs(channel)


@contextmanager
def running(name: str, factory: pytest.TempPathFactory, **settings: str) -> Iterator[Delivered]:
    """A service behind a proxy."""
    folder = factory.mktemp(name)
    authority = trustme.CA()
    service = ServerProcess(folder, settings={"STORE_TRUSTED_PROXIES": "127.0.0.1"} | settings)
    try:
        service.start()
        with delivered_proxy(name, service.address, folder, TlsFiles(folder, authority)) as address:
            yield Delivered(address, authority, service)
    finally:
        service.kill()


@pytest.fixture(scope="module", params=DELIVERED)
def delivered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Delivered]:
    with running(request.param, tmp_path_factory) as it:
        yield it


async def test_largest_messages_pass(delivered: Delivered) -> None:
    """A batch of 3 MB, and its response."""
    drafts = [pb.CreatePostRequest(post=pb.Post(body="x" * 60_000)) for _ in range(50)]
    async with delivered.stubs() as stubs:
        created = await stubs.posts.BatchCreatePosts(
            pb.BatchCreatePostsRequest(requests=drafts), wait_for_ready=True, timeout=scaled_timeout()
        )

    assert [len(post.body) for post in created.posts] == [60_000] * 50


async def test_errors_keep_their_details(delivered: Delivered) -> None:
    """Many, because a proxy that sends the headers of a response early loses the trailers of some."""
    request = pb.GetPostRequest(id=987_654)
    async with delivered.stubs() as stubs:
        refused = [
            await expect_error(stubs.posts.GetPost(request, wait_for_ready=True, timeout=scaled_timeout()))
            for _ in range(60)
        ]

    assert {(it.code, it.reason) for it in refused} == {(grpc.StatusCode.NOT_FOUND, "POST_NOT_FOUND")}


async def test_service_knows_the_caller_of_the_proxy(delivered: Delivered) -> None:
    """Not the address that the caller claims."""
    async with (
        forwarder(int(delivered.address.split(":")[1])) as caller,
        delivered.stubs(caller.address) as stubs,
    ):
        caller.source_host = CALLER
        await stubs.posts.CountPosts(
            pb.CountPostsRequest(),
            metadata=[("x-forwarded-for", "203.0.113.7")],
            wait_for_ready=True,
            timeout=scaled_timeout(),
        )
        await eventually(lambda: delivered.peers_of("CountPosts") != [])

    assert delivered.peers_of("CountPosts") == [f"ipv4:{CALLER}"]


async def test_messages_of_a_watch_arrive_one_by_one(delivered: Delivered) -> None:
    """The proxy does not wait for more."""
    async with delivered.stubs() as stubs:
        watch = stubs.changes.Watch(changes_pb2.WatchRequest(), wait_for_ready=True)
        async with asyncio.timeout(scaled_timeout()):
            await watch.read()
            for body in ("a", "b"):
                post = await stubs.create_post(body)
                response = await watch.read()

                assert [it.post for it in response.changes] == [post]
        watch.cancel()


@pytest.mark.skipif(not IS_LONG_RUN, reason="STORE_TEST_LONG is not set: watches of minutes behind proxies")
@pytest.mark.timeout(300)
async def test_quiet_watch_of_longest_heartbeat_is_not_cut(delivered: Delivered) -> None:
    async with delivered.stubs() as stubs:
        request = changes_pb2.WatchRequest()
        request.heartbeat_interval.FromSeconds(60)
        watch = stubs.changes.Watch(request, wait_for_ready=True)
        for _ in range(4):
            await watch.read()
        watch.cancel()


@pytest.mark.parametrize("name", ["haproxy", "traefik"])
async def test_proxy_with_health_checks_avoids_a_service_that_stops(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The service still answers calls, but its health is NOT_SERVING."""
    with running(name, tmp_path_factory, STORE_SHUTDOWN_DELAY_SECONDS="3600") as delivered:
        async with delivered.stubs() as stubs, grpc.aio.insecure_channel(delivered.service.address) as direct:
            await until_code_is(stubs, grpc.StatusCode.OK)
            delivered.service.signal()
            await until_code_is(stubs, grpc.StatusCode.UNAVAILABLE)

            await Stubs(direct).posts.CountPosts(pb.CountPostsRequest())


async def until_code_is(stubs: Stubs, code: grpc.StatusCode) -> None:
    """Repeats a call until it has this status."""
    found = None
    async with asyncio.timeout(scaled_timeout(60)):
        while found != code:
            call = stubs.posts.CountPosts(pb.CountPostsRequest(), timeout=scaled_timeout())
            found = await call.code()
            await asyncio.sleep(0.05)  # the proxy checks at intervals


# JSON


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivered]:
    """Envoy, when it has found the service healthy."""
    with running("envoy", tmp_path_factory) as it:
        wait_until(lambda: post_json(it, "CountPosts", {})[0] == 200)
        yield it


def post_json(envoy: Delivered, method: str, message: dict[str, Any]) -> tuple[int, Any]:
    """Sends a request of HTTP/1.1, and returns the status and the body of the response."""
    context = ssl.create_default_context(cadata=envoy.authority.cert_pem.bytes().decode())
    connection = http.client.HTTPSConnection(envoy.address, context=context, timeout=scaled_timeout())
    with closing(connection):
        connection.request(
            "POST",
            f"/storeapi.v1.PostService/{method}",
            json.dumps(message),
            {"content-type": "application/json"},
        )
        response = connection.getresponse()
        body = response.read().decode()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(body) if is_json else body


def test_envoy_translates_json(envoy: Delivered) -> None:
    """A call is an HTTP POST to the path of the method."""
    created_status, created = post_json(envoy, "CreatePost", {"post": {"body": "from JSON"}})

    assert (created_status, created["body"]) == (200, "from JSON")
    assert post_json(envoy, "GetPost", {"id": created["id"]}) == (200, created)


def test_errors_in_json_have_the_reason(envoy: Delivered) -> None:
    status, error = post_json(envoy, "GetPost", {"id": "987654"})

    assert (status, error["message"]) == (404, "there is no post 987654")
    assert error["details"][0]["reason"] == "POST_NOT_FOUND"


def test_envoy_removes_unknown_fields_of_json(envoy: Delivered) -> None:
    """The service would refuse them. docs/proxies.md warns of this."""
    status, error = post_json(envoy, "GetPost", {"id": "987654", "unknown": 2})

    assert (status, error["details"][0]["reason"]) == (404, "POST_NOT_FOUND")
