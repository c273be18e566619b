"""Updates and etags of both resource types: masks, immutable fields and conflicts."""

import asyncio
from functools import partial
from itertools import product
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from sqlalchemy import text

from tests.support.database import database_connection, database_contents
from tests.support.engines import SQLITE_ONLY
from tests.support.errors import expect_error, received_error, result_or_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs
from tests.support.write_queue import WriteQueue, run_in_one_batch

LATER = Timestamp(seconds=4_000_000_000)


async def test_resource_can_be_read_changed_and_sent_back(api: ResourceApi) -> None:
    """Without a mask. Only the body is changed."""
    resource = await api.get((await api.create_one("before")).id)

    resource.body = "after"
    updated = await api.update(resource)

    assert updated.body == "after"
    assert await api.get(resource.id) == updated


async def test_every_mask_with_the_body_changes_it(api: ResourceApi) -> None:
    """An unset mask, "body", and "*"."""
    for paths in ((), ("body",), ("*",), ("*", "body"), ("body", "body")):
        resource = await api.create_one("before")

        updated = await api.update(api.resource(id=resource.id, body="after"), paths)

        assert updated.body == "after", paths


@SQLITE_ONLY
async def test_empty_update_is_refused(api: ResourceApi) -> None:
    """An update that changes nothing is most likely a mistake, also one with only an immutable field."""
    resource = await api.create_one()

    for fields in ({}, {"external_id": "other"}):
        error = await expect_error(api.update(api.resource(id=resource.id, **fields)))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert error.fields == [api.field]
        problem = "has no field to update (author, body, labels); to clear one, name it in update_mask"
        assert error.message == f"{api.field}: {problem}"


async def test_mask_with_body_needs_a_body(api: ResourceApi) -> None:
    """A mask cannot clear it."""
    for paths in (("body",), ("*",)):
        resource = await api.create_one()

        error = await expect_error(api.update(api.resource(id=resource.id), paths))

        assert (error.reason, error.fields) == ("FIELD_INVALID", [f"{api.field}.body"]), paths
        assert await api.get(resource.id) == resource, paths


@SQLITE_ONLY
async def test_unknown_path_is_refused(api: ResourceApi) -> None:
    """Also together with a known path."""
    resource = await api.create_one()

    for path in ("boddy", "post.body", "body.x", "Body", " body", "\0", "%s", "é" * 200, ""):
        for paths in ((path,), ("body", path), ("*", path)):
            error = await expect_error(api.update(api.resource(id=resource.id, body="after"), paths))

            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_MASK_INVALID"), (
                paths
            )
            assert error.fields == ["update_mask"]
    assert await api.get(resource.id) == resource


@SQLITE_ONLY
async def test_mask_of_more_than_100_paths_is_refused(api: ResourceApi) -> None:
    """The error has the limit."""
    resource = await api.create_one("before")

    for path in ("body", "*", "x"):
        error = await expect_error(api.update(api.resource(id=resource.id, body="after"), [path] * 101))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert error.fields == ["update_mask"]
        assert error.message == "update_mask: must not have more than 100 paths"
    assert await api.get(resource.id) == resource

    updated = await api.update(api.resource(id=resource.id, body="after"), ["body"] * 100)
    assert updated.body == "after"


@SQLITE_ONLY
async def test_output_only_path_is_refused(api: ResourceApi) -> None:
    """Also with the stored value."""
    resource = await api.create_one()

    for path in ("id", "create_time", "update_time", "etag"):
        error = await expect_error(api.update(resource, [path]))

        assert (error.reason, error.fields) == ("FIELD_MASK_INVALID", ["update_mask"])
        (violation,) = error.detail(error_details_pb2.BadRequest).field_violations
        assert f'"{path}" is set by the server' in violation.description


@SQLITE_ONLY
async def test_post_id_is_a_path_of_comments_only(posts: ResourceApi) -> None:
    """A post has no post_id."""
    post = await posts.create_one()

    error = await expect_error(posts.update(posts.resource(id=post.id, body="after"), ["body", "post_id"]))

    assert error.reason == "FIELD_MASK_INVALID"


async def test_stored_post_id_may_be_sent_back(comments: ResourceApi) -> None:
    """A comment may be sent with the id of its post."""
    for paths in ((), ("*",), ("body", "post_id")):
        comment = await comments.create_one()

        updated = await comments.update(comments.draft("after", id=comment.id), paths)

        assert (updated.body, updated.post_id) == ("after", comments.post_id), paths


async def test_comment_does_not_move_to_another_post(stubs: Stubs, comments: ResourceApi) -> None:
    """The body is not changed either."""
    for paths in ((), ("*",), ("post_id",), ("body", "post_id")):
        comment = await comments.create_one()
        other = await stubs.create_post()

        error = await expect_error(
            comments.update(comments.resource(id=comment.id, body="after", post_id=other.id), paths)
        )

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_IMMUTABLE"), paths
        assert error.fields == ["comment.post_id"], paths
        assert await comments.get(comment.id) == comment, paths


