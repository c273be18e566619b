"""Batches: all or none, how many, what is missing, what is too large. True of both services."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from tests.rpc.helpers import Side, contents
from tests.support import Stubs, failure

LARGE = "x" * 64_900
"""63 of these fit in an answer and 64 do not; 64 fit in a request."""


@pytest.fixture(params=["batch_get", "batch_create", "batch_delete"])
def method(request: pytest.FixtureRequest) -> str:
    """Each kind of batch in turn."""
    name: str = request.param
    return name


def batch(side: Side, method: str, count: int, **options: Any) -> Any:
    """A call with so many ids or requests."""
    things = [side.draft()] * count if method == "batch_create" else list(range(1, count + 1))
    return getattr(side, method)(things, **options)


def field_of(method: str) -> str:
    return "requests" if method == "batch_create" else "ids"


async def test_a_batch_holds_up_to_1000(side: Side) -> None:
    """A thousand are created, got and deleted with one call each."""
    created = await side.several(1000)
    ids = [item.id for item in created]

    assert side.of(await side.batch_get(ids)) == created
    assert side.of(await side.batch_delete(ids)) == created
    assert side.of(await side.page()) == []


async def test_a_batch_of_more_than_1000_is_refused(side: Side, method: str, database_url: str) -> None:
    """One too many is too many; the error says how many there were and may be."""
    before = contents(database_url)

    for count in (1001, 5000):
        error = await failure(batch(side, method, count))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_TOO_LARGE")
        assert error.fields == [field_of(method)]
        assert error.metadata == {"count": str(count), "max_count": "1000"}
    assert contents(database_url) == before


async def test_an_empty_batch_is_refused(side: Side, method: str) -> None:
    """A batch of nothing is most likely a mistake."""
    error = await failure(batch(side, method, 0))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_EMPTY")
    assert error.fields == [field_of(method)]


async def test_an_id_that_is_got_twice_is_answered_twice(side: Side) -> None:
    """The answer to a get has one resource for each id, in order."""
    one, two = await side.several(2)

    assert side.of(await side.batch_get([two.id, one.id, two.id])) == [two, one, two]


async def test_an_id_that_is_missing_twice_is_missing_twice(side: Side) -> None:
    """missing_ids too is one for each id asked for, in order."""
    one = await side.stored()

    answer = await side.batch_get([404, one.id, 405, 404], allow_missing=True)

    assert side.of(answer) == [one]
    assert list(answer.missing_ids) == [404, 405, 404]


async def test_an_id_that_is_deleted_twice_is_refused(side: Side) -> None:
    """Each may be deleted once; every repetition is a violation, and nothing is deleted."""
    one, two = await side.several(2)

    for options in ({}, {"allow_missing": True}):
        error = await failure(side.batch_delete([one.id, two.id, one.id, one.id], **options))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_DUPLICATE")
        assert error.fields == ["ids[2]", "ids[3]"]
    assert side.of(await side.page()) == [one, two]


@pytest.mark.parametrize("method", ["batch_get", "batch_delete"])
async def test_a_missing_id_fails_the_whole_batch(side: Side, method: str) -> None:
    """Without allow_missing a batch is done for all ids or for none; the missing ones are named in order."""
    one, two = await side.several(2)

    error = await failure(getattr(side, method)([405, one.id, 404, two.id]))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, side.not_found)
    assert error.metadata == {"missing_ids": "405,404"}
    named = [
        (it.resource_type, it.resource_name)
        for it in error.details
        if isinstance(it, error_details_pb2.ResourceInfo)
    ]
    assert named == [(f"storeapi.v1.{side.name}", "405"), (f"storeapi.v1.{side.name}", "404")]
    assert side.of(await side.page()) == [one, two]


async def test_the_only_missing_id_of_a_batch_has_a_name_of_its_own(side: Side) -> None:
    """One missing id is told as a single call would tell it."""
    error = await failure(side.batch_get([404]))

    assert error.metadata == {"missing_ids": "404", f"{side.field}_id": "404"}


async def test_allow_missing_gets_what_is_there(side: Side) -> None:
    """With allow_missing the unknown ids are listed beside what was found."""
    one, two = await side.several(2)

    answer = await side.batch_get([404, two.id, 405, one.id], allow_missing=True)

    assert side.of(answer) == [two, one]
    assert list(answer.missing_ids) == [404, 405]


async def test_allow_missing_deletes_what_is_there(side: Side) -> None:
    """With allow_missing the unknown ids are listed beside what was deleted."""
    one, two, three = await side.several(3)

    answer = await side.batch_delete([404, two.id, 405, one.id], allow_missing=True)

    assert side.of(answer) == [two, one]
    assert list(answer.missing_ids) == [404, 405]
    assert side.of(await side.page()) == [three]


async def test_a_batch_may_find_nothing_at_all(side: Side) -> None:
    """With allow_missing not even one must be there."""
    for method in (side.batch_get, side.batch_delete):
        answer = await method([404, 405], allow_missing=True)

        assert (side.of(answer), list(answer.missing_ids)) == ([], [404, 405])


async def test_one_wrong_request_stops_a_whole_batch_create(side: Side, database_url: str) -> None:
    """Every violation of every request is named with its path, and nothing is stored."""
    before = contents(database_url)
    drafts = [side.draft("fine"), side.draft(""), side.draft("fine"), side.draft("a\0b", id=7)]

    error = await failure(side.batch_create(drafts))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    name = side.field
    assert error.fields == [f"requests[1].{name}.body", f"requests[3].{name}.id", f"requests[3].{name}.body"]
    assert contents(database_url) == before


async def test_a_request_without_its_resource_stops_a_batch_create(side: Side) -> None:
    """Each request of a batch needs what a single one needs."""
    request = getattr(side.pb, f"Create{side.name}Request")

    error = await failure(side.call(f"BatchCreate{side.name}s", requests=[request(), request()]))

    assert error.fields == [f"requests[0].{side.field}", f"requests[1].{side.field}"]


async def test_one_missing_post_stops_a_whole_batch_of_comments(comments: Side, database_url: str) -> None:
    """All comments are stored or none; each missing post is told once, with the first field that named it."""
    drafts = [comments.draft(), *(comments.draft(post_id=id) for id in (405, 404, 405)), comments.draft()]

    error = await failure(comments.batch_create(drafts))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "POST_NOT_FOUND")
    assert error.metadata == {"missing_ids": "405,404"}
    named = [it for it in error.details if isinstance(it, error_details_pb2.ResourceInfo)]
    assert [(it.resource_type, it.resource_name) for it in named] == [
        ("storeapi.v1.Post", "405"),
        ("storeapi.v1.Post", "404"),
    ]
    assert "requests[1].comment.post_id" in named[0].description
    assert "requests[2].comment.post_id" in named[1].description
    assert contents(database_url).comments == ()


@pytest.mark.parametrize("body", [LARGE, "€" * (len(LARGE) // 3)], ids=["ascii", "three-byte"])
async def test_the_largest_answer_to_a_get_still_arrives(side: Side, body: str) -> None:
    """What is not refused as too large fits in the message of a client with gRPC's defaults."""
    created = [await side.stored(body), await side.stored(body)]
    ids = [created[0].id, created[1].id] * 31 + [created[0].id]

    answer = await side.batch_get(ids)

    assert len(side.of(answer)) == 63

    error = await failure(side.batch_get([*ids, ids[0]]))
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE")
    assert 0 < int(error.metadata["max_bytes"]) < 4 * 1024 * 1024


