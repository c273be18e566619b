"""How a failed call becomes an error of the tree."""

import copy
import pickle
import re

import grpc
import pytest
import storeapi
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc import StatusCode
from storeapi import _status, errors
from storeapi.v1 import errors_pb2

from tests.support.client_errors import error_tree

REASONS = {
    "REQUEST_MALFORMED": (StatusCode.INVALID_ARGUMENT, storeapi.RequestMalformed),
    "FIELD_INVALID": (StatusCode.INVALID_ARGUMENT, storeapi.FieldInvalid),
    "FIELD_MASK_INVALID": (StatusCode.INVALID_ARGUMENT, storeapi.FieldMaskInvalid),
    "FIELD_IMMUTABLE": (StatusCode.INVALID_ARGUMENT, storeapi.FieldImmutable),
    "PAGE_TOKEN_INVALID": (StatusCode.INVALID_ARGUMENT, storeapi.PageTokenInvalid),
    "PAGE_TOKEN_MISMATCH": (StatusCode.INVALID_ARGUMENT, storeapi.PageTokenMismatch),
    "BATCH_EMPTY": (StatusCode.INVALID_ARGUMENT, storeapi.BatchEmpty),
    "BATCH_TOO_LARGE": (StatusCode.INVALID_ARGUMENT, storeapi.BatchTooLarge),
    "BATCH_DUPLICATE": (StatusCode.INVALID_ARGUMENT, storeapi.BatchDuplicate),
    "POST_NOT_FOUND": (StatusCode.NOT_FOUND, storeapi.PostNotFound),
    "COMMENT_NOT_FOUND": (StatusCode.NOT_FOUND, storeapi.CommentNotFound),
    "POST_HAS_COMMENTS": (StatusCode.FAILED_PRECONDITION, storeapi.PostHasComments),
    "NOT_DELETED": (StatusCode.FAILED_PRECONDITION, storeapi.NotDeleted),
    "ETAG_MISMATCH": (StatusCode.ABORTED, storeapi.EtagMismatch),
    "EXTERNAL_ID_TAKEN": (StatusCode.ALREADY_EXISTS, storeapi.ExternalIdTaken),
    "REPLY_TOO_DEEP": (StatusCode.FAILED_PRECONDITION, storeapi.ReplyTooDeep),
    "REPLY_POST_MISMATCH": (StatusCode.FAILED_PRECONDITION, storeapi.ReplyPostMismatch),
    "RESPONSE_TOO_LARGE": (StatusCode.RESOURCE_EXHAUSTED, storeapi.ResponseTooLarge),
    "SHUTTING_DOWN": (StatusCode.UNAVAILABLE, storeapi.ShuttingDown),
    "DATABASE_BUSY": (StatusCode.UNAVAILABLE, storeapi.DatabaseBusy),
    "DATABASE_UNAVAILABLE": (StatusCode.UNAVAILABLE, storeapi.DatabaseUnavailable),
    "SCHEMA_MISMATCH": (StatusCode.FAILED_PRECONDITION, storeapi.SchemaMismatch),
    "STORAGE_FULL": (StatusCode.RESOURCE_EXHAUSTED, storeapi.StorageFull),
    "INTERNAL": (StatusCode.INTERNAL, storeapi.InternalError),
    "REQUEST_ID_REUSED": (StatusCode.INVALID_ARGUMENT, storeapi.RequestIdReused),
    "RESUME_TOKEN_INVALID": (StatusCode.INVALID_ARGUMENT, storeapi.ResumeTokenInvalid),
    "RESUME_TOKEN_FOREIGN": (StatusCode.INVALID_ARGUMENT, storeapi.ResumeTokenForeign),
    "CONSISTENCY_TOKEN_FOREIGN": (StatusCode.INVALID_ARGUMENT, storeapi.ConsistencyTokenForeign),
    "CONSISTENCY_TOKEN_INVALID": (StatusCode.INVALID_ARGUMENT, storeapi.ConsistencyTokenInvalid),
    "RESUME_TOKEN_EXPIRED": (StatusCode.OUT_OF_RANGE, storeapi.ResumeTokenExpired),
    "WATCH_LIMIT": (StatusCode.RESOURCE_EXHAUSTED, storeapi.WatchLimit),
    "OVERLOADED": (StatusCode.UNAVAILABLE, storeapi.Overloaded),
    "RATE_LIMITED": (StatusCode.RESOURCE_EXHAUSTED, storeapi.RateLimited),
    "READ_ONLY": (StatusCode.FAILED_PRECONDITION, storeapi.ReadOnly),
    "STREAM_STALLED": (StatusCode.UNAVAILABLE, storeapi.StreamStalled),
    "STANDBY_BEHIND": (StatusCode.UNAVAILABLE, storeapi.StandbyBehind),
    "STORE_MOVING": (StatusCode.UNAVAILABLE, storeapi.StoreMoving),
    "SEARCH_INDEX_NOT_READY": (StatusCode.UNAVAILABLE, storeapi.SearchIndexNotReady),
    "SEARCH_DISABLED": (StatusCode.FAILED_PRECONDITION, storeapi.SearchDisabled),
    "CREDENTIALS_MISSING": (StatusCode.UNAUTHENTICATED, storeapi.CredentialsMissing),
    "CREDENTIALS_INVALID": (StatusCode.UNAUTHENTICATED, storeapi.CredentialsInvalid),
    "PERMISSION_DENIED": (StatusCode.PERMISSION_DENIED, storeapi.PermissionDenied),
}
BRANCHES = {
    StatusCode.ALREADY_EXISTS: storeapi.AlreadyExists,
    StatusCode.INVALID_ARGUMENT: storeapi.InvalidRequest,
    StatusCode.UNAUTHENTICATED: storeapi.Unauthenticated,
    StatusCode.PERMISSION_DENIED: storeapi.PermissionDenied,
    StatusCode.NOT_FOUND: storeapi.NotFound,
    StatusCode.FAILED_PRECONDITION: storeapi.PreconditionFailed,
    StatusCode.ABORTED: storeapi.Conflict,
    StatusCode.RESOURCE_EXHAUSTED: storeapi.ResourceExhausted,
    StatusCode.OUT_OF_RANGE: storeapi.OutOfRange,
    StatusCode.UNAVAILABLE: storeapi.Unavailable,
    StatusCode.DEADLINE_EXCEEDED: storeapi.DeadlineExceeded,
    StatusCode.CANCELLED: storeapi.Cancelled,
    StatusCode.INTERNAL: storeapi.InternalError,
}


