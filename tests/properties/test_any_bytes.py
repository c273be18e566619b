"""Random bytes and messages: the service responds or refuses them, and survives."""

import contextlib
import math
import socket
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st
from storeapi.v1 import changes_pb2, comments_pb2, errors_pb2, posts_pb2

from tests.support.errors import ReceivedError, received_error
from tests.support.property_server import SQLITE_ONLY, LiveServer
from tests.support.timeouts import scaled_timeout

SERVICES = [
    posts_pb2.DESCRIPTOR.services_by_name["PostService"],
    comments_pb2.DESCRIPTOR.services_by_name["CommentService"],
]
METHODS = [method for service in SERVICES for method in service.methods]
WATCH = "/storeapi.v1.ChangeService/Watch"
REFLECTION = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]

# What a caller can bring about by what it sends; a disk that is full, a bug or a stop it cannot.
ALLOWED = {
    "REQUEST_MALFORMED": "INVALID_ARGUMENT",
    "FIELD_INVALID": "INVALID_ARGUMENT",
    "FIELD_MASK_INVALID": "INVALID_ARGUMENT",
    "FIELD_IMMUTABLE": "INVALID_ARGUMENT",
    "PAGE_TOKEN_INVALID": "INVALID_ARGUMENT",
    "PAGE_TOKEN_MISMATCH": "INVALID_ARGUMENT",
    "BATCH_EMPTY": "INVALID_ARGUMENT",
    "BATCH_TOO_LARGE": "INVALID_ARGUMENT",
    "BATCH_DUPLICATE": "INVALID_ARGUMENT",
    "REQUEST_ID_REUSED": "INVALID_ARGUMENT",
    "RESUME_TOKEN_INVALID": "INVALID_ARGUMENT",
    "POST_NOT_FOUND": "NOT_FOUND",
    "COMMENT_NOT_FOUND": "NOT_FOUND",
    "POST_HAS_COMMENTS": "FAILED_PRECONDITION",
    "ETAG_MISMATCH": "ABORTED",
    "RESPONSE_TOO_LARGE": "RESOURCE_EXHAUSTED",
    "EXTERNAL_ID_TAKEN": "ALREADY_EXISTS",
    "REPLY_POST_MISMATCH": "FAILED_PRECONDITION",
    "REPLY_TOO_DEEP": "FAILED_PRECONDITION",
    "NOT_DELETED": "FAILED_PRECONDITION",
}
MAX_DETAILS_BYTES = 4096


# Messages of any type, made of values that are likely to hurt

_numbers = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1) | st.sampled_from([-(2**31), 2**31 - 1]),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1]),
}
_small = st.integers(1, 12) | st.integers(-1, 12)
_text = st.one_of(
    st.just("a text"),
    st.text(max_size=12),
    st.sampled_from(
        ["", "id", "thread", "body", "*", "labels.a", "a", "v1", "v2", "\0", "'; DROP TABLE posts; --"]
    ),
    # Of requests, and so few that they meet.
    st.sampled_from(["018f6b5e-6a1c-7c3e-9d2b-3f4a5b6c7d8e", "A3C6E1F0-7D52-4B8E-9C41-5F60D2B7E813"]),
    st.sampled_from(["x", "\U0010ffff", "\x01", '"', "%00"]).map(lambda text: text * 70_000),
)


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values of one field."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        # All maps of the contract have texts as keys and values.
        return st.dictionaries(_text, _text, max_size=4)
    if field.message_type is not None:
        one: st.SearchStrategy[Any] = messages(field.message_type)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        one = st.booleans()
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        one = _text
    elif field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        one = st.integers(-1, 4)
    else:
        one = st.one_of(_small, _small, _small, _numbers[field.cpp_type])
    if not field.is_repeated:
        return one
    many = st.builds(lambda it, count: [it] * count, one, st.sampled_from([999, 1000, 1001, 5000]))
    return st.one_of(st.lists(one, max_size=4), st.lists(one, max_size=4), many.filter(_fits))


def _fits(batch: list[Any]) -> bool:
    """Whether a batch is small enough to arrive at all."""
    size = batch[0].ByteSize() if isinstance(batch[0], Message) else len(str(batch[0]).encode())
    return size * len(batch) < 3_000_000


