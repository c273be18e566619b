"""storeapi.testing.ScriptedServer: each call gets what the script says, as from the service."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
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

from tests.patience import patience

TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
POST = storeapi.Post(id=1, body="a", create_time=TIME, update_time=TIME, etag="e1")
COMMENT = storeapi.Comment(id=2, body="b", post_id=1, create_time=TIME, update_time=TIME, etag="e2")
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
    """What came of a watch, and how it ended."""
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
def test_a_typed_failure_arrives_as_an_equal_error(scripted, posts, kind):
    """Whatever class of the tree is scripted, the client makes the same of it, with all that it says."""
    error = kind("it went wrong: ü%", metadata={"post_id": "7"}, call_id="c-1", retry_after=0.123456789)
    if isinstance(error, storeapi.InvalidRequest):
        error.violations = (storeapi.FieldViolation(field="post.body", description="must not be empty"),)
    scripted.fail("GetPost", error)

    raised = store_error(failure(lambda: posts.GetPost(GET)))

    assert what_it_says(raised) == what_it_says(error)


@pytest.mark.parametrize("error", [storeapi.Unavailable(), storeapi.NotFound(metadata={"key": "value"})])
def test_a_failure_says_no_more_than_it_was_given(scripted, posts, error):
    """What was left out is missing at the caller too."""
    scripted.fail("GetPost", error)

    raised = store_error(failure(lambda: posts.GetPost(GET)))

    assert what_it_says(raised) == what_it_says(error)


def test_a_bare_status_has_no_details(scripted, posts):
    """As gRPC itself and proxies fail: a code, and nothing for programs."""
    scripted.fail("GetPost", grpc.StatusCode.UNAVAILABLE)

    error = failure(lambda: posts.GetPost(GET))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert list(error.trailing_metadata()) == []


def test_a_failure_happens_as_often_as_it_was_asked_for(scripted, posts):
    """`times=2` is two calls, and the third one goes on in the script."""
    scripted.fail("GetPost", storeapi.DatabaseBusy(), times=2)
    scripted.answer("GetPost", POST)

    codes = [failure(lambda: posts.GetPost(GET)).code() for _ in range(2)]

    assert codes == [grpc.StatusCode.UNAVAILABLE] * 2
    assert posts.GetPost(GET).id == 1


def test_a_stream_fails_too(scripted, changes):
    """A watch that is refused gets no message and the error."""
    scripted.fail("Watch", storeapi.ResumeTokenExpired(metadata={"earliest_resume_token": "t0"}))

    tokens, error = read(changes.Watch(WATCH))

    assert tokens == []
    assert store_error(error).earliest_resume_token == "t0"


@pytest.mark.parametrize("error", [grpc.StatusCode.OK, storeapi.StoreError(code=grpc.StatusCode.OK)])
def test_ok_is_no_failure(scripted, error):
    """A slip in the script is told where it is made."""
    with pytest.raises(ValueError, match="OK is not a failure"):
        scripted.fail("GetPost", error)


def test_a_class_is_no_failure(scripted):
    """An error is an object, for it has a message and metadata."""
    with pytest.raises(TypeError, match=r"such as storeapi\.PostNotFound\(\)"):
        scripted.fail("GetPost", storeapi.PostNotFound)


# Answers


def test_values_of_the_client_are_answers(scripted, posts, comments):
    """What the client's method returns can be scripted as it is, and times keep their microseconds."""
    scripted.answer("GetPost", POST)
    scripted.answer("GetComment", COMMENT)
    scripted.answer("ListPosts", storeapi.Page(items=(POST,), next_page_token="n", resume_token="r"))
    scripted.answer("BatchCreateComments", [COMMENT])
    scripted.answer("CountComments", {1: 3})
    post = posts_pb2.Post(id=1, body="a", etag="e1")
    post.create_time.FromDatetime(TIME)
    post.update_time.FromDatetime(TIME)
    comment = comments_pb2.Comment(id=2, body="b", post_id=1, etag="e2")
    comment.create_time.FromDatetime(TIME)
    comment.update_time.FromDatetime(TIME)

    assert posts.GetPost(GET) == post
    assert comments.GetComment(comments_pb2.GetCommentRequest(id=2)) == comment
    assert posts.ListPosts(posts_pb2.ListPostsRequest()) == posts_pb2.ListPostsResponse(
        posts=[post], next_page_token="n", resume_token="r"
    )
    created = comments.BatchCreateComments(comments_pb2.BatchCreateCommentsRequest())
    assert list(created.comments) == [comment]
    assert comments.CountComments(comments_pb2.CountCommentsRequest()).counts == {1: 3}


@pytest.mark.parametrize(
    "value",
    [
        storeapi.Change(
            action="create", kind="post", id=1, post_id=1, commit_time=TIME, resource=POST, request_id="r"
        ),
        storeapi.Change(action="delete", kind="comment", id=2, post_id=1, commit_time=TIME, resource=COMMENT),
        storeapi.Change(action="unknown", kind="unknown", id=3, post_id=1, commit_time=None, resource=None),
    ],
    ids=lambda value: value.action,
)
def test_batches_of_changes_are_answers(scripted, changes, value):
    """A watch hands over what was scripted."""
    sent = storeapi.ChangeBatch(
        changes=(value,), resume_token="t1", initial_state_complete=True, heartbeat=True, partial=True
    )
    scripted.answer("Watch", sent)

    (response,) = changes.Watch(WATCH)

    assert change_batch(response) == sent


