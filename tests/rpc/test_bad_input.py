"""Valid and invalid requests: bodies, ids, request ids and undecodable bytes; and the order of checks."""

import asyncio
import random
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from storeapi.v1 import comments_pb2, posts_pb2

from store_service.config import Config
from tests.support.contract import METHODS, method_path, request_class, send_bytes
from tests.support.database import database_contents
from tests.support.engines import SQLITE_ONLY
from tests.support.errors import ReceivedError, expect_error, received_error, result_or_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs

MAX_ID = 2**63 - 1

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


async def test_body_is_returned_unchanged(api: ResourceApi) -> None:
    for body in FAITHFUL:
        created = await api.create_one(body)
        (in_batch,) = api.resources_in(await api.batch_create([api.draft(body)]))
        updated = await api.update(api.resource(id=(await api.create_one()).id, body=body))

        for answered in (created, in_batch, updated):
            assert answered.body == body
            assert await api.get(answered.id) == answered
    assert [it.body for it in api.resources_in(await api.page())] == [
        body for body in FAITHFUL for _ in range(3)
    ]


async def refusals(api: ResourceApi, body: str) -> dict[str, ReceivedError]:
    """Returns the error of each call that sets a body, by the path of the body."""
    id = (await api.create_one()).id
    name = api.field
    return {
        f"{name}.body": await expect_error(api.create(api.draft(body))),
        f"requests[1].{name}.body": await expect_error(api.batch_create([api.draft(), api.draft(body)])),
        f"{name}.body ": await expect_error(api.update(api.resource(id=id, body=body), ["body"])),
    }


async def test_body_without_text_or_with_nul_is_refused(api: ResourceApi) -> None:
    """NUL is refused anywhere, because not every database can store it."""
    for body in ("", "\0", "a\0", "\0a", "a\0b", "\0" * 100):
        for path, error in (await refusals(api, body)).items():
            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
            assert error.fields == [path.strip()]


LONGEST = {
    "one byte": "x" * 65_536,
    "two bytes": "é" * 32_768,
    "three bytes": "€" * 21_845 + "x",
    "four bytes": "\U0001f600" * 16_384,
    "just a few long ones": "\U0001f600" * 10 + "x" * (65_536 - 40),
}


async def test_body_limit_counts_utf8_bytes(api: ResourceApi) -> None:
    """The exact limit is accepted, and one byte more is refused."""
    for name, body in LONGEST.items():
        assert len(body.encode()) == 65_536
        assert (await api.create_one(body)).body == body
        assert (await api.update(api.resource(id=(await api.create_one()).id, body=body))).body == body

        for path, error in (await refusals(api, body + "x")).items():
            assert (error.reason, error.fields) == ("FIELD_INVALID", [path.strip()]), name
            assert "65536 bytes" in error.message


@SQLITE_ONLY
class TestShortBodies:
    """A server with a limit of 8 bytes."""

    @pytest.fixture
    def config(self, config: Config) -> Config:
        return config.model_copy(update={"max_body_bytes": 8})

    @pytest.mark.parametrize("body", ["12345678", "€€12", "\U0001f600\U0001f600"])
    async def test_body_limit_is_a_setting(self, api_of_short: ResourceApi, body: str) -> None:
        assert (await api_of_short.create_one(body)).body == body

        error = await expect_error(api_of_short.create(api_of_short.draft(body + "9")))
        assert error.fields == ["post.body"]
        assert "8 bytes" in error.message

    @pytest.fixture
    def api_of_short(self, stubs: Stubs) -> ResourceApi:
        return ResourceApi("Post", stubs)


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
    """Returns a field of wire type 2 (string or message) of less than 128 bytes."""
    return bytes([number << 3 | 2, len(data)]) + data


def string_fields(message: Descriptor) -> Iterator[list[FieldDescriptor]]:
    """Yields the fields from a message to each of its strings, through all submessages."""
    for one in message.fields:
        if one.type == FieldDescriptor.TYPE_STRING:
            yield [one]
        elif one.message_type is not None:
            yield from ([one, *rest] for rest in string_fields(one.message_type))


@SQLITE_ONLY
async def test_invalid_utf8_is_malformed(channel: grpc.aio.Channel) -> None:
    """Every string of every request, at any depth. The text of the decoder is not sent."""
    ways = [(method, way) for method in METHODS for way in string_fields(method.input_type)]
    for (method, way), bad in product(ways, NOT_UTF8.values()):
        data = bad
        for one in reversed(way):
            data = field(one.number, data)

        error = await expect_error(send_bytes(channel, method_path(method), data))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"), method
        assert error.message == (
            f"the request is not a {method.input_type.full_name}: "
            "it cannot be decoded, or a text in it is not UTF-8"
        )