def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of one type: most have what a valid one needs, and a few fields more."""
    message = GetMessageClass(descriptor)
    fields = {field.name: values(field) for field in descriptor.fields}
    needed = [
        name
        for name in ("id", "ids", "post_ids", "comment_ids", "post", "comment", "requests", "body")
        if name in fields
    ]
    if "body" in needed and "id" in needed:
        needed.remove("id")
    few = st.lists(st.sampled_from(list(fields)), unique=True, max_size=2) if fields else st.just([])
    names = st.builds(
        lambda more, valid: {*more, *(needed if valid else ())}, few, st.sampled_from([True, True, False])
    )
    given = names.flatmap(lambda it: st.fixed_dictionaries({name: fields[name] for name in sorted(it)}))
    return given.map(lambda it: message(**it))


def serialized(descriptor: Descriptor) -> st.SearchStrategy[bytes]:
    """Messages of one type, as they travel."""
    return messages(descriptor).map(lambda message: message.SerializeToString())


_edits = st.lists(
    st.tuples(
        st.sampled_from(["change", "remove", "insert", "cut", "repeat"]),
        st.floats(0, 1),
        st.binary(max_size=3),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """The bytes after some accidents, each at a fraction of their length."""
    for kind, fraction, more in edits:
        place = math.floor(fraction * len(data))
        before, after = data[:place], data[place:]
        match kind:
            case "change":
                data = before + more + after[len(more) :]
            case "remove":
                data = before + after[1:]
            case "insert":
                data = before + more + after
            case "cut":
                data = before
            case "repeat":
                data = before + after[:20] + after
    return data


# What must be true of every answer


def send(live: LiveServer, path: str, data: bytes) -> bytes | ReceivedError:
    """Calls a method with bytes as they are."""
    outcome: bytes | ReceivedError = live.attempt(live.channel.unary_unary(path), data)
    return outcome


def begin(live: LiveServer, path: str, data: bytes) -> bytes | ReceivedError:
    """Calls a method that returns a stream, and cancels it after the first response."""
    method: Any = live.channel.unary_stream(path)
    stream = method(data, timeout=scaled_timeout())
    try:
        outcome: bytes | ReceivedError = next(stream)
    except grpc.RpcError as error:
        outcome = received_error(error)
    finally:
        stream.cancel()
    return outcome


def check(live: LiveServer, outcome: bytes | ReceivedError, answer: Descriptor) -> None:
    """The answer is one of the method's type, or an error that the contract knows; the server lives."""
    if isinstance(outcome, bytes):
        GetMessageClass(answer).FromString(outcome)
    else:
        assert (outcome.reason, outcome.code.name) in ALLOWED.items(), outcome
        assert f"ERROR_REASON_{outcome.reason}" in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name
        assert outcome.info.domain == "storeapi"
        assert len(outcome.trailing["grpc-status-details-bin"]) <= MAX_DETAILS_BYTES
        assert outcome.message
    assert live.is_alive


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


@pytest.fixture(scope="module", autouse=True)
def some_rows(live: LiveServer) -> None:
    """Posts 1 to 12 with comments 1 to 12, half of them long, for small ids to hit."""
    for body in ["a short text", "x" * 65_536] * 6:
        (post,) = live.create_posts(body)
        live.create_comments(post.id, body)