@pytest.fixture
async def client(make_client, server):
    """A client that shows each failure; what it makes of some by itself is tested elsewhere."""
    return make_client(server.target, retries=False)


async def failure(client):
    """The error of a call."""
    with pytest.raises(storeapi.StoreError) as raised:
        await client.posts.get(1)
    return raised.value


# Reasons and codes


@pytest.mark.parametrize("reason", REASONS)
async def test_every_reason_has_its_class(client, server, reason):
    """A caller catches a class and does not compare texts."""
    code, expected = REASONS[reason]
    server.refuse(code, reason)

    error = await failure(client)

    assert type(error) is expected
    assert (error.code, error.reason) == (code, reason)


def test_no_reason_of_the_contract_is_missing():
    """Fails when the contract gains a reason without a class."""
    names = [name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name]

    assert set(REASONS) == set(names) - {"UNSPECIFIED"}
    assert set(_status.BY_REASON) == set(REASONS)


def test_no_leaf_of_the_tree_is_missing():
    """Fails for a class that nothing raises."""
    # The client finds out by itself that no connection can be made.
    leaves = {error for error in error_tree() if not error.__subclasses__()} - {errors.ConnectionFailed}

    assert leaves <= {*_status.BY_REASON.values(), *_status.BY_CODE.values()}


