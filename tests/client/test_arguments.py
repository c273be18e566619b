"""Arguments of calls: their interpretation, and the errors that name them."""

import pickle
import uuid
from dataclasses import replace
from datetime import datetime

import pytest
import storeapi
from storeapi import CommentDraft, CommentFilter, CommentUpdate, PostDraft, PostFilter, PostUpdate, _batches
from storeapi.testing import ScriptedServer
from storeapi.v1 import comments_pb2, posts_pb2

POST = posts_pb2.Post(id=1, body="a", etag="e")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda c: c.posts.create(body=5), TypeError, "body must be a str, not 5"),
        (
            lambda c: c.posts.update(1, body=None),
            TypeError,
            "update requires at least one field that is not None",
        ),
        (lambda c: c.comments.create(post_id=1, body=5), TypeError, "body must be a str, not 5"),
        (lambda c: c.comments.create(post_id="1", body="a"), TypeError, "post_id must be an integer"),
        (lambda c: c.comments.update(1, body=5), TypeError, "body must be a str, not 5"),
        (lambda c: c.posts.create(body="a", request_id=5), TypeError, "request_id must be a str"),
        (lambda c: c.posts.create("a", author=5), TypeError, "author must be a str, not 5"),
        (lambda c: c.posts.create("a", labels=["b"]), TypeError, "labels must be a mapping, such as a dict"),
        (lambda c: c.posts.create("a", labels={"b": 5}), TypeError, "each value of labels must be a str"),
        (lambda c: c.posts.create("a", labels={5: "b"}), TypeError, "each key of labels must be a str"),
        (lambda c: c.posts.create("a", external_id=5), TypeError, "external_id must be a str, not 5"),
        (
            lambda c: c.comments.create(post_id=1, body="a", reply_to_id="2"),
            TypeError,
            "reply_to_id must be an integer",
        ),
        (lambda c: c.posts.update(1), TypeError, "update requires at least one field that is not None"),
        (
            lambda c: c.posts.update(1, set_labels={}, remove_labels=[]),
            TypeError,
            "update requires at least one field",
        ),
        (lambda c: c.posts.update(1, set_labels="a"), TypeError, "set_labels must be a mapping"),
        (lambda c: c.posts.update(1, remove_labels="a"), TypeError, "remove_labels must be an iterable of"),
        (lambda c: c.posts.update(1, remove_labels=[5]), TypeError, "each of remove_labels must be a str"),
        (
            lambda c: c.posts.update(1, labels={}, set_labels={"a": "b"}),
            ValueError,
            "labels replaces all labels, and excludes set_labels and remove_labels",
        ),
        (
            lambda c: c.posts.update(1, set_labels={"a": "b"}, remove_labels=["a"]),
            ValueError,
            "the label 'a' is in set_labels and in remove_labels",
        ),
        (
            lambda c: c.posts.update_many([CommentUpdate(id=1, body="a")]),
            TypeError,
            "each of updates must be a PostUpdate, not CommentUpdate",
        ),
        (lambda c: c.posts.update_many("a"), TypeError, "each of updates must be a PostUpdate, not 'a'"),
        (lambda c: c.posts.update_many([PostUpdate(id=1)]), TypeError, "update requires at least one field"),
        (lambda c: c.posts.get(), TypeError, "get requires either an id or an external_id"),
        (lambda c: c.posts.get(1, external_id="a"), TypeError, "get requires either an id or an external_id"),
        (lambda c: c.posts.get(external_id=5), TypeError, "external_id must be a str, not 5"),
        (lambda c: c.posts.get_many(external_ids="a"), TypeError, "external_ids must be an iterable of"),
        (lambda c: c.posts.get_many(external_ids=[5]), TypeError, "each of external_ids must be a str"),
        (lambda c: c.comments.count_replies(["1"]), TypeError, "each of comment_ids must be an integer"),
        (lambda c: c.posts.count({}), TypeError, "filter must be a PostFilter or None, not {}"),
        (lambda c: c.posts.count(CommentFilter()), TypeError, "filter must be a PostFilter or None"),
        (lambda c: c.posts.count(PostFilter(author=5)), TypeError, "author must be a str"),
        (lambda c: c.posts.count(PostFilter(labels="a")), TypeError, "labels must be a mapping"),
        (
            lambda c: c.posts.count(PostFilter(create_time_from="2026")),
            TypeError,
            "create_time_from must be a datetime",
        ),
        (
            lambda c: c.posts.count(PostFilter(create_time_before=datetime(2026, 1, 1))),
            ValueError,
            "create_time_before must have a time zone",
        ),
        (
            lambda c: c.comments.count_all(CommentFilter(reply_to_id="1")),
            TypeError,
            "reply_to_id must be an integer",
        ),
        (lambda c: c.posts.get("1"), TypeError, "id must be an integer, not '1'"),
        (lambda c: c.posts.get(2**63), ValueError, "id must be below"),
        (lambda c: c.posts.delete("1"), TypeError, "id must be an integer"),
        (lambda c: c.comments.get("1"), TypeError, "id must be an integer"),
        (lambda c: c.comments.delete(2**63), ValueError, "id must be below"),
        (lambda c: c.posts.get_many(["1"]), TypeError, "each of ids must be an integer"),
        (lambda c: c.comments.count(["1"]), TypeError, "each of post_ids must be an integer"),
        (
            lambda c: c.posts.create_many(["a", 5]),
            TypeError,
            "each of drafts must be a PostDraft or str, not 5",
        ),
        (lambda c: c.posts.create_many("ab"), TypeError, "drafts must be an iterable of several"),
        (lambda c: c.posts.create_many([PostDraft(body=5)]), TypeError, "body of a draft must be a str"),
        (
            lambda c: c.posts.create_many([PostDraft(body="a", labels={"b": 5})]),
            TypeError,
            "each value of labels of a draft must be a str",
        ),
        (lambda c: c.comments.create_many("ab"), TypeError, "drafts must be an iterable of several"),
        (
            lambda c: c.comments.create_many(["a"]),
            TypeError,
            "each of drafts must be a CommentDraft, not 'a'",
        ),
        (
            lambda c: c.comments.create_many([{"body": "a"}]),
            TypeError,
            "each of drafts must be a CommentDraft",
        ),
        (lambda c: c.comments.create_many([(1, "a")]), TypeError, "each of drafts must be a CommentDraft"),
    ],
)
async def test_wrong_argument_is_named(client, server, call, error, words):
    """Before anything is sent."""
    with pytest.raises(error, match=f"^{words}"):
        await call(client)

    assert server.calls == []


