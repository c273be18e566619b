"""TLS and mTLS: who is let in, what a renewed certificate takes, and what a broken one leaves as it was."""

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
from store_service.access.files import BadFile
from store_service.config import Config
from store_service.logs import CallLog
from store_service.rpc import tls
from store_service.server import RunningServer, serving
from tests.certificates import Files, chain_of, channel_credentials, key_of, replace
from tests.patience import patience
from tests.scraping import scraped
from tests.support import Stubs, error_seen, failure

NAME = "billing.internal"


@pytest.fixture
def database_url(database_file: Path) -> str:
    """What is true of connections is so on either engine."""
    return f"sqlite:///{database_file}"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs for the server and for its clients."""
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    """Who signs for others."""
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    """The files of a server."""
    return Files(tmp_path, authority)


@pytest.fixture
def config(database_url: str, files: Files) -> Config:
    """A server that wants TLS."""
    return with_tls(database_url, files)


def with_tls(database_url: str, files: Files, **more: Any) -> Config:
    return settings.load(
        DATABASE_URL=database_url,
        listen="127.0.0.1:0",
        tls_cert=str(files.cert),
        tls_key=str(files.key),
        **more,
    )


@pytest.fixture
async def mutual(database_url: str, files: Files) -> AsyncIterator[RunningServer]:
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
    """Whether a new connection takes a call; False if there is no connection at all."""
    async with connected(address, credentials) as stubs:
        call = stubs.posts.ListPosts(pb.ListPostsRequest(), timeout=patience())
        try:
            await call
        except grpc.aio.AioRpcError as failed:
            error = error_seen(failed)
        else:
            return True
    # Never from the service: it has not been reached.
    assert error.code == grpc.StatusCode.UNAVAILABLE
    assert "x-call-id" not in error.trailing
    return False


async def shown_by(address: str) -> bytes:
    """The certificate (DER) that a server shows to whoever connects now."""
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


async def test_a_client_that_knows_the_authority_is_served(
    server: RunningServer, authority: trustme.CA
) -> None:
    """Over TLS, with the server's name checked by the client."""
    assert await is_let_in(server.address, channel_credentials(authority))


async def test_plaintext_is_refused_with_tls(server: RunningServer) -> None:
    """There is no way around the encryption."""
    assert not await is_let_in(server.address, None)


async def test_a_client_of_another_authority_does_not_take_the_server(
    server: RunningServer, stranger: trustme.CA
) -> None:
    """So that nobody can stand in for it."""
    assert not await is_let_in(server.address, channel_credentials(stranger))


# mTLS


async def test_a_client_with_a_certificate_of_the_authority_is_let_in(
    mutual: RunningServer, authority: trustme.CA
) -> None:
    """That is all it needs where no keys are asked for: it may do everything."""
    async with connected(mutual.address, channel_credentials(authority, authority.issue_cert(NAME))) as stubs:
        post = await stubs.create_post()
        watch: Any = stubs.changes.Watch(changes_pb2.WatchRequest())
        await watch.read()
        watch.cancel()

    assert post.id == 1


async def test_a_client_without_a_certificate_is_not_let_in(
    mutual: RunningServer, authority: trustme.CA
) -> None:
    """Not even to a method that needs no right."""
    assert not await is_let_in(mutual.address, channel_credentials(authority))


async def test_a_certificate_of_another_authority_does_not_do(
    mutual: RunningServer, authority: trustme.CA, stranger: trustme.CA
) -> None:
    """Whatever name it has."""
    credentials = channel_credentials(authority, stranger.issue_cert(NAME))
    assert not await is_let_in(mutual.address, credentials)


async def test_plaintext_is_refused_with_mtls(mutual: RunningServer) -> None:
    """There is no way around the certificate."""
    assert not await is_let_in(mutual.address, None)


