"""Batches: all or none, how many, what is missing, what is too large. True of both services."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from tests.support.database import database_contents
from tests.support.errors import expect_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs

LARGE = "x" * 64_900
"""63 of these fit in an answer and 64 do not; 64 fit in a request."""


@pytest.fixture(params=["batch_get", "batch_create", "batch_delete"])
def method(request: pytest.FixtureRequest) -> str:
    """Each kind of batch in turn."""
    name: str = request.param
    return name


def batch(api: ResourceApi, method: str, count: int, **options: Any) -> Any:
    """A call with `count` ids or requests."""
    things = [api.draft()] * count if method == "batch_create" else list(range(1, count + 1))
    return getattr(api, method)(things, **options)


def field_of(method: str) -> str:
    return "requests" if method == "batch_create" else "ids"


async def test_batch_has_up_to_1000_elements(api: ResourceApi) -> None:
    """A thousand are created, read and deleted with one call each."""
    created = await api.create_many(1000)
    ids = [item.id for item in created]

    assert api.resources_in(await api.batch_get(ids)) == created
    assert api.resources_in(await api.batch_delete(ids)) == created
    assert api.resources_in(await api.page()) == []


async def test_batch_of_more_than_1000_is_refused(api: ResourceApi, method: str, database_url: str) -> None:
    """The error has the size and the limit."""
    before = database_contents(database_url)

    for count in (1001, 5000):
        error = await expect_error(batch(api, method, count))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_TOO_LARGE")
        assert error.fields == [field_of(method)]
        assert error.metadata == {"count": str(count), "max_count": "1000"}
    assert database_contents(database_url) == before


async def test_empty_batch_is_refused(api: ResourceApi, method: str) -> None:
    """A batch of nothing is most likely a mistake."""
    error = await expect_error(batch(api, method, 0))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_EMPTY")
    assert error.fields == [field_of(method)]


async def test_duplicate_id_of_batch_get_is_returned_twice(api: ResourceApi) -> None:
    """One resource per id, in order."""
    one, two = await api.create_many(2)

    assert api.resources_in(await api.batch_get([two.id, one.id, two.id])) == [two, one, two]


async def test_duplicate_missing_id_is_listed_twice(api: ResourceApi) -> None:
    """missing_ids too is one for each id asked for, in order."""
    one = await api.create_one()

    answer = await api.batch_get([404, one.id, 405, 404], allow_missing=True)

    assert api.resources_in(answer) == [one]
    assert list(answer.missing_ids) == [404, 405, 404]


async def test_duplicate_id_of_batch_delete_is_refused(api: ResourceApi) -> None:
    """Every repetition is a violation, and nothing is deleted."""
    one, two = await api.create_many(2)

    for options in ({}, {"allow_missing": True}):
        error = await expect_error(api.batch_delete([one.id, two.id, one.id, one.id], **options))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_DUPLICATE")
        assert error.fields == ["ids[2]", "ids[3]"]
    assert api.resources_in(await api.page()) == [one, two]


@pytest.mark.parametrize("method", ["batch_get", "batch_delete"])
async def test_missing_id_fails_the_batch(api: ResourceApi, method: str) -> None:
    """Missing ids are listed in order."""
    one, two = await api.create_many(2)

    error = await expect_error(getattr(api, method)([405, one.id, 404, two.id]))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, api.not_found)
    assert error.metadata == {"missing_ids": "405,404"}
    named = [
        (it.resource_type, it.resource_name)
        for it in error.details
        if isinstance(it, error_details_pb2.ResourceInfo)
    ]
    assert named == [(f"storeapi.v1.{api.name}", "405"), (f"storeapi.v1.{api.name}", "404")]
    assert api.resources_in(await api.page()) == [one, two]


async def test_single_missing_id_has_the_error_of_a_single_call(api: ResourceApi) -> None:
    error = await expect_error(api.batch_get([404]))

    assert error.metadata == {"missing_ids": "404", f"{api.field}_id": "404"}


async def test_batch_get_with_allow_missing_returns_the_rest(api: ResourceApi) -> None:
    """Missing ids are listed."""
    one, two = await api.create_many(2)

    answer = await api.batch_get([404, two.id, 405, one.id], allow_missing=True)

    assert api.resources_in(answer) == [two, one]
    assert list(answer.missing_ids) == [404, 405]


async def test_batch_delete_with_allow_missing_deletes_the_rest(api: ResourceApi) -> None:
    """Missing ids are listed."""
    one, two, three = await api.create_many(3)

    answer = await api.batch_delete([404, two.id, 405, one.id], allow_missing=True)

    assert api.resources_in(answer) == [two, one]
    assert list(answer.missing_ids) == [404, 405]
    assert api.resources_in(await api.page()) == [three]


async def test_allow_missing_accepts_a_batch_without_any_match(api: ResourceApi) -> None:
    """With allow_missing not even one must be there."""
    for method in (api.batch_get, api.batch_delete):
        answer = await method([404, 405], allow_missing=True)

        assert (api.resources_in(answer), list(answer.missing_ids)) == ([], [404, 405])


async def test_invalid_request_fails_a_batch_create(api: ResourceApi, database_url: str) -> None:
    """Every violation is named with its path, and nothing is stored."""
    before = database_contents(database_url)
    drafts = [api.draft("fine"), api.draft(""), api.draft("fine"), api.draft("a\0b", id=7)]

    error = await expect_error(api.batch_create(drafts))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    name = api.field
    assert error.fields == [f"requests[1].{name}.body", f"requests[3].{name}.id", f"requests[3].{name}.body"]
    assert database_contents(database_url) == before


async def test_request_without_a_resource_fails_a_batch_create(api: ResourceApi) -> None:
    request = getattr(api.pb, f"Create{api.name}Request")

    error = await expect_error(api.call(f"BatchCreate{api.name}s", requests=[request(), request()]))

    assert error.fields == [f"requests[0].{api.field}", f"requests[1].{api.field}"]


async def test_missing_post_fails_a_batch_of_comments(comments: ResourceApi, database_url: str) -> None:
    """Each missing post is named once, with the first field that refers to it."""
    drafts = [comments.draft(), *(comments.draft(post_id=id) for id in (405, 404, 405)), comments.draft()]

    error = await expect_error(comments.batch_create(drafts))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "POST_NOT_FOUND")
    assert error.metadata == {"missing_ids": "405,404"}
    named = [it for it in error.details if isinstance(it, error_details_pb2.ResourceInfo)]
    assert [(it.resource_type, it.resource_name) for it in named] == [
        ("storeapi.v1.Post", "405"),
        ("storeapi.v1.Post", "404"),
    ]
    assert "requests[1].comment.post_id" in named[0].description
    assert "requests[2].comment.post_id" in named[1].description
    assert database_contents(database_url).comments == ()


@pytest.mark.parametrize("body", [LARGE, "€" * (len(LARGE) // 3)], ids=["ascii", "three-byte"])
async def test_largest_batch_get_response_is_received(api: ResourceApi, body: str) -> None:
    """With the default limits of gRPC."""
    created = [await api.create_one(body), await api.create_one(body)]
    ids = [created[0].id, created[1].id] * 31 + [created[0].id]

    answer = await api.batch_get(ids)

    assert len(api.resources_in(answer)) == 63

    error = await expect_error(api.batch_get([*ids, ids[0]]))
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE")
    assert 0 < int(error.metadata["max_bytes"]) < 4 * 1024 * 1024


async def test_missing_ids_fit_beside_the_largest_response(api: ResourceApi) -> None:
    """The largest answer arrives also with a thousand ids in it."""
    resource = await api.create_one(LARGE)

    answer = await api.batch_get([resource.id] * 63 + [2**63 - 1 - n for n in range(937)], allow_missing=True)

    assert (len(api.resources_in(answer)), len(answer.missing_ids)) == (63, 937)


async def test_create_with_too_large_response_stores_nothing(api: ResourceApi, database_url: str) -> None:
    """An answer that cannot be sent is refused before anything is done."""
    before = database_contents(database_url)
    for options in ({"validate_only": True}, {}):
        error = await expect_error(api.batch_create([api.draft(LARGE)] * 64, **options))

        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE"), (
            options
        )
        assert database_contents(database_url) == before
        assert len(api.resources_in(await api.batch_create([api.draft(LARGE)] * 63, **options))) == 63


async def test_delete_with_too_large_response_deletes_nothing(api: ResourceApi, database_url: str) -> None:
    """What cannot be answered is not deleted; fewer at once can be."""
    ids = [item.id for item in api.resources_in(await api.batch_create([api.draft(LARGE)] * 60))]
    ids += [item.id for item in api.resources_in(await api.batch_create([api.draft(LARGE)] * 4))]
    before = database_contents(database_url)
    for options in ({"validate_only": True}, {}):
        error = await expect_error(api.batch_delete(ids, **options))

        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE"), (
            options
        )
        assert database_contents(database_url) == before
        assert len(api.resources_in(await api.batch_delete(ids[1:], **options))) == 63


async def test_comments_deleted_with_posts_do_not_count_for_the_response(
    stubs: Stubs, posts: ResourceApi
) -> None:
    post = await posts.create_one()
    comments = ResourceApi("Comment", stubs, post_id=post.id)
    for _ in range(2):
        await comments.batch_create([comments.draft(LARGE)] * 40)

    assert posts.resources_in(await posts.batch_delete([post.id], force=True)) == [post]
    assert comments.resources_in(await comments.page()) == []
