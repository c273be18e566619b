"""What each method sends, and the result that it makes of the response."""

import dataclasses
import pickle
import uuid
from datetime import UTC, datetime

import grpc
import pytest
import storeapi
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from storeapi import CommentDraft
from storeapi.v1 import changes_pb2 as changes
from storeapi.v1 import comments_pb2 as comments
from storeapi.v1 import posts_pb2 as posts

SECONDS = 1_700_000_000
POST = posts.Post(
    id=1,
    body="a",
    create_time=Timestamp(seconds=SECONDS, nanos=123456000),
    update_time=Timestamp(seconds=SECONDS + 1, nanos=654321000),
    etag="e1",
)
COMMENT = comments.Comment(
    id=2,
    body="b",
    post_id=1,
    create_time=Timestamp(seconds=SECONDS + 2, nanos=1000),
    update_time=Timestamp(seconds=SECONDS + 3, nanos=2000),
    etag="e2",
)
OUR_POST = storeapi.Post(
    id=1,
    body="a",
    create_time=datetime(2023, 11, 14, 22, 13, 20, 123456, UTC),
    update_time=datetime(2023, 11, 14, 22, 13, 21, 654321, UTC),
    etag="e1",
)
OUR_COMMENT = storeapi.Comment(
    id=2,
    body="b",
    post_id=1,
    create_time=datetime(2023, 11, 14, 22, 13, 22, 1, UTC),
    update_time=datetime(2023, 11, 14, 22, 13, 23, 2, UTC),
    etag="e2",
)
BODY = FieldMask(paths=["body"])