def test_strings_at_every_depth_are_tested() -> None:
    depths = {len(way) for method in METHODS for way in string_fields(method.input_type)}

    assert depths == {1, 2, 3, 4}


# Ids


async def calls_with_id(api: ResourceApi, id: int) -> dict[str, ReceivedError]:
    """Returns the error of every call that takes an id, by the path of the id."""
    return {
        "id": await expect_error(api.get(id)),
        "id ": await expect_error(api.delete(id)),
        f"{api.field}.id": await expect_error(api.update(api.resource(id=id, body="x"))),
        "ids[1]": await expect_error(api.batch_get([MAX_ID, id])),
        "ids[1] ": await expect_error(api.batch_delete([MAX_ID - 1, id])),
    }


@SQLITE_ONLY
async def test_id_must_be_positive(api: ResourceApi) -> None:
    """0 means unset."""
    for id in (0, -1, -(2**63)):
        for path, error in (await calls_with_id(api, id)).items():
            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
            assert error.fields == [path.strip()], id


async def test_largest_id_is_valid(api: ResourceApi) -> None:
    """It is not found."""
    for error in (await calls_with_id(api, MAX_ID)).values():
        assert error.reason == api.not_found


@SQLITE_ONLY
@pytest.mark.parametrize("id", [0, -1, -(2**63)])
async def test_post_id_of_a_comment_must_be_positive(comments: ResourceApi, id: int) -> None:
    """In a single request and in a batch."""
    one = await expect_error(comments.create(comments.draft(post_id=id)))
    many = await expect_error(comments.batch_create([comments.draft(), comments.draft(post_id=id)]))

    assert (one.reason, one.fields) == ("FIELD_INVALID", ["comment.post_id"])
    assert (many.reason, many.fields) == ("FIELD_INVALID", ["requests[1].comment.post_id"])


async def test_largest_post_id_is_valid(comments: ResourceApi) -> None:
    """The post is not found."""
    assert (await expect_error(comments.create(comments.draft(post_id=MAX_ID)))).reason == "POST_NOT_FOUND"
    assert (await expect_error(comments.page(post_id=MAX_ID))).reason == "POST_NOT_FOUND"
    assert dict((await comments.call("CountComments", post_ids=[MAX_ID])).counts) == {MAX_ID: 0}


async def test_post_id_of_a_list_is_zero_or_positive(comments: ResourceApi) -> None:
    """0 selects all comments."""
    for id in (-1, -(2**63)):
        error = await expect_error(comments.page(post_id=id))

        assert (error.reason, error.fields) == ("FIELD_INVALID", ["post_id"])


@SQLITE_ONLY
async def test_output_only_fields_are_refused_on_create(api: ResourceApi) -> None:
    """A draft with an id, a time or an etag is refused."""
    for set_by_server in ("id", "create_time", "update_time", "etag"):
        value: Any = {"id": 7, "etag": "v1"}.get(set_by_server, {"seconds": 1})
        draft = api.draft(**{set_by_server: value})

        one = await expect_error(api.create(draft))
        many = await expect_error(api.batch_create([draft]))

        assert (one.reason, one.fields) == ("FIELD_INVALID", [f"{api.field}.{set_by_server}"])
        assert (many.reason, many.fields) == ("FIELD_INVALID", [f"requests[0].{api.field}.{set_by_server}"])


@SQLITE_ONLY
async def test_zero_timestamp_counts_as_set(api: ResourceApi) -> None:
    """A set Timestamp with value 0 is refused too."""
    error = await expect_error(api.create(api.draft(create_time={})))

    assert error.fields == [f"{api.field}.create_time"]


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
    """The tests below cover all fourteen writes."""
    assert len(WRITES) == 14


@SQLITE_ONLY
async def test_request_id_that_is_not_a_uuid_is_refused(channel: grpc.aio.Channel) -> None:
    """The nil UUID too."""
    for method in WRITES:
        for what, no_uuid in NO_UUIDS.items():
            request: Any = request_class(method)(request_id=no_uuid)

            error = await expect_error(send_bytes(channel, method_path(method), request.SerializeToString()))

            assert (error.code, error.info.domain) == (grpc.StatusCode.INVALID_ARGUMENT, "storeapi")
            assert "request_id" in error.fields, (method.name, what)


