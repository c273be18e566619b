"""Updates and etags: what an update looks at, what never changes, and who wins. True of both services."""

import asyncio
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from sqlalchemy import text

from tests.rpc.helpers import ONE_ENGINE, Side, Taken, connected, contents, outcome_of, together
from tests.support import Stubs, error_seen, failure

LATER = Timestamp(seconds=4_000_000_000)


async def test_a_resource_can_be_read_changed_and_sent_back_whole(side: Side) -> None:
    """Without a mask, what came from a read may go into an update as it is, with only the body changed."""
    resource = await side.get((await side.stored("before")).id)

    resource.body = "after"
    updated = await side.update(resource)

    assert updated.body == "after"
    assert await side.get(resource.id) == updated


@pytest.mark.parametrize("paths", [(), ("body",), ("*",), ("*", "body"), ("body", "body")])
async def test_every_mask_that_names_the_body_changes_it(side: Side, paths: tuple[str, ...]) -> None:
    """Unset with a body given, "body", and "*" mean the same for the body."""
    resource = await side.stored("before")

    updated = await side.update(side.resource(id=resource.id, body="after"), paths)

    assert updated.body == "after"


@ONE_ENGINE
async def test_an_unset_mask_with_nothing_set_is_refused(side: Side) -> None:
    """An update that changes nothing is most likely a mistake."""
    resource = await side.stored()

    error = await failure(side.update(side.resource(id=resource.id)))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert error.fields == [f"{side.field}.body"]


@pytest.mark.parametrize("paths", [("body",), ("*",)])
async def test_a_mask_that_names_the_body_needs_one(side: Side, paths: tuple[str, ...]) -> None:
    """An empty body is not allowed, so a mask cannot clear it."""
    resource = await side.stored()

    error = await failure(side.update(side.resource(id=resource.id), paths))

    assert (error.reason, error.fields) == ("FIELD_INVALID", [f"{side.field}.body"])
    assert await side.get(resource.id) == resource


@ONE_ENGINE
async def test_an_unknown_path_is_refused(side: Side) -> None:
    """A path that is no field is refused, also next to one that is, and nothing is changed."""
    resource = await side.stored()

    for path in ("boddy", "post.body", "body.x", "Body", " body", "\0", "%s", "é" * 200, ""):
        for paths in ((path,), ("body", path), ("*", path)):
            error = await failure(side.update(side.resource(id=resource.id, body="after"), paths))

            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_MASK_INVALID"), (
                paths
            )
            assert error.fields == ["update_mask"]
    assert await side.get(resource.id) == resource


@ONE_ENGINE
async def test_a_mask_of_more_than_100_paths_is_refused(side: Side) -> None:
    """One too many is too many, whether the paths are known or not; the limit is told."""
    resource = await side.stored("before")

    for path in ("body", "*", "x"):
        error = await failure(side.update(side.resource(id=resource.id, body="after"), [path] * 101))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert error.fields == ["update_mask"]
        assert error.message == "update_mask: must not name more than 100 paths"
    assert await side.get(resource.id) == resource

    updated = await side.update(side.resource(id=resource.id, body="after"), ["body"] * 100)
    assert updated.body == "after"


@ONE_ENGINE
async def test_a_path_that_the_server_sets_is_refused(side: Side) -> None:
    """What a caller cannot change cannot be in a mask, even with the stored value."""
    resource = await side.stored()

    for path in ("id", "create_time", "update_time", "etag"):
        error = await failure(side.update(resource, [path]))

        assert (error.reason, error.fields) == ("FIELD_MASK_INVALID", ["update_mask"])
        (violation,) = error.detail(error_details_pb2.BadRequest).field_violations
        assert f'"{path}" is set by the server' in violation.description


@ONE_ENGINE
async def test_post_id_is_a_path_of_comments_alone(posts: Side) -> None:
    """A post has no post_id."""
    post = await posts.stored()

    error = await failure(posts.update(posts.resource(id=post.id, body="after"), ["body", "post_id"]))

    assert error.reason == "FIELD_MASK_INVALID"


@pytest.mark.parametrize("paths", [(), ("*",), ("body", "post_id")])
async def test_the_stored_post_id_may_be_sent_back(comments: Side, paths: tuple[str, ...]) -> None:
    """Naming the post that the comment belongs to changes nothing."""
    comment = await comments.stored()

    updated = await comments.update(comments.draft("after", id=comment.id), paths)

    assert (updated.body, updated.post_id) == ("after", comments.post_id)


@pytest.mark.parametrize("paths", [(), ("*",), ("post_id",), ("body", "post_id")])
async def test_a_comment_never_moves_to_another_post(
    stubs: Stubs, comments: Side, paths: tuple[str, ...]
) -> None:
    """Another post_id, also that of a post that is there, is refused, and the body stays too."""
    comment = await comments.stored()
    other = await stubs.create_post()

    error = await failure(
        comments.update(comments.resource(id=comment.id, body="after", post_id=other.id), paths)
    )

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_IMMUTABLE")
    assert error.fields == ["comment.post_id"]
    assert await comments.get(comment.id) == comment


