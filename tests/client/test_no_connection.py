"""Diagnosis of connection failures: permanent ones are reported at once and in plain words."""

import asyncio
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import storeapi
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from storeapi import _connection, _diagnosis, _retries
from storeapi._status import store_error
from storeapi.v1 import changes_pb2, changes_pb2_grpc, posts_pb2, posts_pb2_grpc

from tests.support.certificates import certificate_chain, private_key
from tests.support.ports import free_port
from tests.support.timeouts import scaled_timeout

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


class Posts(posts_pb2_grpc.PostServiceServicer):
    def GetPost(self, request: Any, context: Any) -> posts_pb2.Post:
        return posts_pb2.Post(id=request.id)


class Changes(changes_pb2_grpc.ChangeServiceServicer):
    def Watch(self, request: Any, context: Any) -> Iterator[Any]:
        yield changes_pb2.WatchResponse(resume_token="t1", heartbeat=True)
        over = threading.Event()
        context.add_callback(over.set)
        over.wait(scaled_timeout())


@contextmanager
def service(
    cert: trustme.LeafCert | None, *, client_ca: trustme.CA | None = None, port: int = 0
) -> Iterator[int]:
    """The port of a server on 127.0.0.1, with TLS if there is a certificate."""
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    posts_pb2_grpc.add_PostServiceServicer_to_server(Posts(), server)
    changes_pb2_grpc.add_ChangeServiceServicer_to_server(Changes(), server)
    address = f"127.0.0.1:{port}"
    if cert is None:
        port = server.add_insecure_port(address)
    else:
        credentials = grpc.ssl_server_credentials(
            [(private_key(cert), certificate_chain(cert))],
            client_ca.cert_pem.bytes() if client_ca else None,
            client_ca is not None,
        )
        port = server.add_secure_port(address, credentials)
    server.start()
    yield port
    server.stop(None).wait()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has set."""
    for name in ("TARGET", "TIMEOUT", "API_KEY", "TLS", "TLS_CA", "TLS_CERT", "TLS_KEY"):
        monkeypatch.delenv(f"STOREAPI_{name}", raising=False)
    for name in _connection.PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def ca(authority: trustme.CA) -> dict[str, bytes]:
    return {"tls_ca": authority.cert_pem.bytes()}


def own(cert: trustme.LeafCert) -> dict[str, bytes]:
    return {"tls_cert": certificate_chain(cert), "tls_key": private_key(cert)}


Case = tuple[trustme.LeafCert | None, trustme.CA | None, dict[str, Any], str]


def cases(authority: trustme.CA, name: str) -> Case:
    """Server certificate, accepted client authority, client arguments and expected error."""
    good = authority.issue_cert("localhost", "127.0.0.1")
    other = trustme.CA()
    by_name = [("grpc.default_authority", "store.example:443")]
    return {
        "not trusted": (good, None, ca(other), r"the certificate of {} is not trusted: .*certificate"),
        "not trusted by gRPC": (
            good,
            None,
            {"tls": True},
            r"the certificate of {} is not trusted: .*certificate",
        ),
        "another name": (
            authority.issue_cert("other.example"),
            None,
            ca(authority),
            "the certificate of {} is not valid for the name localhost",
        ),
        "another name that is said": (
            good,
            None,
            ca(authority) | {"channel_options": by_name},
            "the certificate of {} is not valid for the name store.example",
        ),
        "expired": (
            authority.issue_cert("localhost", not_before=NOW - 2 * DAY, not_after=NOW - DAY),
            None,
            ca(authority),
            "the certificate of {} has expired",
        ),
        "not yet valid": (
            authority.issue_cert("localhost", not_before=NOW + DAY, not_after=NOW + 2 * DAY),
            None,
            ca(authority),
            "the certificate of {} is not valid yet",
        ),
        "plaintext to TLS": (good, None, {}, "{} uses TLS, and the client does not"),
        "plaintext to mTLS": (good, authority, {}, "{} uses TLS, and the client does not"),
        "TLS to plaintext": (None, None, ca(authority), "{} does not use TLS, and the client does"),
    }[name]


CASES = [
    "not trusted",
    "not trusted by gRPC",
    "another name",
    "another name that is said",
    "expired",
    "not yet valid",
    "plaintext to TLS",
    "plaintext to mTLS",
    "TLS to plaintext",
]


@pytest.mark.parametrize("by", ["call", "watch"])
@pytest.mark.parametrize("name", CASES)
async def test_permanent_connection_error_is_raised_at_once(make_client, authority, name, by):
    """By the first attempt, with the cause, for the address of localhost that responds."""
    cert, client_ca, arguments, message = cases(authority, name)
    with service(cert, client_ca=client_ca) as port:
        client = make_client(f"localhost:{port}", timeout=60, **arguments)

        with pytest.raises(storeapi.ConnectionFailed) as raised:
            await (client.posts.get(1) if by == "call" else anext(client.changes.watch()))

    expected = f"cannot connect to localhost:{port}: {message.format(re.escape(f'127.0.0.1:{port}'))}"
    assert re.fullmatch(expected, str(raised.value))
    assert (raised.value.attempts, raised.value.code) == (1, grpc.StatusCode.UNAVAILABLE)
    assert isinstance(raised.value.__cause__, grpc.RpcError)


@pytest.mark.parametrize(
    ("has_one", "message"),
    [
        (False, r"asks for a client certificate \(.*certificate required\)"),
        (True, r"does not accept the client's certificate \(.*unknown ca\)"),
    ],
)
async def test_refused_client_certificate_is_reported(make_client, authority, has_one, message):
    """With a TLS alert, as web servers and proxies send it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    authority.configure_trust(context)
    arguments = own(trustme.CA().issue_cert("caller.example")) if has_one else {}
    with tls_listener(authority, context) as port:
        client = make_client(f"localhost:{port}", timeout=60, **ca(authority), **arguments)

        with pytest.raises(storeapi.ConnectionFailed, match=message):
            await client.posts.get(1)


