"""Who may call what: API keys, tokens, certificates, and every method there is."""

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
from store_service.access import keys
from store_service.access.caller import ALL_RIGHTS, Caller, Right
from store_service.config import Config
from store_service.logs import CallLog
from store_service.rpc import access
from store_service.rpc.access import right_of
from store_service.rpc.call import Call
from store_service.server import RunningServer, serving
from tests.certificates import Files, channel_credentials
from tests.patience import patience
from tests.rpc.helpers import METHODS, path_of, send_bytes
from tests.support import ErrorSeen, Stubs, error_seen, failure

KEYS = {
    "reader": frozenset([Right.READ]),
    "writer": frozenset([Right.WRITE]),
    "watcher": frozenset([Right.WATCH]),
    "all": ALL_RIGHTS,
}
SECRET = "s3cret" * 6
AUDIENCE, ISSUER = "storeapi", "https://issuer.example"


@pytest.fixture
def database_url(database_file: Path) -> str:
    """No call that is refused here reaches a database."""
    return f"sqlite:///{database_file}"


@dataclass
class KeyFile:
    """A file of keys, and the keys, which nobody else has."""

    path: Path
    keys: dict[str, str]

    def add(self, name: str, rights: frozenset[Right]) -> str:
        key = keys.new_key()
        keys.append(self.path, name=name, key=key, rights=rights)
        self.keys[name] = key
        return key

    def take_away(self, name: str) -> None:
        lines = self.path.read_text().splitlines(keepends=True)
        self.path.write_text("".join(line for line in lines if not line.startswith(f"{name} ")))


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    """A key for each right, and one for all."""
    file = KeyFile(tmp_path / "keys", {})
    for name, rights in KEYS.items():
        file.add(name, rights)
    return file


@pytest.fixture
def config(database_url: str, key_file: KeyFile) -> Config:
    """A server that asks who calls."""
    return settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", api_keys_file=str(key_file.path))


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody waits for the next look at a file."""
    monkeypatch.setattr(access, "LOOK_SECONDS", 0.01)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The code of each call and who made it, as the log is told."""
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


async def outcome(channel: grpc.aio.Channel, path: str) -> ErrorSeen | None:
    """How a call with an empty request ends; None if it is answered."""
    try:
        async with asyncio.timeout(patience()):
            await send_bytes(channel, path, b"")
    except grpc.RpcError as error:
        return error_seen(error)
    return None


async def until_refused(server: RunningServer, key: str) -> ErrorSeen:
    """Calls until the server refuses, which no event tells of."""
    async with asyncio.timeout(patience()), calling(server, f"Bearer {key}") as channel:
        while True:
            error = await outcome(channel, "/storeapi.v1.PostService/GetPost")
            if error is not None and error.code == grpc.StatusCode.UNAUTHENTICATED:
                return error
            await asyncio.sleep(0.01)


async def until_let_in(server: RunningServer, key: str) -> None:
    """Calls until the server answers."""
    async with asyncio.timeout(patience()), calling(server, f"Bearer {key}") as channel:
        while True:
            error = await outcome(channel, "/storeapi.v1.PostService/ListPosts")
            if error is None:
                return
            assert error.code == grpc.StatusCode.UNAUTHENTICATED
            await asyncio.sleep(0.01)


async def until_looked(logged: list[Any]) -> None:
    """Waits until the server has seen a file and told of it."""
    async with asyncio.timeout(patience()):
        while True:
            if any("problem" in it for it in logged):
                return
            await asyncio.sleep(0.01)


# Which right each method needs

RIGHTS = {
    "PostService": {
        Right.READ: {"GetPost", "ListPosts", "BatchGetPosts"},
        Right.WRITE: {"CreatePost", "UpdatePost", "DeletePost", "BatchCreatePosts", "BatchDeletePosts"},
    },
    "CommentService": {
        Right.READ: {"GetComment", "ListComments", "BatchGetComments", "CountComments"},
        Right.WRITE: {
            "CreateComment",
            "UpdateComment",
            "DeleteComment",
            "BatchCreateComments",
            "BatchDeleteComments",
        },
    },
    "ChangeService": {Right.WATCH: {"Watch"}},
}