async def test_a_mask_that_names_post_id_needs_the_stored_one(comments: Side) -> None:
    """Naming post_id and leaving it 0 would clear it, which is a change."""
    comment = await comments.stored()

    error = await failure(
        comments.update(comments.resource(id=comment.id, body="after"), ["body", "post_id"])
    )

    assert (error.reason, error.fields) == ("FIELD_IMMUTABLE", ["comment.post_id"])


@pytest.mark.parametrize("paths", [(), ("*",)])
async def test_post_id_may_be_left_out_when_no_mask_names_it(comments: Side, paths: tuple[str, ...]) -> None:
    """0 is not set, and "*" asks for no change of what never changes."""
    comment = await comments.stored()

    updated = await comments.update(comments.resource(id=comment.id, body="after"), paths)

    assert updated.post_id == comments.post_id


async def test_a_mask_of_post_id_alone_changes_nothing(comments: Side) -> None:
    """The mask says what is looked at: the body is not, and the comment stays as it is, with its etag."""
    comment = await comments.stored("before")

    updated = await comments.update(comments.draft("after", id=comment.id), ["post_id"])

    assert updated == comment


async def test_a_mask_of_body_alone_looks_at_nothing_else(stubs: Stubs, side: Side) -> None:
    """Other fields are left out of the update by the mask, so they may hold anything."""
    resource = await side.stored()
    other = {"post_id": 404} if side.name == "Comment" else {}

    changed = side.resource(id=resource.id, body="after", create_time=LATER, update_time=LATER, **other)
    updated = await side.update(changed, ["body"])

    assert (updated.body, updated.create_time) == ("after", resource.create_time)


@pytest.mark.parametrize("paths", [(), ("*",)])
@pytest.mark.parametrize("field", ["create_time", "update_time"])
async def test_times_never_change_by_an_update(side: Side, paths: tuple[str, ...], field: str) -> None:
    """Another time than the stored one is refused where the update looks at it."""
    resource = await side.stored()

    for value in (
        LATER,
        Timestamp(),
        Timestamp(seconds=-1),
        Timestamp(nanos=-1),
        Timestamp(nanos=1),
        Timestamp(seconds=2**62),
    ):
        error = await failure(
            side.update(side.resource(id=resource.id, body="after", **{field: value}), paths)
        )

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_IMMUTABLE"), value
        assert error.fields == [f"{side.field}.{field}"]
    assert await side.get(resource.id) == resource


async def test_a_time_that_is_finer_than_the_stored_one_is_another_time(side: Side) -> None:
    """A nanosecond more is not the stored value, though it is in the same microsecond."""
    resource = await side.stored()
    resource.create_time.nanos += 1

    assert (await failure(side.update(resource))).reason == "FIELD_IMMUTABLE"


async def test_all_that_would_change_is_reported_at_once(comments: Side) -> None:
    """Every immutable field that differs is a violation of its own."""
    comment = await comments.stored()

    changed = comments.resource(id=comment.id, body="b", post_id=404, create_time=LATER, update_time=LATER)
    error = await failure(comments.update(changed))

    assert error.fields == ["comment.post_id", "comment.create_time", "comment.update_time"]


async def test_rows_from_before_times_were_kept_can_be_read_and_sent_back(
    side: Side, database_url: str
) -> None:
    """Times that were never stored are unset, stay out of the way of updates, and cannot be made up."""
    resource = await side.stored()
    with connected(database_url) as connection:
        connection.execute(text(f"UPDATE {side.plural} SET create_time = NULL, update_time = NULL"))

    old = await side.get(resource.id)
    assert not old.HasField("create_time")
    assert not old.HasField("update_time")

    made_up = side.resource(id=old.id, body="after", create_time=Timestamp())
    assert (await failure(side.update(made_up))).reason == "FIELD_IMMUTABLE"

    old.body = "after"
    updated = await side.update(old)
    assert not updated.HasField("create_time")
    assert updated.HasField("update_time")


async def test_an_update_of_what_is_missing_is_not_found(side: Side) -> None:
    """An update creates nothing."""
    error = await failure(side.update(side.resource(id=404, body="after")))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, side.not_found)
    assert error.metadata[f"{side.field}_id"] == "404"


async def test_the_stored_etag_lets_an_update_pass(side: Side) -> None:
    """Who has seen the latest state may change it, again and again."""
    resource = await side.stored()

    for body in ("one", "two", "three"):
        resource = await side.update(side.resource(id=resource.id, body=body, etag=resource.etag))

    assert (await side.get(resource.id)).body == "three"


@pytest.mark.parametrize("paths", [(), ("body",), ("*",)])
async def test_an_old_etag_stops_an_update(side: Side, paths: tuple[str, ...]) -> None:
    """Who has missed a change is refused, whatever the mask, and is told the etag of now."""
    resource = await side.stored()
    changed = await side.update(side.resource(id=resource.id, body="first"))

    error = await failure(
        side.update(side.resource(id=resource.id, body="second", etag=resource.etag), paths)
    )

    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert error.message.startswith(f"{side.name.lower()} {resource.id} was changed")
    assert error.metadata == {"current_etag": changed.etag}
    named = error.detail(error_details_pb2.ResourceInfo)
    assert (named.resource_type, named.resource_name) == (f"storeapi.v1.{side.name}", str(resource.id))
    assert await side.get(resource.id) == changed