@pytest.mark.parametrize(("has_one", "message"), [(False, "a client"), (True, "another client")])
async def test_refused_client_certificate_without_alert_is_suggested_at_the_deadline(
    make_client, authority, has_one, message
):
    """gRPC closes connections for other reasons too."""
    arguments = own(trustme.CA().issue_cert("caller.example")) if has_one else {}
    with service(authority.issue_cert("localhost"), client_ca=authority) as port:
        client = make_client(f"localhost:{port}", timeout=2, **ca(authority), **arguments)

        with pytest.raises(storeapi.Unavailable, match=f"it may require {message} certificate"):
            await client.posts.get(1)


@pytest.mark.parametrize(("seconds", "kind"), [(60, storeapi.ConnectionFailed), (1, storeapi.Unavailable)])
async def test_unresolvable_name_ends_the_call(make_client, seconds, kind):
    """After two failed look-ups, or at an earlier deadline."""
    client = make_client("no.such.name.invalid:50051", timeout=seconds)

    message = r"the name no\.such\.name\.invalid is not known"
    with pytest.raises(storeapi.Unavailable, match=message) as raised:
        await client.posts.get(1)

    assert type(raised.value) is kind
    assert raised.value.attempts > 1


def test_name_is_looked_up_twice(monkeypatch):
    """A service that just starts may not be known yet. Concurrent calls share one look-up."""
    diagnosis = _diagnosis.Diagnosis(settings(target="no.such.name.invalid:1").goal)
    error = storeapi.Unavailable("DNS resolution failed")

    def kind() -> type[storeapi.StoreError]:
        return type(diagnosis.explain(error, has_answered=False, seconds_left=None))

    monkeypatch.setattr(_diagnosis, "PROBE_SECONDS", scaled_timeout())
    monkeypatch.setattr(_diagnosis, "AGAIN_SECONDS", scaled_timeout())
    monkeypatch.setattr(_diagnosis, "FRESH_SECONDS", scaled_timeout())
    assert [kind(), kind()] == [storeapi.Unavailable] * 2

    monkeypatch.setattr(_diagnosis, "FRESH_SECONDS", 0.0)
    assert kind() is storeapi.ConnectionFailed

    monkeypatch.setattr(_diagnosis, "AGAIN_SECONDS", 0.0)
    assert kind() is storeapi.Unavailable


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("127.0.0.1:1", "nothing listens at 127.0.0.1:1"),
        ("[::1]:1", "nothing listens at [::1]:1"),
        ("dns:///[::1]:1", "nothing listens at [::1]:1"),
        (["127.0.0.1:1", "127.0.0.2:1"], "nothing listens at 127.0.0.1:1; nothing listens at 127.0.0.2:1"),
    ],
)
async def test_refused_connection_is_reported_at_the_deadline(make_client, target, message):
    """In plain words with the address."""
    with pytest.raises(storeapi.Unavailable) as raised:
        await make_client(target, timeout=1).posts.get(1)

    assert type(raised.value) is storeapi.Unavailable
    assert raised.value.message.endswith(message)
    assert raised.value.attempts > 1


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Waits until a try has failed."""
    said = threading.Event()
    pause_after = _retries.Attempts.pause_after

    def noted(attempts, error):
        said.set()
        return pause_after(attempts, error)

    monkeypatch.setattr(_retries.Attempts, "pause_after", noted)
    return lambda: asyncio.to_thread(said.wait, scaled_timeout())


async def test_service_that_starts_late_is_awaited(make_client, authority, failed):
    """That nothing listens is a matter of time."""
    port = free_port()
    client = make_client(f"localhost:{port}", timeout=60, **ca(authority))
    call = asyncio.ensure_future(client.posts.get(1))
    assert await failed()

    with service(authority.issue_cert("localhost"), port=port):
        assert (await call).id == 1


async def test_watch_fails_on_a_permanent_certificate_error(make_client, authority):
    """Also after its start, after two look-ups; it would be silent forever."""
    with service(authority.issue_cert("localhost")) as port:
        client = make_client(f"localhost:{port}", **ca(authority))
        watch = client.changes.watch()
        await anext(watch.batches())
    with (
        service(trustme.CA().issue_cert("localhost"), port=port),
        pytest.raises(storeapi.ConnectionFailed, match="is not trusted"),
    ):
        await anext(watch)
    await watch.close()


async def test_watch_waits_through_a_temporary_certificate_error(make_client, authority, failed, monkeypatch):
    """As from a load balancer that just starts."""
    monkeypatch.setattr(_diagnosis, "FRESH_SECONDS", scaled_timeout())
    good = authority.issue_cert("localhost")
    with service(good) as port:
        watch = make_client(f"localhost:{port}", **ca(authority)).changes.watch()
        await anext(watch.batches())
    with service(trustme.CA().issue_cert("localhost"), port=port):
        step = asyncio.ensure_future(anext(watch.batches()))
        assert await failed()
    with service(good, port=port):
        assert (await step).resume_token == "t1"
        await watch.close()


def only_for_grpc() -> trustme.LeafCert:
    """A certificate, its own authority, with an IP address as a DNS name: gRPC takes it, Python does not."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "store")])
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - DAY, NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("127.0.0.1")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return trustme.LeafCert(private, cert.public_bytes(serialization.Encoding.PEM), [])