def test_the_right_that_each_method_needs_is_written_down() -> None:
    """Every method of the contract is here, under the right that the service asks for."""
    found: dict[str, dict[Right, set[str]]] = {}
    for method in METHODS:
        rights = found.setdefault(method.containing_service.name, {})
        rights.setdefault(right_of(method), set()).add(method.name)

    assert found == RIGHTS


def test_what_has_side_effects_needs_more_than_the_right_to_read() -> None:
    """A method is a read only if the contract says so."""
    for method in METHODS:
        is_free_of_effects = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
        assert (right_of(method) == Right.WRITE) != is_free_of_effects


# Every method


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every method that the server offers, by its path; filled when the server starts."""
    methods: dict[str, Any] = {}
    add = grpc.aio._server.Server.add_generic_rpc_handlers

    def watched(server: Any, handlers: Any) -> None:
        for handler in handlers:
            methods.update(handler._method_handlers)
        add(server, handlers)

    monkeypatch.setattr(grpc.aio._server.Server, "add_generic_rpc_handlers", watched)
    return methods


def send(channel: grpc.aio.Channel, path: str, handler: Any) -> Any:
    """Calls a method of any shape with an empty message."""
    if handler.request_streaming:
        return channel.stream_stream(path)(iter([b""])).read()
    if handler.response_streaming:
        return channel.unary_stream(path)(b"").read()
    return channel.unary_unary(path)(b"")


async def test_every_method_but_health_refuses_who_has_no_key(
    registered: dict[str, Any], server: RunningServer
) -> None:
    """Whatever the server offers, also what somebody may add without thinking of keys."""
    open_to_all = {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
    }
    assert registered.keys() >= open_to_all | {path_of(method) for method in METHODS}
    async with calling(server) as channel:
        for path, handler in registered.items():
            if path in open_to_all:
                assert await send(channel, path, handler)
                continue
            error = await failure(send(channel, path, handler))

            assert (error.code, error.reason) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "CREDENTIALS_MISSING",
            ), path
            assert [it.DESCRIPTOR.name for it in error.details] == ["ErrorInfo"]
            assert "x-call-id" in error.trailing


@pytest.mark.parametrize("name", KEYS)
async def test_a_key_opens_the_methods_of_its_rights_and_no_others(
    server: RunningServer, key_file: KeyFile, name: str
) -> None:
    """Each key, on each method of the contract."""
    async with calling(server, f"Bearer {key_file.keys[name]}") as channel:
        for method in METHODS:
            error = await outcome(channel, path_of(method))

            if right_of(method) in KEYS[name]:
                # An empty request is answered or is wrong, but it was looked at.
                assert error is None or error.code == grpc.StatusCode.INVALID_ARGUMENT
            else:
                assert error is not None
                assert (error.code, error.reason) == (
                    grpc.StatusCode.PERMISSION_DENIED,
                    "PERMISSION_DENIED",
                )
                assert error.metadata == {"right": right_of(method).value}


async def test_nothing_is_done_for_who_may_not(server: RunningServer, key_file: KeyFile) -> None:
    """A write that is refused has not happened."""
    request = pb.CreatePostRequest(post=pb.Post(body="a"))
    for credentials in ([], ["Bearer x"], [f"Bearer {key_file.keys['reader']}"]):
        async with calling(server, *credentials) as channel:
            await failure(Stubs(channel).posts.CreatePost(request))
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


async def test_wrong_credentials_are_refused_and_not_repeated(
    server: RunningServer, key_file: KeyFile
) -> None:
    """Whatever is wrong with them; the answer tells nothing that helps to guess."""
    key = key_file.keys["all"]
    for headers in wrong(key):
        async with calling(server, *headers) as channel:
            error = await failure(Stubs(channel).posts.ListPosts(pb.ListPostsRequest()))

        assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID"), headers
        assert error.metadata == {}
        assert key[:-1].lower() not in (error.message + repr(error.details)).lower()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_may_be_spelt_in_any_case(
    server: RunningServer, key_file: KeyFile, scheme: str
) -> None:
    """As HTTP has it."""
    async with calling(server, f"{scheme} {key_file.keys['reader']}") as channel:
        assert await outcome(channel, "/storeapi.v1.PostService/ListPosts") is None


async def test_the_order_of_checks(server: RunningServer, key_file: KeyFile) -> None:
    """Decode, authenticate, authorize, draining, validate: the first thing that is wrong is told."""
    path = "/storeapi.v1.PostService/CreatePost"
    async with (
        calling(server) as nobody,
        calling(server, f"Bearer {key_file.keys['reader']}") as reader,
        calling(server, f"Bearer {key_file.keys['writer']}") as writer,
    ):
        assert (await failure(send_bytes(nobody, path, b"\xff"))).reason == "REQUEST_MALFORMED"
        assert (await failure(send_bytes(nobody, path, b""))).reason == "CREDENTIALS_MISSING"
        assert (await failure(send_bytes(reader, path, b""))).reason == "PERMISSION_DENIED"
        assert (await failure(send_bytes(writer, path, b""))).reason == "FIELD_INVALID"

        server.guard._draining = True
        assert (await failure(send_bytes(reader, path, b""))).reason == "PERMISSION_DENIED"
        assert (await failure(send_bytes(writer, path, b""))).reason == "SHUTTING_DOWN"


# The log


async def test_the_log_names_the_caller_and_never_the_key(
    names: list[tuple[str, str | None]], server: RunningServer, key_file: KeyFile
) -> None:
    """Also of a caller who may not; of one who is not known there is no name."""
    async with calling(server, f"Bearer {key_file.keys['reader']}") as reader:
        await outcome(reader, "/storeapi.v1.PostService/ListPosts")
        await outcome(reader, "/storeapi.v1.PostService/CreatePost")
    async with calling(server, f"Bearer {key_file.keys['reader']}x") as stranger:
        await outcome(stranger, "/storeapi.v1.PostService/ListPosts")

    assert names == [("OK", "reader"), ("PERMISSION_DENIED", "reader"), ("UNAUTHENTICATED", None)]


async def test_without_access_control_nobody_is_named(
    names: list[tuple[str, str | None]], database_url: str
) -> None:
    """And everybody may do everything, keys or not."""
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
def test_who_is_not_known_is_named_by_where_they_are(peer: str, name: str) -> None:
    """Without the port, which is another one for each connection; who is known has a name."""
    context: Any = SimpleNamespace(peer=lambda: peer)
    call = Call("method", "id", context, CallLog(), None, None, defaultdict(int))
    assert call.caller_name == name

    call.caller = Caller(name="billing", rights=ALL_RIGHTS)
    assert call.caller_name == "billing"


# Reloading


async def test_a_new_key_counts_without_a_restart(server: RunningServer, key_file: KeyFile) -> None:
    """And those before go on."""
    await until_let_in(server, key_file.add("new", ALL_RIGHTS))
    await until_let_in(server, key_file.keys["reader"])


async def test_a_key_that_is_taken_away_no_longer_counts(server: RunningServer, key_file: KeyFile) -> None:
    """On connections that are open too."""
    await until_let_in(server, key_file.keys["all"])

    key_file.take_away("all")

    assert (await until_refused(server, key_file.keys["all"])).reason == "CREDENTIALS_INVALID"
    await until_let_in(server, key_file.keys["reader"])


async def test_an_open_watch_ends_when_its_key_is_taken_away(
    server: RunningServer, key_file: KeyFile
) -> None:
    """It is told nothing more: a stream is no way to keep what a key no longer gives."""
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

        error = await asyncio.wait_for(failure(watch.read()), patience())

    assert error.reason == "CREDENTIALS_INVALID"


@pytest.mark.parametrize("content", [b"all", b"\xff\xfe", None], ids=["wrong", "no text", "gone"])
async def test_a_broken_file_leaves_the_last_good_one(
    server: RunningServer, key_file: KeyFile, content: bytes | None
) -> None:
    """The log says once what is wrong; when it is mended it counts again."""
    good = key_file.path.read_bytes()
    with capture_logs() as logged:
        if content is None:
            key_file.path.unlink()
        else:
            key_file.path.write_bytes(content)
        await until_looked(logged)
        for _ in range(5):
            await until_let_in(server, key_file.keys["all"])
    problems = [it["problem"] for it in logged if it["log_level"] == "error"]
    assert len(problems) == 1
    assert problems[0].startswith("STORE_API_KEYS_FILE: ")

    key_file.path.write_bytes(good)
    await until_let_in(server, key_file.add("mended", ALL_RIGHTS))


async def test_an_empty_file_lets_nobody_in(server: RunningServer, key_file: KeyFile) -> None:
    """Whoever deletes the last line means it."""
    key_file.path.write_text("")

    assert (await until_refused(server, key_file.keys["all"])).reason == "CREDENTIALS_INVALID"


# Health and reflection


LIST = reflection_pb2.ServerReflectionRequest(list_services="")


async def test_health_asks_nobody_who_they_are(server: RunningServer) -> None:
    """Balancers have no keys; wrong ones do no harm."""
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
async def test_reflection_is_for_those_whom_the_setting_says(
    config: Config, key_file: KeyFile, setting: str, without: Any, with_key: Any
) -> None:
    """Callers, whatever their rights; everybody; or nobody."""
    async with serving(config.model_copy(update={"reflection": setting})) as server:
        for credentials, wanted in (([], without), ([f"Bearer {key_file.keys['watcher']}"], with_key)):
            metadata = tuple(("authorization", it) for it in credentials)
            async with grpc.aio.insecure_channel(server.address) as channel:
                stub = reflection_pb2_grpc.ServerReflectionStub(channel)
                answer = stub.ServerReflectionInfo(iter([LIST]), metadata=metadata).read()
                if wanted is None:
                    assert (await answer).list_services_response.service
                else:
                    error = await failure(answer)
                    assert wanted in (error.code, error.details and error.reason)


# Certificates


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    return Files(tmp_path, authority)


@pytest.fixture
def with_certificates(config: Config, files: Files) -> Config:
    """A server that wants certificates, and keys of those whose names the file does not have."""
    return config.model_copy(
        update={
            "tls_cert": str(files.cert),
            "tls_key": str(files.key),
            "tls_client_ca": str(files.client_ca),
        }
    )


async def test_a_certificate_has_the_rights_of_its_line(
    names: list[tuple[str, str | None]],
    with_certificates: Config,
    key_file: KeyFile,
    authority: trustme.CA,
) -> None:
    """The file of keys may name certificates; any of a certificate's names will do."""
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


