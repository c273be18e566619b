"""Watches that live through what happens to their connection."""

import asyncio
import gc
import logging
import threading

import grpc
import pytest
import storeapi
from storeapi import CommentFilter, PostFilter, _retries, _streams
from storeapi.v1 import changes_pb2

from tests.support.client_watch import change_batch, post_change, read_ids, resume_tokens
from tests.support.timeouts import scaled_timeout

pytestmark = pytest.mark.usefixtures("short_pauses")


BEGIN = change_batch(token="t0", heartbeat=True)


@pytest.fixture
async def client(make_client, scripted):
    return make_client(scripted.target)


# What is asked, and what comes


@pytest.mark.parametrize(
    ("arguments", "request_message"),
    [
        ({}, {}),
        ({"start": "now"}, {}),
        ({"start": "earliest"}, {"earliest": True}),
        ({"start": "initial_state"}, {"initial_state": True}),
        ({"resume_token": "t1"}, {"resume_token": "t1"}),
        # A watch without a token begins at `start`.
        ({"resume_token": None, "start": "earliest"}, {"earliest": True}),
        ({"resume_token": "", "start": "earliest"}, {"earliest": True}),
        ({"resume_token": "t1", "start": "earliest"}, {"resume_token": "t1"}),
        ({"kinds": ["post"]}, {"kinds": [changes_pb2.RESOURCE_KIND_POST]}),
        ({"kinds": ("comment", "post")}, {"kinds": [2, 1]}),
        ({"post_ids": {7}}, {"post_ids": [7]}),
        ({"post_filter": PostFilter(author="ann")}, {"post_filter": {"author": "ann"}}),
        (
            {"post_filter": PostFilter(), "comment_filter": CommentFilter(labels={"a": "b"}, reply_to_id=0)},
            {"post_filter": {}, "comment_filter": {"labels": {"a": "b"}, "reply_to_id": 0}},
        ),
        ({"heartbeat_seconds": 1.5}, {"heartbeat_interval": {"seconds": 1, "nanos": 500_000_000}}),
    ],
)
async def test_watch_sends_its_arguments(client, scripted, arguments, request_message):
    """Each argument is a field of the request. Heartbeats default to ten seconds."""
    scripted.stall("Watch", change_batch(1, token="t9"))

    async with client.changes.watch(**arguments) as watch:
        await anext(watch)

    expected = changes_pb2.WatchRequest(**({"heartbeat_interval": {"seconds": 10}} | request_message))
    assert [call.request for call in scripted.calls] == [expected]


@pytest.mark.parametrize("arguments", [{"start": "then"}, {"kinds": ["posts"]}])
async def test_unknown_word_is_refused(client, arguments):
    """When the watch is created."""
    with pytest.raises(ValueError, match=r"then|posts"):
        client.changes.watch(**arguments)


@pytest.mark.parametrize("name", ["post_filter", "comment_filter"])
async def test_filter_of_the_other_type_is_refused(client, name):
    """By the name of the argument."""
    other = CommentFilter() if name == "post_filter" else PostFilter()
    with pytest.raises(TypeError, match=f"^{name} must be a "):
        client.changes.watch(**{name: other})


async def test_single_kind_is_not_split_into_letters(client):
    """As with texts."""
    with pytest.raises(TypeError, match="kinds must be an iterable of several"):
        client.changes.watch(kinds="post")


async def test_changes_are_values(client, scripted):
    """Typed and immutable. Unknown values of a newer service have a word too."""
    everything = changes_pb2.WatchResponse(
        resume_token="t1",
        changes=[
            changes_pb2.Change(
                action=changes_pb2.ACTION_DELETE,
                kind=changes_pb2.RESOURCE_KIND_COMMENT,
                id=2,
                post_id=1,
                commit_time={"seconds": 1_700_000_000},
                comment={"id": 2, "post_id": 1, "body": "b", "etag": "v3"},
                request_id="r",
            ),
            changes_pb2.Change(action=99, kind=98, id=3, post_id=3),
        ],
    )
    scripted.stall("Watch", everything)

    watch = client.changes.watch()
    first, second = await anext(watch), await anext(watch)
    await watch.close()

    assert (first.action, first.kind, first.id, first.post_id) == ("delete", "comment", 2, 1)
    assert first.resource == storeapi.Comment(id=2, post_id=1, body="b", etag="v3")
    assert (first.commit_time.timestamp(), first.request_id) == (1_700_000_000, "r")
    assert (second.action, second.kind, second.resource) == ("unknown", "unknown", None)