async def test_error_of_python_alone_does_not_end_a_working_client(make_client, monkeypatch):
    """gRPC reports a refused connection during a restart while the look-up finds the certificate."""
    monkeypatch.setattr(_diagnosis, "PROBE_SECONDS", scaled_timeout())
    monkeypatch.setattr(_diagnosis, "FRESH_SECONDS", 0.0)
    cert = only_for_grpc()
    with service(cert) as port:
        target, trusted = f"127.0.0.1:{port}", certificate_chain(cert)
        assert (await make_client(target, tls_ca=trusted).posts.get(1)).id == 1
        diagnosis = _diagnosis.Diagnosis(settings(target=target, tls_ca=trusted).goal)
        refused = storeapi.Unavailable("last error: Failed to connect to remote host: Connection refused")
        for _ in range(3):
            error = await asyncio.to_thread(diagnosis.explain, refused, has_answered=True, seconds_left=None)

            assert type(error) is storeapi.Unavailable
            assert "is not valid for the name 127.0.0.1" in error.message


def test_name_that_disappears_may_return(monkeypatch):
    """A headless service of Kubernetes has no address in a restart. A client that had a response
    waits.
    """
    monkeypatch.setattr(_diagnosis, "FRESH_SECONDS", 0.0)
    diagnosis = _diagnosis.Diagnosis(settings(target="no.such.name.invalid:1").goal)
    error = storeapi.Unavailable("DNS resolution failed")

    for _ in range(3):
        assert type(diagnosis.explain(error, has_answered=True, seconds_left=None)) is storeapi.Unavailable


