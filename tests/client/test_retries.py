"""Calls that are made again, by the client itself."""

import asyncio
import re
import threading
from concurrent import futures

import grpc
import pytest
import storeapi
from storeapi import _retries
from storeapi.testing import ScriptedServer
from storeapi.v1 import posts_pb2

from tests.support.client_calls import CALLS
from tests.support.timeouts import scaled_timeout

pytestmark = pytest.mark.usefixtures("short_pauses")


POST = storeapi.Post(id=1, body="a")
BUSY = storeapi.DatabaseBusy(retry_after=0.001)


@pytest.fixture
def scripted():
    """A server that fails as a test says."""
    with ScriptedServer() as server:
        yield server


@pytest.fixture
async def client(make_client, scripted):
    return make_client(scripted.target)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_every_call_is_retried_if_the_service_is_unavailable(client, scripted, call):
    """Reads and writes. Each attempt sends the same request."""
    for method in _METHODS:
        scripted.fail(method, grpc.StatusCode.UNAVAILABLE, times=2)
        scripted.fail(method, storeapi.InternalError("the end"))

    with pytest.raises(storeapi.InternalError) as raised:
        await call(client)

    assert raised.value.attempts == 3
    first, second, third = scripted.calls
    assert first.request == second.request == third.request
    if "request_id" in first.request.DESCRIPTOR.fields_by_name:
        assert first.request.request_id == raised.value.request_id != ""


_METHODS = [
    f"{verb}{things}"
    for thing in ("Post", "Comment")
    for verb, things in [
        *((verb, thing) for verb in ("Create", "Get", "Update", "Delete")),
        *((f"Batch{verb}", f"{thing}s") for verb in ("Create", "Get", "Delete")),
        ("List", f"{thing}s"),
    ]
] + ["CountComments"]


@pytest.mark.parametrize(
    "error",
    [
        grpc.StatusCode.UNAVAILABLE,
        # What gRPC answers while a server closes.
        grpc.StatusCode.CANCELLED,
        # What it makes of a stream that a proxy resets, and of a proxy's own answers.
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        storeapi.ShuttingDown(),
        storeapi.DatabaseBusy(),
        storeapi.DatabaseUnavailable(),
        # Whatever it is, the service says that it may pass.
        storeapi.ResourceExhausted(retry_after=0.001),
    ],
    ids=lambda error: getattr(error, "name", type(error).__name__),
)
async def test_transient_error_is_retried(client, scripted, error):
    """The caller gets the response."""
    scripted.fail("GetPost", error)
    scripted.answer("GetPost", POST)

    assert await client.posts.get(1) == POST


@pytest.mark.parametrize(
    "error",
    [
        storeapi.FieldInvalid(),
        storeapi.PostNotFound(),
        storeapi.EtagMismatch(),
        storeapi.PostHasComments(),
        storeapi.StorageFull(),
        storeapi.InternalError(),
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        # Another service than ours has understood the request.
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    ],
    ids=lambda error: getattr(error, "name", type(error).__name__),
)
async def test_permanent_error_is_not_retried(client, scripted, error):
    """The caller hears of it at once."""
    scripted.fail("UpdatePost", error)

    with pytest.raises(storeapi.StoreError) as raised:
        await client.posts.update(1, body="a")

    assert len(scripted.calls) == raised.value.attempts == 1


LASTING = [
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (9 vs. 4)"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "received metadata size exceeds hard limit"),
    (grpc.StatusCode.INTERNAL, "Exception deserializing response!"),
    (grpc.StatusCode.INTERNAL, "Received http2 header with status: 400"),
    (grpc.StatusCode.UNKNOWN, "Received http2 header with status: 413"),
]
PASSING = [
    (grpc.StatusCode.INTERNAL, "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"),
    (grpc.StatusCode.UNKNOWN, "Stream removed (Data frame with END_STREAM flag received)"),
    (grpc.StatusCode.UNKNOWN, "Received http2 header with status: 500"),
    (grpc.StatusCode.UNAVAILABLE, "Received http2 header with status: 429"),
    (grpc.StatusCode.UNAVAILABLE, "Received http2 header with status: 502"),
]