@pytest.mark.parametrize("reason", REASONS)
def test_constructed_error_equals_a_received_one(reason):
    """Error handling can be tested by raising an error."""
    code, kind = REASONS[reason]

    error = kind("no such thing")

    assert (error.code, error.reason, str(error)) == (code, reason, "no such thing")
    assert (error.metadata, error.call_id, error.retry_after) == ({}, None, None)
    assert isinstance(error, BRANCHES[code])


def test_root_error_has_no_specific_data():
    """A test double may raise StoreError; its message is in `args`."""
    error = storeapi.StoreError(message="it went wrong")

    assert (error.code, error.reason) == (StatusCode.UNKNOWN, "")
    assert error.args == ("it went wrong",)


@pytest.mark.parametrize("reason", ["", "MADE_LATER"])
@pytest.mark.parametrize("code", BRANCHES, ids=lambda code: code.name)
async def test_unknown_or_missing_reason_raises_the_branch_class(client, server, code, reason):
    """The status code selects the class."""
    server.refuse(code, reason)

    error = await failure(client)

    assert type(error) is BRANCHES[code]
    assert (error.code, error.reason) == (code, reason)


@pytest.mark.parametrize("code", [code for code in StatusCode if code not in {*BRANCHES, StatusCode.OK}])
async def test_code_without_a_branch_raises_store_error(client, server, code):
    """`except StoreError` catches every error."""
    server.refuse(code)

    error = await failure(client)

    assert type(error) is storeapi.StoreError
    assert error.code is code


async def test_reason_of_another_domain_is_ignored(client, server):
    """A proxy may use the same words for something else."""
    metadata = {"post_id": "1"}
    server.refuse(StatusCode.NOT_FOUND, "POST_NOT_FOUND", metadata=metadata, domain="proxy.example.com")

    error = await failure(client)

    assert type(error) is storeapi.NotFound
    assert (error.reason, error.metadata) == ("", {})


@pytest.mark.parametrize("damaged", [b"\xff\xff\xff", b"\x1a\x03\x0a\xff\xff"])
async def test_undecodable_details_are_ignored(client, server, damaged):
    """They must not hide the error."""
    server.refuse(StatusCode.NOT_FOUND)
    server.script[-1].trailers.append(("grpc-status-details-bin", damaged))

    error = await failure(client)

    assert type(error) is storeapi.NotFound


async def test_damaged_detail_is_ignored(client, server):
    """The status is readable, the packed message is not."""
    packed = b"\x0a\x2atype.googleapis.com/google.rpc.ErrorInfo\x12\x01\xff"
    packed = packed.replace(b"\x2a", bytes([len("type.googleapis.com/google.rpc.ErrorInfo")]), 1)
    server.refuse(StatusCode.NOT_FOUND)
    status = b"\x1a" + bytes([len(packed)]) + packed
    server.script[-1].trailers.append(("grpc-status-details-bin", status))

    error = await failure(client)

    assert type(error) is storeapi.NotFound


async def test_unreachable_server_is_unavailable(make_client):
    """The error contains the message of gRPC."""
    client = make_client("127.0.0.1:1", timeout=0.5)

    error = await failure(client)

    assert type(error) is storeapi.Unavailable
    assert "127.0.0.1:1" in str(error)


# What an error carries


async def test_grpc_error_is_the_cause(client, server):
    """The original error stays available."""
    server.refuse(StatusCode.NOT_FOUND, "POST_NOT_FOUND")

    error = await failure(client)

    assert isinstance(error.__cause__, grpc.RpcError)
    assert error.__cause__.code() is StatusCode.NOT_FOUND


