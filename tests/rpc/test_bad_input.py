"""What callers may send and what is refused: bodies, ids, request ids, bytes; and the order of checks."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from storeapi.v1 import comments_pb2, posts_pb2

from store_service import config as settings
from store_service.config import Config
from tests.rpc.helpers import (
    METHODS,
    ONE_ENGINE,
    Side,
    contents,
    outcome_of,
    path_of,
    request_class,
    send_bytes,
)
from tests.support import ErrorSeen, Stubs, error_seen, failure

MAX_ID = 2**63 - 1

each_method = pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])


# Bodies

FAITHFUL = [
    "\U0001f600" * 10,
    "\U0010ffff",
    "\uffff\ufeff\u2028\u202e",
    "e\u0301 \u00e9",
    "\r\n\t ",
    " ",
    "\x01\x1f\x7f\x80",
    "'; DROP TABLE posts; --",
    '["a", {"b": "\\u0000"}] \\ "',
    "%s %d %% :name ?1 $1 {0}",
]


async def test_a_body_comes_back_as_it_was_sent(side: Side) -> None:
    """Any text is kept to the character, however it is written."""
    for body in FAITHFUL:
        created = await side.stored(body)
        (in_batch,) = side.of(await side.batch_create([side.draft(body)]))
        updated = await side.update(side.resource(id=(await side.stored()).id, body=body))

        for answered in (created, in_batch, updated):
            assert answered.body == body
            assert await side.get(answered.id) == answered
    assert [it.body for it in side.of(await side.page())] == [body for body in FAITHFUL for _ in range(3)]


async def refusals(side: Side, body: str) -> dict[str, ErrorSeen]:
    """The error of each way to store a body, by the path that it must name."""
    id = (await side.stored()).id
    name = side.field
    return {
        f"{name}.body": await failure(side.create(side.draft(body))),
        f"requests[1].{name}.body": await failure(side.batch_create([side.draft(), side.draft(body)])),
        f"{name}.body ": await failure(side.update(side.resource(id=id, body=body), ["body"])),
    }


async def test_a_body_without_text_or_with_nul_is_refused(side: Side) -> None:
    """A body holds something, and no NUL anywhere, for not every database could keep it."""
    for body in ("", "\0", "a\0", "\0a", "a\0b", "\0" * 100):
        for path, error in (await refusals(side, body)).items():
            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
            assert error.fields == [path.strip()]


LONGEST = {
    "one byte": "x" * 65_536,
    "two bytes": "é" * 32_768,
    "three bytes": "€" * 21_845 + "x",
    "four bytes": "\U0001f600" * 16_384,
    "just a few long ones": "\U0001f600" * 10 + "x" * (65_536 - 40),
}


async def test_a_body_has_up_to_the_limit_in_bytes_of_utf8(side: Side) -> None:
    """The limit counts bytes, not characters: exactly as many pass, and one more does not."""
    for name, body in LONGEST.items():
        assert len(body.encode()) == 65_536
        assert (await side.stored(body)).body == body
        assert (await side.update(side.resource(id=(await side.stored()).id, body=body))).body == body

        for path, error in (await refusals(side, body + "x")).items():
            assert (error.reason, error.fields) == ("FIELD_INVALID", [path.strip()]), name
            assert "65536 bytes" in error.message


@ONE_ENGINE
class TestShortBodies:
    """With another limit."""

    @pytest.fixture
    def config(self, database_url: str) -> Config:
        return settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", max_body_bytes=8)

    @pytest.mark.parametrize("body", ["12345678", "€€12", "\U0001f600\U0001f600"])
    async def test_the_limit_is_a_setting(self, side_of_short: Side, body: str) -> None:
        """The setting holds to the byte, also when it is shorter than any body measured otherwise."""
        assert (await side_of_short.stored(body)).body == body

        error = await failure(side_of_short.create(side_of_short.draft(body + "9")))
        assert error.fields == ["post.body"]
        assert "8 bytes" in error.message

    @pytest.fixture
    def side_of_short(self, stubs: Stubs) -> Side:
        return Side("Post", stubs)


NOT_UTF8 = {
    "lone high surrogate": b"\xed\xa0\x80",
    "lone low surrogate": b"\xed\xbf\xbf",
    "surrogate pair": b"\xed\xa0\xbd\xed\xb8\x80",
    "overlong": b"\xc0\x80",
    "cut": b"\xe2\x82",
    "beyond unicode": b"\xf4\x90\x80\x80",
    "no start": b"\x80",
    "never in utf-8": b"a\xff",
}


def field(number: int, data: bytes) -> bytes:
    """A field of wire type 2 (strings, messages), shorter than 128 bytes."""
    return bytes([number << 3 | 2, len(data)]) + data


def string_fields(message: Descriptor) -> Iterator[list[FieldDescriptor]]:
    """The way to every string in a message, through the messages that it holds."""
    for one in message.fields:
        if one.type == FieldDescriptor.TYPE_STRING:
            yield [one]
        elif one.message_type is not None:
            yield from ([one, *rest] for rest in string_fields(one.message_type))


@ONE_ENGINE
@each_method
async def test_text_that_is_no_utf8_is_malformed(channel: grpc.aio.Channel, method: MethodDescriptor) -> None:
    """In every string of every request, at any depth; callers see no text of the decoder."""
    for way in string_fields(method.input_type):
        for bad in NOT_UTF8.values():
            data = bad
            for one in reversed(way):
                data = field(one.number, data)

            error = await failure(send_bytes(channel, path_of(method), data))

            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")
            assert error.message == (
                f"the request is no {method.input_type.full_name}: "
                "it cannot be decoded, or a text in it is not UTF-8"
            )


def test_there_is_text_at_every_depth() -> None:
    """The test above finds strings of requests, of what is in them, and of what is in that."""
    depths = {len(way) for method in METHODS for way in string_fields(method.input_type)}

    assert depths == {1, 2, 3}


# Ids


async def calls_with_id(side: Side, id: int) -> dict[str, ErrorSeen]:
    """The error of every call of a side that takes an id, by the path that it must name."""
    return {
        "id": await failure(side.get(id)),
        "id ": await failure(side.delete(id)),
        f"{side.field}.id": await failure(side.update(side.resource(id=id, body="x"))),
        "ids[1]": await failure(side.batch_get([MAX_ID, id])),
        "ids[1] ": await failure(side.batch_delete([MAX_ID - 1, id])),
    }


@ONE_ENGINE
@pytest.mark.parametrize("id", [0, -1, -(2**63)])
async def test_an_id_must_be_positive(side: Side, id: int) -> None:
    """0 is what an id that was left out looks like; ids below it are never given."""
    for path, error in (await calls_with_id(side, id)).items():
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert error.fields == [path.strip()]


async def test_the_largest_id_is_an_id(side: Side) -> None:
    """64 bits are enough for every part of the way; there is just nothing there."""
    for error in (await calls_with_id(side, MAX_ID)).values():
        assert error.reason == side.not_found


@ONE_ENGINE
@pytest.mark.parametrize("id", [0, -1, -(2**63)])
async def test_the_post_of_a_comment_must_be_positive(comments: Side, id: int) -> None:
    """A comment names its post, alone and in a batch."""
    one = await failure(comments.create(comments.draft(post_id=id)))
    many = await failure(comments.batch_create([comments.draft(), comments.draft(post_id=id)]))

    assert (one.reason, one.fields) == ("FIELD_INVALID", ["comment.post_id"])
    assert (many.reason, many.fields) == ("FIELD_INVALID", ["requests[1].comment.post_id"])


async def test_the_largest_post_id_is_an_id(comments: Side) -> None:
    """The post with it is missing, as any other would be."""
    assert (await failure(comments.create(comments.draft(post_id=MAX_ID)))).reason == "POST_NOT_FOUND"
    assert (await failure(comments.page(post_id=MAX_ID))).reason == "POST_NOT_FOUND"
    assert dict((await comments.call("CountComments", post_ids=[MAX_ID])).counts) == {MAX_ID: 0}


async def test_a_list_of_comments_is_of_a_post_or_of_all(comments: Side) -> None:
    """post_id 0 means all; below it there is nothing to mean."""
    for id in (-1, -(2**63)):
        error = await failure(comments.page(post_id=id))

        assert (error.reason, error.fields) == ("FIELD_INVALID", ["post_id"])


@ONE_ENGINE
@pytest.mark.parametrize("set_by_server", ["id", "create_time", "update_time", "etag"])
async def test_what_the_server_sets_cannot_be_created(side: Side, set_by_server: str) -> None:
    """A draft with an id, a time or an etag is refused, not stored without it."""
    value: Any = {"id": 7, "etag": "v1"}.get(set_by_server, {"seconds": 1})
    draft = side.draft(**{set_by_server: value})

    one = await failure(side.create(draft))
    many = await failure(side.batch_create([draft]))

    assert (one.reason, one.fields) == ("FIELD_INVALID", [f"{side.field}.{set_by_server}"])
    assert (many.reason, many.fields) == ("FIELD_INVALID", [f"requests[0].{side.field}.{set_by_server}"])


@ONE_ENGINE
async def test_a_time_of_zero_is_a_time_that_is_set(side: Side) -> None:
    """1970 is a time too: what counts is that the field is there."""
    error = await failure(side.create(side.draft(create_time={})))

    assert error.fields == [f"{side.field}.create_time"]


# Request ids


WRITES = [it for it in METHODS if "request_id" in it.input_type.fields_by_name]

A_UUID = "7f3c9c8e-0d5c-4f2b-9c59-2b5a4c2a8d5e"

NO_UUIDS = {
    "a word": "x",
    "a space": " ",
    "nothing but NUL": "\0",
    "no hyphens": A_UUID.replace("-", ""),
    "hyphens elsewhere": "7f3c9c8e0-d5c-4f2b-9c59-2b5a4c2a8d5e",
    "one too few": A_UUID[:-1],
    "one too many": f"{A_UUID}0",
    "no hexadecimal digit": f"{A_UUID[:-1]}g",
    "digits of another script": A_UUID.replace("5", "\u0665"),
    "a space before": f" {A_UUID}",
    "a line end behind": f"{A_UUID}\n",
    "braces": f"{{{A_UUID}}}",
    "a URN": f"urn:uuid:{A_UUID}",
    "two": f"{A_UUID},{A_UUID}",
    "nil": "00000000-0000-0000-0000-000000000000",
}


def test_every_write_has_a_request_id() -> None:
    """The tests below speak of all ten writes."""
    assert len(WRITES) == 10


@ONE_ENGINE
@pytest.mark.parametrize("method", WRITES, ids=lambda it: it.name)
async def test_a_request_id_that_is_no_uuid_is_refused(
    channel: grpc.aio.Channel, method: MethodDescriptor
) -> None:
    """Also the nil UUID, which is what a caller sends who forgot to choose: it would be everybody's."""
    for what, no_uuid in NO_UUIDS.items():
        request: Any = request_class(method)(request_id=no_uuid)

        error = await failure(send_bytes(channel, path_of(method), request.SerializeToString()))

        assert (error.code, error.info.domain) == (grpc.StatusCode.INVALID_ARGUMENT, "storeapi")
        assert "request_id" in error.fields, what