def test_unset_times_stay_unset(scripted, posts):
    """A post from before times were kept has none."""
    scripted.answer("GetPost", storeapi.Post(id=1, body="a"))

    assert posts.GetPost(GET) == posts_pb2.Post(id=1, body="a")


def test_messages_are_answers(scripted, posts):
    """Whatever the contract has can be answered."""
    message = posts_pb2.BatchGetPostsResponse(missing_ids=[9])
    scripted.answer("BatchGetPosts", message)

    assert posts.BatchGetPosts(posts_pb2.BatchGetPostsRequest()) == message


def test_each_call_gets_the_next_answer_and_a_watch_gets_all(scripted, posts, changes):
    """Several answers are several calls; for a stream they are one call."""
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
        ("CountComments", 3),
        ("Watch", POST),
    ],
)
def test_an_answer_of_the_wrong_kind_is_refused(scripted, method, reply):
    """A script that no service could follow fails where it is written, naming the method."""
    with pytest.raises(TypeError, match=f"{method} answers with a "):
        scripted.answer(method, reply)


def test_scripts_are_kept_apart_by_method(scripted, posts, comments):
    """The order of calls to different methods does not matter."""
    scripted.answer("GetPost", POST)
    scripted.fail("GetComment", storeapi.CommentNotFound())

    error = failure(lambda: comments.GetComment(comments_pb2.GetCommentRequest(id=2)))

    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert posts.GetPost(GET).id == 1


def test_a_call_that_is_not_scripted_says_so(scripted, posts):
    """Whoever forgot a line reads which one."""
    error = failure(lambda: posts.GetPost(GET))

    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "GetPost was called, but nothing is scripted for it" in error.details()


@pytest.mark.parametrize(
    "write", ["answer", "hang", "lose_answer", "cut", "stall", "calls_of", "wait_for_call"]
)
def test_a_method_that_there_is_not_is_refused(scripted, write):
    """A misspelt name would never be called, and the test would wonder."""
    with pytest.raises(ValueError, match=r"no method 'CreatPost'; there are .*CreatePost"):
        getattr(scripted, write)("CreatPost")


# Lost connections and silence


def test_a_lost_answer_looks_like_a_lost_connection(scripted, posts):
    """The caller cannot know whether it was done; the next try gets the next line."""
    scripted.lose_answer("GetPost")
    scripted.answer("GetPost", POST)

    error = failure(lambda: posts.GetPost(GET))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert list(error.trailing_metadata()) == []
    assert posts.GetPost(GET).id == 1


def test_a_stream_is_cut_behind_its_messages(scripted, changes):
    """What was sent arrives, and then UNAVAILABLE."""
    scripted.cut("Watch", batch("t1"), batch("t2"))

    tokens, error = read(changes.Watch(WATCH))

    assert tokens == ["t1", "t2"]
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_a_call_that_hangs_ends_with_the_callers_deadline(scripted, posts):
    """Nothing comes, for as long as the caller waits."""
    scripted.hang("GetPost")

    error = failure(lambda: posts.GetPost(GET, timeout=0.1))

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_stream_falls_silent_without_an_end(scripted, changes):
    """What was sent arrives, and then nothing, until the caller goes."""
    scripted.stall("Watch", batch("t1"))

    tokens, error = read(changes.Watch(WATCH, timeout=0.2))

    assert tokens == ["t1"]
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.timeout(20)
def test_a_server_with_a_hanging_call_stops():
    """The end of the test is not held up by what the script holds up."""
    with ScriptedServer() as server, grpc.insecure_channel(server.target) as channel:
        server.hang("GetPost")
        call = posts_pb2_grpc.PostServiceStub(channel).GetPost.future(GET)
        server.wait_for_call("GetPost")

        server.__exit__()

        assert call.exception(timeout=patience()) is not None


@pytest.mark.parametrize("line", ["cut", "stall"])
def test_only_a_stream_has_a_midst(scripted, line):
    """The other way for other methods is named."""
    with pytest.raises(ValueError, match="GetPost answers with one message; use lose_answer or hang"):
        getattr(scripted, line)("GetPost")


def test_the_answer_of_a_stream_is_not_lost_but_cut(scripted):
    """A watch never comes to its end, so upstream could not do it first."""
    with pytest.raises(ValueError, match="Watch answers with a stream; use cut"):
        scripted.lose_answer("Watch")


@pytest.mark.parametrize("line", ["cut", "stall"])
def test_without_upstream_there_is_nothing_to_count(scripted, line):
    """`after` alone would send nothing."""
    with pytest.raises(ValueError, match="no upstream whose messages"):
        getattr(scripted, line)("Watch", after=2)


# What was asked