async def test_the_health_check_needs_a_certificate_too(mutual: RunningServer, authority: trustme.CA) -> None:
    """It is open to whoever has a connection, and without a certificate there is none."""
    check = health_pb2.HealthCheckRequest()
    async with grpc.aio.secure_channel(mutual.address, channel_credentials(authority)) as channel:
        assert (await failure(health_pb2_grpc.HealthStub(channel).Check(check))).code == (
            grpc.StatusCode.UNAVAILABLE
        )
    credentials = channel_credentials(authority, authority.issue_cert(NAME))
    async with grpc.aio.secure_channel(mutual.address, credentials) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(check)

    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Who has called, as the log is told."""
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
async def test_the_callers_name_is_the_subject_alternative_name(
    names: list[str | None],
    mutual: RunningServer,
    authority: trustme.CA,
    given: tuple[str, ...],
    name: str,
) -> None:
    """The first, if there are several; of whatever kind."""
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


async def test_a_common_name_is_no_name(
    names: list[str | None], mutual: RunningServer, authority: trustme.CA
) -> None:
    """Authorities check it less; a caller that has nothing else is called by where it is."""
    assert await is_let_in(mutual.address, signed(authority, [], common_name=NAME))

    assert names == ["ipv4:127.0.0.1"]


# Renewal


async def test_a_renewed_certificate_is_picked_up_without_a_dropped_call(
    server: RunningServer, files: Files, authority: trustme.CA
) -> None:
    """New connections see the new one; an open stream and calls on the old connection go on."""
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


async def test_calls_go_on_while_certificates_are_renewed_again_and_again(
    server: RunningServer, files: Files, authority: trustme.CA
) -> None:
    """Ten renewals, with a new connection before, between and after the two files of each."""
    credentials = channel_credentials(authority)
    async with connected(server.address, credentials) as old:
        for _ in range(10):
            cert = authority.issue_cert("localhost", "127.0.0.1")
            replace(files.cert, chain_of(cert))
            assert await is_let_in(server.address, credentials)
            replace(files.key, key_of(cert))
            assert await is_let_in(server.address, credentials)
            assert await shown_by(server.address) == der(cert)
            await old.create_post()


async def test_an_authority_of_clients_is_exchanged(
    mutual: RunningServer, files: Files, authority: trustme.CA, stranger: trustme.CA
) -> None:
    """Who was refused is let in, and who was let in is refused, from the next connection on."""
    old = channel_credentials(authority, authority.issue_cert(NAME))
    new = channel_credentials(authority, stranger.issue_cert(NAME))
    assert (await is_let_in(mutual.address, old), await is_let_in(mutual.address, new)) == (True, False)

    files.trust(stranger)

    assert (await is_let_in(mutual.address, old), await is_let_in(mutual.address, new)) == (False, True)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


BROKEN: dict[str, Callable[[Files, trustme.LeafCert], None]] = {
    "the certificate is half written": lambda files, new: replace(files.cert, half(chain_of(new))),
    "the key is half written": lambda files, new: replace(files.key, half(key_of(new))),
    "only the certificate is there": lambda files, new: replace(files.cert, chain_of(new)),
    "only the key is there": lambda files, new: replace(files.key, key_of(new)),
    "the certificate is gone": lambda files, _: files.cert.unlink(),
    "the key is empty": lambda files, _: replace(files.key, b""),
    "the authorities are broken": lambda files, _: replace(files.client_ca, b"none"),
    "the authorities are gone": lambda files, _: files.client_ca.unlink(),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_files_that_do_not_fit_together_are_not_taken(
    mutual: RunningServer, files: Files, authority: trustme.CA, how: str
) -> None:
    """Whoever connects meanwhile gets what was there before; the log says so once; what is mended counts."""
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


async def test_files_that_have_not_changed_are_not_read(
    server: RunningServer, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection costs a look at three files and no more."""
    monkeypatch.setattr(tls.Certificates, "_load", lambda _: pytest.fail("it was read"))

    for _ in range(3):
        assert await is_let_in(server.address, channel_credentials(authority))


async def test_a_pair_that_changes_while_it_is_checked_is_not_taken(
    files: Files, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL reads the files by itself; it must have seen what is used."""
    check = tls.Certificates._check_pair

    def changes_meanwhile(self: tls.Certificates) -> None:
        files.renew(authority)
        check(self)

    monkeypatch.setattr(tls.Certificates, "_check_pair", changes_meanwhile)

    with pytest.raises(BadFile, match="is being written"):
        tls.Certificates(cert=files.cert, key=files.key, client_ca=None, settings=("C", "K", "A"))


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
def test_a_certificate_that_no_client_takes_is_told_of(
    files: Files, authority: trustme.CA, begins: int, ends: int, expected: list[str], has_client_ca: bool
) -> None:
    """When it is read, with the setting and its times, which may be the clock's fault as well."""
    files.renew(authority.create_child_ca(), not_before=days(begins), not_after=days(ends))
    with capture_logs() as logged:
        client_ca = files.client_ca if has_client_ca else None
        tls.Certificates(cert=files.cert, key=files.key, client_ca=client_ca, settings=("C", "K", "A"))

    assert told(logged) == expected
    for it in logged:
        assert it["setting"] == "C"
        assert datetime.fromisoformat(it["valid_to"]) == days(ends)
        assert datetime.fromisoformat(it["valid_from"]) == days(begins)


async def test_an_expired_certificate_is_told_of_when_it_comes_and_not_again(
    server: RunningServer, files: Files, authority: trustme.CA
) -> None:
    """It is shown, for there is no other; clients refuse it, and the log says why."""
    credentials = channel_credentials(authority)
    expired = files.renew(authority, not_after=days(-1))
    with capture_logs() as logged:
        assert not await is_let_in(server.address, credentials)
        assert not await is_let_in(server.address, credentials)
        assert await shown_by(server.address) == der(expired)

    assert told(logged) == [EXPIRED]


@pytest.mark.parametrize("kind", [trustme.KeyType.RSA, trustme.KeyType.ECDSA])
def test_the_times_are_those_of_the_servers_own_certificate(
    files: Files, authority: trustme.CA, kind: trustme.KeyType
) -> None:
    """Not of those between it and its authority, whichever key it has."""
    ends = days(3)
    cert = authority.create_child_ca(key_type=kind).issue_cert("localhost", not_after=ends, key_type=kind)
    replace(files.cert, chain_of(cert))
    replace(files.key, key_of(cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    validity = tls._validity(context, files.cert.read_bytes())

    assert validity is not None
    assert validity.ends == ends.timestamp()


async def test_metrics_tell_when_the_certificate_expires_that_is_shown(
    database_url: str, files: Files, authority: trustme.CA
) -> None:
    """Also while nobody connects; a pair that cannot be used is not told of, and gRPC gets each that can."""
    name = "store_certificate_expiry_seconds"
    files.renew(authority, not_after=days(3))
    async with serving(with_tls(database_url, files, metrics_listen="127.0.0.1:0")) as server:
        assert scraped(server).total(name) == days(3).timestamp()
        renewed = files.renew(authority, not_after=days(90))
        assert scraped(server).total(name) == days(90).timestamp()
        assert await shown_by(server.address) == der(renewed)
        replace(files.cert, chain_of(authority.issue_cert("localhost", not_after=days(200))))
        assert scraped(server).total(name) == days(90).timestamp()
        assert await shown_by(server.address) == der(renewed)


async def test_metrics_without_tls_tell_of_no_certificate(database_url: str) -> None:
    """There is none, so nothing expires."""
    plain = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", metrics_listen="127.0.0.1:0")
    async with serving(plain) as server:
        assert not list(scraped(server).values("store_certificate_expiry_seconds"))