async def test_the_etag_in_the_error_lets_the_next_try_pass(side: Side) -> None:
    """current_etag is what the stored resource has."""
    resource = await side.stored()
    error = await failure(side.update(side.resource(id=resource.id, body="x", etag="no such etag")))

    updated = await side.update(side.resource(id=resource.id, body="y", etag=error.metadata["current_etag"]))

    assert updated.body == "y"


async def test_nothing_but_the_stored_etag_will_do(side: Side) -> None:
    """An etag is compared as it is."""
    resource = await side.stored()

    for etag in ("1", "V1", "v01", "v1 ", "v1\0", "*", "v2", "é" * 100):
        updated = await failure(side.update(side.resource(id=resource.id, body="x", etag=etag)))
        deleted = await failure(side.delete(resource.id, etag=etag))

        assert (updated.reason, deleted.reason) == ("ETAG_MISMATCH", "ETAG_MISMATCH"), etag


async def test_of_updates_with_the_same_etag_exactly_one_wins(
    side: Side, taken: Taken, database_url: str
) -> None:
    """However close together they are, one is done and all others are told that it was."""
    resource = await side.stored()

    def update(n: int) -> Any:
        return side.update(side.resource(id=resource.id, body=f"update {n}", etag=resource.etag))

    outcomes = await together(taken, side, database_url, [partial(update, n) for n in range(10)])

    (winner,) = [it for it in outcomes if not isinstance(it, grpc.RpcError)]
    losers = [error_seen(it) for it in outcomes if isinstance(it, grpc.RpcError)]
    assert {(it.reason, it.metadata["current_etag"]) for it in losers} == {("ETAG_MISMATCH", winner.etag)}
    assert await side.get(resource.id) == winner


async def test_of_updates_at_any_moment_exactly_one_wins(side: Side) -> None:
    """The same when nothing but chance decides who rides with whom."""
    resource = await side.stored()

    for _ in range(10):
        outcomes = await asyncio.gather(
            *(
                outcome_of(side.update(side.resource(id=resource.id, body=f"update {n}", etag=resource.etag)))
                for n in range(10)
            )
        )

        (resource,) = [it for it in outcomes if not isinstance(it, grpc.RpcError)]
        assert await side.get(resource.id) == resource


async def test_updates_that_ride_together_follow_each_other(
    side: Side, taken: Taken, database_url: str
) -> None:
    """Updates without etags that arrive at once are all done, each on what the one before it left."""
    resource = await side.stored()

    def update(n: int) -> Any:
        return side.update(side.resource(id=resource.id, body=f"update {n}"))

    updated = await together(taken, side, database_url, [partial(update, n) for n in range(10)])

    assert len({it.etag for it in updated}) == 10
    assert await side.get(resource.id) in updated


async def test_the_stored_etag_lets_a_delete_pass(side: Side) -> None:
    """A delete may say which state it means."""
    resource = await side.stored()
    resource = await side.update(side.resource(id=resource.id, body="after"))

    assert await side.delete(resource.id, etag=resource.etag) == resource


async def test_an_old_etag_stops_a_delete(side: Side, database_url: str) -> None:
    """Who has missed a change does not delete it, also not with allow_missing."""
    resource = await side.stored()
    changed = await side.update(side.resource(id=resource.id, body="after"))
    before = contents(database_url)

    for options in ({}, {"allow_missing": True}):
        error = await failure(side.delete(resource.id, etag=resource.etag, **options))

        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
        assert error.metadata == {"current_etag": changed.etag}
    assert contents(database_url) == before


async def test_a_delete_of_what_is_missing_is_not_found(side: Side) -> None:
    """A delete says when there was nothing to delete."""
    error = await failure(side.delete(404))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, side.not_found)
    assert error.metadata[f"{side.field}_id"] == "404"


async def test_allow_missing_answers_the_id_asked_for(side: Side) -> None:
    """A delete that may find nothing answers a resource with nothing but its id."""
    assert await side.delete(404, allow_missing=True) == side.resource(id=404)
    assert await side.delete(404, allow_missing=True, etag="v1") == side.resource(id=404)


async def test_allow_missing_deletes_what_is_there(side: Side) -> None:
    """allow_missing changes nothing when there is something."""
    resource = await side.stored()

    assert await side.delete(resource.id, allow_missing=True) == resource
    assert (await failure(side.get(resource.id))).reason == side.not_found


async def test_of_deletes_at_once_one_finds_something(side: Side, taken: Taken, database_url: str) -> None:
    """What is deleted once is missing for all others, also within one batch."""
    resource = await side.stored()

    outcomes = await together(taken, side, database_url, [lambda: side.delete(resource.id)] * 5)

    assert [it for it in outcomes if not isinstance(it, grpc.RpcError)] == [resource]
    assert {error_seen(it).reason for it in outcomes if isinstance(it, grpc.RpcError)} == {side.not_found}
