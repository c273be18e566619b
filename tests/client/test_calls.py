"""What each method sends, and the result that it makes of the response."""

import dataclasses
import pickle
import uuid
from datetime import UTC, datetime, timedelta, timezone

import grpc
import pytest
import storeapi
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from storeapi import CommentDraft, CommentFilter, CommentUpdate, Found, PostDraft, PostFilter, PostUpdate
from storeapi.v1 import changes_pb2 as changes
from storeapi.v1 import comments_pb2 as comments
from storeapi.v1 import filters_pb2 as filters
from storeapi.v1 import posts_pb2 as posts

SECONDS = 1_700_000_000
POST = posts.Post(
    id=1,
    body="a",
    create_time=Timestamp(seconds=SECONDS, nanos=123456000),
    update_time=Timestamp(seconds=SECONDS + 1, nanos=654321000),
    etag="e1",
    author="ann",
    labels={"status": "new", "lang": ""},
    external_id="article:1",
)
COMMENT = comments.Comment(
    id=2,
    body="b",
    post_id=1,
    create_time=Timestamp(seconds=SECONDS + 2, nanos=1000),
    update_time=Timestamp(seconds=SECONDS + 3, nanos=2000),
    etag="e2",
    author="bob",
    labels={"status": "hidden"},
    external_id="comment:2",
    reply_to_id=9,
    depth=3,
)
OUR_POST = storeapi.Post(
    id=1,
    body="a",
    create_time=datetime(2023, 11, 14, 22, 13, 20, 123456, UTC),
    update_time=datetime(2023, 11, 14, 22, 13, 21, 654321, UTC),
    etag="e1",
    author="ann",
    labels={"status": "new", "lang": ""},
    external_id="article:1",
)
OUR_COMMENT = storeapi.Comment(
    id=2,
    body="b",
    post_id=1,
    create_time=datetime(2023, 11, 14, 22, 13, 22, 1, UTC),
    update_time=datetime(2023, 11, 14, 22, 13, 23, 2, UTC),
    etag="e2",
    author="bob",
    labels={"status": "hidden"},
    external_id="comment:2",
    reply_to_id=9,
    depth=3,
)
BODY = FieldMask(paths=["body"])
TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, timezone(timedelta(hours=2)))
OUR_FILTER = {
    "author": "ann",
    "labels": {"status": "new"},
    "create_time_from": TIME,
    "create_time_before": TIME,
}
FILTER = {
    "author": "ann",
    "labels": {"status": "new"},
    "create_time_from": Timestamp(seconds=int(TIME.timestamp()), nanos=678901000),
    "create_time_before": Timestamp(seconds=int(TIME.timestamp()), nanos=678901000),
}

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
        Found((OUR_POST, OUR_POST)),
    ),
    (
        lambda c: c.posts.get_many([1, 9], allow_missing=True),
        posts.BatchGetPostsRequest(ids=[1, 9], allow_missing=True),
        posts.BatchGetPostsResponse(posts=[POST], missing_ids=[9]),
        Found((OUR_POST,)),
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
        Found((OUR_COMMENT, OUR_COMMENT)),
    ),
    (
        lambda c: c.comments.get_many([2, 9], allow_missing=True),
        comments.BatchGetCommentsRequest(ids=[2, 9], allow_missing=True),
        comments.BatchGetCommentsResponse(comments=[COMMENT], missing_ids=[9]),
        Found((OUR_COMMENT,)),
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
        lambda c: c.posts.create(
            "a", author="ann", labels={"status": "new"}, external_id="article:1", return_existing=True
        ),
        posts.CreatePostRequest(
            post=posts.Post(body="a", author="ann", labels={"status": "new"}, external_id="article:1"),
            return_existing=True,
        ),
        POST,
        OUR_POST,
    ),
    (
        lambda c: c.comments.create(
            post_id=1,
            body="b",
            author="bob",
            labels={"status": "new"},
            external_id="comment:2",
            reply_to_id=9,
            return_existing=True,
        ),
        comments.CreateCommentRequest(
            comment=comments.Comment(
                post_id=1,
                body="b",
                author="bob",
                labels={"status": "new"},
                external_id="comment:2",
                reply_to_id=9,
            ),
            return_existing=True,
        ),
        COMMENT,
        OUR_COMMENT,
    ),
    (
        lambda c: c.posts.create_many(
            [PostDraft(body="a", author="ann", labels={"b": ""}, external_id="c", return_existing=True)]
        ),
        posts.BatchCreatePostsRequest(
            requests=[
                posts.CreatePostRequest(
                    post=posts.Post(body="a", author="ann", labels={"b": ""}, external_id="c"),
                    return_existing=True,
                )
            ]
        ),
        posts.BatchCreatePostsResponse(posts=[POST]),
        (OUR_POST,),
    ),
    (
        lambda c: c.posts.get(external_id="article:1"),
        posts.GetPostRequest(external_id="article:1"),
        POST,
        OUR_POST,
    ),
    (
        lambda c: c.comments.get(external_id=""),
        comments.GetCommentRequest(external_id=""),
        COMMENT,
        OUR_COMMENT,
    ),
    (
        lambda c: c.posts.get_many(external_ids=["article:1", "x"], allow_missing=True),
        posts.BatchGetPostsRequest(external_ids=["article:1", "x"], allow_missing=True),
        posts.BatchGetPostsResponse(posts=[POST], missing_external_ids=["x"]),
        Found((OUR_POST,)),
    ),
    (
        lambda c: c.posts.update(1, "a", author="", labels={}),
        posts.UpdatePostRequest(
            post=posts.Post(id=1, body="a"), update_mask=FieldMask(paths=["body", "author", "labels"])
        ),
        POST,
        OUR_POST,
    ),
    (
        lambda c: c.comments.update(2, labels={"status": "new"}),
        comments.UpdateCommentRequest(
            comment=comments.Comment(id=2, labels={"status": "new"}), update_mask=FieldMask(paths=["labels"])
        ),
        COMMENT,
        OUR_COMMENT,
    ),
    (
        lambda c: c.comments.update(2, set_labels={"status": "new", "a/b.c": ""}, remove_labels=["x"]),
        comments.UpdateCommentRequest(
            comment=comments.Comment(id=2, labels={"status": "new", "a/b.c": ""}),
            update_mask=FieldMask(paths=["labels.status", "labels.a/b.c", "labels.x"]),
        ),
        COMMENT,
        OUR_COMMENT,
    ),
    (
        lambda c: c.posts.update_many(
            PostUpdate(**it)
            for it in ({"id": 1, "body": "a", "etag": "e"}, {"id": 3, "remove_labels": iter("x")})
        ),
        posts.BatchUpdatePostsRequest(
            requests=[
                posts.UpdatePostRequest(post=posts.Post(id=1, body="a", etag="e"), update_mask=BODY),
                posts.UpdatePostRequest(post=posts.Post(id=3), update_mask=FieldMask(paths=["labels.x"])),
            ]
        ),
        posts.BatchUpdatePostsResponse(posts=[POST, posts.Post(id=3, body="b")]),
        (OUR_POST, storeapi.Post(id=3, body="b")),
    ),
    (
        lambda c: c.comments.update_many([CommentUpdate(id=2, author="bob")], validate_only=True),
        comments.BatchUpdateCommentsRequest(
            requests=[
                comments.UpdateCommentRequest(
                    comment=comments.Comment(id=2, author="bob"), update_mask=FieldMask(paths=["author"])
                )
            ],
            validate_only=True,
        ),
        comments.BatchUpdateCommentsResponse(comments=[COMMENT]),
        (OUR_COMMENT,),
    ),
    (lambda c: c.posts.undelete(1), posts.UndeletePostRequest(id=1), POST, OUR_POST),
    (
        lambda c: c.comments.undelete(2, validate_only=True),
        comments.UndeleteCommentRequest(id=2, validate_only=True),
        COMMENT,
        OUR_COMMENT,
    ),
    (lambda c: c.posts.count(), posts.CountPostsRequest(), posts.CountPostsResponse(count=5), 5),
    (
        lambda c: c.posts.count(PostFilter(**OUR_FILTER)),
        posts.CountPostsRequest(filter=filters.PostFilter(**FILTER)),
        posts.CountPostsResponse(),
        0,
    ),
    (
        lambda c: c.comments.count([1], CommentFilter(**OUR_FILTER, reply_to_id=0)),
        comments.CountCommentsRequest(post_ids=[1], filter=filters.CommentFilter(**FILTER, reply_to_id=0)),
        comments.CountCommentsResponse(counts={1: 3}, total=3),
        {1: 3},
    ),
    (
        lambda c: c.comments.count_all(),
        comments.CountCommentsRequest(all_posts=True),
        comments.CountCommentsResponse(total=7),
        7,
    ),
    (
        lambda c: c.comments.count_all(CommentFilter()),
        comments.CountCommentsRequest(all_posts=True, filter=filters.CommentFilter()),
        comments.CountCommentsResponse(total=7),
        7,
    ),
    (
        lambda c: c.comments.count_replies([2, 9], CommentFilter(author="ann")),
        comments.CountRepliesRequest(comment_ids=[2, 9], filter=filters.CommentFilter(author="ann")),
        comments.CountRepliesResponse(counts={2: 1, 9: 0}),
        {2: 1, 9: 0},
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
    lists = {
        "ListPostsRequest",
        "ListCommentsRequest",
        "ListPostRevisionsRequest",
        "ListCommentRevisionsRequest",
        "SearchPostsRequest",
        "SearchCommentsRequest",
    }
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
    "BatchUpdatePostsRequest": (
        lambda c, **id: c.posts.update_many([PostUpdate(id=1, body="a")], **id),
        posts.BatchUpdatePostsResponse(posts=[POST]),
    ),
    "DeletePostRequest": (lambda c, **id: c.posts.delete(1, **id), POST),
    "UndeletePostRequest": (lambda c, **id: c.posts.undelete(1, **id), POST),
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
    "BatchUpdateCommentsRequest": (
        lambda c, **id: c.comments.update_many([CommentUpdate(id=2, body="b")], **id),
        comments.BatchUpdateCommentsResponse(comments=[COMMENT]),
    ),
    "DeleteCommentRequest": (lambda c, **id: c.comments.delete(2, **id), COMMENT),
    "UndeleteCommentRequest": (lambda c, **id: c.comments.undelete(2, **id), COMMENT),
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


@pytest.mark.parametrize("method", ["delete_many", "update_many"])
@pytest.mark.parametrize("resource", ["posts", "comments"])
async def test_empty_atomic_batch_is_sent_to_the_service(client, server, resource, method):
    """It is one call. Only split batches skip the call for an empty list."""
    server.refuse(grpc.StatusCode.INVALID_ARGUMENT, "BATCH_EMPTY")

    with pytest.raises(storeapi.BatchEmpty):
        await getattr(getattr(client, resource), method)([])

    assert len(server.calls) == 1


async def test_result_of_get_many_has_what_is_missing(client, server):
    """Of all calls together. Ids and external ids are requested in separate calls."""
    server.answer(
        posts.BatchGetPostsResponse(posts=[POST], missing_ids=[9]),
        posts.BatchGetPostsResponse(posts=[POST], missing_ids=[8]),
        posts.BatchGetPostsResponse(missing_external_ids=["x", "y"]),
    )

    found = await client.posts.get_many([1] * 1000 + [8], external_ids=["x", "y"], allow_missing=True)

    assert found == (OUR_POST, OUR_POST)
    assert (found.missing_ids, found.missing_external_ids) == ((9, 8), ("x", "y"))
    assert [(len(it.ids), list(it.external_ids)) for it in server.requests] == [
        (1000, []),
        (1, []),
        (0, ["x", "y"]),
    ]


async def test_labels_of_a_result_cannot_be_changed(client, server):
    """They equal a dict."""
    server.answer(POST)

    post = await client.posts.get(1)

    assert post.labels == {"status": "new", "lang": ""}
    assert {**post.labels} == dict(post.labels)
    with pytest.raises(TypeError):
        post.labels["status"] = "hidden"


async def test_resources_can_be_put_into_sets(client, server):
    """Labels count for equality, not for the hash."""
    server.answer(POST, POST)

    first, second = await client.posts.get(1), await client.posts.get(1)

    assert len({first, second, OUR_POST}) == 1
    assert dataclasses.replace(first, labels={}) != first
    assert hash(PostDraft(body="a", labels={"b": "c"})) == hash(PostDraft(body="a", labels={"b": "c"}))


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
    CommentDraft(post_id=1, body="b", labels={"a": "b"}, reply_to_id=2),
    PostUpdate(id=1, set_labels={"a": "b"}, remove_labels=("c",)),
    CommentFilter(labels={"a": "b"}, reply_to_id=0),
    storeapi.CommentNode(comment=OUR_COMMENT, replies=[storeapi.CommentNode(comment=OUR_COMMENT)]),
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


async def test_results_survive_pickle(client, server):
    """With their labels, and with what is missing."""
    server.answer(posts.BatchGetPostsResponse(posts=[POST], missing_ids=[9], missing_external_ids=["x"]))

    found = await client.posts.get_many([1], allow_missing=True)
    copy = pickle.loads(pickle.dumps(found))

    assert copy == found
    assert (copy.missing_ids, copy.missing_external_ids) == ((9,), ("x",))
    assert copy[0].labels == found[0].labels


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