@pytest.mark.parametrize("by", ["call", "watch"])
async def test_foreign_deadline_ends_a_call_without_deadline(make_client, server, by):
    """An interceptor may add one, which each attempt would exceed again."""
    server.refuse(grpc.StatusCode.DEADLINE_EXCEEDED, message="Deadline Exceeded")
    client = make_client(server.target, timeout=None)

    with pytest.raises(storeapi.DeadlineExceeded) as raised:
        await (client.posts.get(1) if by == "call" else anext(client.changes.watch()))

    assert (len(server.calls), raised.value.attempts) == (1, 1)


async def test_deadline_of_a_proxy_does_not_end_a_started_watch(make_client, scripted):
    """The watch continues."""
    scripted.answer("Watch", storeapi.ChangeBatch(changes=(), resume_token="t1"))
    scripted.fail("Watch", grpc.StatusCode.DEADLINE_EXCEEDED, times=2)
    scripted.answer("Watch", storeapi.ChangeBatch(changes=(), resume_token="t2"))
    batches = make_client(scripted.target, timeout=None).changes.watch().batches()

    assert [(await anext(batches)).resume_token for _ in range(2)] == ["t1", "t2"]


@pytest.mark.parametrize("by", ["call", "watch"])
@pytest.mark.parametrize(("code", "message"), LASTING)
async def test_constant_error_with_transient_status_is_not_retried(make_client, server, code, message, by):
    """gRPC or a proxy may use the status of a broken connection."""
    server.refuse(code, message=message)
    client = make_client(server.target)

    with pytest.raises(storeapi.StoreError, match=re.escape(message)) as raised:
        await (client.posts.get(1) if by == "call" else anext(client.changes.watch()))

    assert (len(server.calls), raised.value.attempts) == (1, 1)


@pytest.mark.parametrize(("code", "message"), PASSING)
async def test_broken_connection_is_retried(make_client, server, code, message):
    """Whatever status gRPC reports."""
    server.refuse(code, message=message)
    server.answer(posts_pb2.Post(id=1))

    assert (await make_client(server.target).posts.get(1)).id == 1


async def test_reason_of_another_domain_is_not_used(make_client, server):
    """A proxy may have its own reasons."""
    server.refuse(grpc.StatusCode.INTERNAL, "UPSTREAM_GONE", domain="proxy.example")
    server.answer(posts_pb2.Post(id=1))

    assert (await make_client(server.target).posts.get(1)).id == 1


class Garbled(grpc.GenericRpcHandler):
    """Answers every call with bytes that are not a message."""

    def __init__(self):
        self.count = 0

    def service(self, details):
        def answer(request, context):
            self.count += 1
            return b"\xff\xff"

        if details.method.endswith("Watch"):
            return grpc.unary_stream_rpc_method_handler(lambda *it: iter([answer(*it)]))
        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.parametrize("by", ["call", "watch"])
async def test_undecodable_response_is_not_retried(make_client, by):
    """Without a deadline the retries would never end."""
    garbled = Garbled()
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[garbled])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = make_client(f"127.0.0.1:{port}", timeout=None)

    with pytest.raises(storeapi.InternalError, match="deserializing"):
        await (client.posts.get(1) if by == "call" else anext(client.changes.watch()))

    server.stop(None).wait()
    assert garbled.count == 1


async def test_write_without_request_id_is_not_retried(client, scripted):
    """It could be done twice."""
    scripted.fail("CreatePost", grpc.StatusCode.UNAVAILABLE)

    with pytest.raises(storeapi.Unavailable) as raised:
        await client.posts.create(body="a", request_id="")

    assert (len(scripted.calls), raised.value.request_id) == (1, "")