async def test_nothing_is_sent_before_the_first_step(client, scripted):
    """As with lists."""
    client.changes.watch()

    assert scripted.calls == ()


async def test_batches_are_returned_as_sent(client, scripted):
    """With all their data, also without changes."""
    sent = [
        change_batch(1, 2, token="t1", partial=True),
        change_batch(3, token="t2"),
        change_batch(token="t3", heartbeat=True),
        change_batch(token="t4", initial_state_complete=True),
    ]
    scripted.stall("Watch", *sent)

    watch = client.changes.watch()
    batches = watch.batches()
    seen = [await anext(batches) for _ in sent]
    await watch.close()

    assert seen == sent
    assert [it.id for it in seen[0]] == [1, 2]
    assert [len(it) for it in seen] == [2, 1, 0, 0]


async def test_resume_token_covers_only_returned_changes(client, scripted):
    """A consumer that stores it after each change never skips one."""
    scripted.stall(
        "Watch",
        BEGIN,
        change_batch(1, 2, token="t1"),
        change_batch(3, token="t2"),
        change_batch(4, token="t3"),
    )
    watch = client.changes.watch()

    tokens = [watch.resume_token]
    for _ in range(3):
        await anext(watch)
        tokens.append(watch.resume_token)
    await watch.close()

    assert tokens == [None, "t0", "t1", "t2"]


async def test_switching_to_batches_loses_nothing(client, scripted):
    """The rest of a partly read batch comes first."""
    scripted.stall("Watch", change_batch(1, 2, 3, token="t1"), change_batch(4, token="t2"))
    watch = client.changes.watch()

    await anext(watch)
    batches = watch.batches()
    seen = [await anext(batches), await anext(batches)]
    await watch.close()

    assert seen == [change_batch(2, 3, token="t1"), change_batch(4, token="t2")]


# When the connection is lost


@pytest.mark.parametrize(
    "error",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        storeapi.ShuttingDown(metadata={"resume_token": "t1"}),
        storeapi.StreamStalled(),
        storeapi.StandbyBehind(retry_after=0.001),
        storeapi.WatchLimit(retry_after=0.001),
    ],
    ids=lambda error: getattr(error, "name", type(error).__name__),
)
async def test_watch_resumes_after_a_broken_connection(client, scripted, error):
    """The caller gets each change once and in order."""
    scripted.cut("Watch", BEGIN, change_batch(1, token="t1"), change_batch(2, token="t2"))
    scripted.fail("Watch", error, times=3)
    scripted.answer("Watch", change_batch(3, token="t3"))
    scripted.stall("Watch", change_batch(4, token="t4"))

    watch = client.changes.watch()
    seen = await read_ids(watch, 4)
    await watch.close()

    assert seen == [1, 2, 3, 4]
    assert resume_tokens(scripted) == ["", "t2", "t2", "t2", "t2", "t3"]


async def test_initial_state_resumes(client, scripted):
    """A token has precedence over `start`, which would repeat everything."""
    scripted.cut("Watch", change_batch(1, token="t1"))
    scripted.stall("Watch", change_batch(2, token="t2"))

    watch = client.changes.watch(start="initial_state")
    seen = await read_ids(watch, 2)
    await watch.close()

    first, second = (call.request for call in scripted.calls)
    assert seen == [1, 2]
    assert (first.WhichOneof("start"), second.WhichOneof("start")) == ("initial_state", "resume_token")


async def test_watch_without_response_fails_at_its_deadline(make_client, scripted):
    client = make_client(scripted.target, timeout=0.3)
    scripted.fail("Watch", grpc.StatusCode.UNAVAILABLE, times=10_000)

    with pytest.raises(storeapi.Unavailable) as raised:
        await anext(client.changes.watch())

    assert raised.value.attempts > 3