async def test_mask_with_post_id_needs_the_stored_one(comments: ResourceApi) -> None:
    """0 would clear it."""
    comment = await comments.create_one()

    error = await expect_error(
        comments.update(comments.resource(id=comment.id, body="after"), ["body", "post_id"])
    )

    assert (error.reason, error.fields) == ("FIELD_IMMUTABLE", ["comment.post_id"])


@pytest.mark.parametrize("paths", [(), ("*",)])
async def test_post_id_may_be_unset_without_a_mask_for_it(
    comments: ResourceApi, paths: tuple[str, ...]
) -> None:
    """0 is unset, and "*" does not include unset immutable fields."""
    comment = await comments.create_one()

    updated = await comments.update(comments.resource(id=comment.id, body="after"), paths)

    assert updated.post_id == comments.post_id


async def test_mask_of_post_id_alone_changes_nothing(comments: ResourceApi) -> None:
    """The etag stays."""
    comment = await comments.create_one("before")

    updated = await comments.update(comments.draft("after", id=comment.id), ["post_id"])

    assert updated == comment


async def test_mask_of_body_ignores_other_fields(stubs: Stubs, api: ResourceApi) -> None:
    """Fields that the mask does not name can have any value."""
    resource = await api.create_one()
    other = {"post_id": 404} if api.name == "Comment" else {}

    changed = api.resource(id=resource.id, body="after", create_time=LATER, update_time=LATER, **other)
    updated = await api.update(changed, ["body"])

    assert (updated.body, updated.create_time) == ("after", resource.create_time)


async def test_times_are_immutable(api: ResourceApi) -> None:
    for field, paths in product(("create_time", "update_time"), ((), ("*",))):
        resource = await api.create_one()

        for value in (
            LATER,
            Timestamp(),
            Timestamp(seconds=-1),
            Timestamp(nanos=-1),
            Timestamp(nanos=1),
            Timestamp(seconds=2**62),
        ):
            error = await expect_error(
                api.update(api.resource(id=resource.id, body="after", **{field: value}), paths)
            )

            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_IMMUTABLE"), value
            assert error.fields == [f"{api.field}.{field}"], paths
        assert await api.get(resource.id) == resource


async def test_nanoseconds_differ_from_the_stored_microseconds(api: ResourceApi) -> None:
    """A time that is a nanosecond later differs, although it is in the same microsecond."""
    resource = await api.create_one()
    resource.create_time.nanos += 1

    assert (await expect_error(api.update(resource))).reason == "FIELD_IMMUTABLE"


async def test_all_immutable_differences_are_reported_at_once(comments: ResourceApi) -> None:
    comment = await comments.create_one()

    changed = comments.resource(id=comment.id, body="b", post_id=404, create_time=LATER, update_time=LATER)
    error = await expect_error(comments.update(changed))

    assert error.fields == ["comment.post_id", "comment.create_time", "comment.update_time"]


async def test_rows_without_times_can_be_read_and_sent_back(api: ResourceApi, database_url: str) -> None:
    """Unset times do not affect updates."""
    resource = await api.create_one()
    with database_connection(database_url) as connection:
        connection.execute(text(f"UPDATE {api.plural} SET create_time = NULL, update_time = NULL"))

    old = await api.get(resource.id)
    assert not old.HasField("create_time")
    assert not old.HasField("update_time")

    made_up = api.resource(id=old.id, body="after", create_time=Timestamp())
    assert (await expect_error(api.update(made_up))).reason == "FIELD_IMMUTABLE"

    old.body = "after"
    updated = await api.update(old)
    assert not updated.HasField("create_time")
    assert updated.HasField("update_time")


async def test_update_of_missing_resource_is_not_found(api: ResourceApi) -> None:
    """An update creates nothing."""
    error = await expect_error(api.update(api.resource(id=404, body="after")))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, api.not_found)
    assert error.metadata[f"{api.field}_id"] == "404"


async def test_current_etag_permits_an_update(api: ResourceApi) -> None:
    resource = await api.create_one()

    for body in ("one", "two", "three"):
        resource = await api.update(api.resource(id=resource.id, body=body, etag=resource.etag))

    assert (await api.get(resource.id)).body == "three"


async def test_old_etag_prevents_an_update(api: ResourceApi) -> None:
    """The error has the current etag."""
    for paths in ((), ("body",), ("*",)):
        resource = await api.create_one()
        changed = await api.update(api.resource(id=resource.id, body="first"))

        error = await expect_error(
            api.update(api.resource(id=resource.id, body="second", etag=resource.etag), paths)
        )

        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH"), paths
        assert error.message.startswith(f"{api.name.lower()} {resource.id} has changed")
        assert error.metadata == {"current_etag": changed.etag}
        named = error.detail(error_details_pb2.ResourceInfo)
        assert (named.resource_type, named.resource_name) == (f"storeapi.v1.{api.name}", str(resource.id))
        assert await api.get(resource.id) == changed


