"""A secured service as it is started and called: settings, bad files, grpcurl, the Python client."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import storeapi
import trustme
from click.testing import CliRunner

from store_service import cli
from store_service.auth import api_keys
from store_service.auth.principal import ALL_PERMISSIONS, Permission
from tests.support.certificates import TlsFiles, certificate_chain, private_key
from tests.support.polling import wait_until
from tests.support.server_process import ServerProcess, run_command
from tests.support.timeouts import scaled_timeout

GRPCURL = Path(sys.executable).with_name("grpcurl")


@dataclass
class Secured:
    """A server with mTLS and keys, and what its clients need."""

    server: ServerProcess
    folder: Path
    key: str
    reader: str

    def grpcurl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """grpcurl with these arguments; {} is the address."""
        return subprocess.run(
            [GRPCURL, "-max-time", "20", *(it.replace("{}", self.server.address) for it in arguments)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=scaled_timeout(),
            check=False,
        )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One for the whole module."""
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    files = TlsFiles(folder, authority)
    client = authority.issue_cert("billing.internal")
    (folder / "client.pem").write_bytes(certificate_chain(client))
    (folder / "client-key.pem").write_bytes(private_key(client))
    made = {}
    for name, permissions in (("all", ALL_PERMISSIONS), ("reader", frozenset([Permission.READ]))):
        made[name] = api_keys.new_key()
        api_keys.append(folder / "keys", name=name, key=made[name], permissions=permissions)
    settings = {
        "STORE_TLS_CERT": files.cert.name,
        "STORE_TLS_KEY": files.key.name,
        "STORE_TLS_CLIENT_CA": files.client_ca.name,
        "STORE_API_KEYS_FILE": "keys",
    }
    server = ServerProcess(folder, settings).start()
    yield Secured(server, folder, made["all"], made["reader"])
    server.kill()


# grpcurl

MUTUAL = ("-cacert", "ca.pem", "-cert", "client.pem", "-key", "client-key.pem")