def writes_with(api: ResourceApi, id: int, another_id: int) -> list[Callable[[str], Any]]:
    """Returns every write with the given request id, valid apart from it."""
    return [
        lambda request_id: api.create(api.draft(), request_id=request_id),
        lambda request_id: api.batch_create([api.draft()], request_id=request_id),
        lambda request_id: api.update(api.resource(id=id, body="x"), request_id=request_id),
        lambda request_id: api.batch_update(
            [(api.resource(id=id, body="y"), ["body"])], request_id=request_id
        ),
        lambda request_id: api.delete(id, request_id=request_id),
        lambda request_id: api.batch_delete([another_id], request_id=request_id),
    ]


async def test_invalid_request_id_is_the_only_violation(api: ResourceApi, database_url: str) -> None:
    """The violation has its path, and nothing is written."""
    one, two = await api.create_many(2)
    before = database_contents(database_url)

    for no_uuid in ("x", NO_UUIDS["nil"]):
        for write in writes_with(api, one.id, two.id):
            error = await expect_error(write(no_uuid))
            assert (error.reason, error.fields) == ("FIELD_INVALID", ["request_id"])
    assert database_contents(database_url) == before


async def test_every_write_honors_its_request_id(api: ResourceApi, database_url: str) -> None:
    """A replay gets the first response, also in a different letter case."""
    one, two = await api.create_many(2)
    for index, write in enumerate(writes_with(api, one.id, two.id)):
        request_id = f"{A_UUID[:-1]}{index}"
        answered = await write(request_id)
        done = database_contents(database_url)

        for again in (request_id, request_id.upper()):
            assert await write(again) == answered
        assert database_contents(database_url) == done
        *_, last_request_id, _ = done.changes[-1]
        assert last_request_id == request_id


