"""Authors, labels, external ids, replies, filters and counts: both clients against a real server."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import storeapi
from storeapi import (
    CommentDraft,
    CommentFilter,
    CommentUpdate,
    PostDraft,
    PostFilter,
    PostUpdate,
    StoreClient,
    comment_tree,
)
from storeapi.testing import RunningServer, running_server


@pytest.fixture(scope="module")
def real() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@pytest.fixture
async def client(make_client: Callable[..., Any], real: RunningServer) -> Any:
    """A client of a server without posts."""
    with StoreClient(real.target) as store:
        for page in store.posts.pages(page_size=1000):
            if page.items:
                store.posts.delete_many([post.id for post in page.items], force=True)
    return make_client(real.target)


async def read(steps: Any) -> list[Any]:
    return [it async for it in steps]


def ids(items: Any) -> list[int]:
    return [it.id for it in items]


async def test_fields_are_stored_and_returned(client: Any) -> None:
    """By a create, a batch and a read."""
    fields: dict[str, Any] = {"author": "ann ü", "labels": {"status": "new", "a/b.c": ""}}
    post = await client.posts.create("a", **fields, external_id="p")
    comment = await client.comments.create(post_id=post.id, body="b", **fields, external_id="c")
    (reply,) = await client.comments.create_many(
        [CommentDraft(post_id=post.id, body="r", reply_to_id=comment.id, **fields)]
    )

    for it in (post, comment, reply):
        assert (it.author, it.labels) == (fields["author"], fields["labels"])
    assert (post.external_id, comment.external_id, reply.external_id) == ("p", "c", "")
    assert [(it.reply_to_id, it.depth) for it in (comment, reply)] == [(0, 0), (comment.id, 1)]
    assert await client.posts.get(external_id="p") == await client.posts.get(post.id) == post
    assert await client.comments.get(external_id="c") == comment
    assert await client.comments.get_many([reply.id], external_ids=["c"]) == (reply, comment)


async def test_get_many_tells_what_is_missing(client: Any) -> None:
    """With allow_missing; otherwise it is an error."""
    post = await client.posts.create("a", external_id="p")

    found = await client.posts.get_many([10**12, post.id], external_ids=["x", "p"], allow_missing=True)
    assert found == (post, post)
    assert (found.missing_ids, found.missing_external_ids) == ((10**12,), ("x",))
    with pytest.raises(storeapi.PostNotFound):
        await client.posts.get_many(external_ids=["x"])
    with pytest.raises(storeapi.PostNotFound):
        await client.posts.get(external_id="x")


async def test_concurrent_creates_with_return_existing_create_one_post(client: Any) -> None:
    """All callers get it. Without return_existing it is an error."""
    created = await asyncio.gather(
        *(client.posts.create(str(n), external_id="p", return_existing=True) for n in range(10))
    )
    (again,) = await client.posts.create_many([PostDraft(body="z", external_id="p", return_existing=True)])

    assert set(created) == {again}
    assert await client.posts.count() == 1
    with pytest.raises(storeapi.StoreError) as raised:
        await client.posts.create("b", external_id="p")
    assert raised.value.reason == "EXTERNAL_ID_TAKEN"
    with pytest.raises(storeapi.FieldInvalid):
        await client.posts.create("b", return_existing=True)


async def test_update_changes_only_what_is_given(client: Any) -> None:
    """Single labels or all of them, and each field."""
    post = await client.posts.create("a", author="ann", labels={"status": "new", "lang": "en"})
    single = await client.posts.update(post.id, set_labels={"status": "hidden"}, remove_labels=["lang", "x"])
    author = await client.posts.update(post.id, author="")
    whole = await client.posts.update(post.id, "b", labels={"other": ""}, etag=author.etag)
    none = await client.posts.update(post.id, labels={})

    seen = [(it.body, it.author, dict(it.labels)) for it in (single, author, whole, none)]
    assert seen == [
        ("a", "ann", {"status": "hidden"}),
        ("a", "", {"status": "hidden"}),
        ("b", "", {"other": ""}),
        ("b", "", {}),
    ]


async def test_concurrent_updates_of_labels_are_all_kept(client: Any) -> None:
    """Of different labels, without etags."""
    post = await client.posts.create("a")
    await asyncio.gather(
        *(client.posts.update(post.id, set_labels={f"label-{n}": str(n)}) for n in range(10))
    )

    assert (await client.posts.get(post.id)).labels == {f"label-{n}": str(n) for n in range(10)}


async def test_update_many_updates_all_or_none(client: Any) -> None:
    """Each with its own fields and etag."""
    first, second = await client.posts.create_many(["a", "b"])
    updated = await client.posts.update_many(
        [
            PostUpdate(id=second.id, body="B", etag=second.etag),
            PostUpdate(id=first.id, set_labels={"status": "new"}),
        ]
    )
    with pytest.raises(storeapi.EtagMismatch):
        await client.posts.update_many(
            [PostUpdate(id=first.id, body="lost"), PostUpdate(id=second.id, body="lost", etag=second.etag)]
        )
    with pytest.raises(storeapi.BatchDuplicate):
        await client.posts.update_many([PostUpdate(id=first.id, body="c")] * 2)
    with pytest.raises(storeapi.CommentNotFound):
        await client.comments.update_many([CommentUpdate(id=10**12, body="c")])

    assert [(it.id, it.body, dict(it.labels)) for it in updated] == [
        (second.id, "B", {}),
        (first.id, "a", {"status": "new"}),
    ]
    assert await client.posts.get_many([second.id, first.id]) == updated


@pytest.fixture
async def thread(client: Any) -> dict[str, storeapi.Comment]:
    """A post with a thread, a post without comments: the comments by their bodies."""
    post, _ = await client.posts.create_many(
        [PostDraft(body="a", author="ann", labels={"status": "new"}), PostDraft(body="b", author="bob")]
    )
    made: dict[str, storeapi.Comment] = {}
    for body, parent, author in (
        ("1", "", "ann"),
        ("2", "", "bob"),
        ("1.1", "1", "bob"),
        ("1.1.1", "1.1", "ann"),
        ("1.2", "1", "ann"),
        ("2.1", "2", "ann"),
    ):
        made[body] = await client.comments.create(
            post_id=post.id,
            body=body,
            author=author,
            labels={"top": "no" if parent else "yes"},
            reply_to_id=made[parent].id if parent else 0,
        )
    return made


async def test_filters_select_in_lists_and_counts(client: Any, thread: dict[str, storeapi.Comment]) -> None:
    """Every condition, alone and together."""
    middle = thread["1.1.1"].create_time
    assert middle is not None
    conditions: list[tuple[dict[str, Any], list[str]]] = [
        ({}, list(thread)),
        ({"author": "bob"}, ["2", "1.1"]),
        ({"labels": {"top": "yes"}}, ["1", "2"]),
        ({"labels": {"top": "yes"}, "author": "bob"}, ["2"]),
        ({"reply_to_id": 0}, ["1", "2"]),
        ({"reply_to_id": thread["1"].id}, ["1.1", "1.2"]),
        ({"create_time_from": middle}, ["1.1.1", "1.2", "2.1"]),
        ({"create_time_before": middle}, ["1", "2", "1.1"]),
        ({"create_time_from": middle, "create_time_before": thread["1.2"].create_time}, ["1.1.1"]),
        ({"create_time_from": datetime.now(UTC) + timedelta(hours=1)}, []),
    ]
    post_id = thread["1"].post_id
    for condition, bodies in conditions:
        filter = CommentFilter(**condition)
        listed = await read(client.comments.list(filter=filter, page_size=1))
        assert [it.body for it in listed] == bodies
        assert await client.comments.count_all(filter) == len(bodies)
        assert await client.comments.count([post_id, 10**12], filter) == {post_id: len(bodies), 10**12: 0}

    posts = await read(client.posts.list(filter=PostFilter(labels={"status": "new"})))
    assert ids(posts) == [post_id]
    assert await client.posts.count(PostFilter(author="bob")) == 1
    assert await client.posts.count() == 2
    assert await client.posts.count(max_count=1) == 1
    first, last = thread["1"].id, thread["2.1"].id
    assert await client.comments.count_replies([first, last]) == {first: 2, last: 0}
    assert await client.comments.count_replies([first], CommentFilter(author="ann")) == {first: 1}
    with pytest.raises(storeapi.FieldInvalid):
        await client.comments.count_replies([first], CommentFilter(reply_to_id=first))
    with pytest.raises(storeapi.FieldInvalid):
        await client.posts.count(PostFilter(create_time_from=middle, create_time_before=middle))


async def test_lists_have_the_orders_of_the_service(client: Any, thread: dict[str, storeapi.Comment]) -> None:
    """Over several pages. An unknown order is an error."""
    post_id = thread["1"].post_id
    for order in ("id", "create_time"):
        assert [it.body for it in await read(client.comments.list(order_by=order, page_size=2))] == [*thread]
        backwards = await read(client.comments.list(order_by=f"{order} desc", page_size=2))
        assert [it.body for it in backwards] == [*thread][::-1]
    with pytest.raises(storeapi.FieldInvalid):
        await read(client.comments.list(order_by="thread"))
    with pytest.raises(storeapi.FieldInvalid):
        await read(client.posts.list(order_by="thread"))
    pages = await read(client.comments.pages(post_id=post_id, order_by="thread desc", page_size=4))
    assert [[it.body for it in page.items] for page in pages] == [["2", "2.1", "1", "1.1"], ["1.1.1", "1.2"]]


async def test_thread_and_tree(client: Any, thread: dict[str, storeapi.Comment]) -> None:
    """The tree of a whole thread, and of a thread with the tombstone of a deleted comment."""
    post_id = thread["1"].post_id
    assert [it.body for it in await read(client.comments.thread(post_id, page_size=2))] == sorted(thread)
    newest = await read(client.comments.thread(post_id, newest_first=True))
    assert [it.body for it in newest] == ["2", "2.1", "1", "1.1", "1.1.1", "1.2"]
    assert [it.body for it in await read(client.comments.thread(post_id, limit=2))] == ["1", "1.1"]
    (one, two) = comment_tree(await read(client.comments.thread(post_id)))
    assert [it.comment.body for it in one.replies] == ["1.1", "1.2"]
    assert [it.comment.body for it in one.replies[0].replies] == ["1.1.1"]
    assert [it.comment.body for it in two.replies] == ["2.1"]

    await client.comments.delete(thread["1.1"].id)
    left = await read(client.comments.thread(post_id))
    assert [it.body for it in left] == ["1", "", "1.1.1", "1.2", "2", "2.1"]
    (one, two) = comment_tree(left)
    assert [it.comment.is_tombstone for it in one.replies] == [True, False]
    assert [it.comment.body for it in one.replies[0].replies] == ["1.1.1"]
    assert [it.comment.body for it in comment_tree(it for it in left if it.body)] == ["1", "1.1.1", "2"]
    with pytest.raises(storeapi.PostNotFound):
        await read(client.comments.thread(10**12))


async def test_watch_filters_match_before_or_after_a_change(client: Any) -> None:
    """Comments are selected by their own filter."""
    token = (await anext(client.posts.pages())).resume_token
    post = await client.posts.create("a", author="ann")
    await client.posts.update(post.id, author="bob")
    await client.posts.update(post.id, body="b")
    top = await client.comments.create(post_id=post.id, body="top")
    await client.comments.create(post_id=post.id, body="reply", reply_to_id=top.id)
    end = await client.posts.create("end", author="ann")

    seen = []
    async with client.changes.watch(
        resume_token=token,
        post_filter=PostFilter(author="ann"),
        comment_filter=CommentFilter(reply_to_id=0),
    ) as watch:
        async for change in watch:
            seen.append((change.action, change.kind, change.id))
            if change.id == end.id and change.kind == "post":
                break
    assert seen == [
        ("create", "post", post.id),
        ("update", "post", post.id),
        ("create", "comment", top.id),
        ("create", "post", end.id),
    ]