async def test_error_carries_the_data_of_the_service(client, server):
    """Message, metadata, call id and retry delay."""
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=250_000_000))
    server.refuse(
        StatusCode.UNAVAILABLE,
        "DATABASE_BUSY",
        retry,
        message="the database is busy",
        metadata={"key": "value"},
        call_id="c-1",
    )

    error = await failure(client)

    assert (error.message, error.metadata) == ("the database is busy", {"key": "value"})
    assert (error.call_id, error.retry_after) == ("c-1", 1.25)


async def test_missing_data_is_none(client, server):
    """An error without details has no call id and no delay."""
    server.refuse(StatusCode.UNAVAILABLE)

    error = await failure(client)

    assert (error.call_id, error.retry_after, error.metadata) == (None, None, {})


async def test_every_violation_is_listed(client, server):
    """A form can show all errors at once, each at its field."""
    violations = [("post.body", "must not be empty"), ("post.id", "must not be set"), ("post.id", "is bad")]
    bad_request = error_details_pb2.BadRequest(
        field_violations=[{"field": field, "description": text} for field, text in violations]
    )
    server.refuse(StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", bad_request)

    error = await failure(client)

    assert [(violation.field, violation.description) for violation in error.violations] == violations
    assert error.fields == {"post.body": "must not be empty", "post.id": "must not be set; is bad"}


async def test_post_not_found_has_the_id(client, server):
    """As a number, and as the only missing id."""
    metadata = {"post_id": "42", "missing_ids": "42"}
    server.refuse(StatusCode.NOT_FOUND, "POST_NOT_FOUND", metadata=metadata)

    error = await failure(client)

    assert (error.post_id, error.missing_ids) == (42, (42,))


async def test_comment_not_found_has_the_id(client, server):
    """As a number, and as the only missing id."""
    server.refuse(StatusCode.NOT_FOUND, "COMMENT_NOT_FOUND", metadata={"comment_id": "7"})

    error = await failure(client)

    assert (error.comment_id, error.missing_ids) == (7, (7,))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("7", (7,)),
        ("7,9", (7, 9)),
        ("7, 9", (7, 9)),
        ("7,9,... and 950 more", (7, 9)),
        ("", ()),
        ("²,x,-1", ()),
    ],
)
def test_missing_ids_are_those_in_the_message(text, ids):
    """The service truncates a long list; the rest of the text is ignored."""
    error = storeapi.PostNotFound(metadata={"missing_ids": text})

    assert error.missing_ids == ids
    assert error.post_id is None


def test_not_found_without_ids_has_no_missing_ids():
    assert storeapi.NotFound().missing_ids == ()
    assert storeapi.CommentNotFound().missing_ids == ()
    assert storeapi.CommentNotFound().comment_id is None


def test_error_data_is_typed():
    """Metadata is text; named attributes are converted."""
    too_large = storeapi.BatchTooLarge(metadata={"count": "1001", "max_count": "1000"})
    has_comments = storeapi.PostHasComments(metadata={"post_id": "1", "comment_count": "3"})
    mismatch = storeapi.EtagMismatch(metadata={"current_etag": "e2"})
    response = storeapi.ResponseTooLarge(metadata={"max_bytes": "4194304"})
    taken = storeapi.ExternalIdTaken(metadata={"id": "5", "external_id": "article:42"})
    too_deep = storeapi.ReplyTooDeep(metadata={"reply_to_id": "6", "max_depth": "64"})
    other_post = storeapi.ReplyPostMismatch(metadata={"reply_to_id": "6", "post_id": "7"})
    limit = storeapi.WatchLimit(metadata={"limit": "100"})
    expired = storeapi.ResumeTokenExpired(metadata={"earliest_resume_token": "t1"})
    shutting_down = storeapi.ShuttingDown(metadata={"resume_token": "t2"})
    rate_limited = storeapi.RateLimited(metadata={"calls_per_second": "2.5"})

    assert (too_large.count, too_large.max_count) == (1001, 1000)
    assert (has_comments.post_id, has_comments.post_ids, has_comments.comment_count) == (1, (1,), 3)
    assert mismatch.current_etag == "e2"
    assert response.max_bytes == 4194304
    assert (taken.id, taken.external_id) == (5, "article:42")
    assert (too_deep.reply_to_id, too_deep.max_depth) == (6, 64)
    assert (other_post.reply_to_id, other_post.post_id) == (6, 7)
    assert limit.limit == 100
    assert rate_limited.calls_per_second == 2.5
    assert expired.earliest_resume_token == "t1"
    assert shutting_down.resume_token == "t2"


