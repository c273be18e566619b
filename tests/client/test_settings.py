"""Settings of a client: target, encryption and credentials."""

import re
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import storeapi
import trustme
from storeapi import _connection
from storeapi.testing import ScriptedServer
from storeapi.v1 import posts_pb2, posts_pb2_grpc

POST = storeapi.Post(id=1, body="a")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has set."""
    for name in ("TARGET", "TIMEOUT", "API_KEY", "TLS", "TLS_CA", "TLS_CERT", "TLS_KEY"):
        monkeypatch.delenv(f"STOREAPI_{name}", raising=False)


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


def metadata_of(server: ScriptedServer) -> list[dict[str, Any]]:
    return [dict(call.metadata) for call in server.calls]


# Where


async def test_environment_sets_the_target(make_client, scripted, monkeypatch):
    """A program that names no target is pointed elsewhere without a change."""
    monkeypatch.setenv("STOREAPI_TARGET", scripted.target)
    scripted.answer("GetPost", POST)

    assert await make_client().posts.get(1) == POST


async def test_argument_overrides_the_environment(make_client, scripted, monkeypatch):
    monkeypatch.setenv("STOREAPI_TARGET", "localhost:1")
    monkeypatch.setenv("STOREAPI_TIMEOUT", "0.001")
    scripted.answer("GetPost", POST)

    assert await make_client(scripted.target, timeout=10).posts.get(1) == POST


@pytest.mark.parametrize(("value", "seconds"), [("100", 100), ("2.5", 2.5), ("none", None), ("None", None)])
async def test_environment_sets_the_timeout(make_client, scripted, monkeypatch, value, seconds):
    """In seconds, or none."""
    monkeypatch.setenv("STOREAPI_TIMEOUT", value)
    scripted.answer("GetPost", POST)

    await make_client(scripted.target).posts.get(1)

    (call,) = scripted.calls
    if seconds is None:
        assert call.seconds_left is None or call.seconds_left > 1e6
    else:
        # gRPC sends three digits, rounded up.
        assert seconds / 2 < call.seconds_left < seconds * 1.01 + 0.1


@pytest.mark.parametrize("as_text", [True, False])
async def test_several_addresses_are_used_round_robin(make_client, as_text):
    """By name and by number, as a list or separated by commas."""
    with ScriptedServer() as one, ScriptedServer() as other:
        for server in (one, other):
            server.answer("GetPost", *[POST] * 20)
        targets = [one.target.replace("127.0.0.1", "localhost"), other.target]
        client = make_client(", ".join(targets) if as_text else targets)

        for _ in range(20):
            await client.posts.get(1)

        # The first calls may find only one of them connected.
        assert min(len(one.calls), len(other.calls)) >= 5


async def test_unresponsive_address_is_skipped(make_client, scripted):
    """No caller hears of it."""
    scripted.answer("GetPost", *[POST] * 10)
    client = make_client(["127.0.0.1:1", scripted.target])

    for _ in range(10):
        assert await client.posts.get(1) == POST


@pytest.mark.parametrize(
    ("target", "grpc_target"),
    [
        (None, "localhost:50051"),
        ("store:50051", "store:50051"),
        ("dns:///store:50051", "dns:///store:50051"),
        ("unix:/run/store.sock", "unix:/run/store.sock"),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["store:50051"], "store:50051"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[2001:db8::1]:1", "[2001:db8::2]:2"], "ipv6:[2001:db8::1]:1,[2001:db8::2]:2"),
        (("10.0.0.1:1", "10.0.0.1:1", "10.0.0.2:1"), "ipv4:10.0.0.1:1,10.0.0.2:1"),
    ],
)
def test_target_is_one_for_grpc_or_a_list(target, grpc_target):
    """One target is passed on unchanged; several become one that gRPC balances over."""
    assert settings(target=target).target == grpc_target


def settings(**given: Any) -> _connection.Connection:
    everything = dict.fromkeys(
        ["target", "api_key", "tls", "tls_ca", "tls_cert", "tls_key", "credentials"]
    ) | {"timeout": storeapi.CLIENT_DEFAULT, "channel_options": ()}
    return _connection.connection(**everything | given)


# What is wrong


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        ({"target": ""}, {}, "target must be an address"),
        ({"target": []}, {}, "target must be an address"),
        ({"target": "a:1,,b:2"}, {}, "target must be an address"),
        ({"target": ["localhost", "localhost:2"]}, {}, "target must be HOST:PORT"),
        ({"target": ["10.0.0.1:1", "[2001:db8::1]:1"]}, {}, "all be IPv4 or all be IPv6"),
        ({"target": ["no.such.name.invalid:1", "10.0.0.1:1"]}, {}, "have known names"),
        ({"timeout": 0}, {}, "timeout must be a number of seconds above 0"),
        ({"timeout": float("nan")}, {}, "timeout must be a number of seconds above 0"),
        ({}, {"TIMEOUT": "soon"}, "STOREAPI_TIMEOUT must be a number of seconds above 0"),
        ({}, {"TIMEOUT": "-1"}, "STOREAPI_TIMEOUT must be a number of seconds above 0"),
        ({}, {"TLS": "perhaps"}, "STOREAPI_TLS must be true or false"),
        ({"tls_cert": b"c"}, {}, "tls_cert and tls_key belong together"),
        ({"tls_key": b"k"}, {}, "tls_cert and tls_key belong together"),
        ({"tls_ca": b"garbage"}, {}, "tls_ca holds no certificate in PEM"),
        ({"tls_cert": b"c", "tls_key": b"k"}, {}, "tls_cert holds no certificate in PEM"),
        ({"tls_ca": "/no-ca.pem"}, {}, "tls_ca: /no-ca.pem cannot be read: No such file"),
        ({}, {"TLS_CA": "/no-ca.pem"}, "STOREAPI_TLS_CA: /no-ca.pem cannot be read: No such file"),
        ({"target": "http://localhost:1"}, {}, "target must be HOST:PORT"),
        ({"target": "localhost"}, {}, "target must be HOST:PORT"),
        ({"target": "dns:///localhost"}, {}, "target must be HOST:PORT"),
        ({"target": "::1:50051"}, {}, "target must be HOST:PORT"),
        ({"target": ":53911"}, {}, "target must be HOST:PORT"),
        ({"target": "localhost:99999"}, {}, "target must be HOST:PORT"),
        ({"target": ["localhost:1", "localhost:0"]}, {}, "target must be HOST:PORT"),
        ({}, {"TARGET": "localhost"}, "STOREAPI_TARGET must be HOST:PORT"),
        ({"timeout": 1e10}, {}, "timeout must be a number of seconds above 0 and at most 100,000,000"),
        ({"timeout": "5"}, {}, "timeout must be a number of seconds above 0"),
        ({"tls": False, "tls_ca": b"c"}, {}, "need TLS, and tls=False says no"),
        (
            {"tls": True, "target": ["a.example:1", "b.example:1"]},
            {},
            "several addresses must have the same name",
        ),
        ({"tls": True, "target": "localhost:1,127.0.0.1:1"}, {}, "as dns:///NAME:PORT"),
        ({"tls": True, "credentials": grpc.local_channel_credentials()}, {}, "leave out tls"),
        ({"api_key": "ends in a line break\n", "tls": True}, {}, "an API key is printable ASCII"),
        ({"api_key": "schlüssel", "tls": True}, {}, "an API key is printable ASCII"),
        ({"target": "store:50051", "api_key": "k"}, {}, "not sent over the network in the clear"),
        ({"target": ["127.0.0.1:1", "10.0.0.1:1"], "api_key": "k"}, {}, "not sent over the network"),
        ({"target": "dns:///store:50051"}, {"API_KEY": "k"}, "not sent over the network"),
    ],
)
def test_invalid_setting_is_named_in_one_line(arguments, environment, complaint, monkeypatch):
    """In the constructor, not at the first call."""
    for name, value in environment.items():
        monkeypatch.setenv(f"STOREAPI_{name}", value)

    with pytest.raises(ValueError, match=re.escape(complaint)) as raised:
        storeapi.StoreClient(**arguments)

    assert "\n" not in str(raised.value)
    assert "schlüssel" not in str(raised.value)


def test_repr_shows_the_target_without_secrets():
    """And nothing that a log must not have."""
    with storeapi.StoreClient("localhost:1", api_key="secret") as client:
        assert repr(client) == "StoreClient('localhost:1')"
    with grpc.insecure_channel("localhost:1") as channel:
        assert repr(storeapi.StoreClient(channel=channel)) == "StoreClient(channel=...)"


# Credentials


@pytest.mark.parametrize("by", ["argument", "environment"])
async def test_api_key_is_sent_with_every_call(make_client, scripted, monkeypatch, by):
    """Unary calls, streams and raw stubs, in addition to the metadata of a raw call."""
    if by == "environment":
        monkeypatch.setenv("STOREAPI_API_KEY", "secret")
    client = make_client(scripted.target, **({"api_key": "secret"} if by == "argument" else {}))
    scripted.answer("GetPost", POST, POST)
    scripted.stall("Watch", storeapi.ChangeBatch(changes=(), resume_token="t", heartbeat=True))

    await client.posts.get(1)
    await client.raw.posts.GetPost(posts_pb2.GetPostRequest(id=1), metadata=[("x-trace", "1")])
    async with client.changes.watch() as watch:
        await anext(watch.batches())

    seen = metadata_of(scripted)
    assert [it["authorization"] for it in seen] == ["Bearer secret"] * 3
    assert seen[1]["x-trace"] == "1"


def test_api_key_is_sent_by_every_sync_stub_method(scripted):
    """Sync stubs have three ways to call."""
    scripted.answer("GetPost", POST, POST, POST)
    request = posts_pb2.GetPostRequest(id=1)
    with storeapi.StoreClient(scripted.target, api_key="secret") as client:
        client.raw.posts.GetPost.future(request).result()
        client.raw.posts.GetPost.with_call(request, metadata=[("x-trace", "1")])
        # In the order of gRPC's own: timeout, metadata, credentials, wait_for_ready, compression.
        client.raw.posts.GetPost(request, 20.0, [("x-trace", "2")], None, True, grpc.Compression.Gzip)
        with pytest.raises(TypeError):
            client.raw.posts.GetPost(request, 20.0, None, None, True, None, "one too many")

    assert [it["authorization"] for it in metadata_of(scripted)] == ["Bearer secret"] * 3
    assert [it.get("x-trace") for it in metadata_of(scripted)] == [None, "1", "2"]
    assert 1 < scripted.calls[-1].seconds_left <= 20.1


async def test_without_api_key_only_the_user_agent_is_sent(make_client, scripted):
    scripted.answer("GetPost", POST)

    await make_client(scripted.target).posts.get(1)

    (seen,) = metadata_of(scripted)
    assert "authorization" not in seen
    assert seen["user-agent"].startswith(f"storeapi/{storeapi.__version__} ")


@pytest.mark.parametrize(
    "target",
    [
        "localhost:1",
        "127.0.0.9:1",
        "[::1]:1",
        "unix:/tmp/s",
        "dns:///localhost:1",
        "dns:localhost:1",
        "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:1",
    ],
)
def test_api_key_may_be_sent_in_the_clear_to_loopback(target):
    storeapi.StoreClient(target, api_key="secret").close()


@pytest.mark.parametrize(
    "target", ["dns://10.9.8.7/localhost:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "localhost.example:1"]
)
def test_api_key_is_not_sent_in_the_clear_to_a_name_like_localhost(target):
    """A name server may resolve it to any address."""
    with pytest.raises(ValueError, match="in the clear"):
        storeapi.StoreClient(target, api_key="secret")


async def test_loopback_bypasses_proxies(make_client, scripted, monkeypatch):
    """A proxy would get the key in the clear."""
    with closing(socket.create_server(("127.0.0.1", 0))) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        scripted.answer("GetPost", POST)

        assert await make_client(scripted.target, api_key="secret").posts.get(1) == POST

        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_api_key_may_be_sent_in_the_clear_if_allowed():
    """For a sidecar that encrypts."""
    storeapi.StoreClient("store:50051", api_key="secret", tls=False).close()


def test_api_key_is_not_in_repr():
    assert "secret" not in repr(settings(api_key="secret"))


# TLS


class Answers(posts_pb2_grpc.PostServiceServicer):
    """Returns the name in the certificate of the caller."""

    def GetPost(self, request: posts_pb2.GetPostRequest, context: grpc.ServicerContext) -> posts_pb2.Post:
        names = (context.auth_context() or {}).get("x509_subject_alternative_name", [b"nobody"])
        return posts_pb2.Post(id=request.id, body=names[0].decode())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@contextmanager
def tls_server(
    authority: trustme.CA,
    *,
    host: str = "localhost",
    names: Sequence[str] = ("localhost",),
    asks_for_certificates: bool = False,
) -> Iterator[str]:
    """The address of a server that accepts nothing but TLS, with `names` in its certificate."""
    cert = authority.issue_cert(*names)
    credentials = grpc.ssl_server_credentials(
        [(cert.private_key_pem.bytes(), b"".join(it.bytes() for it in cert.cert_chain_pems))],
        authority.cert_pem.bytes() if asks_for_certificates else None,
        asks_for_certificates,
    )
    server = grpc.server(futures.ThreadPoolExecutor(4))
    posts_pb2_grpc.add_PostServiceServicer_to_server(Answers(), server)
    # The port could be free on one address of localhost and in use on the other.
    number = "127.0.0.1" if host == "localhost" else host
    port = server.add_secure_port(f"{number}:0", credentials)
    server.start()
    yield f"{host}:{port}"
    server.stop(None).wait()


@pytest.fixture(params=["bytes", "path", "environment"])
def given(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Each way to hand over PEM: arguments for a client, or nothing but the environment."""

    def give(**secrets: bytes) -> dict[str, Any]:
        if request.param == "bytes":
            return dict(secrets)
        for name, content in secrets.items():
            (tmp_path / f"{name}.pem").write_bytes(content)
            monkeypatch.setenv(f"STOREAPI_{name.upper()}", str(tmp_path / f"{name}.pem"))
        if request.param == "environment":
            return {}
        for name in secrets:
            monkeypatch.delenv(f"STOREAPI_{name.upper()}")
        return {name: tmp_path / f"{name}.pem" for name in secrets}

    return give


