"""request_id: a request that is sent again is done once, and answered as it was answered first."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from storeapi.v1 import changes_pb2, changes_pb2_grpc, posts_pb2

from store_service.config import Config
from store_service.server import serving
from tests.support.contract import request_class
from tests.support.errors import ReceivedError, expect_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs
from tests.support.write_requests import (
    BODY,
    CHANGES,
    DATASET_CHANGES,
    REQUESTS,
    WRITES,
    Dataset,
    Rows,
    all_rows,
    altered_requests,
    build_request,
    changes_by_request,
    create_dataset,
    new_request_id,
    send,
    stored_request_ids,
)

SOME_ID = "3f2b8c1e-7a5d-4e6f-9b0a-1c2d3e4f5a6b"

(CREATE_POST,) = [method for method in WRITES if method.name == "CreatePost"]


@pytest.fixture
def config(config: Config) -> Config:
    """A server that keeps deleted posts and comments."""
    return config.model_copy(update={"undelete_hours": 24.0})


@pytest.fixture
async def world(stubs: Stubs) -> Dataset:
    """Posts and comments to write to."""
    return await create_dataset(stubs)


async def each_write(stubs: Stubs) -> AsyncIterator[tuple[MethodDescriptor, Dataset]]:
    """Each write method, with posts and comments of its own, the newest of the store.

    pytest shows the output of a test that fails; the last line names the method.
    """
    for method in WRITES:
        print(method.name)  # noqa: T201  # see above
        yield method, await create_dataset(stubs)


def new_requests(before: Rows, after: Rows) -> list[str]:
    """The request ids that were stored meanwhile."""
    return [row[0] for row in after["requests"] if row not in before["requests"]]


def assert_reused(error: ReceivedError, name: str) -> None:
    """Checks for REQUEST_ID_REUSED."""
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED"), name
    assert error.fields == ["request_id"], name


def test_every_write_accepts_a_request_id() -> None:
    """A method that changes something takes a request_id, and is tried here."""
    names = {method.name for method in WRITES}

    assert names == set(REQUESTS) == set(CHANGES)
    assert all("request_id" in method.input_type.fields_by_name for method in WRITES)


async def test_replay_gets_the_first_response(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """The request is done once, however often it is sent."""
    async for method, world in each_write(stubs):
        request = build_request(method, world, new_request_id())
        before = all_rows(database_url)

        first = await send(channel, method, request)

        after = all_rows(database_url)
        for _ in range(3):
            assert await send(channel, method, request) == first
        assert all_rows(database_url) == after
        assert len(after["changes"]) == len(before["changes"]) + CHANGES[method.name]


async def test_replay_ignores_later_changes(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """A resource changed or deleted since does not change the response, nor is it created again."""
    async for method, world in each_write(stubs):
        request = build_request(method, world, new_request_id())
        first = await send(channel, method, request)

        await change_everything(stubs)
        after_changes = all_rows(database_url)
        assert await send(channel, method, request) == first
        assert all_rows(database_url) == after_changes

        await delete_everything(stubs)
        after_deletes = all_rows(database_url)
        assert after_deletes["posts"] == after_deletes["comments"] == []
        assert await send(channel, method, request) == first
        assert all_rows(database_url) == after_deletes


async def change_everything(stubs: Stubs) -> None:
    """Gives every post and comment another body."""
    for api in (ResourceApi("Post", stubs), ResourceApi("Comment", stubs)):
        for resource in api.resources_in(await api.page()):
            await api.update(api.resource(id=resource.id, body="changed since"))


async def delete_everything(stubs: Stubs) -> None:
    """Deletes every post and comment."""
    posts = ResourceApi("Post", stubs)
    await posts.batch_delete([post.id for post in posts.resources_in(await posts.page())], force=True)


async def test_request_without_an_id_is_repeated(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """Nothing is stored for it."""
    request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=BODY))

    one, two = [await stubs.posts.CreatePost(request) for _ in range(2)]

    assert one.id != two.id
    assert stored_request_ids(database_url) == []


async def test_different_request_with_the_same_id_is_refused(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """For a difference in any field, whether the request would succeed or not."""
    async for method, world in each_write(stubs):
        request = build_request(method, world, new_request_id())
        first = await send(channel, method, request)
        after = all_rows(database_url)

        others = dict(altered_requests(request))
        errors = await asyncio.gather(
            *(expect_error(send(channel, method, other)) for other in others.values())
        )
        for name, error in zip(others, errors, strict=True):
            assert_reused(error, name)

        # Every field of the request, and of what is in it, had its turn.
        assert len(others) >= len(method.input_type.fields) - 2
        assert all_rows(database_url) == after
        assert await send(channel, method, request) == first


async def test_request_of_another_method_with_the_same_id_is_refused(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """An id that one method has used is used for all others too."""
    async for method, world in each_write(stubs):
        request = build_request(method, world, new_request_id())
        await assert_refused_to_others(channel, method, request, world, database_url)


async def test_request_without_effect_uses_its_id(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """Such as a delete of a missing resource with allow_missing."""
    async for method, world in each_write(stubs):
        if "Delete" not in method.name:
            continue
        batch = method.name.startswith("Batch")
        request = request_class(method)(
            request_id=new_request_id(),
            allow_missing=True,
            **({"ids": [world.unused_id]} if batch else {"id": world.unused_id}),
        )
        await assert_refused_to_others(channel, method, request, world, database_url)


async def assert_refused_to_others(
    channel: grpc.aio.Channel, method: MethodDescriptor, request: Any, world: Dataset, database_url: str
) -> None:
    """Sends a request, and with its id those of all other methods."""
    first = await send(channel, method, request)
    after = all_rows(database_url)

    others = [other for other in WRITES if other is not method]
    errors = await asyncio.gather(
        *(
            expect_error(send(channel, other, build_request(other, world, request.request_id)))
            for other in others
        )
    )
    for other, error in zip(others, errors, strict=True):
        assert_reused(error, other.name)

    assert all_rows(database_url) == after
    assert await send(channel, method, request) == first


TWINS: dict[str, Callable[[Any, int], Any]] = {
    "Update{}": lambda api, number: api.update(api.resource(id=number, body="x"), request_id=SOME_ID),
    "Delete{}": lambda api, number: api.delete(number, request_id=SOME_ID),
    "BatchDelete{}s": lambda api, number: api.batch_delete([number], request_id=SOME_ID),
}
"""Requests that are the same bytes for a post and for a comment."""


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("post_first", [True, False])
async def test_equal_bytes_for_another_method_are_another_request(
    stubs: Stubs, world: Dataset, database_url: str, name: str, post_first: bool
) -> None:
    post, comment = ResourceApi("Post", stubs), ResourceApi("Comment", stubs)
    one, two = (post, comment) if post_first else (comment, post)
    id = world.posts[2].id
    assert id == world.comments[2].id
    first = await TWINS[name](one, id)
    after = all_rows(database_url)

    assert_reused(await expect_error(TWINS[name](two, id)), name)

    assert all_rows(database_url) == after
    assert await TWINS[name](one, id) == first


async def test_request_ids_are_case_insensitive(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """A UUID is the same in capitals."""
    async for method, world in each_write(stubs):
        id = new_request_id()

        first = await send(channel, method, build_request(method, world, id.upper()))

        after = all_rows(database_url)
        for same in (id, id.capitalize(), id.upper()):
            assert await send(channel, method, build_request(method, world, same)) == first
        assert_reused(await expect_error(send(channel, CREATE_POST, another(id))), "lower")
        assert all_rows(database_url) == after


def another(request_id: str) -> posts_pb2.CreatePostRequest:
    """A unique request."""
    return posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="another"), request_id=request_id)


# Failures


@dataclass(frozen=True)
class Refused:
    """A write that fails now and, after something has happened, does not."""

    reason: str
    write: Callable[[str], Awaitable[Any]]
    """Sends it with a request_id."""
    repair: Callable[[], Awaitable[Any]]


Refusal = Callable[[ResourceApi, ResourceApi, Dataset], Awaitable[Refused]]


def missing_post(write: Callable[[ResourceApi, int, str], Any]) -> Refusal:
    async def refusal(posts: ResourceApi, comments: ResourceApi, world: Dataset) -> Refused:
        next_id = world.deleted_post + 1
        return Refused(
            "POST_NOT_FOUND", lambda request_id: write(comments, next_id, request_id), posts.create_one
        )

    return refusal


def missing(write: Callable[[ResourceApi, int, str], Any], name: str) -> Refusal:
    async def refusal(posts: ResourceApi, comments: ResourceApi, world: Dataset) -> Refused:
        api, last_id = (posts, world.deleted_post) if name == "Post" else (comments, world.deleted_comment)
        next_id = last_id + 1
        return Refused(api.not_found, lambda request_id: write(api, next_id, request_id), api.create_one)

    return refusal


def other_etag(write: Callable[[ResourceApi, int, str, str], Any], name: str) -> Refusal:
    async def refusal(posts: ResourceApi, comments: ResourceApi, world: Dataset) -> Refused:
        api, stored = (posts, world.posts) if name == "Post" else (comments, world.comments)
        # What has been changed as often has the same etag.
        later = (await api.update(api.resource(id=stored[2].id, body="changed"))).etag
        return Refused(
            "ETAG_MISMATCH",
            lambda request_id: write(api, stored[1].id, later, request_id),
            lambda: api.update(api.resource(id=stored[1].id, body="changed")),
        )

    return refusal


def commented(write: Callable[[ResourceApi, int, str], Any]) -> Refusal:
    async def refusal(posts: ResourceApi, comments: ResourceApi, world: Dataset) -> Refused:
        return Refused(
            "POST_HAS_COMMENTS",
            lambda request_id: write(posts, world.posts[1].id, request_id),
            lambda: comments.delete(world.comments[2].id),
        )

    return refusal


REFUSALS: dict[str, Refusal] = {
    "create on a missing post": missing_post(
        lambda api, number, request_id: api.create(api.draft(post_id=number), request_id=request_id)
    ),
    "batch create on a missing post": missing_post(
        lambda api, number, request_id: api.batch_create(
            [api.draft(), api.draft(post_id=number)], request_id=request_id
        )
    ),
    "delete a post with comments": commented(
        lambda api, number, request_id: api.delete(number, request_id=request_id)
    ),
    "batch delete a post with comments": commented(
        lambda api, number, request_id: api.batch_delete([number], request_id=request_id)
    ),
}
for _name in ("Post", "Comment"):
    REFUSALS |= {
        f"update a missing {_name}": missing(
            lambda api, number, request_id: api.update(
                api.resource(id=number, body="x"), request_id=request_id
            ),
            _name,
        ),
        f"delete a missing {_name}": missing(
            lambda api, number, request_id: api.delete(number, request_id=request_id), _name
        ),
        f"batch delete a missing {_name}": missing(
            lambda api, number, request_id: api.batch_delete([number], request_id=request_id), _name
        ),
        f"update a {_name} by an etag": other_etag(
            lambda api, number, etag, request_id: api.update(
                api.resource(id=number, body="x", etag=etag), request_id=request_id
            ),
            _name,
        ),
        f"delete a {_name} by an etag": other_etag(
            lambda api, number, etag, request_id: api.delete(
                number, etag=etag, request_id=request_id, **({"force": True} if api.name == "Post" else {})
            ),
            _name,
        ),
    }


async def each_refusal(stubs: Stubs) -> AsyncIterator[tuple[str, ResourceApi, Refused]]:
    """Each refused write, with posts and comments of its own, as `each_write`. Also PostService."""
    for name, refusal in REFUSALS.items():
        print(name)  # noqa: T201  # see `each_write`
        world = await create_dataset(stubs)
        posts, comments = ResourceApi("Post", stubs), ResourceApi("Comment", stubs, post_id=world.posts[0].id)
        yield name, posts, await refusal(posts, comments, world)


async def test_failed_request_is_not_stored(stubs: Stubs, database_url: str) -> None:
    """It may succeed later, and then its id is used."""
    async for _, _, refused in each_refusal(stubs):
        before, id = all_rows(database_url), new_request_id()
        for _ in range(2):
            assert (await expect_error(refused.write(id))).reason == refused.reason
        assert all_rows(database_url) == before

        await refused.repair()
        first = await refused.write(id)

        after = all_rows(database_url)
        assert new_requests(before, after) == [id]
        assert await refused.write(id) == first
        assert all_rows(database_url) == after


async def test_id_of_a_failed_request_is_free(stubs: Stubs, database_url: str) -> None:
    """An id that only failures have had may be given to another request, which then is the one."""
    async for name, posts, refused in each_refusal(stubs):
        before, id = all_rows(database_url), new_request_id()
        await expect_error(refused.write(id))

        await posts.create(posts.draft(), request_id=id)

        assert new_requests(before, all_rows(database_url)) == [id]
        assert_reused(await expect_error(refused.write(id)), name)


async def test_invalid_request_is_not_stored(api: ResourceApi, database_url: str) -> None:
    """A request that is refused before it is tried leaves its id free, and is refused for its form again."""
    id = new_request_id()
    assert (await expect_error(api.create(api.draft(""), request_id=id))).reason == "FIELD_INVALID"

    await api.create(api.draft(), request_id=id)

    assert stored_request_ids(database_url) == [id]
    assert (await expect_error(api.create(api.draft(""), request_id=id))).reason == "FIELD_INVALID"


# validate_only


def without_deletion_times(response: Any) -> Any:
    """A response without the times of a deletion, which each dry run sets to the present."""
    is_batch = "id" not in response.DESCRIPTOR.fields_by_name
    for resource in response.ListFields()[0][1] if is_batch else [response]:
        resource.ClearField("delete_time")
        resource.ClearField("purge_time")
    return response


async def test_dry_run_does_not_use_its_id(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """The same request succeeds afterwards."""
    async for method, world in each_write(stubs):
        before, id = all_rows(database_url), new_request_id()

        tried = [
            await send(channel, method, build_request(method, world, id, validate_only=True))
            for _ in range(2)
        ]

        assert without_deletion_times(tried[0]) == without_deletion_times(tried[1])
        assert all_rows(database_url) == before
        first = await send(channel, method, build_request(method, world, id))
        after = all_rows(database_url)
        assert len(after["changes"]) == len(before["changes"]) + CHANGES[method.name]
        assert new_requests(before, after) == [id]
        assert await send(channel, method, build_request(method, world, id)) == first


async def test_id_of_a_dry_run_is_free(channel: grpc.aio.Channel, stubs: Stubs, database_url: str) -> None:
    """An id that was only tried may be given to another request."""
    async for method, world in each_write(stubs):
        before, id = all_rows(database_url), new_request_id()
        await send(channel, method, build_request(method, world, id, validate_only=True))

        await stubs.posts.CreatePost(another(id))

        assert new_requests(before, all_rows(database_url)) == [id]


async def test_dry_run_of_a_done_request_succeeds(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """validate_only is not part of the fingerprint; nothing is stored."""
    async for method, world in each_write(stubs):
        id = new_request_id()
        tried = await send(channel, method, build_request(method, world, id, validate_only=True))
        await send(channel, method, build_request(method, world, id))
        after = all_rows(database_url)

        again = await send(channel, method, build_request(method, world, id, validate_only=True))

        assert without_deletion_times(again) == without_deletion_times(tried)
        assert all_rows(database_url) == after


async def test_dry_run_reports_a_reused_id(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    async for method, world in each_write(stubs):
        request = build_request(method, world, new_request_id())
        await send(channel, method, request)
        after = all_rows(database_url)

        for name, other in altered_requests(request):
            other.validate_only = True
            assert_reused(await expect_error(send(channel, method, other)), name)

        assert all_rows(database_url) == after


# What is kept of it


async def test_every_change_has_its_request_id(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """Including comments deleted with their post."""
    async for method, world in each_write(stubs):
        before = changes_by_request(database_url)
        assert {request_id for _, request_id in before[-DATASET_CHANGES:]} == {None}
        id = new_request_id()

        await send(channel, method, build_request(method, world, id))

        after = changes_by_request(database_url)
        assert after[: len(before)] == before
        assert [request_id for _, request_id in after[len(before) :]] == [id] * CHANGES[method.name]


async def test_watch_reports_the_request_id_of_a_change(channel: grpc.aio.Channel, stubs: Stubs) -> None:
    expected: list[str] = []
    async for method, world in each_write(stubs):
        id = new_request_id()
        await send(channel, method, build_request(method, world, id))
        expected += [""] * DATASET_CHANGES + [id] * CHANGES[method.name]
    last = await stubs.create_post("the end")

    watch = changes_pb2_grpc.ChangeServiceStub(channel).Watch(changes_pb2.WatchRequest(earliest=True))
    seen: list[str] = []
    async for response in watch:
        seen += [change.request_id for change in response.changes]
        if any(change.kind == 1 and change.id == last.id for change in response.changes):
            break
    watch.cancel()

    assert seen == [*expected, ""]


async def test_request_ids_survive_a_restart(config: Config) -> None:
    """A request that was answered before the server stopped gets its answer after it."""
    done = []
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        async for method, world in each_write(Stubs(channel)):
            request = build_request(method, world, new_request_id())
            done.append((method, request, await send(channel, method, request)))
    after = all_rows(config.DATABASE_URL)

    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        for method, request, first in done:
            assert await send(channel, method, request) == first, method.name
            error = await expect_error(send(channel, CREATE_POST, another(request.request_id)))
            assert_reused(error, method.name)

    assert all_rows(config.DATABASE_URL) == after