async def test_failed_start_can_be_repeated(client, scripted, monkeypatch):
    """Each step has the full timeout, so a loop continues when the server is back."""
    given = []
    first = storeapi._connection.seconds
    for module in (storeapi._async.calls, storeapi._sync.calls):
        monkeypatch.setattr(module, "seconds", lambda *it: given.append(it) or first(*it))
    scripted.fail("Watch", storeapi.InternalError(), times=2)
    scripted.stall("Watch", change_batch(1, token="t1"))
    watch = client.changes.watch(timeout=20)

    for _ in range(2):
        with pytest.raises(storeapi.InternalError):
            await anext(watch)
    seen = await read_ids(watch, 1)
    await watch.close()

    assert seen == [1]
    assert len(given) == 3


async def test_started_watch_has_no_deadline(client, scripted):
    """It survives more attempts than the timeout of the first response allows."""
    scripted.cut("Watch", BEGIN)
    scripted.fail("Watch", grpc.StatusCode.UNAVAILABLE, times=60)
    scripted.stall("Watch", change_batch(1, token="t1"))

    watch = client.changes.watch(timeout=0.2)
    seen = await read_ids(watch, 1)
    await watch.close()

    assert seen == [1]


async def test_long_outage_is_logged_with_growing_gaps(client, scripted, caplog):
    """The first attempts, then at each doubling, and the end."""
    caplog.set_level(logging.INFO, "storeapi")
    scripted.cut("Watch", BEGIN)
    scripted.fail("Watch", grpc.StatusCode.UNAVAILABLE, times=19)
    scripted.stall("Watch", change_batch(1, token="t1"))

    watch = client.changes.watch()
    await read_ids(watch, 1)
    await watch.close()

    told = [it.getMessage() for it in caplog.records]
    assert [it.partition(",")[0] for it in told[:-1]] == [
        f"watch interrupted (attempt {number})" for number in (1, 2, 4, 8, 16)
    ]
    assert told[-1] == "watch continues after 21 attempts"


async def test_silence_is_detected(client, scripted, monkeypatch):
    """After twice the heartbeat interval without a message."""
    scripted.stall("Watch", BEGIN, change_batch(1, token="t1"))
    scripted.stall("Watch", change_batch(2, token="t2"))

    watch = client.changes.watch(heartbeat_seconds=0.05)
    seen = await read_ids(watch, 2)
    await watch.close()

    assert seen == [1, 2]
    assert resume_tokens(scripted) == ["", "t1"]


async def test_silence_before_the_first_response_is_detected(client, scripted):
    """The first response has the timeout of the call."""
    scripted.stall("Watch")

    with pytest.raises(storeapi.StoreError, match=r"no response from the server|Deadline"):
        await anext(client.changes.watch(timeout=0.2))


async def test_slow_reader_is_not_silence(client, scripted):
    """The time that the caller takes is his own."""
    scripted.stall("Watch", change_batch(1, token="t1"), change_batch(2, token="t2"))
    watch = client.changes.watch(heartbeat_seconds=0.01)
    await anext(watch)

    # Longer than the server may be silent, which is a second more than two heartbeats.
    await asyncio.sleep(1.3)
    second = await anext(watch)
    await watch.close()

    assert second.id == 2
    assert resume_tokens(scripted) == [""]