async def test_certificate_makes_the_connection_secure(make_client, authority, given):
    """Verified by a private authority."""
    with tls_server(authority) as address:
        client = make_client(address, **given(tls_ca=authority.cert_pem.bytes()))

        assert (await client.posts.get(7)).id == 7


async def test_client_certificate_is_sent(make_client, authority, given):
    """mTLS."""
    own = authority.issue_cert("caller.example")
    with tls_server(authority, asks_for_certificates=True) as address:
        client = make_client(
            address,
            **given(
                tls_ca=authority.cert_pem.bytes(),
                tls_cert=own.cert_chain_pems[0].bytes(),
                tls_key=own.private_key_pem.bytes(),
            ),
        )

        assert (await client.posts.get(1)).body == "caller.example"


async def test_server_of_another_authority_is_refused(make_client, authority):
    """There is no fallback to an insecure connection."""
    with tls_server(authority) as address:
        for arguments in ({"tls_ca": trustme.CA().cert_pem.bytes()}, {"tls": True}, {"tls": False}, {}):
            with pytest.raises(storeapi.Unavailable):
                await make_client(address, timeout=0.5, **arguments).posts.get(1)


BY_NAME = {"channel_options": [("grpc.default_authority", "store.example")]}


@pytest.mark.parametrize("leaves", [0, 1])
@pytest.mark.parametrize(
    ("hosts", "names", "arguments"),
    [
        (["localhost", "localhost"], ["localhost"], {}),
        (["127.0.0.1", "127.0.0.1"], ["127.0.0.1"], {}),
        (["127.0.0.1", "127.0.0.2"], ["127.0.0.1", "127.0.0.2"], {}),
        (["localhost", "127.0.0.2"], ["store.example"], BY_NAME),
    ],
    ids=["one name", "one number", "numbers", "a name that is said"],
)
async def test_several_addresses_are_verified_by_one_name(
    make_client, authority, hosts, names, arguments, leaves
):
    """Also if only the last address works."""
    servers = [ExitStack(), ExitStack()]
    with servers[0], servers[1]:
        addresses = [
            it.enter_context(tls_server(authority, host=host, names=names))
            for it, host in zip(servers, hosts, strict=True)
        ]
        client = make_client(addresses, tls_ca=authority.cert_pem.bytes(), **arguments)
        servers[leaves].close()

        assert (await client.posts.get(7)).id == 7


async def test_several_addresses_do_not_weaken_verification(make_client, authority):
    """A server with a certificate for another name is refused."""
    with tls_server(authority, names=["other.example"]) as one, tls_server(authority) as other:
        client = make_client(
            [one, other.replace("localhost:", "LOCALHOST:")], tls_ca=authority.cert_pem.bytes()
        )
        assert (await client.posts.get(7)).id == 7

        client = make_client([one, "localhost:1"], tls_ca=authority.cert_pem.bytes(), timeout=0.5)
        with pytest.raises(storeapi.Unavailable):
            await client.posts.get(7)


async def test_api_key_is_sent_over_tls(make_client, authority):
    """Also to remote hosts, without an extra setting."""
    with tls_server(authority) as address:
        client = make_client(address, tls_ca=authority.cert_pem.bytes(), api_key="secret")

        assert (await client.posts.get(1)).id == 1