# How it is called, what is sent, what comes back, what is returned.
CASES = [
    (lambda c: c.posts.create(body="a"), posts.CreatePostRequest(post=posts.Post(body="a")), POST, OUR_POST),
    (
        lambda c: c.posts.create(body="a", validate_only=True),
        posts.CreatePostRequest(post=posts.Post(body="a"), validate_only=True),
        POST,
        OUR_POST,
    ),
    (lambda c: c.posts.get(1), posts.GetPostRequest(id=1), POST, OUR_POST),
    (
        lambda c: c.posts.update(1, body="a"),
        posts.UpdatePostRequest(post=posts.Post(id=1, body="a"), update_mask=BODY),
        POST,
        OUR_POST,
    ),
    (
        lambda c: c.posts.update(1, body="a", etag="e", validate_only=True),
        posts.UpdatePostRequest(
            post=posts.Post(id=1, body="a", etag="e"), update_mask=BODY, validate_only=True
        ),
        POST,
        OUR_POST,
    ),
    (lambda c: c.posts.delete(1), posts.DeletePostRequest(id=1), POST, OUR_POST),
    (
        lambda c: c.posts.delete(1, etag="e", force=True),
        posts.DeletePostRequest(id=1, etag="e", force=True),
        POST,
        OUR_POST,
    ),
    (
        lambda c: c.posts.delete(1, allow_missing=True),
        posts.DeletePostRequest(id=1, allow_missing=True),
        posts.Post(id=1),
        storeapi.Post(id=1, body=""),
    ),
    (
        lambda c: c.posts.delete(1, validate_only=True),
        posts.DeletePostRequest(id=1, validate_only=True),
        POST,
        OUR_POST,
    ),
    (
        lambda c: c.posts.get_many(id for id in (1, 1)),
        posts.BatchGetPostsRequest(ids=[1, 1]),
        posts.BatchGetPostsResponse(posts=[POST, POST]),
        (OUR_POST, OUR_POST),
    ),
    (
        lambda c: c.posts.get_many([1, 9], allow_missing=True),
        posts.BatchGetPostsRequest(ids=[1, 9], allow_missing=True),
        posts.BatchGetPostsResponse(posts=[POST], missing_ids=[9]),
        (OUR_POST,),
    ),
    (
        lambda c: c.posts.create_many(["a", "b"]),
        posts.BatchCreatePostsRequest(
            requests=[posts.CreatePostRequest(post=posts.Post(body=body)) for body in "ab"]
        ),
        posts.BatchCreatePostsResponse(posts=[POST, posts.Post(id=2, body="b")]),
        (OUR_POST, storeapi.Post(id=2, body="b")),
    ),
    (
        lambda c: c.posts.create_many(["a"], validate_only=True),
        posts.BatchCreatePostsRequest(
            requests=[posts.CreatePostRequest(post=posts.Post(body="a"))], validate_only=True
        ),
        posts.BatchCreatePostsResponse(posts=[posts.Post(body="a")]),
        (storeapi.Post(id=0, body="a"),),
    ),
    (
        lambda c: c.posts.delete_many([1], force=True),
        posts.BatchDeletePostsRequest(ids=[1], force=True),
        posts.BatchDeletePostsResponse(posts=[POST]),
        (OUR_POST,),
    ),
    (
        lambda c: c.posts.delete_many([1, 9], allow_missing=True),
        posts.BatchDeletePostsRequest(ids=[1, 9], allow_missing=True),
        posts.BatchDeletePostsResponse(posts=[POST], missing_ids=[9]),
        (OUR_POST,),
    ),
    (
        lambda c: c.posts.delete_many([1], validate_only=True),
        posts.BatchDeletePostsRequest(ids=[1], validate_only=True),
        posts.BatchDeletePostsResponse(posts=[POST]),
        (OUR_POST,),
    ),
    (
        lambda c: c.comments.create(post_id=1, body="b"),
        comments.CreateCommentRequest(comment=comments.Comment(post_id=1, body="b")),
        COMMENT,
        OUR_COMMENT,
    ),
    (
        lambda c: c.comments.create(post_id=1, body="b", validate_only=True),
        comments.CreateCommentRequest(comment=comments.Comment(post_id=1, body="b"), validate_only=True),
        COMMENT,
        OUR_COMMENT,
    ),
    (lambda c: c.comments.get(2), comments.GetCommentRequest(id=2), COMMENT, OUR_COMMENT),
    (
        lambda c: c.comments.update(2, body="b"),
        comments.UpdateCommentRequest(comment=comments.Comment(id=2, body="b"), update_mask=BODY),
        COMMENT,
        OUR_COMMENT,
    ),
    (
        lambda c: c.comments.update(2, body="b", etag="e", validate_only=True),
        comments.UpdateCommentRequest(
            comment=comments.Comment(id=2, body="b", etag="e"), update_mask=BODY, validate_only=True
        ),
        COMMENT,
        OUR_COMMENT,
    ),
    (lambda c: c.comments.delete(2), comments.DeleteCommentRequest(id=2), COMMENT, OUR_COMMENT),
    (
        lambda c: c.comments.delete(2, etag="e", validate_only=True),
        comments.DeleteCommentRequest(id=2, etag="e", validate_only=True),
        COMMENT,
        OUR_COMMENT,
    ),
    (
        lambda c: c.comments.delete(2, allow_missing=True),
        comments.DeleteCommentRequest(id=2, allow_missing=True),
        comments.Comment(id=2),
        storeapi.Comment(id=2, body="", post_id=0),
    ),
    (
        lambda c: c.comments.get_many([2, 2]),
        comments.BatchGetCommentsRequest(ids=[2, 2]),
        comments.BatchGetCommentsResponse(comments=[COMMENT, COMMENT]),
        (OUR_COMMENT, OUR_COMMENT),
    ),
    (
        lambda c: c.comments.get_many([2, 9], allow_missing=True),
        comments.BatchGetCommentsRequest(ids=[2, 9], allow_missing=True),
        comments.BatchGetCommentsResponse(comments=[COMMENT], missing_ids=[9]),
        (OUR_COMMENT,),
    ),
    (
        lambda c: c.comments.create_many(CommentDraft(post_id=id, body="b") for id in (1, 3)),
        comments.BatchCreateCommentsRequest(
            requests=[
                comments.CreateCommentRequest(comment=comments.Comment(post_id=id, body="b")) for id in (1, 3)
            ]
        ),
        comments.BatchCreateCommentsResponse(comments=[COMMENT, COMMENT]),
        (OUR_COMMENT, OUR_COMMENT),
    ),
    (
        lambda c: c.comments.create_many([CommentDraft(post_id=1, body="b")], validate_only=True),
        comments.BatchCreateCommentsRequest(
            requests=[comments.CreateCommentRequest(comment=comments.Comment(post_id=1, body="b"))],
            validate_only=True,
        ),
        comments.BatchCreateCommentsResponse(comments=[COMMENT]),
        (OUR_COMMENT,),
    ),
    (
        lambda c: c.comments.delete_many([2, 9], allow_missing=True),
        comments.BatchDeleteCommentsRequest(ids=[2, 9], allow_missing=True),
        comments.BatchDeleteCommentsResponse(comments=[COMMENT], missing_ids=[9]),
        (OUR_COMMENT,),
    ),
    (
        lambda c: c.comments.delete_many([2], validate_only=True),
        comments.BatchDeleteCommentsRequest(ids=[2], validate_only=True),
        comments.BatchDeleteCommentsResponse(comments=[COMMENT]),
        (OUR_COMMENT,),
    ),
    (
        lambda c: c.comments.count([1, 9]),
        comments.CountCommentsRequest(post_ids=[1, 9]),
        comments.CountCommentsResponse(counts={1: 3, 9: 0}),
        {1: 3, 9: 0},
    ),
]