@pytest.mark.parametrize("heartbeat", [float("inf"), float("nan"), None, "5", 1e300], ids=str)
def test_heartbeat_that_is_not_a_number_is_named(server, heartbeat):
    """When the watch is created."""
    with (
        storeapi.StoreClient(server.target) as client,
        pytest.raises(ValueError, match=r"^heartbeat_seconds"),
    ):
        client.changes.watch(heartbeat_seconds=heartbeat)


@pytest.mark.parametrize("method", ["list", "pages"])
async def test_wrong_filter_of_a_list_is_named_at_once(client, server, method):
    """Where the mistake is made."""
    for collection in (client.posts, client.comments):
        with pytest.raises(TypeError, match=r"^filter must be a "):
            getattr(collection, method)(filter="author=ann")
    with pytest.raises(TypeError, match=r"^post_id must be an integer"):
        client.comments.thread(None)
    assert server.calls == []


@pytest.mark.parametrize("post_id", [0, -1])
async def test_only_none_selects_the_comments_of_all_posts(client, server, post_id):
    """0 is an ordinary id of a post that does not exist."""
    server.answer(comments_pb2.ListCommentsResponse())

    for method in (client.comments.list, client.comments.pages):
        with pytest.raises(ValueError, match=r"^post_id must be positive, or None"):
            await anext(method(post_id=post_id))
    assert [comment async for comment in client.comments.list(post_id=None)] == []
    assert server.requests == [comments_pb2.ListCommentsRequest(order_by="id")]


async def test_request_id_may_be_a_uuid_object(client, server):
    """As created by uuid.uuid4()."""
    id = uuid.uuid4()
    server.answer(POST, posts_pb2.BatchCreatePostsResponse(posts=[POST]))

    await client.posts.create(body="a", request_id=id)
    await client.posts.create_many(["a"], request_id=id)

    assert [it.request_id for it in server.requests] == [str(id)] * 2


async def test_change_function_may_be_a_coroutine(async_client, server):
    """With asyncio, for a text that needs I/O."""

    async def change(post):
        return post.body + "!"

    server.answer(POST, posts_pb2.Post(id=1, body="a!"))

    assert (await async_client.posts.modify(1, change)).body == "a!"
    assert server.requests[1].post.body == "a!"


def test_sync_client_refuses_a_coroutine_function(server):
    """Nothing is written."""

    async def change(post):
        return post.body

    server.answer(POST)
    with storeapi.StoreClient(server.target) as client, pytest.raises(TypeError, match="AsyncStoreClient"):
        client.posts.modify(1, change)
    assert server.methods == ["GetPost"]


