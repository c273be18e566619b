"""TLS and mTLS: accepted clients, renewed certificates and invalid ones."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from storeapi.v1 import changes_pb2
from storeapi.v1 import posts_pb2 as pb
from structlog.testing import capture_logs

from store_service import config as settings
from store_service.auth import certificates
from store_service.auth.watched_file import BadFile
from store_service.config import Config
from store_service.logs import CallLog
from store_service.server import RunningServer, serving
from tests.support.certificates import (
    TlsFiles,
    certificate_chain,
    channel_credentials,
    private_key,
    replace_file,
)
from tests.support.errors import expect_error, received_error
from tests.support.metrics import scrape_metrics
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

NAME = "billing.internal"


@pytest.fixture
def database_url(database_file: Path) -> str:
    """What is true of connections is so on either engine."""
    return f"sqlite:///{database_file}"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The authority of the server and its clients."""
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    """Another authority."""
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> TlsFiles:
    """The files of a server."""
    return TlsFiles(tmp_path, authority)


@pytest.fixture
def config(database_url: str, files: TlsFiles) -> Config:
    """A server that wants TLS."""
    return with_tls(database_url, files)


def with_tls(database_url: str, files: TlsFiles, **more: Any) -> Config:
    return settings.load(
        DATABASE_URL=database_url,
        listen="127.0.0.1:0",
        tls_cert=str(files.cert),
        tls_key=str(files.key),
        **more,
    )


@pytest.fixture
async def mutual(database_url: str, files: TlsFiles) -> AsyncIterator[RunningServer]:
    """A server that wants certificates of its clients too."""
    async with serving(with_tls(database_url, files, tls_client_ca=str(files.client_ca))) as server:
        yield server


@asynccontextmanager
async def connected(address: str, credentials: grpc.ChannelCredentials | None) -> AsyncIterator[Stubs]:
    """Stubs on a connection of their own, which shares nothing with any other."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.aio.insecure_channel(address, options=options)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options=options)
    )
    async with channel:
        yield Stubs(channel)


async def is_let_in(address: str, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether a call on a new connection succeeds; False without a connection."""
    async with connected(address, credentials) as stubs:
        call = stubs.posts.ListPosts(pb.ListPostsRequest(), timeout=scaled_timeout())
        try:
            await call
        except grpc.aio.AioRpcError as failed:
            error = received_error(failed)
        else:
            return True
    # Never from the service: it has not been reached.
    assert error.code == grpc.StatusCode.UNAVAILABLE
    assert "x-call-id" not in error.trailing
    return False


async def shown_by(address: str) -> bytes:
    """The certificate (DER) of the server on a new connection."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return shown
    finally:
        writer.transport.abort()


def der(cert: trustme.LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(cert.cert_chain_pems[0].bytes().decode())


# TLS


async def test_client_that_trusts_the_authority_is_served(
    server: RunningServer, authority: trustme.CA
) -> None:
    """Over TLS, with the server's name checked by the client."""
    assert await is_let_in(server.address, channel_credentials(authority))


async def test_plaintext_is_refused_with_tls(server: RunningServer) -> None:
    assert not await is_let_in(server.address, None)


async def test_client_of_another_authority_refuses_the_server(
    server: RunningServer, stranger: trustme.CA
) -> None:
    assert not await is_let_in(server.address, channel_credentials(stranger))


# mTLS


async def test_client_certificate_of_the_authority_is_accepted(
    mutual: RunningServer, authority: trustme.CA
) -> None:
    """Without keys it has all permissions."""
    async with connected(mutual.address, channel_credentials(authority, authority.issue_cert(NAME))) as stubs:
        post = await stubs.create_post()
        watch: Any = stubs.changes.Watch(changes_pb2.WatchRequest())
        await watch.read()
        watch.cancel()

    assert post.id == 1


async def test_client_without_a_certificate_is_refused(mutual: RunningServer, authority: trustme.CA) -> None:
    """For every method."""
    assert not await is_let_in(mutual.address, channel_credentials(authority))


async def test_client_certificate_of_another_authority_is_refused(
    mutual: RunningServer, authority: trustme.CA, stranger: trustme.CA
) -> None:
    """Whatever name it has."""
    credentials = channel_credentials(authority, stranger.issue_cert(NAME))
    assert not await is_let_in(mutual.address, credentials)


async def test_plaintext_is_refused_with_mtls(mutual: RunningServer) -> None:
    assert not await is_let_in(mutual.address, None)