@pytest.mark.parametrize(("call", "request_message", "reply", "result"), CASES)
async def test_call_sends_its_arguments_and_returns_values(
    client, server, call, request_message, reply, result
):
    """One call is one RPC with exactly the given fields. Its response becomes plain values."""
    server.answer(reply)

    returned = await call(client)

    (sent,) = server.requests
    # Made up for each write; what is made up is tested below.
    if "request_id" in sent.DESCRIPTOR.fields_by_name:
        sent.request_id = ""
    assert sent == request_message
    assert returned == result
    assert type(returned) is type(result)


def test_every_service_method_is_tested_here():
    """Fails when the contract gains a method that the clients do not have."""
    lists = {"ListPostsRequest", "ListCommentsRequest"}
    rpcs = [
        method
        for file in (posts.DESCRIPTOR, comments.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    ]

    asked = {request.DESCRIPTOR.name for _, request, _, _ in CASES}

    assert asked | lists == {method.input_type.name for method in rpcs}


REQUEST_ID = "a3c6e1f0-7d52-4b8e-9c41-5f60d2b7e813"

# Every method that writes, by the message that it sends, and what comes back.
WRITES = {
    "CreatePostRequest": (lambda c, **id: c.posts.create(body="a", **id), POST),
    "UpdatePostRequest": (lambda c, **id: c.posts.update(1, body="a", **id), POST),
    "DeletePostRequest": (lambda c, **id: c.posts.delete(1, **id), POST),
    "BatchCreatePostsRequest": (
        lambda c, **id: c.posts.create_many(["a"], **id),
        posts.BatchCreatePostsResponse(posts=[POST]),
    ),
    "BatchDeletePostsRequest": (
        lambda c, **id: c.posts.delete_many([1], **id),
        posts.BatchDeletePostsResponse(posts=[POST]),
    ),
    "CreateCommentRequest": (lambda c, **id: c.comments.create(post_id=1, body="b", **id), COMMENT),
    "UpdateCommentRequest": (lambda c, **id: c.comments.update(2, body="b", **id), COMMENT),
    "DeleteCommentRequest": (lambda c, **id: c.comments.delete(2, **id), COMMENT),
    "BatchCreateCommentsRequest": (
        lambda c, **id: c.comments.create_many([CommentDraft(post_id=1, body="b")], **id),
        comments.BatchCreateCommentsResponse(comments=[COMMENT]),
    ),
    "BatchDeleteCommentsRequest": (
        lambda c, **id: c.comments.delete_many([2], **id),
        comments.BatchDeleteCommentsResponse(comments=[COMMENT]),
    ),
}


@pytest.mark.parametrize("name", WRITES)
async def test_write_is_safe_to_repeat(client, server, name):
    """Each write has a request id, given or new; nothing else differs."""
    write, reply = WRITES[name]
    server.answer(reply, reply, reply, reply)

    await write(client, request_id=REQUEST_ID)
    await write(client, request_id=None)
    await write(client)
    await write(client, request_id="")

    ids = [request.request_id for request in server.requests]
    assert (ids[0], ids[3]) == (REQUEST_ID, "")
    assert [uuid.UUID(id).version for id in ids[1:3]] == [4, 4]
    assert ids[1] != ids[2]
    for request in server.requests:
        request.request_id = ""
    assert all(request == server.requests[0] for request in server.requests)
    assert server.requests[0].DESCRIPTOR.name == name


@pytest.mark.parametrize("name", WRITES)
async def test_validate_only_has_no_request_id(client, server, name):
    """A repeated check is harmless and needs no stored row."""
    write, reply = WRITES[name]
    server.answer(reply)

    await write(client, validate_only=True)

    assert [request.request_id for request in server.requests] == [""]


def test_every_service_write_is_in_the_table():
    """Fails when a request gains a request_id that the clients do not send."""
    messages = [
        message
        for file in (posts.DESCRIPTOR, comments.DESCRIPTOR)
        for message in file.message_types_by_name.values()
    ]

    assert set(WRITES) == {it.name for it in messages if "request_id" in it.fields_by_name}


@pytest.mark.parametrize("resource", ["posts", "comments"])
async def test_empty_delete_is_sent_to_the_service(client, server, resource):
    """It is one call. Only split batches skip the call for an empty list."""
    server.refuse(grpc.StatusCode.INVALID_ARGUMENT, "BATCH_EMPTY")

    with pytest.raises(storeapi.BatchEmpty):
        await getattr(client, resource).delete_many([])

    assert len(server.calls) == 1


async def test_string_is_refused_as_a_list_of_bodies(client, server):
    """Otherwise each letter would become a post."""
    with pytest.raises(TypeError, match="drafts must be an iterable of several"):
        await client.posts.create_many("hello")

    assert server.calls == []


async def test_times_are_aware_and_in_utc(client, server):
    """They compare with other aware times and keep their microseconds."""
    server.answer(POST)

    post = await client.posts.get(1)

    assert post.create_time.tzinfo is UTC
    assert post.create_time.microsecond == 123456


async def test_unset_times_are_none(client, server):
    """Resources created before times were stored have None, not the year 1970."""
    server.answer(posts.Post(id=1, body="a"), comments.Comment(id=2, body="b", post_id=1))

    post = await client.posts.get(1)
    comment = await client.comments.get(2)

    assert (post.create_time, post.update_time) == (None, None)
    assert (comment.create_time, comment.update_time) == (None, None)


VALUES = [
    OUR_POST,
    OUR_COMMENT,
    CommentDraft(post_id=1, body="b"),
    storeapi.Page(items=(OUR_POST,), next_page_token="t"),
    storeapi.FieldViolation(field="post.body", description="must not be empty"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_immutable(value):
    """A misspelt attribute is refused too."""
    name = next(iter(dataclasses.fields(value))).name

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, None)
    assert not hasattr(value, "__dict__")


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_keyword_only(value):
    """Fields can be added later without changing positions."""
    arguments = [getattr(value, field.name) for field in dataclasses.fields(value)]

    with pytest.raises(TypeError, match="positional"):
        type(value)(*arguments)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_survive_pickle(value):
    """For worker processes and caches."""
    assert pickle.loads(pickle.dumps(value)) == value


async def test_raw_stubs_share_the_connection(client, server):
    """Every method of the contract can be called without a second channel."""
    server.answer(POST, COMMENT)

    post = await client.raw.posts.GetPost(posts.GetPostRequest(id=1))
    comment = await client.raw.comments.GetComment(comments.GetCommentRequest(id=2))

    assert (post, comment) == (POST, COMMENT)


async def test_raw_stubs_include_watch(server, async_client):
    """Changes can be read as a stream of messages, in threads and in asyncio."""
    response = changes.WatchResponse(resume_token="t1", heartbeat=True)
    server.answer(response, response)
    request = changes.WatchRequest(earliest=True)

    with storeapi.StoreClient(server.target) as client:
        read_by_a_thread = list(client.raw.changes.Watch(request))
    read_by_a_task = [it async for it in async_client.raw.changes.Watch(request)]

    assert read_by_a_thread == read_by_a_task == [response]
    assert server.requests == [request, request]
