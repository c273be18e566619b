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

from tests.client.test_deadlines import CALLS
from tests.patience import patience

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


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """What is tested is that there are pauses, not that they take time."""
    monkeypatch.setattr(_retries, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(_retries, "LONGEST_PAUSE_SECONDS", 0.01)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_every_call_is_made_again_when_the_service_is_not_there(client, scripted, call):
    """Reads and writes; each try is the same request, so that the service can tell that it is."""
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
async def test_what_may_pass_is_tried_again(client, scripted, error):
    """The caller gets the answer, and hears nothing of what was in the way."""
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
async def test_what_would_fail_again_is_not_tried_again(client, scripted, error):
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
async def test_a_deadline_of_somebody_else_ends_a_call_that_has_none(make_client, server, by):
    """It may be that of an interceptor of the caller, which each attempt would reach again, without end."""
    server.refuse(grpc.StatusCode.DEADLINE_EXCEEDED, message="Deadline Exceeded")
    client = make_client(server.target, timeout=None)

    with pytest.raises(storeapi.DeadlineExceeded) as raised:
        await (client.posts.get(1) if by == "call" else anext(client.changes.watch()))

    assert (len(server.calls), raised.value.attempts) == (1, 1)


async def test_a_deadline_of_a_proxy_does_not_end_a_watch_that_has_begun(make_client, scripted):
    """It has no deadline either, but continues however long it takes."""
    scripted.answer("Watch", storeapi.ChangeBatch(changes=(), resume_token="t1"))
    scripted.fail("Watch", grpc.StatusCode.DEADLINE_EXCEEDED, times=2)
    scripted.answer("Watch", storeapi.ChangeBatch(changes=(), resume_token="t2"))
    batches = make_client(scripted.target, timeout=None).changes.watch().batches()

    assert [(await anext(batches)).resume_token for _ in range(2)] == ["t1", "t2"]


@pytest.mark.parametrize("by", ["call", "watch"])
@pytest.mark.parametrize(("code", "message"), LASTING)
async def test_an_answer_that_stays_the_same_is_not_asked_for_again(make_client, server, code, message, by):
    """Its status is that of a broken connection, and it comes from gRPC or a proxy all the same."""
    server.refuse(code, message=message)
    client = make_client(server.target)

    with pytest.raises(storeapi.StoreError, match=re.escape(message)) as raised:
        await (client.posts.get(1) if by == "call" else anext(client.changes.watch()))

    assert (len(server.calls), raised.value.attempts) == (1, 1)


@pytest.mark.parametrize(("code", "message"), PASSING)
async def test_a_broken_connection_is_tried_again(make_client, server, code, message):
    """Whatever status gRPC makes of it."""
    server.refuse(code, message=message)
    server.answer(posts_pb2.Post(id=1))

    assert (await make_client(server.target).posts.get(1)).id == 1


async def test_a_reason_of_somebody_else_is_not_the_services(make_client, server):
    """A proxy may have reasons too, in a domain of its own."""
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
async def test_an_answer_that_cannot_be_decoded_is_not_asked_for_again(make_client, by):
    """Also without a deadline: it would never end."""
    garbled = Garbled()
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[garbled])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = make_client(f"127.0.0.1:{port}", timeout=None)

    with pytest.raises(storeapi.InternalError, match="deserializing"):
        await (client.posts.get(1) if by == "call" else anext(client.changes.watch()))

    server.stop(None).wait()
    assert garbled.count == 1


async def test_a_write_without_an_id_is_not_repeated(client, scripted):
    """It could be done twice; who gives up the id has been told."""
    scripted.fail("CreatePost", grpc.StatusCode.UNAVAILABLE)

    with pytest.raises(storeapi.Unavailable) as raised:
        await client.posts.create(body="a", request_id="")

    assert (len(scripted.calls), raised.value.request_id) == (1, "")


async def test_a_check_without_an_id_is_repeated(client, scripted):
    """With validate_only nothing is stored, once or twice."""
    scripted.fail("CreatePost", grpc.StatusCode.UNAVAILABLE)
    scripted.answer("CreatePost", POST)

    assert await client.posts.create(body="a", validate_only=True) == POST


async def test_retries_can_be_switched_off(make_client, scripted):
    """Then each failure is the caller's, who may use the id of the write that failed."""
    client = make_client(scripted.target, retries=False)
    scripted.fail("CreatePost", BUSY)
    scripted.answer("CreatePost", POST)

    with pytest.raises(storeapi.DatabaseBusy) as raised:
        await client.posts.create(body="a")
    post = await client.posts.create(body="a", request_id=raised.value.request_id)

    first, second = scripted.calls
    assert (post, first.request) == (POST, second.request)