async def test_validate_only_without_request_id_is_retried(client, scripted):
    """Nothing is stored."""
    scripted.fail("CreatePost", grpc.StatusCode.UNAVAILABLE)
    scripted.answer("CreatePost", POST)

    assert await client.posts.create(body="a", validate_only=True) == POST


async def test_retries_can_be_disabled(make_client, scripted):
    """The caller gets each failure, with the request id of the failed write."""
    client = make_client(scripted.target, retries=False)
    scripted.fail("CreatePost", BUSY)
    scripted.answer("CreatePost", POST)

    with pytest.raises(storeapi.DatabaseBusy) as raised:
        await client.posts.create(body="a")
    post = await client.posts.create(body="a", request_id=raised.value.request_id)

    first, second = scripted.calls
    assert (post, first.request) == (POST, second.request)


async def test_deadline_covers_all_attempts(client, scripted):
    """The error contains the number of attempts."""
    scripted.fail("GetPost", grpc.StatusCode.UNAVAILABLE, times=100_000)

    with pytest.raises((storeapi.Unavailable, storeapi.DeadlineExceeded)) as raised:
        await client.posts.get(1, timeout=0.5)

    left = [call.seconds_left for call in scripted.calls]
    # gRPC sends whole milliseconds, rounded up.
    assert max(left) <= 0.502
    assert left[-1] < 0.4
    assert raised.value.attempts >= len(left) > 3
    assert f"({raised.value.attempts} attempts)" in str(raised.value)


async def test_retry_after_the_deadline_is_not_awaited(client, scripted):
    """If RetryInfo exceeds the deadline, the error is raised at once."""
    scripted.fail("GetPost", storeapi.DatabaseBusy(retry_after=3600))

    with pytest.raises(storeapi.DatabaseBusy) as raised:
        await client.posts.get(1)

    assert (len(scripted.calls), raised.value.retry_after) == (1, 3600)


def test_retry_info_sets_the_minimum_pause():
    """Plus up to a fifth, so that callers do not return together."""
    pauses = [_retries.Attempts(None).pause(2.0) for _ in range(1000)]

    assert 2.0 <= min(pauses) < max(pauses) <= 2.4


def test_pauses_grow_to_a_maximum(monkeypatch):
    """With jitter."""
    monkeypatch.undo()
    attempts = _retries.Attempts(None)

    pauses = [attempts.pause() for _ in range(12)]

    longest = [min(0.05 * 2**number, 1.0) for number in range(12)]
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, longest, strict=True))
    assert attempts.count == 13


async def test_close_ends_a_call_in_a_retry_pause(make_client, scripted, monkeypatch):
    """A program that stops does not wait for its retries."""
    waits = threading.Event()
    pause_after = _retries.Attempts.pause_after

    def noted(attempts, error):
        waits.set()
        return pause_after(attempts, error)

    monkeypatch.setattr(_retries.Attempts, "pause_after", noted)
    client = make_client(scripted.target, timeout=None)
    scripted.fail("GetPost", storeapi.Overloaded(retry_after=600))
    task = asyncio.create_task(client.posts.get(1))
    await asyncio.to_thread(waits.wait, scaled_timeout())

    await client.close()

    with pytest.raises(storeapi.Cancelled):
        await asyncio.wait_for(task, scaled_timeout())


async def test_close_ends_modify_in_a_retry_pause(make_client, scripted, monkeypatch):
    """So does one that others were faster than."""
    waits = threading.Event()

    def long(attempts):
        waits.set()
        return 600.0

    monkeypatch.setattr(_retries.Attempts, "pause", long)
    client = make_client(scripted.target)
    scripted.answer("GetPost", POST)
    scripted.fail("UpdatePost", storeapi.EtagMismatch())
    task = asyncio.create_task(client.posts.modify(1, lambda post: "b"))
    await asyncio.to_thread(waits.wait, scaled_timeout())

    await client.close()

    with pytest.raises(storeapi.Cancelled):
        await asyncio.wait_for(task, scaled_timeout())


