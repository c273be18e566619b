"""Deleted posts and comments, tombstones and former versions: both clients against a real server."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import storeapi
from storeapi import CommentFilter, PostFilter, comment_tree
from storeapi.testing import RunningServer, ScriptedServer, running_server


@pytest.fixture(scope="module")
def real() -> Iterator[RunningServer]:
    """A server that keeps deleted posts and comments."""
    with running_server({"STORE_UNDELETE_HOURS": "24", "STORE_REVISIONS": "5"}) as server:
        yield server


@pytest.fixture
async def client(make_client: Callable[..., Any], real: RunningServer) -> Any:
    return make_client(real.target)


async def read(steps: Any) -> list[Any]:
    return [it async for it in steps]


@pytest.fixture(params=["post", "comment"])
async def created(request: pytest.FixtureRequest, client: Any) -> tuple[Any, Any]:
    """A collection, and a resource in it."""
    post = await client.posts.create("a", author="ann", labels={"k": "v"})
    if request.param == "post":
        return client.posts, post
    comment = await client.comments.create(post_id=post.id, body="a", author="ann", labels={"k": "v"})
    return client.comments, comment


async def test_deleted_resource_is_shown_and_restored(created: tuple[Any, Any]) -> None:
    """With its id and content. The etag is a new one."""
    collection, resource = created
    deleted = await collection.delete(resource.id)
    assert deleted.is_deleted
    assert deleted.delete_time < deleted.purge_time
    with pytest.raises(storeapi.NotFound):
        await collection.get(resource.id)
    assert await collection.get(resource.id, show_deleted=True) == deleted
    assert await collection.get_many([resource.id], show_deleted=True) == (deleted,)
    assert (await collection.get_many([resource.id], allow_missing=True)).missing_ids == (resource.id,)

    checked = await collection.undelete(resource.id, validate_only=True)
    restored = await collection.undelete(resource.id)

    assert (checked.id, checked.etag) == (resource.id, "")
    assert not restored.is_deleted
    assert (restored.id, restored.body, restored.author, restored.labels) == (
        resource.id,
        resource.body,
        resource.author,
        resource.labels,
    )
    assert restored.etag != resource.etag
    assert await collection.get(resource.id) == restored
    with pytest.raises(storeapi.NotDeleted):
        await collection.undelete(resource.id)


async def test_lists_and_counts_show_deleted_resources_on_request(client: Any) -> None:
    """Also those of comments."""
    author = uuid.uuid4().hex
    post = await client.posts.create("a", author=author)
    comments = [await client.comments.create(post_id=post.id, body=body) for body in "xy"]
    await client.comments.delete(comments[0].id)
    every = CommentFilter(show_deleted=True)

    assert [it.body for it in await read(client.comments.list(post_id=post.id))] == ["y"]
    assert [it.body for it in await read(client.comments.list(post_id=post.id, filter=every))] == ["x", "y"]
    assert await client.comments.count([post.id]) == {post.id: 1}
    assert await client.comments.count([post.id], every) == {post.id: 2}
    await client.posts.delete(post.id, force=True)
    shown = PostFilter(author=author, show_deleted=True)
    assert await read(client.posts.list(filter=PostFilter(author=author))) == []
    assert [it.id for it in await read(client.posts.list(filter=shown))] == [post.id]
    assert await client.posts.count(shown) == 1


async def test_deleted_comment_with_replies_is_a_tombstone(client: Any) -> None:
    """It is a node of the tree, without content. It vanishes with its last reply."""
    post = await client.posts.create("a")
    top = await client.comments.create(
        post_id=post.id, body="top", author="ann", external_id=uuid.uuid4().hex
    )
    reply = await client.comments.create(post_id=post.id, body="reply", reply_to_id=top.id)
    await client.comments.delete(top.id)

    (node,) = comment_tree(await read(client.comments.thread(post.id)))
    tombstone = node.comment
    assert tombstone.is_tombstone
    assert (tombstone.id, tombstone.body, tombstone.author, tombstone.external_id) == (top.id, "", "", "")
    assert [it.comment.id for it in node.replies] == [reply.id]
    assert not reply.is_tombstone
    (shown, _) = await read(client.comments.thread(post.id, filter=CommentFilter(show_deleted=True)))
    assert (shown.body, shown.is_deleted, shown.is_tombstone) == ("top", True, False)

    await client.comments.delete(reply.id)
    assert await read(client.comments.thread(post.id)) == []


async def test_force_deletes_the_replies_and_undelete_restores_them(client: Any) -> None:
    """By a single delete and by a batch."""
    post = await client.posts.create("a")
    top = await client.comments.create(post_id=post.id, body="top")
    reply = await client.comments.create(post_id=post.id, body="reply", reply_to_id=top.id)
    for delete in (
        client.comments.delete(top.id, force=True),
        client.comments.delete_many([top.id], force=True),
    ):
        await delete
        assert await read(client.comments.thread(post.id)) == []
        await client.comments.undelete(top.id)
        assert [it.id for it in await read(client.comments.thread(post.id))] == [top.id, reply.id]


async def test_comment_of_a_deleted_post_is_not_restored(client: Any) -> None:
    """The post comes first."""
    post = await client.posts.create("a")
    comment = await client.comments.create(post_id=post.id, body="b")
    await client.posts.delete(post.id, force=True)

    with pytest.raises(storeapi.PostNotFound):
        await client.comments.undelete(comment.id)
    await client.posts.undelete(post.id)
    assert (await client.comments.get(comment.id)).body == "b"


async def test_former_versions_are_read_in_pages(created: tuple[Any, Any]) -> None:
    """The newest first, as many as the server keeps; also of a deleted resource."""
    collection, resource = created
    for number in range(7):
        resource = await collection.update(resource.id, f"version {number}")
    bodies = [f"version {number}" for number in (5, 4, 3, 2, 1)]

    assert [it.body for it in await read(collection.revisions(resource.id))] == bodies
    pages = await read(collection.revisions(resource.id, page_size=2).pages())
    assert [[it.body for it in page.items] for page in pages] == [bodies[:2], bodies[2:4], bodies[4:]]
    rest = collection.revisions(resource.id, page_size=2, page_token=pages[0].next_page_token)
    assert [it.body for it in await read(rest)] == bodies[2:]
    assert len({it.etag for it in await read(collection.revisions(resource.id, limit=3))}) == 3
    await collection.delete(resource.id)
    with pytest.raises(storeapi.NotFound):
        await read(collection.revisions(resource.id))
    shown = await read(collection.revisions(resource.id, show_deleted=True))
    assert [it.body for it in shown] == bodies


async def test_watch_returns_undelete_and_tombstones(client: Any) -> None:
    """The deletion has the last state, the initial state has a tombstone."""
    post = await client.posts.create("a")
    top = await client.comments.create(post_id=post.id, body="top")
    token = (await anext(client.posts.pages())).resume_token
    await client.comments.create(post_id=post.id, body="reply", reply_to_id=top.id)
    deleted = await client.comments.delete(top.id)
    async with client.changes.watch(start="initial_state", kinds=["comment"], post_ids=[post.id]) as watch:
        tombstone = await anext(watch)
    restored = await client.comments.undelete(top.id)

    assert (tombstone.action, tombstone.id, tombstone.resource.is_tombstone) == ("snapshot", top.id, True)
    async with client.changes.watch(resume_token=token, kinds=["comment"], post_ids=[post.id]) as watch:
        changes = [await anext(watch) for _ in range(3)]
    assert [it.action for it in changes] == ["create", "delete", "undelete"]
    assert [it.resource for it in changes[1:]] == [deleted, restored]


async def test_lost_response_of_undelete_is_no_error(
    make_client: Callable[..., Any], real: RunningServer, created: tuple[Any, Any]
) -> None:
    """The client sends the request again, with the same request id."""
    collection, resource = created
    await collection.delete(resource.id)
    method = f"Undelete{type(resource).__name__}"
    with ScriptedServer(upstream=real.target) as server:
        server.lose_answer(method)
        client = make_client(server.target)
        restored = await getattr(client, f"{type(resource).__name__.lower()}s").undelete(resource.id)
        first, second = server.calls_of(method)

    assert restored.id == resource.id
    assert first.request.request_id == second.request.request_id != ""