async def test_missing_ids_leave_room_for_what_is_found(side: Side) -> None:
    """The largest answer arrives also with a thousand ids in it."""
    resource = await side.stored(LARGE)

    answer = await side.batch_get(
        [resource.id] * 63 + [2**63 - 1 - n for n in range(937)], allow_missing=True
    )

    assert (len(side.of(answer)), len(answer.missing_ids)) == (63, 937)


@pytest.mark.parametrize("options", [{}, {"validate_only": True}], ids=["done", "validate_only"])
async def test_a_create_whose_answer_is_too_large_stores_nothing(
    side: Side, database_url: str, options: dict[str, bool]
) -> None:
    """An answer that cannot be sent is refused before anything is done."""
    before = contents(database_url)

    error = await failure(side.batch_create([side.draft(LARGE)] * 64, **options))

    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE")
    assert contents(database_url) == before
    assert len(side.of(await side.batch_create([side.draft(LARGE)] * 63, **options))) == 63


@pytest.mark.parametrize("options", [{}, {"validate_only": True}], ids=["done", "validate_only"])
async def test_a_delete_whose_answer_is_too_large_deletes_nothing(
    side: Side, database_url: str, options: dict[str, bool]
) -> None:
    """What cannot be answered is not deleted; fewer at once can be."""
    ids = [item.id for item in side.of(await side.batch_create([side.draft(LARGE)] * 60))]
    ids += [item.id for item in side.of(await side.batch_create([side.draft(LARGE)] * 4))]
    before = contents(database_url)

    error = await failure(side.batch_delete(ids, **options))

    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE")
    assert contents(database_url) == before
    assert len(side.of(await side.batch_delete(ids[1:], **options))) == 63


async def test_the_comments_of_posts_do_not_count_for_the_answer(stubs: Stubs, posts: Side) -> None:
    """Only what is answered has to fit: large comments that go with a post are not."""
    post = await posts.stored()
    comments = Side("Comment", stubs, post_id=post.id)
    for _ in range(2):
        await comments.batch_create([comments.draft(LARGE)] * 40)

    assert posts.of(await posts.batch_delete([post.id], force=True)) == [post]
    assert comments.of(await comments.page()) == []
