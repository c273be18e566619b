"""Batch updates: all or none, each with its own mask and etag."""

from typing import Any

import grpc
import pytest

from tests.support.database import database_contents
from tests.support.errors import expect_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs
from tests.support.watches import UPDATE, watch_from_now
from tests.support.write_requests import new_request_id


async def test_each_update_has_its_own_mask(api: ResourceApi) -> None:
    """The response has the resources in the order of the requests."""
    draft = api.draft("body", author="me", labels={"a": "1"})
    first, second, third = api.resources_in(await api.batch_create([draft] * 3))

    updated = api.resources_in(
        await api.batch_update(
            [
                (api.resource(id=third.id, body="x", author="new", labels={"b": "2"}), ["labels.b"]),
                (api.resource(id=first.id, body="x", author="new"), ["author"]),
                (api.resource(id=second.id, body="x", etag=second.etag), []),
            ]
        )
    )

    assert [it.id for it in updated] == [third.id, first.id, second.id]
    assert [(it.body, it.author, dict(it.labels)) for it in updated] == [
        ("body", "me", {"a": "1", "b": "2"}),
        ("body", "new", {"a": "1"}),
        ("x", "me", {"a": "1"}),
    ]
    assert api.resources_in(await api.batch_get([third.id, first.id, second.id])) == updated


async def test_refused_update_changes_nothing(api: ResourceApi, database_url: str) -> None:
    """A stale etag, a missing resource, an immutable field or too many labels of one refuses all."""
    stored = await api.create_many(20)
    fresh = [(api.resource(id=it.id, body="new", etag=it.etag), []) for it in stored[:19]]
    last = stored[-1].id
    before = database_contents(database_url)

    for update, code, reason in (
        ((api.resource(id=last, body="x", etag="v9"), []), grpc.StatusCode.ABORTED, "ETAG_MISMATCH"),
        ((api.resource(id=10**6, body="x"), []), grpc.StatusCode.NOT_FOUND, api.not_found),
        (
            (api.resource(id=last, body="x", external_id="a"), []),
            grpc.StatusCode.INVALID_ARGUMENT,
            "FIELD_IMMUTABLE",
        ),
        ((api.resource(id=last, body=""), ["body"]), grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"),
        ((api.resource(id=last), ["x"]), grpc.StatusCode.INVALID_ARGUMENT, "FIELD_MASK_INVALID"),
        (fresh[0], grpc.StatusCode.INVALID_ARGUMENT, "BATCH_DUPLICATE"),
    ):
        error = await expect_error(api.batch_update([*fresh, update]))
        assert (error.code, error.reason) == (code, reason)
        if code == grpc.StatusCode.INVALID_ARGUMENT:
            assert error.fields[0].startswith("requests[19].")
    assert database_contents(database_url) == before


async def test_missing_resources_are_listed(api: ResourceApi) -> None:
    """All of them."""
    one = await api.create_one()
    updates = [(api.resource(id=id, body="x"), []) for id in (900, one.id, 901)]

    error = await expect_error(api.batch_update(updates))

    assert (error.reason, error.metadata["missing_ids"]) == (api.not_found, "900,901")


async def test_size_of_a_batch_is_checked(api: ResourceApi) -> None:
    """1 to 1000 updates, without options of their own."""
    assert (await expect_error(api.batch_update([]))).reason == "BATCH_EMPTY"
    many = [(api.resource(id=n, body="x"), []) for n in range(1, 1002)]
    error = await expect_error(api.batch_update(many))
    assert (error.reason, error.metadata) == ("BATCH_TOO_LARGE", {"count": "1001", "max_count": "1000"})

    one = {api.field: api.resource(id=1, body="x"), "request_id": new_request_id(), "validate_only": True}
    error = await expect_error(api.call(f"BatchUpdate{api.name}s", requests=[one]))
    assert (error.reason, error.fields) == (
        "FIELD_INVALID",
        ["requests[0].request_id", "requests[0].validate_only"],
    )


async def test_thousand_updates_are_one_transaction(
    api: ResourceApi, channel: grpc.aio.Channel, stubs: Stubs
) -> None:
    """The changes are in the feed in the order of the requests, with the request id."""
    ids = [it.id for it in await api.create_many(1000)][::-1]
    id = new_request_id()
    async with watch_from_now(channel) as watch:
        updated = api.resources_in(
            await api.batch_update(
                [(api.resource(id=it, labels={"n": f"{it}"}), []) for it in ids], request_id=id
            )
        )
        changes = await watch.changes(1000)

    assert [it.id for it in updated] == ids
    assert all(dict(it.labels) == {"n": f"{it.id}"} for it in updated)
    assert [(it.action, it.id, it.request_id) for it in changes] == [(UPDATE, it, id) for it in ids]
    assert [getattr(it, api.field) for it in changes] == updated


async def test_replay_returns_the_first_response(api: ResourceApi, database_url: str) -> None:
    """Also if the resources have changed, and their etags with them."""
    stored = await api.create_many(2)
    updates = [(api.resource(id=it.id, author="me", etag=it.etag), []) for it in stored]
    id = new_request_id()
    first = await api.batch_update(updates, request_id=id)
    await api.update(api.resource(id=stored[0].id, body="later"))
    before = database_contents(database_url)

    assert await api.batch_update(updates, request_id=id) == first
    assert (await expect_error(api.batch_update(updates[::-1], request_id=id))).reason == "REQUEST_ID_REUSED"
    assert database_contents(database_url) == before


async def test_validate_only_returns_the_result(api: ResourceApi, database_url: str) -> None:
    """Without update_time and etag. Nothing is stored."""
    stored = await api.create_many(2)
    before = database_contents(database_url)
    updates = [(api.resource(id=it.id, body="new"), ["body"]) for it in stored]

    dry = api.resources_in(await api.batch_update(updates, validate_only=True))

    assert [(it.id, it.body, it.etag, it.HasField("update_time")) for it in dry] == [
        (it.id, "new", "", False) for it in stored
    ]
    assert database_contents(database_url) == before


@pytest.mark.parametrize("grows", [True, False])
async def test_response_that_is_too_large_changes_nothing(
    api: ResourceApi, database_url: str, grows: bool
) -> None:
    """Whether the request or the stored resources are large."""
    size = 100 if grows else 60_000
    stored: list[Any] = []
    for _ in range(2):
        stored += await api.create_many(35, "x" * size)
    before = database_contents(database_url)
    new = {"body": "x" * 60_000} if grows else {"author": "me"}

    error = await expect_error(api.batch_update([(api.resource(id=it.id, **new), []) for it in stored]))

    # A request that large is refused by gRPC before the service reads it.
    assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    if not grows:
        assert error.reason == "RESPONSE_TOO_LARGE"
    assert database_contents(database_url) == before