def test_grpcurl_calls_with_certificates_and_an_api_key(secured: Secured) -> None:
    """The key is sent to reflection too, so that no proto files are needed."""
    header = ("-H", f"authorization: Bearer {secured.key}")
    done = secured.grpcurl(
        *MUTUAL, *header, "-d", '{"post": {"body": "Hi"}}', "{}", "storeapi.v1.PostService/CreatePost"
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert '"body": "Hi"' in done.stdout
    assert "storeapi.v1.PostService" in secured.grpcurl(*MUTUAL, *header, "{}", "list").stdout


def test_grpcurl_receives_authentication_errors(secured: Secured) -> None:
    """A missing key, permission or certificate."""
    no_key = secured.grpcurl(*MUTUAL, "{}", "list")
    assert no_key.returncode != 0
    assert "has no credentials" in no_key.stderr

    header = ("-H", f"authorization: Bearer {secured.reader}")
    refused = secured.grpcurl(
        *MUTUAL, *header, "-d", '{"post": {"body": "Hi"}}', "{}", "storeapi.v1.PostService/CreatePost"
    )
    assert "Code: PermissionDenied" in refused.stderr
    assert '"reason":"PERMISSION_DENIED"' in refused.stderr
    assert '"metadata":{"right":"write"}' in refused.stderr

    for options in (("-cacert", "ca.pem"), ("-plaintext",)):
        assert secured.grpcurl("-connect-timeout", "2", *options, "{}", "list").returncode != 0


def test_health_needs_a_certificate_and_no_api_key(secured: Secured, tmp_path: Path) -> None:
    """With reflection for callers only, a probe has the proto of the health service."""
    proto = tmp_path / "health.proto"
    proto.write_text(
        'syntax = "proto3"; package grpc.health.v1;'
        "message HealthCheckRequest { string service = 1; }"
        "message HealthCheckResponse { enum ServingStatus { UNKNOWN = 0; SERVING = 1; }"
        " ServingStatus status = 1; }"
        "service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }"
    )
    options = ("-import-path", str(tmp_path), "-proto", proto.name)
    method = "grpc.health.v1.Health/Check"

    assert "SERVING" in secured.grpcurl(*MUTUAL, *options, "{}", method).stdout
    without = secured.grpcurl("-connect-timeout", "2", "-cacert", "ca.pem", *options, "{}", method)
    assert without.returncode != 0


# The Python client


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
async def test_python_client_calls_with_certificates_and_an_api_key(secured: Secured, kind: str) -> None:
    """From files, as documented; a watch too."""
    folder = secured.folder
    options = {
        "tls_ca": folder / "ca.pem",
        "tls_cert": folder / "client.pem",
        "tls_key": folder / "client-key.pem",
        "api_key": secured.key,
    }

    if kind == "asyncio":
        async with storeapi.connect_async(secured.server.address, **options) as client:
            post = await client.posts.create(body="a")
            watch = client.changes.watch(start="initial_state")
            first = await anext(watch)
            await watch.close()
    else:
        with storeapi.connect(secured.server.address, **options) as client:
            post = client.posts.create(body="a")
            with client.changes.watch(start="initial_state") as watch:
                first = next(watch)

    assert post.body == "a"
    assert first.kind == "post"


def test_python_client_raises_authentication_errors(secured: Secured) -> None:
    """Each has its own class, and none is retried."""
    folder = secured.folder
    tls = {
        "tls_ca": folder / "ca.pem",
        "tls_cert": folder / "client.pem",
        "tls_key": folder / "client-key.pem",
    }
    for key, error in (
        (None, storeapi.CredentialsMissing),
        ("wrong", storeapi.CredentialsInvalid),
        (secured.reader, storeapi.PermissionDenied),
    ):
        with (
            storeapi.connect(secured.server.address, api_key=key, **tls) as client,
            pytest.raises(error) as raised,
        ):
            client.posts.create(body="a")
        assert raised.value.attempts == 1


# Start


def test_public_address_without_tls_is_refused(tmp_path: Path) -> None:
    """Nothing is created, and the line says what to do."""
    done = run_command("serve", "--listen", "0.0.0.0:0", folder=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("store-service: STORE_LISTEN: ")
    assert "STORE_ALLOW_INSECURE=true" in line
    assert list(tmp_path.iterdir()) == []


async def test_public_address_without_tls_is_served_if_allowed(tmp_path: Path) -> None:
    """Behind a mesh or proxy that encrypts."""
    server = ServerProcess(tmp_path, {"STORE_LISTEN": "0.0.0.0:0", "STORE_ALLOW_INSECURE": "true"}).start()
    try:
        port = server.address.rpartition(":")[2]
        async with storeapi.connect_async(f"127.0.0.1:{port}") as client:
            assert (await client.posts.create(body="a")).id == 1
    finally:
        server.kill()


async def test_public_address_is_served_with_tls(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path, trustme.CA())
    server = ServerProcess(
        tmp_path,
        {"STORE_LISTEN": "0.0.0.0:0", "STORE_TLS_CERT": str(files.cert), "STORE_TLS_KEY": str(files.key)},
    ).start()
    try:
        port = server.address.rpartition(":")[2]
        async with storeapi.connect_async(f"127.0.0.1:{port}", tls_ca=files.client_ca) as client:
            assert (await client.posts.create(body="a")).id == 1
    finally:
        server.kill()


async def test_unix_socket_needs_no_tls(tmp_path: Path) -> None:
    """Only this machine can reach it."""
    server = ServerProcess(tmp_path, {"STORE_LISTEN": f"unix:{tmp_path}/s"}).start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            await asyncio.wait_for(channel.channel_ready(), scaled_timeout())
    finally:
        server.kill()


GOOD = ("STORE_TLS_CERT", "STORE_TLS_KEY", "STORE_TLS_CLIENT_CA", "STORE_API_KEYS_FILE")


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("variable", "content"),
    [
        ("STORE_TLS_CERT", "nonsense s3cret"),
        ("STORE_TLS_CERT", ""),
        ("STORE_TLS_KEY", "nonsense s3cret"),
        ("STORE_TLS_KEY", "another"),
        ("STORE_TLS_CLIENT_CA", "nonsense s3cret"),
        ("STORE_API_KEYS_FILE", "nonsense s3cret"),
        ("STORE_API_KEYS_FILE", None),
        ("STORE_JWT_PUBLIC_KEYS_FILE", "nonsense s3cret"),
        ("STORE_JWT_SECRET_FILE", "s3cret"),
    ],
)
def test_invalid_tls_file_is_named_by_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, variable: str, content: str | None
) -> None:
    """Exit code 2; nothing is created, and no content of the file is printed."""
    files = TlsFiles(tmp_path, trustme.CA())
    api_keys.append(tmp_path / "keys", name="a", key=api_keys.new_key(), permissions=ALL_PERMISSIONS)
    paths = dict(zip(GOOD, (files.cert, files.key, files.client_ca, tmp_path / "keys"), strict=True))
    if content == "another":
        content = private_key(trustme.CA().issue_cert("localhost")).decode()
    paths[variable] = tmp_path / "bad"
    if content is not None:
        paths[variable].write_text(content)
    for name, path in paths.items():
        monkeypatch.setenv(name, str(path))
    if "JWT" in variable:
        monkeypatch.setenv("STORE_JWT_AUDIENCE", "a")
        monkeypatch.setenv("STORE_JWT_ISSUER", "b")
    before = set(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)

    done = CliRunner().invoke(cli.main, [command], prog_name="store-service")

    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"store-service: {variable}: ")
    assert "s3cret" not in line
    assert str(tmp_path) not in line
    assert set(tmp_path.iterdir()) == before


def test_renewal_needs_no_restart(tmp_path: Path) -> None:
    """Files are replaced, a key is created, and both are logged."""
    authority = trustme.CA()
    files = TlsFiles(tmp_path, authority)
    settings = {
        "STORE_TLS_CERT": str(files.cert),
        "STORE_TLS_KEY": str(files.key),
        "STORE_API_KEYS_FILE": "keys",
    }

    def new_key(name: str, permissions: str) -> str:
        done = run_command(
            "keys", "new", name, "--permissions", permissions, folder=tmp_path, settings=settings
        )
        return done.stdout.strip()

    first = new_key("a", "read")
    server = ServerProcess(tmp_path, settings).start()
    try:
        with storeapi.connect(server.address, tls_ca=files.client_ca, api_key=first) as client:
            assert list(client.posts.list()) == []
            files.renew(authority)
            second = new_key("b", "write")
            wait_until(lambda: "file reloaded" in server.stderr())
            with storeapi.connect(
                server.address,
                tls_ca=files.client_ca,
                api_key=second,
                channel_options=[("grpc.use_local_subchannel_pool", 1)],
            ) as other:
                assert other.posts.create(body="a").id == 1
            assert [post.body for post in client.posts.list()] == ["a"]
        wait_until(lambda: "certificates reloaded" in server.stderr())
    finally:
        assert server.stop() == 0