def writes_with(side: Side, id: int, another_id: int) -> list[Callable[[str], Any]]:
    """Every write of a side, which takes a request id; but for that all is well."""
    return [
        lambda request_id: side.create(side.draft(), request_id=request_id),
        lambda request_id: side.batch_create([side.draft()], request_id=request_id),
        lambda request_id: side.update(side.resource(id=id, body="x"), request_id=request_id),
        lambda request_id: side.delete(id, request_id=request_id),
        lambda request_id: side.batch_delete([another_id], request_id=request_id),
    ]


async def test_a_request_id_is_refused_when_all_else_is_well(side: Side, database_url: str) -> None:
    """It is the only violation, it is named by its path, and nothing is written."""
    one, two = await side.several(2)
    before = contents(database_url)

    for no_uuid in ("x", NO_UUIDS["nil"]):
        for write in writes_with(side, one.id, two.id):
            error = await failure(write(no_uuid))
            assert (error.reason, error.fields) == ("FIELD_INVALID", ["request_id"])
    assert contents(database_url) == before


async def test_a_uuid_is_honoured_by_every_write(side: Side, database_url: str) -> None:
    """Sent again, also in other letters, a request is answered as it was and not done again."""
    one, two = await side.several(2)
    for index, write in enumerate(writes_with(side, one.id, two.id)):
        request_id = f"{A_UUID[:-1]}{index}"
        answered = await write(request_id)
        done = contents(database_url)

        for again in (request_id, request_id.upper()):
            assert await write(again) == answered
        assert contents(database_url) == done
        assert done.changes[-1][-1] == request_id