async def test_health_needs_a_client_certificate(mutual: RunningServer, authority: trustme.CA) -> None:
    check = health_pb2.HealthCheckRequest()
    async with grpc.aio.secure_channel(mutual.address, channel_credentials(authority)) as channel:
        assert (await expect_error(health_pb2_grpc.HealthStub(channel).Check(check))).code == (
            grpc.StatusCode.UNAVAILABLE
        )
    credentials = channel_credentials(authority, authority.issue_cert(NAME))
    async with grpc.aio.secure_channel(mutual.address, credentials) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(check)

    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The callers in the log."""
    told: list[str | None] = []
    monkeypatch.setattr(CallLog, "write", lambda *values: told.append(values[6]))
    return told


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ((NAME,), NAME),
        ((NAME, "second.internal"), NAME),
        (("spiffe://example.org/billing",), "spiffe://example.org/billing"),
        (("billing@example.org",), "billing@example.org"),
    ],
)
async def test_principal_is_the_subject_alternative_name(
    names: list[str | None],
    mutual: RunningServer,
    authority: trustme.CA,
    given: tuple[str, ...],
    name: str,
) -> None:
    """The first one, of any type."""
    if name.startswith("spiffe:"):
        client = with_uri(authority, name)
    else:
        client = channel_credentials(authority, authority.issue_cert(*given))
    assert await is_let_in(mutual.address, client)

    assert names == [name]


def with_uri(authority: trustme.CA, uri: str) -> grpc.ChannelCredentials:
    """A client whose certificate has a URI, which trustme does not make by itself."""
    return signed(authority, [uri], common_name=None)


def signed(authority: trustme.CA, uris: list[str], common_name: str | None) -> grpc.ChannelCredentials:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    ca_key = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    ca_cert = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    subject = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else []
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(ca_cert.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    pem = builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return grpc.ssl_channel_credentials(authority.cert_pem.bytes(), private, pem)


async def test_common_name_is_not_a_principal(
    names: list[str | None], mutual: RunningServer, authority: trustme.CA
) -> None:
    """Such a caller is named by its address."""
    assert await is_let_in(mutual.address, signed(authority, [], common_name=NAME))

    assert names == ["ipv4:127.0.0.1"]


# Renewal


async def test_renewed_certificate_is_loaded_without_a_dropped_call(
    server: RunningServer, files: TlsFiles, authority: trustme.CA
) -> None:
    """New connections see it; open streams and connections continue."""
    async with connected(server.address, channel_credentials(authority)) as stubs:
        watch: Any = stubs.changes.Watch(changes_pb2.WatchRequest())
        await watch.read()
        before = await shown_by(server.address)

        renewed = files.renew(authority)

        assert await shown_by(server.address) == der(renewed) != before
        post = await stubs.create_post("after the renewal")
        response = await watch.read()
        watch.cancel()
    assert [it.id for it in response.changes] == [post.id]
    assert await is_let_in(server.address, channel_credentials(authority))


async def test_calls_succeed_during_repeated_renewals(
    server: RunningServer, files: TlsFiles, authority: trustme.CA
) -> None:
    """Ten, with a new connection before, between and after the two files of each."""
    credentials = channel_credentials(authority)
    async with connected(server.address, credentials) as old:
        for _ in range(10):
            cert = authority.issue_cert("localhost", "127.0.0.1")
            replace_file(files.cert, certificate_chain(cert))
            assert await is_let_in(server.address, credentials)
            replace_file(files.key, private_key(cert))
            assert await is_let_in(server.address, credentials)
            assert await shown_by(server.address) == der(cert)
            await old.create_post()


async def test_client_authority_is_replaced(
    mutual: RunningServer, files: TlsFiles, authority: trustme.CA, stranger: trustme.CA
) -> None:
    """From the next connection on."""
    old = channel_credentials(authority, authority.issue_cert(NAME))
    new = channel_credentials(authority, stranger.issue_cert(NAME))
    assert (await is_let_in(mutual.address, old), await is_let_in(mutual.address, new)) == (True, False)

    files.trust(stranger)

    assert (await is_let_in(mutual.address, old), await is_let_in(mutual.address, new)) == (False, True)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


BROKEN: dict[str, Callable[[TlsFiles, trustme.LeafCert], None]] = {
    "the certificate is half written": lambda files, new: replace_file(
        files.cert, half(certificate_chain(new))
    ),
    "the key is half written": lambda files, new: replace_file(files.key, half(private_key(new))),
    "only the certificate is there": lambda files, new: replace_file(files.cert, certificate_chain(new)),
    "only the key is there": lambda files, new: replace_file(files.key, private_key(new)),
    "the certificate is gone": lambda files, _: files.cert.unlink(),
    "the key is empty": lambda files, _: replace_file(files.key, b""),
    "the authorities are broken": lambda files, _: replace_file(files.client_ca, b"none"),
    "the authorities are gone": lambda files, _: files.client_ca.unlink(),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_mismatched_files_are_not_loaded(
    mutual: RunningServer, files: TlsFiles, authority: trustme.CA, how: str
) -> None:
    """The previous pair is used, and the error is logged once."""
    credentials = channel_credentials(authority, authority.issue_cert(NAME))
    before = await shown_by(mutual.address)
    with capture_logs() as logged:
        BROKEN[how](files, authority.issue_cert("localhost", "127.0.0.1"))
        for _ in range(3):
            assert await is_let_in(mutual.address, credentials)
        assert await shown_by(mutual.address) == before

    (warning,) = [it for it in logged if it["log_level"] == "warning"]
    assert warning["problem"].startswith("STORE_TLS_")
    assert str(files.cert.parent) not in warning["problem"]

    files.trust(authority)
    renewed = files.renew(authority)
    assert await shown_by(mutual.address) == der(renewed)


async def test_unchanged_files_are_not_read(
    server: RunningServer, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection costs three stat calls."""
    monkeypatch.setattr(certificates.Certificates, "_load", lambda _: pytest.fail("it was read"))

    for _ in range(3):
        assert await is_let_in(server.address, channel_credentials(authority))