async def test_modify_rejects_another_type(client, server):
    """Such as an argument list, before anything is written."""
    server.answer(POST)

    with pytest.raises(TypeError, match=r"^change must return a str, a Post or None, not \['a'\]"):
        await client.posts.modify(1, lambda post: [post.body])


async def test_modify_sends_the_fields_that_a_copy_changes(client, server):
    """The copy may change every field that can be updated, and only those are in the mask."""
    server.answer(POST, posts_pb2.Post(id=1, body="b"), POST)

    assert (await client.posts.modify(1, lambda post: replace(post, body="b"))).body == "b"
    assert (await client.posts.modify(1, replace)).body == "a"

    assert server.methods == ["GetPost", "UpdatePost", "GetPost"]
    sent = server.requests[1]
    assert (sent.post.body, list(sent.update_mask.paths)) == ("b", ["body"])


async def test_modify_can_change_every_field_that_update_can(client, server):
    """Labels as a whole, which is safe because of the etag."""
    server.answer(posts_pb2.Post(id=1, body="a", etag="e", labels={"a": "b", "c": "d"}), POST)

    await client.posts.modify(1, lambda post: replace(post, author="ann", labels={**post.labels, "a": "new"}))

    sent = server.requests[1]
    assert list(sent.update_mask.paths) == ["author", "labels"]
    assert sent.post == posts_pb2.Post(id=1, author="ann", etag="e", labels={"a": "new", "c": "d"})


@pytest.mark.parametrize("name", ["external_id", "reply_to_id", "depth"])
async def test_modify_rejects_another_value_of_a_field_that_never_changes(client, server, name):
    server.answer(comments_pb2.Comment(id=1, post_id=1, body="a"))

    with pytest.raises(ValueError, match=f"^change must not change {name}"):
        await client.comments.modify(
            1, lambda comment: replace(comment, **{name: "x" if name == "external_id" else 5})
        )
    assert server.methods == ["GetComment"]


async def test_modify_rejects_a_copy_with_another_post_id(client, server):
    """A field that cannot be updated is named, and nothing is written."""
    server.answer(comments_pb2.Comment(id=1, post_id=1, body="a"))

    with pytest.raises(ValueError, match=r"^change must not change post_id"):
        await client.comments.modify(1, lambda comment: replace(comment, post_id=2))
    assert server.methods == ["GetComment"]


async def test_create_many_accepts_drafts_and_texts(client, server):
    """A str is a post with this body."""
    server.answer(posts_pb2.BatchCreatePostsResponse(posts=[POST, POST]))

    await client.posts.create_many([PostDraft(body="a"), "b"])

    assert [it.post for it in server.requests[0].requests] == [posts_pb2.Post(body=it) for it in "ab"]


async def test_empty_list_makes_no_call(client, server):
    """It needs no server."""
    assert await client.posts.get_many([]) == ()
    assert await client.posts.create_many([]) == ()
    assert await client.comments.get_many([]) == ()
    assert await client.comments.create_many([]) == ()
    assert await client.comments.count([]) == {}
    assert server.calls == []


# A server that takes less at once than others


def too_large(max_count):
    return storeapi.BatchTooLarge(metadata={"count": "5", "max_count": str(max_count)})


async def test_refused_batch_is_split(make_client):
    """Later batches are small at once; a repeated batch is split at the same places."""
    bodies, first_id = list("abcde"), str(uuid.uuid4())
    with ScriptedServer() as server:
        client = make_client(server.target)
        server.fail("BatchCreatePosts", too_large(2))
        for _ in range(2):
            for some in ("ab", "cd", "e"):
                server.answer("BatchCreatePosts", [storeapi.Post(id=1, body=it) for it in some])

        created = await client.posts.create_many(bodies, request_id=first_id)
        again = await client.posts.create_many(bodies, request_id=first_id)

        _, *calls = [call.request for call in server.calls]
    assert [post.body for post in created] == [post.body for post in again] == bodies
    assert calls[:3] == calls[3:]
    assert [len(call.requests) for call in calls] == [2, 2, 1] * 2
    assert len({call.request_id for call in calls}) == 3
    assert calls[0].request_id == first_id


