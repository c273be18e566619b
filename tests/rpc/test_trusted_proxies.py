"""Callers behind proxies: who counts for the rate limit and in the log, and whose word is not taken."""

import json
from collections.abc import Sequence

import grpc
import pytest
from storeapi.v1 import posts_pb2 as pb
from structlog.testing import capture_logs

from store_service.address import parse_networks
from store_service.config import Config
from store_service.rpc.trusted_proxies import FORWARDED_KEY, TrustedProxies
from tests.support.errors import expect_error
from tests.support.running_server import server_with
from tests.support.stubs import Stubs


class ForwardedCall:
    """What `TrustedProxies` reads of a call."""

    def __init__(self, *values: str) -> None:
        self._metadata = [("authorization", "Bearer 198.51.100.1"), *((FORWARDED_KEY, it) for it in values)]

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """The metadata of the call, with a value for each `x-forwarded-for`."""
        return self._metadata


@pytest.mark.parametrize(
    ("peer", "values", "caller"),
    [
        ("ipv4:10.0.0.1:4000", ["203.0.113.7"], "ipv4:203.0.113.7"),
        ("ipv4:10.0.0.1:4000", ["198.51.100.1, 203.0.113.7"], "ipv4:203.0.113.7"),
        ("ipv4:10.0.0.1:4000", ["198.51.100.1", "203.0.113.7"], "ipv4:203.0.113.7"),
        ("ipv4:10.0.0.1:4000", ["198.51.100.1,203.0.113.7, 10.0.0.2 ,10.0.0.3"], "ipv4:203.0.113.7"),
        ("ipv4:10.0.0.1:4000", ["10.0.0.9, 10.0.0.2"], "ipv4:10.0.0.9"),
        ("ipv4:10.0.0.1:4000", ["203.0.113.7:5555"], "ipv4:203.0.113.7"),
        ("ipv4:10.0.0.1:4000", ["2001:DB8::7"], "ipv6:%5B2001:db8::7%5D"),
        ("ipv4:10.0.0.1:4000", ["[2001:db8::7]:5555"], "ipv6:%5B2001:db8::7%5D"),
        ("ipv4:10.0.0.1:4000", ["::ffff:203.0.113.7"], "ipv4:203.0.113.7"),
        ("ipv6:%5Bfd00::1%5D:4000", ["203.0.113.7"], "ipv4:203.0.113.7"),
        ("ipv4:10.0.0.1:4000", ["203.0.113.7, unknown, 10.0.0.2"], "ipv4:10.0.0.2"),
        ("ipv4:10.0.0.1:4000", ["203.0.113.7, unknown"], None),
        ("ipv4:10.0.0.1:4000", [""], None),
        ("ipv4:10.0.0.1:4000", [], None),
        ("ipv4:10.1.0.1:4000", ["203.0.113.7"], None),
        ("ipv6:%5Bfd01::1%5D:4000", ["203.0.113.7"], None),
        ("unix:/run/store.sock", ["203.0.113.7"], None),
        ("unix:10.0.0.1", ["203.0.113.7"], None),
    ],
)
def test_last_untrusted_address_is_the_caller(peer: str, values: list[str], caller: str | None) -> None:
    """Addresses before it may be invented. Without a trusted peer, all of them may be."""
    proxies = TrustedProxies(parse_networks("10.0.0.0/24, fd00::1"))

    assert proxies.forwarded_caller(ForwardedCall(*values), peer) == caller  # type: ignore[arg-type]


@pytest.fixture
def database_url(database_file: object) -> str:
    """One engine is enough: the database has no part in this."""
    return f"sqlite:///{database_file}"


async def create(stubs: Stubs, forwarded_for: str) -> pb.Post:
    """Creates a post, for a caller as a proxy on this machine would name it."""
    request = pb.CreatePostRequest(post=pb.Post(body="a"))
    return await stubs.posts.CreatePost(request, metadata=[(FORWARDED_KEY, forwarded_for)])


async def test_each_caller_of_a_trusted_proxy_has_its_own_rate(config: Config) -> None:
    """A caller that invents addresses keeps its own."""
    async with server_with(config, rate_limit_per_caller=0.01, trusted_proxies="127.0.0.0/8") as (_, stubs):
        await create(stubs, "203.0.113.7")
        await create(stubs, "203.0.113.8")
        refused = await expect_error(create(stubs, "198.51.100.1, 203.0.113.7"))

    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")


@pytest.mark.parametrize("trusted", ["", "10.0.0.0/8"])
async def test_forwarded_address_of_an_untrusted_peer_is_ignored(config: Config, trusted: str) -> None:
    async with server_with(config, rate_limit_per_caller=0.01, trusted_proxies=trusted) as (_, stubs):
        await create(stubs, "203.0.113.7")
        refused = await expect_error(create(stubs, "203.0.113.8"))

    assert refused.reason == "RATE_LIMITED"


@pytest.mark.parametrize(
    ("trusted", "peer"),
    [("127.0.0.1", "ipv4:203.0.113.7"), ("", "ipv4:127.0.0.1:"), ("::1", "ipv4:127.0.0.1:")],
)
async def test_log_line_has_the_caller_of_a_trusted_proxy(config: Config, trusted: str, peer: str) -> None:
    with capture_logs() as lines:
        async with server_with(config, trusted_proxies=trusted) as (_, stubs):
            await create(stubs, "203.0.113.7")

    (line,) = (it for it in lines if it["event"] == "rpc finished")
    assert line["peer"].startswith(peer), json.dumps(line)