def test_every_call_is_kept_as_it_came(scripted, posts):
    """Method, request, metadata and deadline, in the order of arrival."""
    scripted.answer("GetPost", POST, POST)

    posts.GetPost(GET, metadata=[("x-key", "1"), ("x-key", "2")], timeout=100)
    posts.GetPost(posts_pb2.GetPostRequest(id=2))

    first, second = scripted.calls
    assert (first.method, first.request) == ("GetPost", GET)
    assert [value for key, value in first.metadata if key == "x-key"] == ["1", "2"]
    # gRPC sends three digits, rounded up.
    assert 90 < first.seconds_left <= 101
    assert (second.request.id, second.seconds_left) == (2, None)


def test_keys_do_not_show(scripted, posts):
    """A failing assertion prints the calls, into logs that many can read."""
    scripted.answer("GetPost", POST)
    posts.GetPost(GET, metadata=[("authorization", "Bearer secret")])

    assert "secret" not in repr(scripted.calls)


def test_calls_of_one_method_can_be_looked_at_alone(scripted, posts):
    """Other calls in between do not matter."""
    scripted.answer("GetPost", POST)
    scripted.answer("ListPosts", storeapi.Page(items=(), next_page_token=""))
    posts.ListPosts(posts_pb2.ListPostsRequest())
    posts.GetPost(GET)

    assert [call.request for call in scripted.calls_of("GetPost")] == [GET]


def test_waiting_for_a_call_returns_it(scripted, posts):
    """A test goes on as soon as the call is there, also the second of its kind."""
    scripted.hang("GetPost", times=2)
    running = [posts.GetPost.future(posts_pb2.GetPostRequest(id=id)) for id in (1, 2)]

    first, second = scripted.wait_for_call("GetPost"), scripted.wait_for_call("GetPost", count=2)

    assert {first.request.id, second.request.id} == {1, 2}
    assert scripted.calls == (first, second)
    for call in running:
        call.cancel()


def test_waiting_ends_with_the_call(scripted, posts):
    """Who waits already is woken, and does not find out when the time is over."""
    scripted.answer("GetPost", *[POST] * 50)
    with futures.ThreadPoolExecutor(1) as threads:
        # The last of many calls comes when the other thread has been waiting for long.
        waiting = threads.submit(scripted.wait_for_call, "GetPost", count=50, timeout=patience())
        for _ in range(50):
            posts.GetPost(GET)

        assert waiting.result(timeout=patience()) == scripted.calls[-1]


def test_waiting_in_vain_says_what_was_called(scripted, posts):
    """The text of a failed test is enough to see what happened."""
    scripted.answer("GetPost", POST)
    posts.GetPost(GET)

    with pytest.raises(TimeoutError, match=r"no call 1 of Watch in 0\.01 seconds; called was GetPost"):
        scripted.wait_for_call("Watch", timeout=0.01)


def test_what_is_left_of_the_script_can_be_asked(scripted, posts):
    """A test that wants to know whether everything happened asks; the end of `with` never raises."""
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


async def test_asyncio_can_use_it(scripted):
    """It runs in threads of its own, so the event loop is not in its way, nor it in the loop's."""
    scripted.hang("GetPost")
    scripted.answer("GetPost", POST)
    async with grpc.aio.insecure_channel(scripted.target) as channel:
        stub = posts_pb2_grpc.PostServiceStub(channel)
        hanging = asyncio.ensure_future(stub.GetPost(GET))
        await asyncio.to_thread(scripted.wait_for_call, "GetPost")

        answered = await stub.GetPost(GET)

        assert answered.id == 1
        hanging.cancel()


def test_a_server_that_does_not_run_has_no_address():
    """A client of an address that nobody serves would only say that it is unavailable."""
    server = ScriptedServer()

    with pytest.raises(RuntimeError, match="not running"):
        _ = server.target


def test_a_server_runs_once_at_a_time(scripted):
    """The second `with` would end the server of the first."""
    with pytest.raises(RuntimeError, match="already running"):
        scripted.__enter__()


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [("import storeapi", "storeapi.testing"), ("import storeapi.testing", "pytest")],
)
def test_tests_cost_nothing_who_does_not_test(statement, unwanted):
    """A program does not load what is for tests, and other test runners need no pytest."""
    code = f"{statement}, sys; sys.exit({unwanted!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=patience()).returncode == 0


def test_a_list_without_its_page_is_told_of_it():
    """A page is what a list answers with, and has a token too."""
    with pytest.raises(TypeError, match=r"ListPosts answers with a storeapi\.Page, such as Page\("):
        ScriptedServer().answer("ListPosts", [storeapi.Post(id=1, body="a")])


@pytest.mark.parametrize("times", [0, -1])
@pytest.mark.parametrize("line", ["fail", "hang", "lose_answer"])
def test_a_line_of_the_script_is_for_one_call_at_least(line, times):
    """A script with nothing in it would test nothing."""
    error = [storeapi.ShuttingDown()] if line == "fail" else []
    with pytest.raises(ValueError, match="times must be at least 1"):
        getattr(ScriptedServer(), line)("GetPost", *error, times=times)