async def test_diagnosis_ends_with_the_call(make_client, authority, monkeypatch):
    """Of a server that accepts connections and sends nothing."""
    monkeypatch.setattr(_diagnosis, "PROBE_SECONDS", 2 * scaled_timeout())
    # gRPC gives up a connection after this time, and says UNAVAILABLE.
    soon = [("grpc.min_reconnect_backoff_ms", 100), ("grpc.initial_reconnect_backoff_ms", 1000)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        client = make_client(target, timeout=1, **ca(authority), channel_options=soon)

        with pytest.raises(storeapi.StoreError) as raised:
            await asyncio.wait_for(client.posts.get(1), scaled_timeout())

    assert isinstance(raised.value, (storeapi.Unavailable, storeapi.DeadlineExceeded))


def test_unsupported_address_family_is_skipped(monkeypatch):
    """Such as IPv6 in many containers; the other addresses are tried."""
    getaddrinfo = socket.getaddrinfo

    def more(*arguments: Any, **keywords: Any) -> Any:
        return [
            (socket.AF_ATMPVC, socket.SOCK_STREAM, 6, "", ("elsewhere", 1)),
            *getaddrinfo(*arguments, **keywords),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", more)
    found = _diagnosis.look(settings(target="127.0.0.1:1").goal)

    assert found is not None
    assert re.fullmatch(
        "elsewhere:1 cannot be reached: .*not supported.*; nothing listens at 127.0.0.1:1", found.message
    )


async def test_server_without_http2_is_reported(make_client, authority):
    """A web server without gRPC."""
    with tls_listener(authority, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as port:
        client = make_client(f"localhost:{port}", **ca(authority))

        with pytest.raises(storeapi.ConnectionFailed, match="does not offer HTTP/2 over TLS"):
            await client.posts.get(1)


@contextmanager
def tls_listener(authority: trustme.CA, context: ssl.SSLContext) -> Iterator[int]:
    """The port of something that does nothing but the handshake."""
    authority.issue_cert("localhost").configure_cert(context)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError), connection:
                connection.settimeout(scaled_timeout())
                with context.wrap_socket(connection, server_side=True) as encrypted:
                    encrypted.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ({"target": "unix:/run/store.sock"}, {}),
        ({"target": "dns://10.0.0.1/store:1"}, {}),
        ({"target": "store:1"}, {"https_proxy": "http://proxy:3128"}),
    ],
)
def test_no_diagnosis_if_grpc_uses_a_proxy(arguments, environment, monkeypatch):
    """The result of the standard library would not apply to gRPC."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert settings(**arguments).goal is None


def test_no_diagnosis_for_opaque_credentials(authority):
    """gRPC credentials do not expose what they trust."""
    with service(authority.issue_cert("localhost")) as port:
        found = settings(target=f"127.0.0.1:{port}", credentials=grpc.local_channel_credentials())

        assert _diagnosis.look(found.goal) is None


def settings(**given: Any) -> _connection.Connection:
    everything = dict.fromkeys(
        ["target", "api_key", "tls", "tls_ca", "tls_cert", "tls_key", "credentials"]
    ) | {"timeout": storeapi.CLIENT_DEFAULT, "channel_options": ()}
    return _connection.connection(**everything | given)


def test_grpc_addresses_are_shown_in_plain_form():
    """In what gRPC says."""

    class Failure(grpc.RpcError):
        def details(self):
            return "last error: UNKNOWN: ipv6:%5B::1%5D:50051: refused; ipv6:%5Bfe80::1%25eth0%5D:1: no"

    assert (
        str(store_error(Failure()))
        == "last error: UNKNOWN: ipv6:[::1]:50051: refused; ipv6:[fe80::1%eth0]:1: no"
    )


@pytest.mark.parametrize(
    ("host", "has_server", "seconds", "code", "message"),
    [
        ("localhost", True, 2, 1, "does not use TLS"),
        ("localhost", False, 2, 5, "nothing listens"),
        ("no.such.name.invalid", False, 60, 1, "is not known"),
        ("no.such.name.invalid", False, 1, 5, "is not known"),
    ],
)
def test_command_prints_the_diagnosis_in_one_line(
    authority, tmp_path, host, has_server, seconds, code, message
):
    """With the exit code of a permanent or of a temporary error."""
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.cert_pem.bytes())
    with service(None) as port:
        target = f"{host}:{port if has_server else 1}"
        timeout = str(seconds)
        command = [sys.executable, "-m", "storeapi", "--target", target, "--timeout", timeout]
        command += ["--tls-ca", path]
        # gRPC's core writes lines of its own about handshakes.
        quiet = os.environ | {"GRPC_VERBOSITY": "NONE"}
        run = subprocess.run(
            [*command, "posts", "get", "1"],
            env=quiet,
            capture_output=True,
            text=True,
            timeout=scaled_timeout(100),
        )

    assert run.returncode == code
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"error: UNAVAILABLE: cannot connect to {target}: ")
    assert message in line