async def test_close_ends_a_running_call(client, scripted):
    """With an error, not as a cancellation of the task of the caller."""
    scripted.hang("GetPost")
    task = asyncio.create_task(client.posts.get(1, timeout=None))
    await asyncio.to_thread(scripted.wait_for_call, "GetPost")

    await client.close()

    with pytest.raises(storeapi.Cancelled):
        await task


# Changing what others change too


async def test_modify_writes_with_the_etag_it_read(client, scripted):
    """The new text is made of the post, and only its etag is overwritten."""
    scripted.answer("GetPost", storeapi.Post(id=1, body="a", etag="e1"))
    scripted.answer("UpdatePost", storeapi.Post(id=1, body="a!", etag="e2"))

    post = await client.posts.modify(1, lambda post: post.body + "!")

    assert post == storeapi.Post(id=1, body="a!", etag="e2")
    _, update = scripted.calls
    assert (update.request.post.body, update.request.post.etag) == ("a!", "e1")


async def test_modify_repeats_after_a_conflict(client, scripted):
    """The change function gets the new text."""
    scripted.answer("GetComment", storeapi.Comment(id=2, post_id=1, body="a", etag="e1"))
    scripted.fail("UpdateComment", storeapi.EtagMismatch(metadata={"current_etag": "e2"}))
    scripted.answer("GetComment", storeapi.Comment(id=2, post_id=1, body="b", etag="e2"))
    scripted.answer("UpdateComment", storeapi.Comment(id=2, post_id=1, body="b!", etag="e3"))

    comment = await client.comments.modify(2, lambda comment: comment.body + "!")

    assert comment.body == "b!"
    assert scripted.calls[-1].request.comment.etag == "e2"
    # It is another request, and not the old one again.
    assert scripted.calls[-1].request.request_id != scripted.calls[1].request.request_id


@pytest.mark.parametrize("text", [None, "a"])
async def test_modify_without_change_writes_nothing(client, scripted, text):
    """For None or the same text: no new etag and no change in the feed."""
    scripted.answer("GetPost", storeapi.Post(id=1, body="a", etag="e1"))

    post = await client.posts.modify(1, lambda _: text)

    assert (post.etag, len(scripted.calls)) == ("e1", 1)


async def test_modify_fails_at_its_deadline(client, scripted):
    """Others may always be faster."""
    for number in range(10_000):
        scripted.answer("GetPost", storeapi.Post(id=1, body="a", etag=f"e{number}"))
    scripted.fail("UpdatePost", storeapi.EtagMismatch(), times=10_000)

    with pytest.raises((storeapi.EtagMismatch, storeapi.DeadlineExceeded)):
        await client.posts.modify(1, lambda post: post.body + "!", timeout=0.5)

    assert len(scripted.calls_of("UpdatePost")) > 3


# What is split


def posts_of(call):
    return [request.post.body for request in call.request.requests]


async def test_create_many_posts_is_split_by_1000(client, scripted):
    """In order. Each call has its own request id, and the result is one tuple."""
    bodies = [str(number) for number in range(2001)]
    for start in (0, 1000, 2000):
        some = bodies[start : start + 1000]
        scripted.answer("BatchCreatePosts", [storeapi.Post(id=1, body=body) for body in some])

    created = await client.posts.create_many(iter(bodies))

    assert [post.body for post in created] == bodies
    assert [body for call in scripted.calls for body in posts_of(call)] == bodies
    assert [len(posts_of(call)) for call in scripted.calls] == [1000, 1000, 1]
    assert len({call.request.request_id for call in scripted.calls}) == 3


async def test_create_many_long_posts_is_split_by_size(client, scripted):
    """The response repeats the texts and has a limit, also with four bytes per character."""
    bodies = ["🙂" * 60_000] * 40
    for _ in range(5):
        scripted.answer("BatchCreatePosts", [])

    await client.posts.create_many(bodies)

    sizes = [sum(len(body.encode()) for body in posts_of(call)) for call in scripted.calls]
    assert sum(sizes) == 40 * 240_000
    # A call is full at 2 MiB, and takes the text that fills it; no service allows more than 1 MiB for one.
    assert max(sizes) < 2 * 1024 * 1024 + 240_000