async def test_a_certificate_without_a_line_needs_a_key(
    with_certificates: Config, key_file: KeyFile, authority: trustme.CA
) -> None:
    """With a good key it has the key's rights, with a wrong one none, not even those of its line."""
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


async def test_a_token_is_as_good_as_a_key(
    names: list[tuple[str, str | None]], with_tokens: Config, key_file: KeyFile
) -> None:
    """Its subject is the caller's name, its scope the rights; keys go on beside it."""
    async with serving(with_tokens) as server:
        async with calling(server, f"Bearer {token()}") as channel:
            assert await outcome(channel, "/storeapi.v1.PostService/ListPosts") is None
            error = await outcome(channel, "/storeapi.v1.PostService/CreatePost")
        async with calling(server, f"Bearer {key_file.keys['reader']}") as channel:
            assert await outcome(channel, "/storeapi.v1.PostService/ListPosts") is None

    assert error is not None
    assert error.reason == "PERMISSION_DENIED"
    assert names == [("OK", "indexer"), ("PERMISSION_DENIED", "indexer"), ("OK", "reader")]


async def test_a_bad_token_is_refused(with_tokens: Config) -> None:
    """As a wrong key is; that it has expired is told, for that its holder can mend."""
    async with serving(with_tokens) as server:
        for bad in (token(exp=time.time() - 60), token(aud="another"), f"{token()}x"):
            async with calling(server, f"Bearer {bad}") as channel:
                error = await outcome(channel, "/storeapi.v1.PostService/ListPosts")
            assert error is not None
            assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")


async def test_an_open_watch_ends_when_its_token_expires(
    with_tokens: Config, key_file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the next response it would have been sent."""
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

            error = await asyncio.wait_for(failure(watch.read()), patience())

    assert (error.reason, error.message) == ("CREDENTIALS_INVALID", "the token has expired")


class Later:
    """The clock of the library for tokens, at another time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self, tz: Any = None) -> Any:
        from datetime import datetime

        return datetime.fromtimestamp(self._seconds, tz)