async def test_options_of_a_batch_are_not_set_inside_it(side: Side, database_url: str) -> None:
    """request_id and validate_only belong to the whole batch."""
    before = contents(database_url)
    request = getattr(side.pb, f"Create{side.name}Request")
    draft = {side.field: side.draft()}

    error = await failure(
        side.call(
            f"BatchCreate{side.name}s",
            requests=[
                request(**draft),
                request(**draft, request_id="x"),
                request(**draft, validate_only=True),
                request(**draft, request_id="x", validate_only=True),
            ],
            request_id="x",
        )
    )

    assert error.reason == "FIELD_INVALID"
    assert error.fields == [
        "requests[1].request_id",
        "requests[2].validate_only",
        "requests[3].request_id",
        "requests[3].validate_only",
        "request_id",
    ]
    assert contents(database_url) == before


# All at once


@ONE_ENGINE
async def test_all_that_is_wrong_with_a_create_is_reported_at_once(comments: Side) -> None:
    """One answer names every field to be fixed."""
    draft = comments.draft("\0", id=1, post_id=-1, etag="x", create_time={}, update_time={})

    error = await failure(comments.create(draft, request_id="x"))

    assert error.reason == "FIELD_INVALID"
    assert sorted(error.fields) == [
        "comment.body",
        "comment.create_time",
        "comment.etag",
        "comment.id",
        "comment.post_id",
        "comment.update_time",
        "request_id",
    ]