@SQLITE_ONLY
@every_method
@settings(max_examples=settings().max_examples // 2)
@given(data=st.binary(max_size=64))
@example(data=b"\xff\xff\xff")
@example(data=b"\x0a\xff\xff\xff\xff\x0f")
@example(data=b"\x0b" * 200)
def test_random_bytes_get_a_response_or_invalid_argument(
    live: LiveServer, method: MethodDescriptor, data: bytes
) -> None:
    """Bytes that mean nothing are refused as malformed; those that happen to mean something are honoured."""
    outcome = send(live, _path(method), data)

    check(live, outcome, method.output_type)


@every_method
@given(data=st.data())
def test_any_message_gets_a_response_or_a_known_error(
    live: LiveServer, method: MethodDescriptor, data: st.DataObject
) -> None:
    """Any message of the right type is honoured or refused by name, whatever is in its fields."""
    request = data.draw(serialized(method.input_type))

    outcome = send(live, _path(method), request)

    check(live, outcome, method.output_type)


@SQLITE_ONLY
@every_method
@given(data=st.data(), edits=_edits)
def test_any_damaged_message_gets_a_response_or_a_known_error(
    live: LiveServer, method: MethodDescriptor, data: st.DataObject, edits: list[tuple[str, float, bytes]]
) -> None:
    """With bytes changed, removed or repeated."""
    request = damaged(data.draw(serialized(method.input_type)), edits)

    outcome = send(live, _path(method), request)

    check(live, outcome, method.output_type)


@SQLITE_ONLY
@given(paths=st.lists(st.text(st.characters(exclude_categories=["Cs"])) | _text, min_size=1, max_size=30))
@example(paths=["\U0010ffff" * 50 + str(n) for n in range(30)])
def test_any_field_mask_gets_a_response_or_a_small_error(live: LiveServer, paths: list[str]) -> None:
    """The error fits into the metadata limit of gRPC."""
    request = posts_pb2.UpdatePostRequest(
        post=posts_pb2.Post(id=1, body="a text"), update_mask=FieldMask(paths=paths)
    )

    outcome = send(live, "/storeapi.v1.PostService/UpdatePost", request.SerializeToString())

    check(live, outcome, posts_pb2.Post.DESCRIPTOR)
    if set(paths) - {"body", "*"}:
        assert isinstance(outcome, ReceivedError)
        assert outcome.reason == "FIELD_MASK_INVALID"


@SQLITE_ONLY
@pytest.mark.parametrize("name", ["Check", "List"])
@given(data=st.binary(max_size=32) | serialized(health_pb2.HealthCheckRequest.DESCRIPTOR))
def test_health_check_accepts_any_bytes(live: LiveServer, name: str, data: bytes) -> None:
    """It responds, or refuses them as malformed or as an unknown service."""
    outcome = send(live, f"/grpc.health.v1.Health/{name}", data)

    if isinstance(outcome, ReceivedError) and outcome.code is grpc.StatusCode.NOT_FOUND:
        assert name == "Check"
    else:
        answer = health_pb2.HealthCheckResponse if name == "Check" else health_pb2.HealthListResponse
        check(live, outcome, answer.DESCRIPTOR)


@SQLITE_ONLY
@given(data=st.binary(max_size=32))
def test_health_watch_accepts_any_bytes(live: LiveServer, data: bytes) -> None:
    """A watch begins with a status, or is refused as malformed."""
    outcome = begin(live, "/grpc.health.v1.Health/Watch", data)

    check(live, outcome, health_pb2.HealthCheckResponse.DESCRIPTOR)


@SQLITE_ONLY
@given(data=st.binary(max_size=64))
@example(data=b"\xff\xff\xff")
def test_watch_accepts_any_bytes(live: LiveServer, data: bytes) -> None:
    """They are refused as malformed, unless they decode."""
    outcome = begin(live, WATCH, data)

    check(live, outcome, changes_pb2.WatchResponse.DESCRIPTOR)


@given(data=serialized(changes_pb2.WatchRequest.DESCRIPTOR))
def test_watch_accepts_any_message(live: LiveServer, data: bytes) -> None:
    """It starts with a token or is refused with a reason."""
    outcome = begin(live, WATCH, data)

    check(live, outcome, changes_pb2.WatchResponse.DESCRIPTOR)
    if isinstance(outcome, bytes):
        assert changes_pb2.WatchResponse.FromString(outcome).resume_token


@SQLITE_ONLY
@pytest.mark.parametrize("path", REFLECTION)
@given(
    requests=st.lists(
        st.binary(max_size=32) | serialized(reflection_pb2.ServerReflectionRequest.DESCRIPTOR), max_size=4
    )
)
def test_reflection_accepts_any_bytes(live: LiveServer, path: str, requests: list[bytes]) -> None:
    """Each request has a response, up to one that is malformed."""
    method: Any = live.channel.stream_stream(path)
    answers: list[bytes] = []
    error: ReceivedError | None = None

    try:
        # extend() keeps what came before an error.
        answers.extend(method(iter(requests), timeout=scaled_timeout()))
    except grpc.RpcError as raised:
        error = received_error(raised)

    for answer in answers:
        check(live, answer, reflection_pb2.ServerReflectionResponse.DESCRIPTOR)
    if error is not None:
        assert error.reason == "REQUEST_MALFORMED"
    assert len(answers) == len(requests) or (error is not None and len(answers) < len(requests))


@SQLITE_ONLY
@settings(max_examples=settings().max_examples // 2)
@given(data=st.binary(max_size=200), polite=st.booleans())
def test_non_http2_connections_do_no_harm(live: LiveServer, data: bytes, polite: bool) -> None:
    host, _, port = live.process.address.rpartition(":")
    greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if polite else b""

    with (
        socket.create_connection((host, int(port)), timeout=scaled_timeout()) as connection,
        contextlib.suppress(OSError),
    ):
        connection.sendall(greeting + data)

    check(live, send(live, "/storeapi.v1.PostService/ListPosts", b""), posts_pb2.ListPostsResponse.DESCRIPTOR)