async def test_pair_that_changes_during_its_check_is_not_loaded(
    files: TlsFiles, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL reads the files itself."""
    check = certificates.Certificates._check_pair

    def changes_meanwhile(self: certificates.Certificates) -> None:
        files.renew(authority)
        check(self)

    monkeypatch.setattr(certificates.Certificates, "_check_pair", changes_meanwhile)

    with pytest.raises(BadFile, match="is being written"):
        certificates.Certificates(cert=files.cert, key=files.key, client_ca=None, settings=("C", "K", "A"))


# Time


EXPIRED, NOT_YET = "certificate has expired", "certificate is not valid yet"


MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def days(count: int) -> datetime:
    return MIDNIGHT + timedelta(days=count)


def told(logged: Sequence[Any]) -> list[str]:
    return [it["event"] for it in logged if it["log_level"] == "warning"]


@pytest.mark.parametrize(
    ("begins", "ends", "expected"),
    [(-20, -10, [EXPIRED]), (10, 20, [NOT_YET]), (-20, 10, [])],
    ids=["expired", "not yet", "valid"],
)
@pytest.mark.parametrize("has_client_ca", [False, True])
def test_unusable_certificate_is_logged(
    files: TlsFiles, authority: trustme.CA, begins: int, ends: int, expected: list[str], has_client_ca: bool
) -> None:
    """When it is loaded, with the setting and its validity, because the clock may be wrong."""
    files.renew(authority.create_child_ca(), not_before=days(begins), not_after=days(ends))
    with capture_logs() as logged:
        client_ca = files.client_ca if has_client_ca else None
        certificates.Certificates(
            cert=files.cert, key=files.key, client_ca=client_ca, settings=("C", "K", "A")
        )

    assert told(logged) == expected
    for it in logged:
        assert it["setting"] == "C"
        assert datetime.fromisoformat(it["valid_to"]) == days(ends)
        assert datetime.fromisoformat(it["valid_from"]) == days(begins)


async def test_expired_certificate_is_logged_once(
    server: RunningServer, files: TlsFiles, authority: trustme.CA
) -> None:
    """It is still used, because there is no other."""
    credentials = channel_credentials(authority)
    expired = files.renew(authority, not_after=days(-1))
    with capture_logs() as logged:
        assert not await is_let_in(server.address, credentials)
        assert not await is_let_in(server.address, credentials)
        assert await shown_by(server.address) == der(expired)

    assert told(logged) == [EXPIRED]


@pytest.mark.parametrize("kind", [trustme.KeyType.RSA, trustme.KeyType.ECDSA])
def test_logged_validity_is_that_of_the_leaf_certificate(
    files: TlsFiles, authority: trustme.CA, kind: trustme.KeyType
) -> None:
    """Not of an intermediate one, whatever its key type."""
    ends = days(3)
    cert = authority.create_child_ca(key_type=kind).issue_cert("localhost", not_after=ends, key_type=kind)
    replace_file(files.cert, certificate_chain(cert))
    replace_file(files.key, private_key(cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    validity = certificates._validity(context, files.cert.read_bytes())

    assert validity is not None
    assert validity.ends == ends.timestamp()


async def test_expiry_metric_is_that_of_the_served_certificate(
    database_url: str, files: TlsFiles, authority: trustme.CA
) -> None:
    """Without connections too; an unusable pair is not reported."""
    name = "store_certificate_expiry_seconds"
    files.renew(authority, not_after=days(3))
    async with serving(with_tls(database_url, files, metrics_listen="127.0.0.1:0")) as server:
        assert scrape_metrics(server).total(name) == days(3).timestamp()
        renewed = files.renew(authority, not_after=days(90))
        assert scrape_metrics(server).total(name) == days(90).timestamp()
        assert await shown_by(server.address) == der(renewed)
        replace_file(files.cert, certificate_chain(authority.issue_cert("localhost", not_after=days(200))))
        assert scrape_metrics(server).total(name) == days(90).timestamp()
        assert await shown_by(server.address) == der(renewed)


async def test_expiry_metric_is_absent_without_tls(database_url: str) -> None:
    plain = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", metrics_listen="127.0.0.1:0")
    async with serving(plain) as server:
        assert not list(scrape_metrics(server).values("store_certificate_expiry_seconds"))