@ONE_ENGINE
async def test_all_that_is_wrong_with_a_list_is_reported_at_once(comments: Side) -> None:
    """Size, order and post are checked together."""
    error = await failure(comments.page(page_size=-1, order_by="x", post_id=-1))

    assert sorted(error.fields) == ["order_by", "page_size", "post_id"]


@ONE_ENGINE
async def test_all_that_is_wrong_with_an_update_is_reported_at_once(side: Side) -> None:
    """Different kinds of mistakes come in one answer; each says its kind, and the first names the error."""
    error = await failure(side.update(side.resource(id=-1), ["body", "x", "y"], request_id="x"))

    assert error.reason == "FIELD_INVALID"
    assert error.fields == [
        f"{side.field}.id",
        "update_mask",
        "update_mask",
        f"{side.field}.body",
        "request_id",
    ]
    (bad_request,) = [it for it in error.details if it.DESCRIPTOR.name == "BadRequest"]
    assert [it.reason for it in bad_request.field_violations] == [  # type: ignore[attr-defined]
        "FIELD_INVALID",
        "FIELD_MASK_INVALID",
        "FIELD_MASK_INVALID",
        "FIELD_INVALID",
        "FIELD_INVALID",
    ]


@ONE_ENGINE
async def test_all_that_is_wrong_with_a_batch_of_ids_is_reported_at_once(side: Side) -> None:
    """Every wrong id has its place in the answer."""
    get = await failure(side.batch_get([0, 1, -1, 2, 0]))
    delete = await failure(side.batch_delete([0, 1, -1, 1], request_id="x"))

    assert get.fields == ["ids[0]", "ids[2]", "ids[4]"]
    assert delete.fields == ["ids[0]", "ids[2]", "ids[3]", "request_id"]


# Bytes


def sample(method: MethodDescriptor) -> Message:
    """A well-formed request of a method, with every field set."""
    post = posts_pb2.Post(id=1, body="héllo", etag="v1", create_time={"seconds": 1, "nanos": 5})
    comment = comments_pb2.Comment(id=1, body="héllo", post_id=1, update_time={"seconds": 1})
    filled: Any = request_class(method)()
    for one in method.input_type.fields:
        if one.name == "requests":
            if "Post" in method.name:
                filled.requests.add(post=post, request_id="x")
            else:
                filled.requests.add(comment=comment, request_id="x")
        elif one.name in ("post", "comment"):
            getattr(filled, one.name).CopyFrom(post if one.name == "post" else comment)
        elif one.name == "update_mask":
            filled.update_mask.paths.extend(["body", "*"])
        elif one.name == "kinds":
            filled.kinds.extend([1, 2])
        elif one.name == "heartbeat_interval":
            filled.heartbeat_interval.seconds = 5
        elif one.name in ("ids", "post_ids"):
            getattr(filled, one.name).extend([1, 2, 2**40])
        else:
            kind = {FieldDescriptor.CPPTYPE_STRING: "text", FieldDescriptor.CPPTYPE_BOOL: True}
            setattr(filled, one.name, kind.get(one.cpp_type, 3))
    return filled  # type: ignore[no-any-return]


