"""Authentication and authorization: API keys, JWT, certificates, and every method."""

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import jwt
import pytest
import trustme
from google.protobuf.descriptor_pb2 import MethodOptions
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from storeapi.v1 import changes_pb2
from storeapi.v1 import posts_pb2 as pb
from structlog.testing import capture_logs

from store_service import config as settings
from store_service.auth import api_keys, authentication
from store_service.auth.authentication import required_permission
from store_service.auth.principal import ALL_PERMISSIONS, Permission, Principal
from store_service.config import Config
from store_service.logs import CallLog
from store_service.rpc.call import Call
from store_service.server import RunningServer, serving
from tests.support.certificates import TlsFiles, channel_credentials
from tests.support.contract import METHODS, method_path, send_bytes
from tests.support.errors import ReceivedError, expect_error, received_error
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

KEYS = {
    "reader": frozenset([Permission.READ]),
    "writer": frozenset([Permission.WRITE]),
    "watcher": frozenset([Permission.WATCH]),
    "admin": frozenset([Permission.ADMIN]),
    "all": ALL_PERMISSIONS,
}
SECRET = "s3cret" * 6
AUDIENCE, ISSUER = "storeapi", "https://issuer.example"


@pytest.fixture
def database_url(database_file: Path) -> str:
    """No call that is refused here reaches a database."""
    return f"sqlite:///{database_file}"


@dataclass
class KeyFile:
    """A key file and its keys."""

    path: Path
    keys: dict[str, str]

    def add(self, name: str, permissions: frozenset[Permission]) -> str:
        key = api_keys.new_key()
        api_keys.append(self.path, name=name, key=key, permissions=permissions)
        self.keys[name] = key
        return key

    def take_away(self, name: str) -> None:
        lines = self.path.read_text().splitlines(keepends=True)
        self.path.write_text("".join(line for line in lines if not line.startswith(f"{name} ")))


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    """A key for each permission, and one for all."""
    file = KeyFile(tmp_path / "keys", {})
    for name, permissions in KEYS.items():
        file.add(name, permissions)
    return file


@pytest.fixture
def config(config: Config, key_file: KeyFile) -> Config:
    """A server with authentication."""
    return config.model_copy(update={"api_keys_file": str(key_file.path)})


@pytest.fixture(autouse=True)
def frequent_file_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks files often, so that a test does not wait."""
    monkeypatch.setattr(authentication, "CHECK_INTERVAL_SECONDS", 0.01)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The code and the caller of each call in the log."""
    told: list[tuple[str, str | None]] = []
    monkeypatch.setattr(CallLog, "write", lambda *values: told.append((values[2], values[6])))
    return told