async def test_the_deadline_is_for_all_tries_together(client, scripted):
    """A caller waits no longer than he said; the error tells how often the call was made."""
    scripted.fail("GetPost", grpc.StatusCode.UNAVAILABLE, times=100_000)

    with pytest.raises((storeapi.Unavailable, storeapi.DeadlineExceeded)) as raised:
        await client.posts.get(1, timeout=0.5)

    left = [call.seconds_left for call in scripted.calls]
    # gRPC sends whole milliseconds, rounded up.
    assert max(left) <= 0.502
    assert left[-1] < 0.4
    assert raised.value.attempts >= len(left) > 3
    assert f"({raised.value.attempts} attempts)" in str(raised.value)


async def test_nobody_waits_for_what_comes_too_late(client, scripted):
    """When the service says to come again after the deadline, the caller hears it at once."""
    scripted.fail("GetPost", storeapi.DatabaseBusy(retry_after=3600))

    with pytest.raises(storeapi.DatabaseBusy) as raised:
        await client.posts.get(1)

    assert (len(scripted.calls), raised.value.retry_after) == (1, 3600)


def test_the_service_says_how_long_to_wait():
    """RetryInfo is the least; up to a fifth more, so that callers do not come back together."""
    pauses = [_retries.Attempts(None).pause(2.0) for _ in range(1000)]

    assert 2.0 <= min(pauses) < max(pauses) <= 2.4


def test_pauses_grow_to_a_limit(monkeypatch):
    """From gentle to rare, and each a little different."""
    monkeypatch.undo()
    attempts = _retries.Attempts(None)

    pauses = [attempts.pause() for _ in range(12)]

    longest = [min(0.05 * 2**number, 1.0) for number in range(12)]
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, longest, strict=True))
    assert attempts.count == 13


async def test_closing_ends_a_call_that_waits_to_be_made_again(make_client, scripted, monkeypatch):
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
    await asyncio.to_thread(waits.wait, patience())

    await client.close()

    with pytest.raises(storeapi.Cancelled):
        await asyncio.wait_for(task, patience())


async def test_closing_ends_a_change_that_waits_to_be_made_again(make_client, scripted, monkeypatch):
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
    await asyncio.to_thread(waits.wait, patience())

    await client.close()

    with pytest.raises(storeapi.Cancelled):
        await asyncio.wait_for(task, patience())


async def test_closing_ends_a_call_that_waits_for_its_answer(client, scripted):
    """With an error, not as if the caller's own task had been cancelled."""
    scripted.hang("GetPost")
    task = asyncio.create_task(client.posts.get(1, timeout=None))
    await asyncio.to_thread(scripted.wait_for_call, "GetPost")

    await client.close()

    with pytest.raises(storeapi.Cancelled):
        await task


# Changing what others change too


async def test_modify_reads_and_writes_what_it_read(client, scripted):
    """The new text is made of the post, and only its etag is overwritten."""
    scripted.answer("GetPost", storeapi.Post(id=1, body="a", etag="e1"))
    scripted.answer("UpdatePost", storeapi.Post(id=1, body="a!", etag="e2"))

    post = await client.posts.modify(1, lambda post: post.body + "!")

    assert post == storeapi.Post(id=1, body="a!", etag="e2")
    _, update = scripted.calls
    assert (update.request.post.body, update.request.post.etag) == ("a!", "e1")


async def test_modify_begins_again_when_somebody_was_faster(client, scripted):
    """The change is asked again, with what the other has written."""
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
async def test_modify_writes_nothing_when_nothing_changes(client, scripted, text):
    """None, or the text as it was: no new etag, and no change for those who watch."""
    scripted.answer("GetPost", storeapi.Post(id=1, body="a", etag="e1"))

    post = await client.posts.modify(1, lambda _: text)

    assert (post.etag, len(scripted.calls)) == ("e1", 1)


async def test_modify_gives_up_when_the_time_is_up(client, scripted):
    """Others may be faster for ever; the caller is not asked to wait for ever."""
    for number in range(10_000):
        scripted.answer("GetPost", storeapi.Post(id=1, body="a", etag=f"e{number}"))
    scripted.fail("UpdatePost", storeapi.EtagMismatch(), times=10_000)

    with pytest.raises((storeapi.EtagMismatch, storeapi.DeadlineExceeded)):
        await client.posts.modify(1, lambda post: post.body + "!", timeout=0.5)

    assert len(scripted.calls_of("UpdatePost")) > 3