@pytest.mark.parametrize(
    "error",
    [
        storeapi.ResumeTokenExpired(metadata={"earliest_resume_token": "t5"}),
        storeapi.ResumeTokenForeign(),
        storeapi.ResumeTokenInvalid(),
        storeapi.FieldInvalid(),
        storeapi.InternalError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_permanent_error_is_raised(client, scripted, error):
    """Also in a running watch, which never skips trimmed changes."""
    scripted.cut("Watch", change_batch(1, token="t1"))
    scripted.fail("Watch", error)
    watch = client.changes.watch()
    await anext(watch)

    with pytest.raises(type(error)) as raised:
        await anext(watch)

    assert raised.value.metadata == error.metadata
    assert isinstance(raised.value.__cause__, grpc.RpcError)


async def test_next_step_after_an_error_continues(client, scripted):
    """Nothing is lost."""
    scripted.cut("Watch", change_batch(1, token="t1"))
    scripted.fail("Watch", storeapi.InternalError())
    scripted.stall("Watch", change_batch(2, token="t2"))
    watch = client.changes.watch()
    await anext(watch)

    with pytest.raises(storeapi.InternalError):
        await anext(watch)
    second = await anext(watch)
    await watch.close()

    assert second.id == 2


async def test_without_retries_each_interruption_is_raised(make_client, scripted):
    """The caller can continue from the token."""
    client = make_client(scripted.target, retries=False)
    scripted.cut("Watch", change_batch(1, token="t1"))
    watch = client.changes.watch()
    await anext(watch)

    with pytest.raises(storeapi.Unavailable):
        await anext(watch)

    assert watch.resume_token == "t1"


# The end


@pytest.mark.parametrize("closes", ["watch", "client"])
async def test_close_ends_the_iteration(client, scripted, closes):
    """From another task that waits for the next change, without an error."""
    scripted.stall("Watch", change_batch(1, token="t1"))
    watch = client.changes.watch()
    await anext(watch)

    async def rest():
        return [it async for it in watch]

    waiting = asyncio.create_task(rest())
    await asyncio.sleep(0)
    await (watch if closes == "watch" else client).close()

    assert await asyncio.wait_for(waiting, scaled_timeout()) == []


@pytest.mark.parametrize("by", ["changes", "batches"])
@pytest.mark.parametrize("closes", ["watch", "client"])
async def test_close_ends_the_iteration_while_its_body_runs(client, scripted, closes, by):
    """Received changes that were not returned come after the token in the next watch."""
    scripted.stall("Watch", change_batch(1, 2, 3, token="t1"), change_batch(4, token="t2"))
    watch = client.changes.watch(resume_token="t0")

    seen = []
    async for it in watch:
        seen.append(it.id)
        await (watch if closes == "watch" else client).close()
        if by == "batches":
            assert [it async for it in watch.batches()] == []

    assert seen == [1]
    assert watch.resume_token == "t0"


@pytest.fixture
def interrupted(monkeypatch):
    """Waits until a watch has lost its connection and pauses, for longer than a test waits."""
    monkeypatch.setattr(_retries, "FIRST_PAUSE_SECONDS", 3600)
    monkeypatch.setattr(_retries, "LONGEST_PAUSE_SECONDS", 3600)
    said = threading.Event()
    handler = logging.Handler()
    handler.emit = lambda record: said.set()
    log = logging.getLogger("storeapi")
    log.addHandler(handler)
    yield lambda: asyncio.to_thread(said.wait, scaled_timeout())
    log.removeHandler(handler)


@pytest.mark.parametrize("by", ["changes", "batches"])
@pytest.mark.parametrize("closes", ["watch", "client"])
async def test_close_between_connections_ends_the_iteration(client, scripted, interrupted, closes, by):
    """At once, without an error and without another call."""
    scripted.cut("Watch", change_batch(1, token="t1"))
    scripted.stall("Watch", change_batch(2, token="t2"))
    watch = client.changes.watch()
    await anext(watch)
    steps = watch if by == "changes" else watch.batches()

    async def rest():
        return [it async for it in steps]

    waiting = asyncio.create_task(rest())
    assert await interrupted()
    await (watch if closes == "watch" else client).close()

    assert await asyncio.wait_for(waiting, scaled_timeout()) == []
    assert resume_tokens(scripted) == [""]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("closes", ["watch", "client"])
def test_close_during_connect_leaves_no_call(scripted, closes, moment):
    """By another thread, just before or after the call is made."""
    scripted.cut("Watch", change_batch(1, token="t1"))
    scripted.stall("Watch", change_batch(2, token="t2"))
    client = storeapi.StoreClient(scripted.target)
    begin = client.raw.changes.Watch
    watch = client.changes.watch()
    next(watch)
    calls = []

    def begin_while_somebody_closes(request):
        closing = threading.Thread(target=(watch if closes == "watch" else client).close)
        if moment == "after":
            calls.append(begin(request))
        closing.start()
        closing.join()
        if moment == "before":
            calls.append(begin(request))
        return calls[-1]

    client.raw.changes.Watch = begin_while_somebody_closes

    assert list(watch) == []
    assert [it for it in calls if it.is_active()] == []
    client.close()


async def test_closed_watch_stays_closed(client, scripted):
    """Closing again does nothing and sends nothing."""
    watch = client.changes.watch()

    await watch.close()
    await watch.close()

    assert [it async for it in watch] == []
    assert [it async for it in watch.batches()] == []
    assert scripted.calls == ()


async def test_closed_client_refuses_a_watch(client, scripted):
    """It says so, as for every call."""
    await client.close()

    with pytest.raises(RuntimeError, match="client is closed"):
        await anext(client.changes.watch())


@pytest.mark.parametrize("by", ["changes", "batches"])
async def test_cancelled_wait_loses_nothing(scripted, by):
    """asyncio.wait_for around a step: the next step continues after the last change."""
    scripted.stall("Watch", change_batch(1, token="t1"))
    scripted.stall("Watch", change_batch(2, token="t2"))
    async with storeapi.AsyncStoreClient(scripted.target) as client:
        watch = client.changes.watch()
        steps = watch if by == "changes" else watch.batches()
        await anext(steps)

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(steps), 0.05)
        second = await anext(steps)

    assert second == (post_change(2) if by == "changes" else change_batch(2, token="t2"))
    assert resume_tokens(scripted) == ["", "t1"]


async def test_cancelled_task_cancels_the_watch(scripted):
    """asyncio's own cancellation passes through a watch."""
    scripted.stall("Watch", change_batch(1, token="t1"))
    async with storeapi.AsyncStoreClient(scripted.target) as client:
        watch = client.changes.watch()
        await anext(watch)
        task = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)

        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task