@asynccontextmanager
async def calling(
    server: RunningServer, *credentials: str, tls: grpc.ChannelCredentials | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel on which each call has these headers."""
    metadata = [("authorization", it) for it in credentials]

    async def authorized(_: Any, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details._replace(metadata=grpc.aio.Metadata(*metadata)), request)

    class Unary(grpc.aio.UnaryUnaryClientInterceptor):
        intercept_unary_unary = authorized

    class Stream(grpc.aio.UnaryStreamClientInterceptor):
        intercept_unary_stream = authorized

    interceptors = [Unary(), Stream()] if metadata else []
    channel = (
        grpc.aio.insecure_channel(server.address, interceptors=interceptors)
        if tls is None
        else grpc.aio.secure_channel(server.address, tls, interceptors=interceptors)
    )
    async with channel:
        yield channel


async def outcome(channel: grpc.aio.Channel, path: str) -> ReceivedError | None:
    """How a call with an empty request ends; None if it is answered."""
    try:
        async with asyncio.timeout(scaled_timeout()):
            await send_bytes(channel, path, b"")
    except grpc.RpcError as error:
        return received_error(error)
    return None


async def until_refused(server: RunningServer, key: str) -> ReceivedError:
    """Calls until the server refuses, because no event reports it."""
    async with asyncio.timeout(scaled_timeout()), calling(server, f"Bearer {key}") as channel:
        while True:
            error = await outcome(channel, "/storeapi.v1.PostService/GetPost")
            if error is not None and error.code == grpc.StatusCode.UNAUTHENTICATED:
                return error
            await asyncio.sleep(0.01)


async def until_let_in(server: RunningServer, key: str) -> None:
    """Calls until the server answers."""
    async with asyncio.timeout(scaled_timeout()), calling(server, f"Bearer {key}") as channel:
        while True:
            error = await outcome(channel, "/storeapi.v1.PostService/ListPosts")
            if error is None:
                return
            assert error.code == grpc.StatusCode.UNAUTHENTICATED
            await asyncio.sleep(0.01)


async def until_problem_logged(logged: list[Any]) -> None:
    """Waits until the server has checked a file and logged it."""
    async with asyncio.timeout(scaled_timeout()):
        while True:
            if any("problem" in it for it in logged):
                return
            await asyncio.sleep(0.01)


# Which permission each method needs

REQUIRED_PERMISSIONS = {
    "PostService": {
        Permission.READ: {
            "GetPost",
            "ListPosts",
            "ListPostRevisions",
            "BatchGetPosts",
            "CountPosts",
            "SearchPosts",
        },
        Permission.WRITE: {
            "CreatePost",
            "UpdatePost",
            "DeletePost",
            "UndeletePost",
            "BatchCreatePosts",
            "BatchUpdatePosts",
            "BatchDeletePosts",
        },
    },
    "CommentService": {
        Permission.READ: {
            "GetComment",
            "ListComments",
            "ListCommentRevisions",
            "BatchGetComments",
            "CountComments",
            "CountReplies",
            "SearchComments",
        },
        Permission.WRITE: {
            "CreateComment",
            "UpdateComment",
            "DeleteComment",
            "UndeleteComment",
            "BatchCreateComments",
            "BatchUpdateComments",
            "BatchDeleteComments",
        },
    },
    "ChangeService": {Permission.WATCH: {"Watch"}},
    "AdminService": {Permission.ADMIN: {"EraseAuthor", "RebuildSearchIndex", "SetWriteMode"}},
    "TransferService": {Permission.ADMIN: {"Export", "Import", "ImportRecords"}},
}


def test_required_permission_of_each_method() -> None:
    """Every method of the contract is listed here."""
    found: dict[str, dict[Permission, set[str]]] = {}
    for method in METHODS:
        permissions = found.setdefault(method.containing_service.name, {})
        permissions.setdefault(required_permission(method), set()).add(method.name)

    assert found == REQUIRED_PERMISSIONS


def test_methods_with_side_effects_need_more_than_read() -> None:
    """A method is a read only if the contract says so."""
    for method in METHODS:
        is_free_of_effects = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
        permission = required_permission(method)
        # An export has none, and needs more because it reveals everything.
        if permission is not Permission.ADMIN:
            assert (permission is Permission.WRITE) != is_free_of_effects
        assert is_free_of_effects or permission in (Permission.WRITE, Permission.ADMIN)


# Every method


def send(channel: grpc.aio.Channel, path: str, handler: Any) -> Any:
    """Calls a method of any shape with an empty message."""
    if handler.request_streaming:
        return channel.stream_stream(path)(iter([b""])).read()
    if handler.response_streaming:
        return channel.unary_stream(path)(b"").read()
    return channel.unary_unary(path)(b"")


async def test_every_method_except_health_needs_a_key(
    registered: dict[str, Any], server: RunningServer
) -> None:
    """Including methods added later."""
    open_to_all = {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
    }
    assert registered.keys() >= open_to_all | {method_path(method) for method in METHODS}
    async with calling(server) as channel:
        for path, handler in registered.items():
            if path in open_to_all:
                assert await send(channel, path, handler)
                continue
            error = await expect_error(send(channel, path, handler))

            assert (error.code, error.reason) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "CREDENTIALS_MISSING",
            ), path
            assert [it.DESCRIPTOR.name for it in error.details] == ["ErrorInfo"]
            assert "x-call-id" in error.trailing


@pytest.mark.parametrize("name", KEYS)
async def test_key_permits_the_methods_of_its_permissions_only(
    server: RunningServer, key_file: KeyFile, name: str
) -> None:
    """Each key on each method of the contract."""
    async with calling(server, f"Bearer {key_file.keys[name]}") as channel:
        for method in METHODS:
            error = await outcome(channel, method_path(method))

            if required_permission(method) in KEYS[name]:
                # An empty request is answered or is wrong, but it was looked at.
                assert error is None or error.code == grpc.StatusCode.INVALID_ARGUMENT
            else:
                assert error is not None
                assert (error.code, error.reason) == (
                    grpc.StatusCode.PERMISSION_DENIED,
                    "PERMISSION_DENIED",
                )
                assert error.metadata == {"right": required_permission(method).value}


async def test_refused_write_changes_nothing(server: RunningServer, key_file: KeyFile) -> None:
    """A write that is refused has not happened."""
    request = pb.CreatePostRequest(post=pb.Post(body="a"))
    for credentials in ([], ["Bearer x"], [f"Bearer {key_file.keys['reader']}"]):
        async with calling(server, *credentials) as channel:
            await expect_error(Stubs(channel).posts.CreatePost(request))
    async with calling(server, f"Bearer {key_file.keys['all']}") as channel:
        answer = await Stubs(channel).posts.ListPosts(pb.ListPostsRequest())

    assert list(answer.posts) == []


# Credentials that are wrong


def wrong(key: str) -> Iterator[list[str]]:
    """Headers that are nearly good."""
    yield ["Bearer x"]
    yield ["Bearer"]
    yield [key]
    yield [f"Basic {key}"]
    yield [f"Bearer {key}x"]
    yield [f"Bearer {key[:-1]}"]
    yield [f"Bearer {key.upper()}"]
    yield [f"Bearer {hashlib.sha256(key.encode()).hexdigest()}"]
    yield [f"Bearer {key}", f"Bearer {key}"]
    yield [f"Bearer {key}", "Bearer x"]
    yield [f"Bearer {key} {key}"]
    yield ["Bearer a.b.c"]


async def test_invalid_credentials_are_refused_and_not_repeated(
    server: RunningServer, key_file: KeyFile
) -> None:
    """The response does not help to guess them."""
    key = key_file.keys["all"]
    for headers in wrong(key):
        async with calling(server, *headers) as channel:
            error = await expect_error(Stubs(channel).posts.ListPosts(pb.ListPostsRequest()))

        assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID"), headers
        assert error.metadata == {}
        assert key[:-1].lower() not in (error.message + repr(error.details)).lower()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_scheme_is_case_insensitive(server: RunningServer, key_file: KeyFile, scheme: str) -> None:
    """As HTTP has it."""
    async with calling(server, f"{scheme} {key_file.keys['reader']}") as channel:
        assert await outcome(channel, "/storeapi.v1.PostService/ListPosts") is None


async def test_checks_have_a_fixed_order(server: RunningServer, key_file: KeyFile) -> None:
    """Decode, authenticate, authorize, drain, validate: the first failure is reported."""
    path = "/storeapi.v1.PostService/CreatePost"
    async with (
        calling(server) as nobody,
        calling(server, f"Bearer {key_file.keys['reader']}") as reader,
        calling(server, f"Bearer {key_file.keys['writer']}") as writer,
    ):
        assert (await expect_error(send_bytes(nobody, path, b"\xff"))).reason == "REQUEST_MALFORMED"
        assert (await expect_error(send_bytes(nobody, path, b""))).reason == "CREDENTIALS_MISSING"
        assert (await expect_error(send_bytes(reader, path, b""))).reason == "PERMISSION_DENIED"
        assert (await expect_error(send_bytes(writer, path, b""))).reason == "FIELD_INVALID"

        server.pipeline._draining = True
        assert (await expect_error(send_bytes(reader, path, b""))).reason == "PERMISSION_DENIED"
        assert (await expect_error(send_bytes(writer, path, b""))).reason == "SHUTTING_DOWN"


# The log


async def test_log_names_the_caller_and_never_the_key(
    names: list[tuple[str, str | None]], server: RunningServer, key_file: KeyFile
) -> None:
    """Also for a caller without permission; an unknown caller has no name."""
    async with calling(server, f"Bearer {key_file.keys['reader']}") as reader:
        await outcome(reader, "/storeapi.v1.PostService/ListPosts")
        await outcome(reader, "/storeapi.v1.PostService/CreatePost")
    async with calling(server, f"Bearer {key_file.keys['reader']}x") as stranger:
        await outcome(stranger, "/storeapi.v1.PostService/ListPosts")

    assert names == [("OK", "reader"), ("PERMISSION_DENIED", "reader"), ("UNAUTHENTICATED", None)]


async def test_calls_are_anonymous_without_authentication(
    names: list[tuple[str, str | None]], database_url: str
) -> None:
    """All methods are permitted, with or without keys."""
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0")
    async with serving(config) as server, calling(server, "Bearer x") as channel:
        await Stubs(channel).create_post()

    assert names == [("OK", None)]


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("ipv4:10.0.0.7:50123", "ipv4:10.0.0.7"),
        ("ipv6:%5B::1%5D:50123", "ipv6:%5B::1%5D"),
        ("unix:/run/store:1", "unix:/run/store:1"),
        ("unix:", "unix:"),
    ],
)
def test_anonymous_caller_is_named_by_its_address(peer: str, name: str) -> None:
    """Without the port, which differs for each connection."""
    context: Any = SimpleNamespace(peer=lambda: peer)
    call = Call("method", "id", context, CallLog(), None, None, defaultdict(int), None)
    assert call.caller_name == name

    call.principal = Principal(name="billing", permissions=ALL_PERMISSIONS)
    assert call.caller_name == "billing"


# Reloading


async def test_new_key_is_valid_without_a_restart(server: RunningServer, key_file: KeyFile) -> None:
    await until_let_in(server, key_file.add("new", ALL_PERMISSIONS))
    await until_let_in(server, key_file.keys["reader"])


async def test_removed_key_is_invalid_on_open_connections(server: RunningServer, key_file: KeyFile) -> None:
    """On connections that are open too."""
    await until_let_in(server, key_file.keys["all"])

    key_file.take_away("all")

    assert (await until_refused(server, key_file.keys["all"])).reason == "CREDENTIALS_INVALID"
    await until_let_in(server, key_file.keys["reader"])


async def test_open_watch_ends_when_its_key_is_removed(server: RunningServer, key_file: KeyFile) -> None:
    async with (
        calling(server, f"Bearer {key_file.keys['watcher']}") as channel,
        calling(server, f"Bearer {key_file.keys['writer']}") as other,
    ):
        watch: Any = Stubs(channel).changes.Watch(changes_pb2.WatchRequest())
        await watch.read()
        key = key_file.keys["watcher"]
        key_file.take_away("watcher")
        await until_refused(server, key)
        await Stubs(other).create_post("not for everybody")

        error = await asyncio.wait_for(expect_error(watch.read()), scaled_timeout())

    assert error.reason == "CREDENTIALS_INVALID"


@pytest.mark.parametrize("content", [b"all", b"\xff\xfe", None], ids=["wrong", "no text", "gone"])
async def test_invalid_key_file_keeps_the_last_valid_one(
    server: RunningServer, key_file: KeyFile, content: bytes | None
) -> None:
    """The error is logged once, and a corrected file is loaded."""
    good = key_file.path.read_bytes()
    with capture_logs() as logged:
        if content is None:
            key_file.path.unlink()
        else:
            key_file.path.write_bytes(content)
        await until_problem_logged(logged)
        for _ in range(5):
            await until_let_in(server, key_file.keys["all"])
    problems = [it["problem"] for it in logged if it["log_level"] == "error"]
    assert len(problems) == 1
    assert problems[0].startswith("STORE_API_KEYS_FILE: ")

    key_file.path.write_bytes(good)
    await until_let_in(server, key_file.add("mended", ALL_PERMISSIONS))


async def test_empty_key_file_permits_no_caller(server: RunningServer, key_file: KeyFile) -> None:
    key_file.path.write_text("")

    assert (await until_refused(server, key_file.keys["all"])).reason == "CREDENTIALS_INVALID"


# Health and reflection


LIST = reflection_pb2.ServerReflectionRequest(list_services="")


async def test_health_needs_no_credentials(server: RunningServer) -> None:
    """Invalid ones are ignored."""
    for credentials in ([], ["Bearer x"]):
        async with calling(server, *credentials) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("setting", "without", "with_key"),
    [
        ("callers", "CREDENTIALS_MISSING", None),
        ("open", None, None),
        ("off", grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_reflection_requires_what_the_setting_says(
    config: Config, key_file: KeyFile, setting: str, without: Any, with_key: Any
) -> None:
    """Authenticated callers, all callers, or none."""
    async with serving(config.model_copy(update={"reflection": setting})) as server:
        for credentials, wanted in (([], without), ([f"Bearer {key_file.keys['watcher']}"], with_key)):
            metadata = tuple(("authorization", it) for it in credentials)
            async with grpc.aio.insecure_channel(server.address) as channel:
                stub = reflection_pb2_grpc.ServerReflectionStub(channel)
                call = stub.ServerReflectionInfo(metadata=metadata)
                if wanted is None:
                    await call.write(LIST)
                    assert (await call.read()).list_services_response.service
                else:
                    # Nothing is written: if a write fails because the server has ended the stream, grpc.aio
                    # may report INTERNAL instead of its status (https://github.com/grpc/grpc/issues/36066).
                    error = await expect_error(call.read())
                    assert wanted in (error.code, error.details and error.reason)


# Certificates


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> TlsFiles:
    return TlsFiles(tmp_path, authority)


@pytest.fixture
def with_certificates(config: Config, files: TlsFiles) -> Config:
    """A server that wants certificates, and keys of those whose names the file does not have."""
    return config.model_copy(
        update={
            "tls_cert": str(files.cert),
            "tls_key": str(files.key),
            "tls_client_ca": str(files.client_ca),
        }
    )


async def test_certificate_has_the_permissions_of_its_line(
    names: list[tuple[str, str | None]],
    with_certificates: Config,
    key_file: KeyFile,
    authority: trustme.CA,
) -> None:
    """Any name of the certificate matches."""
    with key_file.path.open("a") as file:
        file.write("cert:search.internal - read\n")
    async with serving(with_certificates) as server:
        tls = channel_credentials(authority, authority.issue_cert("a.internal", "search.internal"))
        async with calling(server, tls=tls) as channel:
            assert await outcome(channel, "/storeapi.v1.PostService/ListPosts") is None
            error = await outcome(channel, "/storeapi.v1.PostService/CreatePost")

    assert error is not None
    assert error.reason == "PERMISSION_DENIED"
    assert names == [("OK", "search.internal"), ("PERMISSION_DENIED", "search.internal")]


async def test_certificate_without_a_line_needs_a_key(
    with_certificates: Config, key_file: KeyFile, authority: trustme.CA
) -> None:
    """A valid key gives its permissions; an invalid one none, even if the certificate has a line."""
    with key_file.path.open("a") as file:
        file.write("cert:search.internal - read\n")
    path = "/storeapi.v1.PostService/ListPosts"
    async with serving(with_certificates) as server:
        unknown = channel_credentials(authority, authority.issue_cert("reader", "all"))
        known = channel_credentials(authority, authority.issue_cert("search.internal"))
        async with calling(server, tls=unknown) as channel:
            missing = await outcome(channel, path)
        async with calling(server, f"Bearer {key_file.keys['reader']}", tls=unknown) as channel:
            good = await outcome(channel, path)
        async with calling(server, "Bearer x", tls=known) as channel:
            invalid = await outcome(channel, path)

    assert missing is not None
    assert missing.reason == "CREDENTIALS_MISSING"
    assert good is None
    assert invalid is not None
    assert invalid.reason == "CREDENTIALS_INVALID"


# Tokens


@pytest.fixture
def with_tokens(config: Config, tmp_path: Path) -> Config:
    """A server that takes keys, and tokens that are signed with a secret."""
    path = tmp_path / "jwt-secret"
    path.write_text(SECRET)
    return config.model_copy(
        update={"jwt_secret_file": str(path), "jwt_audience": AUDIENCE, "jwt_issuer": ISSUER}
    )


def token(**claims: Any) -> str:
    now = time.time()
    usual = {"sub": "indexer", "aud": AUDIENCE, "iss": ISSUER, "exp": now + 600, "scope": "read openid"}
    return jwt.encode(usual | claims, SECRET, algorithm="HS256")


async def test_jwt_is_accepted_like_a_key(
    names: list[tuple[str, str | None]], with_tokens: Config, key_file: KeyFile
) -> None:
    """Its subject is the principal and its scope the permissions; keys are still accepted."""
    async with serving(with_tokens) as server:
        async with calling(server, f"Bearer {token()}") as channel:
            assert await outcome(channel, "/storeapi.v1.PostService/ListPosts") is None
            error = await outcome(channel, "/storeapi.v1.PostService/CreatePost")
        async with calling(server, f"Bearer {key_file.keys['reader']}") as channel:
            assert await outcome(channel, "/storeapi.v1.PostService/ListPosts") is None

    assert error is not None
    assert error.reason == "PERMISSION_DENIED"
    assert names == [("OK", "indexer"), ("PERMISSION_DENIED", "indexer"), ("OK", "reader")]


ERASE = "/storeapi.v1.AdminService/EraseAuthor"


@pytest.mark.parametrize("kind", ["key", "token", "certificate"])
async def test_only_credentials_with_admin_erase_authors(
    with_tokens: Config,
    with_certificates: Config,
    key_file: KeyFile,
    authority: trustme.CA,
    kind: str,
) -> None:
    """All other permissions together are not enough."""
    others = ["read", "write", "watch"]
    with key_file.path.open("a") as file:
        file.write(f"cert:others.internal - {','.join(others)}\ncert:admin.internal - admin\n")
    key_file.add("others", frozenset(map(Permission, others)))
    config = with_certificates if kind == "certificate" else with_tokens
    reasons = []
    async with serving(config) as server:
        for name in ("others", "admin"):
            scope = " ".join(others) if name == "others" else "admin"
            credentials = {
                "key": [f"Bearer {key_file.keys[name]}"],
                "token": [f"Bearer {token(scope=scope)}"],
            }
            tls = None
            if kind == "certificate":
                tls = channel_credentials(authority, authority.issue_cert(f"{name}.internal"))
            async with calling(server, *credentials.get(kind, []), tls=tls) as channel:
                error = await outcome(channel, ERASE)
            assert error is not None
            reasons.append(error.reason)

    assert reasons == ["PERMISSION_DENIED", "FIELD_INVALID"]


async def test_invalid_jwt_is_refused(with_tokens: Config) -> None:
    """Expiry is reported, because the caller can fix it."""
    async with serving(with_tokens) as server:
        for bad in (token(exp=time.time() - 60), token(aud="another"), f"{token()}x"):
            async with calling(server, f"Bearer {bad}") as channel:
                error = await outcome(channel, "/storeapi.v1.PostService/ListPosts")
            assert error is not None
            assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")


async def test_open_watch_ends_when_its_jwt_expires(
    with_tokens: Config, key_file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the next response."""
    async with serving(with_tokens.model_copy(update={"jwt_leeway_seconds": 0.0})) as server:
        good = token(scope="watch")
        async with (
            calling(server, f"Bearer {good}") as channel,
            calling(server, f"Bearer {key_file.keys['writer']}") as other,
        ):
            watch: Any = Stubs(channel).changes.Watch(changes_pb2.WatchRequest())
            await watch.read()
            # The time at which the token was good is over.
            claims = jwt.decode(good, options={"verify_signature": False})
            monkeypatch.setattr(time, "time", lambda: claims["exp"] + 1)
            monkeypatch.setattr("jwt.api_jwt.datetime", Later(claims["exp"] + 1))
            await Stubs(other).create_post("not for everybody")

            error = await asyncio.wait_for(expect_error(watch.read()), scaled_timeout())

    assert (error.reason, error.message) == ("CREDENTIALS_INVALID", "the token has expired")


class Later:
    """The clock of the library for tokens, at another time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self, tz: Any = None) -> Any:
        from datetime import datetime

        return datetime.fromtimestamp(self._seconds, tz)