# What is split


def posts_of(call):
    return [request.post.body for request in call.request.requests]


async def test_many_posts_are_added_in_calls_of_a_thousand(client, scripted):
    """In order, each call with an id of its own, and what comes back is one tuple."""
    bodies = [str(number) for number in range(2001)]
    for start in (0, 1000, 2000):
        some = bodies[start : start + 1000]
        scripted.answer("BatchCreatePosts", [storeapi.Post(id=1, body=body) for body in some])

    created = await client.posts.create_many(iter(bodies))

    assert [post.body for post in created] == bodies
    assert [body for call in scripted.calls for body in posts_of(call)] == bodies
    assert [len(posts_of(call)) for call in scripted.calls] == [1000, 1000, 1]
    assert len({call.request.request_id for call in scripted.calls}) == 3


async def test_long_posts_are_added_in_calls_that_fit(client, scripted):
    """The service's answer repeats the texts and has a limit, also when each character takes four bytes."""
    bodies = ["🙂" * 60_000] * 40
    for _ in range(5):
        scripted.answer("BatchCreatePosts", [])

    await client.posts.create_many(bodies)

    sizes = [sum(len(body.encode()) for body in posts_of(call)) for call in scripted.calls]
    assert sum(sizes) == 40 * 240_000
    # A call is full at 2 MiB, and takes the text that fills it; no service allows more than 1 MiB for one.
    assert max(sizes) < 2 * 1024 * 1024 + 240_000


@pytest.mark.parametrize("given", [None, "a3c6e1f0-7d52-4b8e-9c41-5f60d2b7e813"])
async def test_what_was_split_can_be_called_again_as_a_whole(client, scripted, given):
    """The error has the id of the whole; with it each call has the same id as before."""
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


async def test_a_split_batch_without_ids_has_none(client, scripted):
    """request_id="" holds for each call."""
    scripted.answer("BatchCreatePosts", [], [])

    await client.posts.create_many(["a"] * 1001, request_id="")

    assert [call.request.request_id for call in scripted.calls] == ["", ""]


@pytest.mark.parametrize("resource", ["posts", "comments"])
async def test_many_are_read_in_calls_of_a_thousand(client, scripted, resource):
    """In the order asked for."""
    thing = {
        "posts": lambda number: storeapi.Post(id=number, body=""),
        "comments": lambda number: storeapi.Comment(id=number, body="", post_id=1),
    }[resource]
    ids = list(range(1, 1502))
    method = f"BatchGet{resource.capitalize()}"
    scripted.answer(method, [thing(id) for id in ids[:1000]], [thing(id) for id in ids[1000:]])

    found = await getattr(client, resource).get_many(iter(ids))

    assert [it.id for it in found] == ids


async def test_what_does_not_fit_in_one_answer_is_read_in_halves(client, scripted):
    """The caller need not know how long the texts are."""
    scripted.fail("BatchGetPosts", storeapi.ResponseTooLarge(metadata={"max_bytes": "1"}))
    scripted.answer("BatchGetPosts", [storeapi.Post(id=1, body="")])
    scripted.fail("BatchGetPosts", storeapi.ResponseTooLarge(metadata={"max_bytes": "1"}))
    scripted.answer("BatchGetPosts", [storeapi.Post(id=2, body="")], [storeapi.Post(id=3, body="")])

    found = await client.posts.get_many([1, 2, 3])

    assert [post.id for post in found] == [1, 2, 3]
    assert [list(call.request.ids) for call in scripted.calls] == [[1, 2, 3], [1], [2, 3], [2], [3]]


async def test_one_that_does_not_fit_is_an_error(client, scripted):
    """There is nothing left to halve."""
    scripted.fail("BatchGetPosts", storeapi.ResponseTooLarge())

    with pytest.raises(storeapi.ResponseTooLarge):
        await client.posts.get_many([1])


async def test_many_are_counted_in_calls_of_a_thousand(client, scripted):
    """And the counts are one dict."""
    scripted.answer("CountComments", dict.fromkeys(range(1, 1001), 1), {1001: 2})

    counts = await client.comments.count(range(1, 1002))

    assert counts == dict.fromkeys(range(1, 1001), 1) | {1001: 2}


async def test_deleting_is_never_split(client, scripted):
    """All of them or none is what it promises."""
    scripted.fail("BatchDeletePosts", storeapi.BatchTooLarge())

    with pytest.raises(storeapi.BatchTooLarge):
        await client.posts.delete_many(range(1, 1002))

    assert [len(call.request.ids) for call in scripted.calls] == [1001]