class Responses:
    """A call that answers as a test says."""

    def __init__(self, read):
        self._read = read

    def __aiter__(self):
        return self

    def __anext__(self):
        return self._read()


async def test_task_cancelled_as_a_response_arrives_is_cancelled(scripted):
    """In the same iteration of the event loop."""
    scripted.stall("Watch", change_batch(1, token="t1"))
    async with storeapi.AsyncStoreClient(scripted.target) as client:
        call = client.raw.changes.Watch(changes_pb2.WatchRequest())
        seen = []

        async def read():
            response = await call.read()
            seen.append(response)
            task.cancel()
            return response

        stream = _streams.AsyncStream(Responses(read), first_seconds=None, silence_seconds=10)

        async def follow():
            while True:
                await stream.read()

        task = asyncio.create_task(follow())
        done, _ = await asyncio.wait({task}, timeout=scaled_timeout())
        stream.cancel()

        assert [it.resume_token for it in seen] == ["t1"]
        assert done == {task}
        assert task.cancelled()


async def test_detected_silence_leaves_no_reader():
    """When the error is raised, the reading task has ended."""
    reading = []

    async def read():
        reading.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            reading.append("ended")

    stream = _streams.AsyncStream(Responses(read), first_seconds=0.01, silence_seconds=10)

    with pytest.raises(storeapi.Unavailable, match="no response from the server"):
        await stream.read()

    assert reading == ["begun", "ended"]


def test_unreferenced_watch_leaves_no_thread(scripted):
    """Also without close."""
    scripted.stall("Watch", change_batch(1, token="t1"))
    with storeapi.StoreClient(scripted.target) as client:
        watch = client.changes.watch()
        next(watch)
        (reader,) = [it for it in threading.enumerate() if it.name == "storeapi-watch"]

        del watch
        gc.collect()
        reader.join(scaled_timeout())

        assert not reader.is_alive()


async def test_watch_has_a_readable_repr(client, scripted):
    """With its arguments, its position and whether it is open."""
    scripted.stall("Watch", change_batch(1, token="t1"))
    watch = client.changes.watch(
        start="earliest", kinds=["post"], post_ids=[1], post_filter=PostFilter(author="ann")
    )
    shown = [repr(watch)]
    await anext(watch)
    shown.append(repr(watch))
    await watch.close()
    shown.append(repr(watch))

    rest = "kinds=['post'], post_ids=[1], post_filter=(author: \"ann\"))"
    assert [it.removeprefix("<").removeprefix("Async") for it in shown] == [
        f"Watch(start='earliest', {rest}, not begun>",
        f"Watch(resume_token='t1', {rest}, open>",
        f"Watch(resume_token='t1', {rest}, closed>",
    ]
