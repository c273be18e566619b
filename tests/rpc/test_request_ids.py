"""request_id: a request that is sent again is done once, and answered as it was answered first."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from storeapi.v1 import changes_pb2, changes_pb2_grpc, posts_pb2

from store_service.config import Config
from store_service.server import serving
from tests.rpc.helpers import Side, request_class
from tests.rpc.writes import (
    BODY,
    CHANGES,
    REQUESTS,
    WRITES,
    World,
    changes_by_request,
    everything,
    new_id,
    new_world,
    other_requests,
    remembered,
    request_of,
    send,
)
from tests.support import ErrorSeen, Stubs, failure

SOME_ID = "3f2b8c1e-7a5d-4e6f-9b0a-1c2d3e4f5a6b"

(CREATE_POST,) = [method for method in WRITES if method.name == "CreatePost"]


@pytest.fixture(params=WRITES, ids=lambda method: method.name)
def method(request: pytest.FixtureRequest) -> MethodDescriptor:
    """Each write in turn."""
    found: MethodDescriptor = request.param
    return found


@pytest.fixture
async def world(stubs: Stubs) -> World:
    """Posts and comments to write to."""
    return await new_world(stubs)


def assert_reused(error: ErrorSeen, name: str) -> None:
    """The id belongs to another request, and the caller is told so."""
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED"), name
    assert error.fields == ["request_id"], name


def test_every_write_takes_a_request_id() -> None:
    """A method that changes something takes a request_id, and is tried here."""
    names = {method.name for method in WRITES}

    assert names == set(REQUESTS) == set(CHANGES)
    assert all("request_id" in method.input_type.fields_by_name for method in WRITES)


async def test_the_same_request_again_gets_the_first_answer(
    channel: grpc.aio.Channel, method: MethodDescriptor, world: World, database_url: str
) -> None:
    """However often it is sent, it is done once, and every answer is the first one."""
    request = request_of(method, world, new_id())

    first = await send(channel, method, request)

    after = everything(database_url)
    for _ in range(3):
        assert await send(channel, method, request) == first
    assert everything(database_url) == after
    assert len(after["changes"]) == len(world.posts) + len(world.comments) + CHANGES[method.name]


async def test_the_first_answer_outlives_what_it_tells_of(
    channel: grpc.aio.Channel, stubs: Stubs, method: MethodDescriptor, world: World, database_url: str
) -> None:
    """What was changed or deleted since does not change the answer, nor does it come back."""
    request = request_of(method, world, new_id())
    first = await send(channel, method, request)

    await change_everything(stubs)
    after_changes = everything(database_url)
    assert await send(channel, method, request) == first
    assert everything(database_url) == after_changes

    await delete_everything(stubs)
    after_deletes = everything(database_url)
    assert after_deletes["posts"] == after_deletes["comments"] == []
    assert await send(channel, method, request) == first
    assert everything(database_url) == after_deletes


async def change_everything(stubs: Stubs) -> None:
    """Gives every post and comment another body."""
    for side in (Side("Post", stubs), Side("Comment", stubs)):
        for resource in side.of(await side.page()):
            await side.update(side.resource(id=resource.id, body="changed since"))


async def delete_everything(stubs: Stubs) -> None:
    """Deletes every post and comment."""
    posts = Side("Post", stubs)
    await posts.batch_delete([post.id for post in posts.of(await posts.page())], force=True)


async def test_a_request_without_an_id_is_done_again(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """No id, no protection: nothing is remembered."""
    request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=BODY))

    one, two = [await stubs.posts.CreatePost(request) for _ in range(2)]

    assert one.id != two.id
    assert remembered(database_url) == []


async def test_another_request_with_the_id_is_refused(
    channel: grpc.aio.Channel, method: MethodDescriptor, world: World, database_url: str
) -> None:
    """A request that differs in any field is another one, whether it could be done or not."""
    request = request_of(method, world, new_id())
    first = await send(channel, method, request)
    after = everything(database_url)

    others = dict(other_requests(request))
    for name, other in others.items():
        assert_reused(await failure(send(channel, method, other)), name)

    # Every field of the request, and of what is in it, had its turn.
    assert len(others) >= len(method.input_type.fields) - 2
    assert everything(database_url) == after
    assert await send(channel, method, request) == first


async def test_a_request_of_another_method_with_the_id_is_refused(
    channel: grpc.aio.Channel, method: MethodDescriptor, world: World, database_url: str
) -> None:
    """An id that one method has used is used for all others too."""
    request = request_of(method, world, new_id())
    await assert_refused_to_others(channel, method, request, world, database_url)


@pytest.mark.parametrize("method", [it for it in WRITES if "Delete" in it.name], indirect=True)
async def test_a_request_that_did_nothing_uses_its_id_too(
    channel: grpc.aio.Channel, method: MethodDescriptor, world: World, database_url: str
) -> None:
    """The same when it was answered with nothing: a delete of what is not there, and need not be."""
    batch = method.name.startswith("Batch")
    request = request_class(method)(
        request_id=new_id(),
        allow_missing=True,
        **({"ids": [world.unused_id]} if batch else {"id": world.unused_id}),
    )
    await assert_refused_to_others(channel, method, request, world, database_url)


async def assert_refused_to_others(
    channel: grpc.aio.Channel, method: MethodDescriptor, request: Any, world: World, database_url: str
) -> None:
    """Sends a request, and with its id those of all other methods."""
    first = await send(channel, method, request)
    after = everything(database_url)

    for other in WRITES:
        if other is not method:
            error = await failure(send(channel, other, request_of(other, world, request.request_id)))
            assert_reused(error, other.name)

    assert everything(database_url) == after
    assert await send(channel, method, request) == first


TWINS: dict[str, Callable[[Any, int], Any]] = {
    "Update{}": lambda side, number: side.update(side.resource(id=number, body="x"), request_id=SOME_ID),
    "Delete{}": lambda side, number: side.delete(number, request_id=SOME_ID),
    "BatchDelete{}s": lambda side, number: side.batch_delete([number], request_id=SOME_ID),
}
"""Requests that are the same bytes for a post and for a comment."""


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("post_first", [True, False])
async def test_the_same_bytes_for_another_method_are_another_request(
    stubs: Stubs, world: World, database_url: str, name: str, post_first: bool
) -> None:
    """A post and a comment with the same id are two things, however alike the requests are."""
    post, comment = Side("Post", stubs), Side("Comment", stubs)
    one, two = (post, comment) if post_first else (comment, post)
    id = world.posts[2].id
    assert id == world.comments[2].id
    first = await TWINS[name](one, id)
    after = everything(database_url)

    assert_reused(await failure(TWINS[name](two, id)), name)

    assert everything(database_url) == after
    assert await TWINS[name](one, id) == first


async def test_ids_are_compared_without_case(
    channel: grpc.aio.Channel, method: MethodDescriptor, world: World, database_url: str
) -> None:
    """A UUID is the same in capitals."""
    id = SOME_ID

    first = await send(channel, method, request_of(method, world, id.upper()))

    after = everything(database_url)
    for same in (id, id.capitalize(), id.upper()):
        assert await send(channel, method, request_of(method, world, same)) == first
    assert_reused(await failure(send(channel, CREATE_POST, another(id))), "lower")
    assert everything(database_url) == after


def another(request_id: str) -> posts_pb2.CreatePostRequest:
    """A request that nobody else makes here."""
    return posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="another"), request_id=request_id)


# Failures


@dataclass(frozen=True)
class Refused:
    """A write that fails now and, after something has happened, does not."""

    reason: str
    write: Callable[[str], Awaitable[Any]]
    """Sends it with a request_id."""
    repair: Callable[[], Awaitable[Any]]


Refusal = Callable[[Side, Side, World], Awaitable[Refused]]


def missing_post(write: Callable[[Side, int, str], Any]) -> Refusal:
    async def refusal(posts: Side, comments: Side, world: World) -> Refused:
        next_id = world.posts[-1].id + 1
        return Refused(
            "POST_NOT_FOUND", lambda request_id: write(comments, next_id, request_id), posts.stored
        )

    return refusal


def missing(write: Callable[[Side, int, str], Any], name: str) -> Refusal:
    async def refusal(posts: Side, comments: Side, world: World) -> Refused:
        side, stored = (posts, world.posts) if name == "Post" else (comments, world.comments)
        next_id = stored[-1].id + 1
        return Refused(side.not_found, lambda request_id: write(side, next_id, request_id), side.stored)

    return refusal


def other_etag(write: Callable[[Side, int, str, str], Any], name: str) -> Refusal:
    async def refusal(posts: Side, comments: Side, world: World) -> Refused:
        side, stored = (posts, world.posts) if name == "Post" else (comments, world.comments)
        # What has been changed as often has the same etag.
        later = (await side.update(side.resource(id=stored[2].id, body="changed"))).etag
        return Refused(
            "ETAG_MISMATCH",
            lambda request_id: write(side, stored[1].id, later, request_id),
            lambda: side.update(side.resource(id=stored[1].id, body="changed")),
        )

    return refusal


def commented(write: Callable[[Side, int, str], Any]) -> Refusal:
    async def refusal(posts: Side, comments: Side, world: World) -> Refused:
        return Refused(
            "POST_HAS_COMMENTS",
            lambda request_id: write(posts, world.posts[1].id, request_id),
            lambda: comments.delete(world.comments[2].id),
        )

    return refusal


REFUSALS: dict[str, Refusal] = {
    "create on a missing post": missing_post(
        lambda side, number, request_id: side.create(side.draft(post_id=number), request_id=request_id)
    ),
    "batch create on a missing post": missing_post(
        lambda side, number, request_id: side.batch_create(
            [side.draft(), side.draft(post_id=number)], request_id=request_id
        )
    ),
    "delete a post with comments": commented(
        lambda side, number, request_id: side.delete(number, request_id=request_id)
    ),
    "batch delete a post with comments": commented(
        lambda side, number, request_id: side.batch_delete([number], request_id=request_id)
    ),
}
for _name in ("Post", "Comment"):
    REFUSALS |= {
        f"update a missing {_name}": missing(
            lambda side, number, request_id: side.update(
                side.resource(id=number, body="x"), request_id=request_id
            ),
            _name,
        ),
        f"delete a missing {_name}": missing(
            lambda side, number, request_id: side.delete(number, request_id=request_id), _name
        ),
        f"batch delete a missing {_name}": missing(
            lambda side, number, request_id: side.batch_delete([number], request_id=request_id), _name
        ),
        f"update a {_name} by an etag": other_etag(
            lambda side, number, etag, request_id: side.update(
                side.resource(id=number, body="x", etag=etag), request_id=request_id
            ),
            _name,
        ),
        f"delete a {_name} by an etag": other_etag(
            lambda side, number, etag, request_id: side.delete(
                number, etag=etag, request_id=request_id, **({"force": True} if side.name == "Post" else {})
            ),
            _name,
        ),
    }


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_failed_request_is_not_remembered(
    stubs: Stubs, world: World, database_url: str, name: str
) -> None:
    """What failed may succeed when it is sent again, and only then has its id been used."""
    posts, comments = Side("Post", stubs), Side("Comment", stubs, post_id=world.posts[0].id)
    refused = await REFUSALS[name](posts, comments, world)
    before, id = everything(database_url), new_id()
    for _ in range(2):
        assert (await failure(refused.write(id))).reason == refused.reason
    assert everything(database_url) == before

    await refused.repair()
    first = await refused.write(id)

    after = everything(database_url)
    assert [request[0] for request in after["requests"]] == [id]
    assert await refused.write(id) == first
    assert everything(database_url) == after


@pytest.mark.parametrize("name", REFUSALS)
async def test_the_id_of_a_failed_request_is_free(
    stubs: Stubs, world: World, database_url: str, name: str
) -> None:
    """An id that only failures have had may be given to another request, which then is the one."""
    posts, comments = Side("Post", stubs), Side("Comment", stubs, post_id=world.posts[0].id)
    refused = await REFUSALS[name](posts, comments, world)
    id = new_id()
    await failure(refused.write(id))

    await posts.create(posts.draft(), request_id=id)

    assert remembered(database_url) == [id]
    assert_reused(await failure(refused.write(id)), name)


async def test_a_request_that_is_wrong_in_form_is_not_remembered(side: Side, database_url: str) -> None:
    """A request that is refused before it is tried leaves its id free, and is refused for its form again."""
    id = new_id()
    assert (await failure(side.create(side.draft(""), request_id=id))).reason == "FIELD_INVALID"

    await side.create(side.draft(), request_id=id)

    assert remembered(database_url) == [id]
    assert (await failure(side.create(side.draft(""), request_id=id))).reason == "FIELD_INVALID"


# validate_only


async def test_a_try_does_not_use_up_its_id(
    channel: grpc.aio.Channel, method: MethodDescriptor, world: World, database_url: str
) -> None:
    """A request that is only tried leaves nothing, and the same one is done afterwards."""
    before, id = everything(database_url), new_id()

    tried = [await send(channel, method, request_of(method, world, id, validate_only=True)) for _ in range(2)]

    assert tried[0] == tried[1]
    assert everything(database_url) == before
    first = await send(channel, method, request_of(method, world, id))
    after = everything(database_url)
    assert len(after["changes"]) == len(before["changes"]) + CHANGES[method.name]
    assert [request[0] for request in after["requests"]] == [id]
    assert await send(channel, method, request_of(method, world, id)) == first


async def test_a_try_leaves_its_id_to_another_request(
    channel: grpc.aio.Channel, method: MethodDescriptor, world: World, stubs: Stubs, database_url: str
) -> None:
    """An id that was only tried may be given to another request."""
    id = new_id()
    await send(channel, method, request_of(method, world, id, validate_only=True))

    await stubs.posts.CreatePost(another(id))

    assert remembered(database_url) == [id]


async def test_a_try_of_what_was_done_answers_as_it_was_tried(
    channel: grpc.aio.Channel, method: MethodDescriptor, world: World, database_url: str
) -> None:
    """Whether it may be kept does not make it another request: its try still succeeds, and stores nothing."""
    id = new_id()
    tried = await send(channel, method, request_of(method, world, id, validate_only=True))
    await send(channel, method, request_of(method, world, id))
    after = everything(database_url)

    assert await send(channel, method, request_of(method, world, id, validate_only=True)) == tried

    assert everything(database_url) == after


async def test_a_try_tells_that_the_id_belongs_to_another_request(
    channel: grpc.aio.Channel, method: MethodDescriptor, world: World, database_url: str
) -> None:
    """A try is refused for what the request would be refused for."""
    request = request_of(method, world, new_id())
    await send(channel, method, request)
    after = everything(database_url)

    for name, other in other_requests(request):
        other.validate_only = True
        assert_reused(await failure(send(channel, method, other)), name)

    assert everything(database_url) == after


# What is kept of it


async def test_every_change_names_its_request(
    channel: grpc.aio.Channel, method: MethodDescriptor, world: World, database_url: str
) -> None:
    """All that a request changed has its request_id in the feed, also comments that went with their post."""
    before = changes_by_request(database_url)
    assert {request_id for _, request_id in before} == {None}
    id = new_id()

    await send(channel, method, request_of(method, world, id))

    after = changes_by_request(database_url)
    assert after[: len(before)] == before
    assert [request_id for _, request_id in after[len(before) :]] == [id] * CHANGES[method.name]


async def test_a_watch_tells_the_request_of_a_change(
    channel: grpc.aio.Channel, stubs: Stubs, method: MethodDescriptor, world: World
) -> None:
    """Whoever sent a request recognizes its changes."""
    id = new_id()
    await send(channel, method, request_of(method, world, id))
    last = await stubs.create_post("the end")

    watch = changes_pb2_grpc.ChangeServiceStub(channel).Watch(changes_pb2.WatchRequest(earliest=True))
    seen: list[str] = []
    async for response in watch:
        seen += [change.request_id for change in response.changes]
        if any(change.kind == 1 and change.id == last.id for change in response.changes):
            break
    watch.cancel()

    assert seen == [""] * 6 + [id] * CHANGES[method.name] + [""]


async def test_request_ids_survive_a_restart(config: Config, method: MethodDescriptor) -> None:
    """A request that was answered before the server stopped gets its answer after it."""
    id = new_id()
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        world = await new_world(Stubs(channel))
        first = await send(channel, method, request_of(method, world, id))
    after = everything(config.DATABASE_URL)

    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        assert await send(channel, method, request_of(method, world, id)) == first
        error = await failure(send(channel, CREATE_POST, another(id)))
        assert_reused(error, method.name)

    assert everything(config.DATABASE_URL) == after