async def test_etag_of_the_error_permits_the_next_update(api: ResourceApi) -> None:
    resource = await api.create_one()
    error = await expect_error(api.update(api.resource(id=resource.id, body="x", etag="no such etag")))

    updated = await api.update(api.resource(id=resource.id, body="y", etag=error.metadata["current_etag"]))

    assert updated.body == "y"


async def test_etags_are_compared_exactly(api: ResourceApi) -> None:
    """Case and spaces count."""
    resource = await api.create_one()

    for etag in ("1", "V1", "v01", "v1 ", "v1\0", "*", "v2", "é" * 100):
        updated = await expect_error(api.update(api.resource(id=resource.id, body="x", etag=etag)))
        deleted = await expect_error(api.delete(resource.id, etag=etag))

        assert (updated.reason, deleted.reason) == ("ETAG_MISMATCH", "ETAG_MISMATCH"), etag


async def test_one_of_batched_updates_with_the_same_etag_succeeds(
    api: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    resource = await api.create_one()

    def update(n: int) -> Any:
        return api.update(api.resource(id=resource.id, body=f"update {n}", etag=resource.etag))

    outcomes = await run_in_one_batch(write_queue, api, database_url, [partial(update, n) for n in range(10)])

    (winner,) = [it for it in outcomes if not isinstance(it, grpc.RpcError)]
    losers = [received_error(it) for it in outcomes if isinstance(it, grpc.RpcError)]
    assert {(it.reason, it.metadata["current_etag"]) for it in losers} == {("ETAG_MISMATCH", winner.etag)}
    assert await api.get(resource.id) == winner


async def test_one_of_concurrent_updates_with_the_same_etag_succeeds(api: ResourceApi) -> None:
    resource = await api.create_one()

    for _ in range(10):
        outcomes = await asyncio.gather(
            *(
                result_or_error(
                    api.update(api.resource(id=resource.id, body=f"update {n}", etag=resource.etag))
                )
                for n in range(10)
            )
        )

        (resource,) = [it for it in outcomes if not isinstance(it, grpc.RpcError)]
        assert await api.get(resource.id) == resource


async def test_batched_updates_without_etag_all_succeed(
    api: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """In order."""
    resource = await api.create_one()

    def update(n: int) -> Any:
        return api.update(api.resource(id=resource.id, body=f"update {n}"))

    updated = await run_in_one_batch(write_queue, api, database_url, [partial(update, n) for n in range(10)])

    assert len({it.etag for it in updated}) == 10
    assert await api.get(resource.id) in updated


async def test_current_etag_permits_a_delete(api: ResourceApi) -> None:
    """A delete with the current etag succeeds."""
    resource = await api.create_one()
    resource = await api.update(api.resource(id=resource.id, body="after"))

    assert await api.delete(resource.id, etag=resource.etag) == resource


async def test_old_etag_prevents_a_delete(api: ResourceApi, database_url: str) -> None:
    """Also with allow_missing."""
    resource = await api.create_one()
    changed = await api.update(api.resource(id=resource.id, body="after"))
    before = database_contents(database_url)

    for options in ({}, {"allow_missing": True}):
        error = await expect_error(api.delete(resource.id, etag=resource.etag, **options))

        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
        assert error.metadata == {"current_etag": changed.etag}
    assert database_contents(database_url) == before


async def test_delete_of_missing_resource_is_not_found(api: ResourceApi) -> None:
    """A delete of a missing resource fails without allow_missing."""
    error = await expect_error(api.delete(404))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, api.not_found)
    assert error.metadata[f"{api.field}_id"] == "404"


async def test_allow_missing_returns_only_the_id(api: ResourceApi) -> None:
    """With allow_missing the response has only the id."""
    assert await api.delete(404, allow_missing=True) == api.resource(id=404)
    assert await api.delete(404, allow_missing=True, etag="v1") == api.resource(id=404)


async def test_allow_missing_deletes_an_existing_resource(api: ResourceApi) -> None:
    resource = await api.create_one()

    assert await api.delete(resource.id, allow_missing=True) == resource
    assert (await expect_error(api.get(resource.id))).reason == api.not_found


async def test_one_of_concurrent_deletes_succeeds(
    api: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """Also within one batch."""
    resource = await api.create_one()

    outcomes = await run_in_one_batch(write_queue, api, database_url, [lambda: api.delete(resource.id)] * 5)

    assert [it for it in outcomes if not isinstance(it, grpc.RpcError)] == [resource]
    assert {received_error(it).reason for it in outcomes if isinstance(it, grpc.RpcError)} == {api.not_found}