@pytest.mark.parametrize("given", [None, "a3c6e1f0-7d52-4b8e-9c41-5f60d2b7e813"])
async def test_split_batch_can_be_repeated_as_a_whole(client, scripted, given):
    """The error has the request id of the whole batch, from which those of the parts are derived."""
    drafts = [storeapi.CommentDraft(post_id=1, body=str(number)) for number in range(1500)]
    scripted.answer("BatchCreateComments", [])
    scripted.fail("BatchCreateComments", storeapi.StorageFull())
    scripted.answer("BatchCreateComments", [], [])

    with pytest.raises(storeapi.StorageFull) as raised:
        await client.comments.create_many(drafts, request_id=given)
    await client.comments.create_many(drafts, request_id=raised.value.request_id)

    first, second, first_again, second_again = scripted.calls
    assert given in (None, raised.value.request_id)
    assert (first.request, second.request) == (first_again.request, second_again.request)
    assert first.request.request_id != second.request.request_id


async def test_split_batch_without_request_ids_has_none(client, scripted):
    """request_id="" applies to each call."""
    scripted.answer("BatchCreatePosts", [], [])

    await client.posts.create_many(["a"] * 1001, request_id="")

    assert [call.request.request_id for call in scripted.calls] == ["", ""]


@pytest.mark.parametrize("resource", ["posts", "comments"])
async def test_get_many_is_split_by_1000(client, scripted, resource):
    """In the requested order."""
    thing = {
        "posts": lambda number: storeapi.Post(id=number, body=""),
        "comments": lambda number: storeapi.Comment(id=number, body="", post_id=1),
    }[resource]
    ids = list(range(1, 1502))
    method = f"BatchGet{resource.capitalize()}"
    scripted.answer(method, [thing(id) for id in ids[:1000]], [thing(id) for id in ids[1000:]])

    found = await getattr(client, resource).get_many(iter(ids))

    assert [it.id for it in found] == ids


async def test_response_that_is_too_large_is_read_in_halves(client, scripted):
    """The caller need not know how long the texts are."""
    scripted.fail("BatchGetPosts", storeapi.ResponseTooLarge(metadata={"max_bytes": "1"}))
    scripted.answer("BatchGetPosts", [storeapi.Post(id=1, body="")])
    scripted.fail("BatchGetPosts", storeapi.ResponseTooLarge(metadata={"max_bytes": "1"}))
    scripted.answer("BatchGetPosts", [storeapi.Post(id=2, body="")], [storeapi.Post(id=3, body="")])

    found = await client.posts.get_many([1, 2, 3])

    assert [post.id for post in found] == [1, 2, 3]
    assert [list(call.request.ids) for call in scripted.calls] == [[1, 2, 3], [1], [2, 3], [2], [3]]


async def test_single_resource_that_is_too_large_is_an_error(client, scripted):
    scripted.fail("BatchGetPosts", storeapi.ResponseTooLarge())

    with pytest.raises(storeapi.ResponseTooLarge):
        await client.posts.get_many([1])


async def test_count_is_split_by_1000(client, scripted):
    """The counts are one dict."""
    scripted.answer("CountComments", dict.fromkeys(range(1, 1001), 1), {1001: 2})

    counts = await client.comments.count(range(1, 1002))

    assert counts == dict.fromkeys(range(1, 1001), 1) | {1001: 2}


async def test_delete_many_is_never_split(client, scripted):
    """It is all-or-nothing."""
    scripted.fail("BatchDeletePosts", storeapi.BatchTooLarge())

    with pytest.raises(storeapi.BatchTooLarge):
        await client.posts.delete_many(range(1, 1002))

    assert [len(call.request.ids) for call in scripted.calls] == [1001]