async def test_batch_options_are_refused_inside_a_batch(api: ResourceApi, database_url: str) -> None:
    """request_id and validate_only apply to the whole batch."""
    before = database_contents(database_url)
    request = getattr(api.pb, f"Create{api.name}Request")
    draft = {api.field: api.draft()}

    error = await expect_error(
        api.call(
            f"BatchCreate{api.name}s",
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
    assert database_contents(database_url) == before


# Several violations


@SQLITE_ONLY
async def test_create_reports_all_violations_at_once(comments: ResourceApi) -> None:
    """One error names every invalid field."""
    draft = comments.draft("\0", id=1, post_id=-1, etag="x", create_time={}, update_time={})

    error = await expect_error(comments.create(draft, request_id="x"))

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


@SQLITE_ONLY
async def test_list_reports_all_violations_at_once(comments: ResourceApi) -> None:
    """Page size, order and post id."""
    error = await expect_error(comments.page(page_size=-1, order_by="x", post_id=-1))

    assert sorted(error.fields) == ["order_by", "page_size", "post_id"]


@SQLITE_ONLY
async def test_update_reports_all_violations_at_once(api: ResourceApi) -> None:
    """The first violation selects the reason."""
    error = await expect_error(api.update(api.resource(id=-1), ["body", "x", "y"], request_id="x"))

    assert error.reason == "FIELD_INVALID"
    assert error.fields == [
        f"{api.field}.id",
        "update_mask",
        "update_mask",
        f"{api.field}.body",
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


@SQLITE_ONLY
async def test_batch_of_ids_reports_all_violations_at_once(api: ResourceApi) -> None:
    """The error has the index of every invalid id."""
    get = await expect_error(api.batch_get([0, 1, -1, 2, 0]))
    delete = await expect_error(api.batch_delete([0, 1, -1, 1], request_id="x"))

    assert get.fields == ["ids[0]", "ids[2]", "ids[4]"]
    assert delete.fields == ["ids[0]", "ids[2]", "ids[3]", "request_id"]


# Bytes


def sample(method: MethodDescriptor) -> Message:
    """Returns a valid request of a method, with every field set."""
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
        elif one.name == "options":
            filled.options.on_conflict = 1
        elif one.name == "records":
            filled.records.add(comment=comment, post_external_id="é", ancestor_ids=[1, 2**40])
        elif one.name == "heartbeat_interval":
            filled.heartbeat_interval.seconds = 5
        elif one.name == "external_ids":
            filled.external_ids.extend(["a", "é"])
        elif one.name == "filter" or one.name.endswith("_filter"):
            getattr(filled, one.name).labels["status"] = "new"
            getattr(filled, one.name).create_time_from.seconds = 5
        elif one.name in ("ids", "post_ids", "comment_ids"):
            getattr(filled, one.name).extend([1, 2, 2**40])
        else:
            kind = {FieldDescriptor.CPPTYPE_STRING: "text", FieldDescriptor.CPPTYPE_BOOL: True}
            setattr(filled, one.name, kind.get(one.cpp_type, 3))
    return filled  # type: ignore[no-any-return]


def mangled(method: MethodDescriptor) -> Iterator[bytes]:
    """Yields bytes that can hardly be decoded: random bytes, and requests that were cut or changed."""
    chance = random.Random(method.full_name)
    for length in (1, 2, 3, 5, 8, 13, 40, 200):
        for _ in range(6):
            yield chance.randbytes(length)
    data = sample(method).SerializeToString()
    for end in range(len(data)):
        yield data[:end]
    for _ in range(40):
        # A request without fields has no bytes.
        changed = bytearray(data or b"\n")
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        yield bytes(changed)
    yield b"\xff\xff\xff"
    yield b"\xff" * 10
    yield b"\x0b" * 200  # Nested groups.
    yield field(1, b"")
    yield b"\x0a\xff\xff\xff\xff\x0f"  # A length of 4 GiB.


async def test_undecodable_bytes_are_malformed(channel: grpc.aio.Channel) -> None:
    """The only error is INVALID_ARGUMENT."""
    for method in METHODS:
        await assert_undecodable_bytes_are_malformed(channel, method)


async def assert_undecodable_bytes_are_malformed(channel: grpc.aio.Channel, method: MethodDescriptor) -> None:
    """Sends mangled requests of a method."""
    requests = list(mangled(method))
    outcomes = await asyncio.gather(
        *(result_or_error(send_bytes(channel, method_path(method), data)) for data in requests)
    )

    malformed = 0
    for data, outcome in zip(requests, outcomes, strict=True):
        sent = (method.name, data)
        try:
            request_class(method).FromString(data)
            is_request = True
        except DecodeError:
            is_request = False
        if not is_request:
            error = received_error(outcome)
            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"), sent
            malformed += 1
        elif isinstance(outcome, grpc.RpcError):
            error = received_error(outcome)
            assert error.code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), sent
            assert error.reason != "REQUEST_MALFORMED", sent
    assert malformed > 20, method.name


@SQLITE_ONLY
async def test_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    for path in ("/storeapi.v1.PostService/NoSuchMethod", "/storeapi.v1.NoSuchService/GetPost"):
        error = await expect_error(send_bytes(channel, path, b""))

        assert error.code == grpc.StatusCode.UNIMPLEMENTED


async def test_message_above_the_grpc_limit_is_refused(posts: ResourceApi, database_url: str) -> None:
    """The connection continues."""
    error = await expect_error(posts.create(posts.draft("x" * 5_000_000)))

    assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert database_contents(database_url).posts == ()
    assert (await posts.create_one()).id == 1


# The order of checks


@SQLITE_ONLY
async def test_decoding_precedes_validation(channel: grpc.aio.Channel) -> None:
    """A request with an invalid id and an undecodable string is REQUEST_MALFORMED."""
    error = await expect_error(send_bytes(channel, "/storeapi.v1.PostService/DeletePost", field(2, b"\xff")))

    assert error.reason == "REQUEST_MALFORMED"


async def test_validation_precedes_the_database(comments: ResourceApi) -> None:
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
            assert (await expect_error(call)).reason == reason


async def test_not_found_precedes_etag_mismatch(comments: ResourceApi) -> None:
    """An etag mismatch precedes an immutable field."""
    comment = await comments.create_one()
    moved = {"body": "x", "etag": "x", "post_id": 405}

    missing = await expect_error(comments.update(comments.resource(id=404, **moved)))
    differs = await expect_error(comments.update(comments.resource(id=comment.id, **moved)))

    assert missing.reason == "COMMENT_NOT_FOUND"
    assert differs.reason == "ETAG_MISMATCH"


async def test_etag_mismatch_precedes_post_has_comments(stubs: Stubs, posts: ResourceApi) -> None:
    post = await posts.create_one()
    await stubs.create_comment(post.id)

    assert (await expect_error(posts.delete(post.id, etag="x"))).reason == "ETAG_MISMATCH"
    assert (await expect_error(posts.delete(post.id, etag=post.etag))).reason == "POST_HAS_COMMENTS"
    assert (await expect_error(posts.batch_delete([post.id, 404]))).reason == "POST_NOT_FOUND"
