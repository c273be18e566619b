"""storeapi.testing.ScriptedServer: each call gets what the script says, as from the service."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from datetime import UTC, datetime

import grpc
import pytest
import storeapi
from storeapi import errors
from storeapi._changes import change_batch
from storeapi._status import store_error
from storeapi.testing import ScriptedServer
from storeapi.v1 import (
    changes_pb2,
    changes_pb2_grpc,
    comments_pb2,
    comments_pb2_grpc,
    posts_pb2,
    posts_pb2_grpc,
)

from tests.support.timeouts import scaled_timeout

TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
POST = storeapi.Post(
    id=1,
    body="a",
    create_time=TIME,
    update_time=TIME,
    etag="e1",
    author="ann",
    labels={"status": "new"},
    external_id="article:1",
)
COMMENT = storeapi.Comment(
    id=2, body="b", post_id=1, create_time=TIME, update_time=TIME, etag="e2", reply_to_id=9, depth=3
)
GET = posts_pb2.GetPostRequest(id=1)
WATCH = changes_pb2.WatchRequest()


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def channel(scripted: ScriptedServer) -> Iterator[grpc.Channel]:
    """Without the client, which would call again."""
    with grpc.insecure_channel(scripted.target) as channel:
        yield channel


@pytest.fixture
def posts(channel):
    return posts_pb2_grpc.PostServiceStub(channel)


@pytest.fixture
def comments(channel):
    return comments_pb2_grpc.CommentServiceStub(channel)


@pytest.fixture
def changes(channel):
    return changes_pb2_grpc.ChangeServiceStub(channel)


def failure(call) -> grpc.RpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value


def batch(token: str) -> storeapi.ChangeBatch:
    return storeapi.ChangeBatch(changes=(), resume_token=token)


def read(stream) -> tuple[list[str], grpc.RpcError | None]:
    """The changes of a watch, and its error."""
    tokens = []
    try:
        for response in stream:
            tokens.append(response.resume_token)  # noqa: PERF401 - those before an error count
    except grpc.RpcError as error:
        return tokens, error
    return tokens, None


# Failures


def leaves(root=errors.StoreError):
    yield root
    for child in root.__subclasses__():
        yield from leaves(child)


def what_it_says(error: storeapi.StoreError) -> tuple[object, ...]:
    violations = error.violations if isinstance(error, storeapi.InvalidRequest) else ()
    said = (error.code, error.reason, error.message, error.metadata, error.call_id, error.retry_after)
    return (type(error), *said, violations)


# No server sends ConnectionFailed: the client raises it when it reaches none.
SENT = [kind for kind in leaves() if kind is not errors.ConnectionFailed]


@pytest.mark.parametrize("kind", SENT, ids=lambda kind: kind.__name__)
def test_scripted_error_equals_the_received_one(scripted, posts, kind):
    """For every class of the tree, with all its data."""
    error = kind("it went wrong: ü%", metadata={"post_id": "7"}, call_id="c-1", retry_after=0.123456789)
    if isinstance(error, storeapi.InvalidRequest):
        error.violations = (storeapi.FieldViolation(field="post.body", description="must not be empty"),)
    scripted.fail("GetPost", error)

    raised = store_error(failure(lambda: posts.GetPost(GET)))

    assert what_it_says(raised) == what_it_says(error)


@pytest.mark.parametrize("error", [storeapi.Unavailable(), storeapi.NotFound(metadata={"key": "value"})])
def test_scripted_error_has_only_the_given_data(scripted, posts, error):
    scripted.fail("GetPost", error)

    raised = store_error(failure(lambda: posts.GetPost(GET)))

    assert what_it_says(raised) == what_it_says(error)


def test_bare_status_has_no_details(scripted, posts):
    """As from gRPC itself or a proxy."""
    scripted.fail("GetPost", grpc.StatusCode.UNAVAILABLE)

    error = failure(lambda: posts.GetPost(GET))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert list(error.trailing_metadata()) == []


def test_error_repeats_the_given_number_of_times(scripted, posts):
    """`times=2` is for two calls; the third call continues the script."""
    scripted.fail("GetPost", storeapi.DatabaseBusy(), times=2)
    scripted.answer("GetPost", POST)

    codes = [failure(lambda: posts.GetPost(GET)).code() for _ in range(2)]

    assert codes == [grpc.StatusCode.UNAVAILABLE] * 2
    assert posts.GetPost(GET).id == 1


def test_error_applies_to_streams(scripted, changes):
    """A refused watch gets no message."""
    scripted.fail("Watch", storeapi.ResumeTokenExpired(metadata={"earliest_resume_token": "t0"}))

    tokens, error = read(changes.Watch(WATCH))

    assert tokens == []
    assert store_error(error).earliest_resume_token == "t0"


@pytest.mark.parametrize("error", [grpc.StatusCode.OK, storeapi.StoreError(code=grpc.StatusCode.OK)])
def test_ok_is_refused_as_an_error(scripted, error):
    with pytest.raises(ValueError, match="OK is not a failure"):
        scripted.fail("GetPost", error)


def test_class_is_refused_as_an_error(scripted):
    """An error is an instance, with a message and metadata."""
    with pytest.raises(TypeError, match=r"such as storeapi\.PostNotFound\(\)"):
        scripted.fail("GetPost", storeapi.PostNotFound)


# Responses


def test_client_values_are_responses(scripted, posts, comments):
    """What a client method returns can be scripted, with microseconds."""
    scripted.answer("GetPost", POST)
    scripted.answer("GetComment", COMMENT)
    scripted.answer("ListPosts", storeapi.Page(items=(POST,), next_page_token="n", resume_token="r"))
    scripted.answer("BatchCreateComments", [COMMENT])
    scripted.answer("BatchUpdatePosts", (POST,))
    found = storeapi.Found([POST])
    found.missing_ids, found.missing_external_ids = (9,), ("x",)
    scripted.answer("BatchGetPosts", found)
    deleted = replace(COMMENT, body="", delete_time=TIME, purge_time=TIME)
    scripted.answer("DeleteComment", deleted)
    scripted.answer("UndeletePost", POST)
    scripted.answer("ListPostRevisions", storeapi.Page(items=(POST,), next_page_token="n"))
    scripted.answer("CountPosts", 7)
    scripted.answer("CountComments", {1: 3}, 8)
    scripted.answer("CountReplies", {2: 1})
    post = posts_pb2.Post(
        id=1, body="a", etag="e1", author="ann", labels={"status": "new"}, external_id="article:1"
    )
    post.create_time.FromDatetime(TIME)
    post.update_time.FromDatetime(TIME)
    comment = comments_pb2.Comment(id=2, body="b", post_id=1, etag="e2", reply_to_id=9, depth=3)
    comment.create_time.FromDatetime(TIME)
    comment.update_time.FromDatetime(TIME)

    assert posts.GetPost(GET) == post
    assert comments.GetComment(comments_pb2.GetCommentRequest(id=2)) == comment
    assert posts.ListPosts(posts_pb2.ListPostsRequest()) == posts_pb2.ListPostsResponse(
        posts=[post], next_page_token="n", resume_token="r"
    )
    created = comments.BatchCreateComments(comments_pb2.BatchCreateCommentsRequest())
    assert list(created.comments) == [comment]
    updated = posts.BatchUpdatePosts(posts_pb2.BatchUpdatePostsRequest())
    assert list(updated.posts) == [post]
    assert posts.BatchGetPosts(posts_pb2.BatchGetPostsRequest()) == posts_pb2.BatchGetPostsResponse(
        posts=[post], missing_ids=[9], missing_external_ids=["x"]
    )
    tombstone = comments.DeleteComment(comments_pb2.DeleteCommentRequest())
    assert tombstone.delete_time == tombstone.purge_time == comment.create_time
    assert posts.UndeletePost(posts_pb2.UndeletePostRequest()) == post
    assert posts.ListPostRevisions(
        posts_pb2.ListPostRevisionsRequest()
    ) == posts_pb2.ListPostRevisionsResponse(posts=[post], next_page_token="n")
    assert posts.CountPosts(posts_pb2.CountPostsRequest()).count == 7
    assert comments.CountComments(comments_pb2.CountCommentsRequest()).counts == {1: 3}
    assert comments.CountComments(comments_pb2.CountCommentsRequest()).total == 8
    assert comments.CountReplies(comments_pb2.CountRepliesRequest()).counts == {2: 1}


@pytest.mark.parametrize(
    "value",
    [
        storeapi.Change(
            action="create", kind="post", id=1, post_id=1, commit_time=TIME, resource=POST, request_id="r"
        ),
        storeapi.Change(action="delete", kind="comment", id=2, post_id=1, commit_time=TIME, resource=COMMENT),
        storeapi.Change(action="undelete", kind="post", id=1, post_id=1, commit_time=TIME, resource=POST),
        storeapi.Change(action="unknown", kind="unknown", id=3, post_id=1, commit_time=None, resource=None),
    ],
    ids=lambda value: value.action,
)
def test_change_batches_are_responses(scripted, changes, value):
    """A watch returns what was scripted."""
    sent = storeapi.ChangeBatch(
        changes=(value,), resume_token="t1", initial_state_complete=True, heartbeat=True, partial=True
    )
    scripted.answer("Watch", sent)

    (response,) = changes.Watch(WATCH)

    assert change_batch(response) == sent


def test_unset_times_stay_unset(scripted, posts):
    """Resources from before times were stored have none."""
    scripted.answer("GetPost", storeapi.Post(id=1, body="a"))

    assert posts.GetPost(GET) == posts_pb2.Post(id=1, body="a")


def test_messages_are_responses(scripted, posts):
    """Every message of the contract."""
    message = posts_pb2.BatchGetPostsResponse(missing_ids=[9])
    scripted.answer("BatchGetPosts", message)

    assert posts.BatchGetPosts(posts_pb2.BatchGetPostsRequest()) == message


def test_each_call_gets_one_response_and_a_watch_gets_all(scripted, posts, changes):
    """Several responses are for several calls; for a stream they are for one call."""
    scripted.answer("GetPost", POST, storeapi.Post(id=5, body="c"))
    scripted.answer("Watch", batch("t1"), batch("t2"))

    assert [posts.GetPost(GET).id, posts.GetPost(GET).id] == [1, 5]
    assert read(changes.Watch(WATCH)) == (["t1", "t2"], None)


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        ("GetPost", COMMENT),
        ("GetPost", [POST]),
        ("GetComment", POST),
        ("GetPost", comments_pb2.Comment()),
        ("ListPosts", [POST]),
        ("ListComments", storeapi.Page(items=(POST,), next_page_token="")),
        ("BatchGetPosts", [COMMENT]),
        ("BatchGetPosts", "ab"),
        ("CountPosts", {1: 3}),
        ("CountComments", "3"),
        ("CountReplies", 3),
        ("Watch", POST),
    ],
)
def test_response_of_the_wrong_type_is_refused(scripted, method, reply):
    """When it is scripted, naming the method."""
    with pytest.raises(TypeError, match=f"{method} answers with a "):
        scripted.answer(method, reply)


def test_scripts_are_separate_for_each_method(scripted, posts, comments):
    """The order of calls to different methods does not matter."""
    scripted.answer("GetPost", POST)
    scripted.fail("GetComment", storeapi.CommentNotFound())

    error = failure(lambda: comments.GetComment(comments_pb2.GetCommentRequest(id=2)))

    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert posts.GetPost(GET).id == 1


def test_unscripted_call_names_itself(scripted, posts):
    error = failure(lambda: posts.GetPost(GET))

    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "GetPost was called, but the script has no step for it" in error.details()


@pytest.mark.parametrize(
    "write", ["answer", "hang", "lose_answer", "cut", "stall", "calls_of", "wait_for_call"]
)
def test_unknown_method_is_refused(scripted, write):
    """A misspelt name would never be called, and the test would wonder."""
    with pytest.raises(ValueError, match=r"no method 'CreatPost'; there are .*CreatePost"):
        getattr(scripted, write)("CreatPost")


# Lost connections and silence


def test_lost_response_looks_like_a_lost_connection(scripted, posts):
    """The next attempt gets the next line of the script."""
    scripted.lose_answer("GetPost")
    scripted.answer("GetPost", POST)

    error = failure(lambda: posts.GetPost(GET))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert list(error.trailing_metadata()) == []
    assert posts.GetPost(GET).id == 1


def test_stream_is_cut_after_its_messages(scripted, changes):
    """The messages arrive, then UNAVAILABLE."""
    scripted.cut("Watch", batch("t1"), batch("t2"))

    tokens, error = read(changes.Watch(WATCH))

    assert tokens == ["t1", "t2"]
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_hanging_call_ends_at_its_deadline(scripted, posts):
    """Nothing comes, for as long as the caller waits."""
    scripted.hang("GetPost")

    error = failure(lambda: posts.GetPost(GET, timeout=0.1))

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_stream_falls_silent_after_its_messages(scripted, changes):
    """Until the caller cancels."""
    scripted.stall("Watch", batch("t1"))

    tokens, error = read(changes.Watch(WATCH, timeout=0.2))

    assert tokens == ["t1"]
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.timeout(20)
def test_server_with_a_hanging_call_stops():
    with ScriptedServer() as server, grpc.insecure_channel(server.target) as channel:
        server.hang("GetPost")
        call = posts_pb2_grpc.PostServiceStub(channel).GetPost.future(GET)
        server.wait_for_call("GetPost")

        server.__exit__()

        assert call.exception(timeout=scaled_timeout()) is not None


@pytest.mark.parametrize("line", ["cut", "stall"])
def test_only_a_stream_can_be_cut_in_the_middle(scripted, line):
    """The error names the alternative for other methods."""
    with pytest.raises(ValueError, match="GetPost answers with one message; use lose_answer or hang"):
        getattr(scripted, line)("GetPost")


def test_response_of_a_stream_is_cut_not_lost(scripted):
    """A watch has no end that upstream could reach."""
    with pytest.raises(ValueError, match="Watch answers with a stream; use cut"):
        scripted.lose_answer("Watch")


@pytest.mark.parametrize("line", ["cut", "stall"])
def test_after_needs_an_upstream(scripted, line):
    """`after` alone would send nothing."""
    with pytest.raises(ValueError, match="upstream is not set"):
        getattr(scripted, line)("Watch", after=2)


# What was asked


def test_every_call_is_recorded(scripted, posts):
    """Method, request, metadata and deadline, in order of arrival."""
    scripted.answer("GetPost", POST, POST)

    posts.GetPost(GET, metadata=[("x-key", "1"), ("x-key", "2")], timeout=100)
    posts.GetPost(posts_pb2.GetPostRequest(id=2))

    first, second = scripted.calls
    assert (first.method, first.request) == ("GetPost", GET)
    assert [value for key, value in first.metadata if key == "x-key"] == ["1", "2"]
    # gRPC sends three digits, rounded up.
    assert 90 < first.seconds_left <= 101
    assert (second.request.id, second.seconds_left) == (2, None)


def test_api_keys_are_not_in_repr(scripted, posts):
    """A failed assertion prints the calls into logs."""
    scripted.answer("GetPost", POST)
    posts.GetPost(GET, metadata=[("authorization", "Bearer secret")])

    assert "secret" not in repr(scripted.calls)


def test_calls_of_one_method_can_be_selected(scripted, posts):
    """Other calls in between do not matter."""
    scripted.answer("GetPost", POST)
    scripted.answer("ListPosts", storeapi.Page(items=(), next_page_token=""))
    posts.ListPosts(posts_pb2.ListPostsRequest())
    posts.GetPost(GET)

    assert [call.request for call in scripted.calls_of("GetPost")] == [GET]


def test_waiting_for_a_call_returns_it(scripted, posts):
    """At once when the call arrives, also the second of its kind."""
    scripted.hang("GetPost", times=2)
    running = [posts.GetPost.future(posts_pb2.GetPostRequest(id=id)) for id in (1, 2)]

    first, second = scripted.wait_for_call("GetPost"), scripted.wait_for_call("GetPost", count=2)

    assert {first.request.id, second.request.id} == {1, 2}
    assert scripted.calls == (first, second)
    for call in running:
        call.cancel()


def test_waiting_ends_when_the_call_arrives(scripted, posts):
    """A thread that already waits is woken."""
    scripted.answer("GetPost", *[POST] * 50)
    with futures.ThreadPoolExecutor(1) as threads:
        # The last of many calls comes when the other thread has been waiting for long.
        waiting = threads.submit(scripted.wait_for_call, "GetPost", count=50, timeout=scaled_timeout())
        for _ in range(50):
            posts.GetPost(GET)

        assert waiting.result(timeout=scaled_timeout()) == scripted.calls[-1]


def test_failed_wait_lists_the_calls(scripted, posts):
    """The text of a failed test is enough to see what happened."""
    scripted.answer("GetPost", POST)
    posts.GetPost(GET)

    with pytest.raises(TimeoutError, match=r"no call 1 of Watch in 0\.01 seconds; called was GetPost"):
        scripted.wait_for_call("Watch", timeout=0.01)


def test_remaining_script_can_be_queried(scripted, posts):
    """The end of the `with` block never raises for it."""
    scripted.answer("GetPost", POST, POST)
    scripted.fail("CreatePost", storeapi.ShuttingDown())
    scripted.fail("CreatePost", grpc.StatusCode.INTERNAL)
    scripted.hang("ListPosts")
    scripted.cut("Watch", batch("t1"))
    posts.GetPost(GET)

    assert set(scripted.unused) == {
        "GetPost: answer",
        "CreatePost: fail with ShuttingDown",
        "CreatePost: fail with INTERNAL",
        "ListPosts: hang",
        "Watch: cut after 1",
    }


# The server


async def test_scripted_server_works_with_asyncio(scripted):
    """It runs in its own threads and does not block the event loop."""
    scripted.hang("GetPost")
    scripted.answer("GetPost", POST)
    async with grpc.aio.insecure_channel(scripted.target) as channel:
        stub = posts_pb2_grpc.PostServiceStub(channel)
        hanging = asyncio.ensure_future(stub.GetPost(GET))
        await asyncio.to_thread(scripted.wait_for_call, "GetPost")

        answered = await stub.GetPost(GET)

        assert answered.id == 1
        hanging.cancel()


def test_stopped_server_has_no_address():
    server = ScriptedServer()

    with pytest.raises(RuntimeError, match="not running"):
        _ = server.target


def test_server_cannot_be_entered_twice(scripted):
    """The second `with` would stop the server of the first."""
    with pytest.raises(RuntimeError, match="already running"):
        scripted.__enter__()


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [("import storeapi", "storeapi.testing"), ("import storeapi.testing", "pytest")],
)
def test_testing_module_is_not_imported_by_the_client(statement, unwanted):
    """Other test runners need no pytest."""
    code = f"{statement}, sys; sys.exit({unwanted!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=scaled_timeout()).returncode == 0


def test_list_response_needs_a_page():
    """The error explains that a page also has a token."""
    with pytest.raises(TypeError, match=r"ListPosts answers with a storeapi\.Page, such as Page\("):
        ScriptedServer().answer("ListPosts", [storeapi.Post(id=1, body="a")])


@pytest.mark.parametrize("times", [0, -1])
@pytest.mark.parametrize("line", ["fail", "hang", "lose_answer"])
def test_script_line_needs_at_least_one_call(line, times):
    """A script with nothing in it would test nothing."""
    error = [storeapi.ShuttingDown()] if line == "fail" else []
    with pytest.raises(ValueError, match="times must be at least 1"):
        getattr(ScriptedServer(), line)("GetPost", *error, times=times)