async def test_every_splittable_batch_is_split(make_client):
    """Including reads."""
    with ScriptedServer() as server:
        for method in (
            "BatchGetPosts",
            "BatchGetComments",
            "BatchCreateComments",
            "CountComments",
            "CountReplies",
        ):
            server.fail(method, too_large(2))
        post = storeapi.Post(id=1, body="a")
        comment = storeapi.Comment(id=1, post_id=1, body="a")
        for some in (2, 1):
            server.answer("BatchGetPosts", [post] * some)
            server.answer("BatchGetComments", [comment] * some)
            server.answer("BatchCreateComments", [comment] * some)
        server.answer("CountComments", {1: 4, 2: 5}, {3: 6})
        server.answer("CountReplies", {1: 4, 2: 5}, {3: 6})

        drafts = [CommentDraft(post_id=1, body="a")] * 3
        assert len(await make_client(server.target).posts.get_many([1, 2, 3])) == 3
        assert len(await make_client(server.target).comments.get_many([1, 2, 3])) == 3
        assert len(await make_client(server.target).comments.create_many(drafts)) == 3
        assert await make_client(server.target).comments.count([1, 2, 3]) == {1: 4, 2: 5, 3: 6}
        assert await make_client(server.target).comments.count_replies([1, 2, 3]) == {1: 4, 2: 5, 3: 6}
        assert not server.unused


async def test_resource_exhausted_without_limit_is_not_retried(make_client):
    """The error reaches the caller."""
    with ScriptedServer() as server:
        server.fail("BatchGetPosts", storeapi.BatchTooLarge())
        with pytest.raises(storeapi.BatchTooLarge):
            await make_client(server.target).posts.get_many([1, 2, 3])


# Errors in a batch that is sent in several calls


def invalid(field):
    return storeapi.FieldInvalid(
        f"{field}: must not be empty",
        violations=[storeapi.FieldViolation(field=field, description="must not be empty")],
    )


@pytest.mark.parametrize(
    ("method", "place", "named", "call"),
    [
        (
            "BatchCreatePosts",
            "requests[0].post.body",
            "requests[2].post.body",
            lambda it: it.posts.create_many(list("abc")),
        ),
        (
            "BatchCreateComments",
            "requests[0].comment.body",
            "requests[2].comment.body",
            lambda it: it.comments.create_many([CommentDraft(post_id=1, body="a")] * 3),
        ),
        ("BatchGetPosts", "ids[0]", "ids[2]", lambda it: it.posts.get_many([1, 2, 3])),
        ("BatchGetComments", "ids[0]", "ids[2]", lambda it: it.comments.get_many([1, 2, 3])),
        (
            "BatchGetPosts",
            "external_ids[0]",
            "external_ids[2]",
            lambda it: it.posts.get_many(external_ids=["a", "b", "c"]),
        ),
        ("CountComments", "post_ids[0]", "post_ids[2]", lambda it: it.comments.count([1, 2, 3])),
        (
            "CountReplies",
            "comment_ids[0]",
            "comment_ids[2]",
            lambda it: it.comments.count_replies([1, 2, 3]),
        ),
    ],
)
async def test_error_indexes_refer_to_the_whole_batch(make_client, method, place, named, call):
    """The caller does not know about the parts."""
    with ScriptedServer() as server:
        server.fail(method, too_large(2))
        if method.startswith("Count"):
            server.answer(method, {1: 1, 2: 1})
        else:
            comment = storeapi.Comment(id=1, post_id=1, body="a")
            server.answer(method, [storeapi.Post(id=1, body="a") if "Post" in method else comment] * 2)
        server.fail(method, invalid(place))

        with pytest.raises(storeapi.FieldInvalid) as raised:
            await call(make_client(server.target))

    error = pickle.loads(pickle.dumps(raised.value))
    assert error.fields == {named: "must not be empty"}
    assert str(error) == str(raised.value) == f"{named}: must not be empty"


async def test_corrected_text_keeps_the_preceding_parts(make_client):
    """The whole batch can be repeated with its request id; the first text that is too large ends no
    part.
    """
    large, first_id = "x" * (_batches.FULL_BYTES // 8), str(uuid.uuid4())
    with ScriptedServer() as server:
        for some in (2, 1) * 2:
            server.answer("BatchCreatePosts", [storeapi.Post(id=1, body="a")] * some)
        for third in (large, "a"):
            await make_client(server.target).posts.create_many([large, large, third], request_id=first_id)
        calls = [call.request for call in server.calls]

    assert [len(call.requests) for call in calls] == [2, 1] * 2
    assert calls[0] == calls[2]


async def test_labels_count_for_the_size_of_a_call(make_client):
    """Many labels can be larger than the texts."""
    labels = {f"key-{n}": "x" * 256 for n in range(64)}
    drafts = [PostDraft(body="a", labels=labels)] * 100
    with ScriptedServer() as server:
        for _ in range(4):
            server.answer("BatchCreatePosts", [storeapi.Post(id=1, body="a")])
        await make_client(server.target).posts.create_many(drafts)
        calls = [call.request for call in server.calls]

    assert sum(len(call.requests) for call in calls) == 100
    assert len(calls) == 4
    assert max(call.ByteSize() for call in calls) < _batches.FULL_BYTES