def mangled(method: MethodDescriptor) -> Iterator[bytes]:
    """Bytes that are most likely no request: random ones, and requests that were cut or changed."""
    chance = random.Random(method.full_name)
    for length in (1, 2, 3, 5, 8, 13, 40, 200):
        for _ in range(6):
            yield chance.randbytes(length)
    data = sample(method).SerializeToString()
    for end in range(len(data)):
        yield data[:end]
    for _ in range(40):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        yield bytes(changed)
    yield b"\xff\xff\xff"
    yield b"\xff" * 10
    yield b"\x0b" * 200  # groups within groups
    yield field(1, b"")
    yield b"\x0a\xff\xff\xff\xff\x0f"  # a length of 4 GiB


@each_method
async def test_bytes_that_are_no_request_are_malformed_and_nothing_else(
    channel: grpc.aio.Channel, method: MethodDescriptor
) -> None:
    """Whatever arrives is a request or INVALID_ARGUMENT; nothing makes the service stumble."""
    malformed = 0
    for data in mangled(method):
        try:
            request_class(method).FromString(data)
            is_request = True
        except DecodeError:
            is_request = False

        outcome = await outcome_of(send_bytes(channel, path_of(method), data))

        if not is_request:
            error = error_seen(outcome)
            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"), data
            malformed += 1
        elif isinstance(outcome, grpc.RpcError):
            error = error_seen(outcome)
            assert error.code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), data
            assert error.reason != "REQUEST_MALFORMED", data
    assert malformed > 20


@ONE_ENGINE
async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    """What is not in the contract is answered as gRPC does."""
    for path in ("/storeapi.v1.PostService/NoSuchMethod", "/storeapi.v1.NoSuchService/GetPost"):
        error = await failure(send_bytes(channel, path, b""))

        assert error.code == grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_that_is_too_large_is_refused_by_grpc(posts: Side, database_url: str) -> None:
    """gRPC's own limit stands before ours; the connection goes on."""
    error = await failure(posts.create(posts.draft("x" * 5_000_000)))

    assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert contents(database_url).posts == ()
    assert (await posts.stored()).id == 1


# The order of checks


@ONE_ENGINE
async def test_bytes_are_read_before_anything_is_checked(channel: grpc.aio.Channel) -> None:
    """A wrong id and a broken string: the request was never read."""
    error = await failure(send_bytes(channel, "/storeapi.v1.PostService/DeletePost", field(2, b"\xff")))

    assert error.reason == "REQUEST_MALFORMED"


async def test_the_request_is_checked_before_what_is_stored(comments: Side) -> None:
    """What is wrong with a request is told whether or not what it names is there."""
    token = "no token"
    cases = {
        "FIELD_INVALID": [
            comments.create(comments.draft("", post_id=404)),
            comments.update(comments.resource(id=404), ["body"]),
            comments.delete(404, request_id="x"),
            comments.page(post_id=404, page_size=-1),
            comments.page(page_token=token, order_by="x"),
            comments.batch_get([404, 0]),
        ],
        "FIELD_MASK_INVALID": [comments.update(comments.resource(id=404, etag="x", body="x"), ["x"])],
        "BATCH_DUPLICATE": [comments.batch_delete([404, 404])],
        "PAGE_TOKEN_INVALID": [comments.page(post_id=404, page_token=token)],
    }
    for reason, calls in cases.items():
        for call in calls:
            assert (await failure(call)).reason == reason


async def test_what_is_missing_is_told_before_what_differs(comments: Side) -> None:
    """First whether it is there, then whether it is the one that the caller knows, then what would change."""
    comment = await comments.stored()
    moved = {"body": "x", "etag": "x", "post_id": 405}

    missing = await failure(comments.update(comments.resource(id=404, **moved)))
    differs = await failure(comments.update(comments.resource(id=comment.id, **moved)))

    assert missing.reason == "COMMENT_NOT_FOUND"
    assert differs.reason == "ETAG_MISMATCH"


async def test_the_etag_is_checked_before_the_comments_of_a_post(stubs: Stubs, posts: Side) -> None:
    """Who does not know the post as it is need not hear of its comments."""
    post = await posts.stored()
    await stubs.create_comment(post.id)

    assert (await failure(posts.delete(post.id, etag="x"))).reason == "ETAG_MISMATCH"
    assert (await failure(posts.delete(post.id, etag=post.etag))).reason == "POST_HAS_COMMENTS"
    assert (await failure(posts.batch_delete([post.id, 404]))).reason == "POST_NOT_FOUND"