def test_all_posts_with_comments_are_listed():
    """Several posts can prevent a batch delete."""
    error = storeapi.PostHasComments(metadata={"post_id": "1,2", "comment_count": "5"})

    assert (error.post_id, error.post_ids, error.comment_count) == (None, (1, 2), 5)


def test_missing_or_malformed_data_is_none():
    """An older service must not break error handling."""
    assert storeapi.BatchTooLarge().count is None
    assert storeapi.BatchTooLarge(metadata={"max_count": "many"}).max_count is None
    assert storeapi.EtagMismatch().current_etag == ""
    assert (storeapi.ExternalIdTaken().id, storeapi.ExternalIdTaken().external_id) == (None, "")
    assert storeapi.ReplyTooDeep().max_depth is None
    assert storeapi.ReplyPostMismatch().post_id is None
    assert storeapi.WatchLimit().limit is None
    assert storeapi.RateLimited().calls_per_second is None
    assert storeapi.ResumeTokenExpired().earliest_resume_token == ""
    assert storeapi.ShuttingDown().resume_token == ""


# How an error reads


def test_error_text_is_its_message():
    assert str(storeapi.PostNotFound("there is no post 42")) == "there is no post 42"


async def test_error_without_message_names_its_status(client, server):
    """No log line is empty."""
    server.refuse(StatusCode.CANCELLED, message="")

    error = await failure(client)

    assert str(error) == "the call failed with status CANCELLED"
    assert error.message == ""


def test_violations_are_part_of_the_text():
    """The text alone is enough to correct the request."""
    violations = [
        storeapi.FieldViolation(field="post.body", description="must not be empty"),
        storeapi.FieldViolation(field="", description="something else is wrong"),
    ]

    error = storeapi.FieldInvalid("the request is not valid", violations=violations)

    expected = "the request is not valid (post.body: must not be empty; something else is wrong)"
    assert str(error) == expected


def test_violation_in_the_message_is_not_repeated():
    """The message of a single violation is often the violation itself."""
    violation = storeapi.FieldViolation(field="post.body", description="must not be empty")

    error = storeapi.FieldInvalid("post.body: must not be empty", violations=[violation])

    assert str(error) == "post.body: must not be empty"


def test_drawn_tree_matches_the_classes():
    """The drawing in the docstring of the module has every class in its place."""
    drawn = [
        (len(indent) // 4, name)
        for indent, name in re.findall(r"^    ([│├└─ ]*)([A-Z]\w+)(?: |$)", errors.__doc__, re.MULTILINE)
    ]

    actual = [
        (len(error.__mro__) - len(storeapi.StoreError.__mro__), error.__name__) for error in error_tree()
    ]

    assert drawn == actual


# Beyond this process


@pytest.mark.parametrize("kind", list(error_tree()), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]
)
def test_errors_survive_pickle_and_copy(kind, copied):
    """For worker processes and task queues."""
    error = kind(
        "it went wrong",
        code=StatusCode.DATA_LOSS,
        reason="SOME",
        metadata={"post_id": "1"},
        call_id="c",
        retry_after=0.5,
    )
    if isinstance(error, storeapi.InvalidRequest):
        error.violations = (storeapi.FieldViolation(field="post.body", description="is bad"),)

    other = copied(error)

    assert type(other) is kind
    assert vars(other) == vars(error)
    assert (str(other), other.args) == (str(error), error.args)
