"""Former versions of posts and comments."""

from functools import partial
from typing import Any

import pytest

from store_service.config import Config
from tests.support.database import query
from tests.support.direct_server import ManualSteps
from tests.support.errors import expect_error
from tests.support.resource_api import ResourceApi
from tests.support.running_server import server_with
from tests.support.write_queue import WriteQueue, run_in_one_batch


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> ManualSteps:
    """Resources are purged only when the test says so. Named before `api`."""
    return ManualSteps(monkeypatch)


@pytest.fixture
def config(config: Config) -> Config:
    """The last three versions are kept."""
    return config.model_copy(update={"undelete_hours": 24.0, "revisions": 3})


def page(api: ResourceApi, id: int, **options: Any) -> Any:
    return api.call(f"List{api.name}Revisions", id=id, **options)


async def revisions(api: ResourceApi, id: int, **options: Any) -> list[Any]:
    return api.resources_in(await page(api, id, **options))


async def updated(api: ResourceApi, id: int, *bodies: str) -> list[Any]:
    return [await api.update(api.resource(id=id, body=body)) for body in bodies]


async def test_update_keeps_the_former_version(api: ResourceApi) -> None:
    """With the fields that it had, newest first, without the current version."""
    created = await api.create(api.draft(author="a", labels={"k": "v"}, external_id="x"))
    assert await revisions(api, created.id) == []
    changed = api.resource(id=created.id, body="b", author="b", labels={})
    second = await api.update(changed, ["body", "author", "labels"])
    third = await api.update(api.resource(id=created.id, author="c"))

    assert await revisions(api, created.id) == [second, created]
    assert third.etag not in (second.etag, created.etag)


async def test_only_the_last_versions_are_kept(api: ResourceApi) -> None:
    """An undelete is not a version of its own."""
    created = await api.create_one()
    states = await updated(api, created.id, "b", "c", "d", "e")
    assert await revisions(api, created.id) == [*states[2::-1]]

    await api.delete(created.id)
    restored = await api.call(f"Undelete{api.name}", id=created.id)
    await updated(api, created.id, "f")
    assert await revisions(api, created.id) == [restored, *states[2:0:-1]]


async def test_update_that_changes_no_text_keeps_no_version(
    api: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """It would displace a version that differs. Also in one transaction with others."""
    created = await api.create(api.draft(author="a", labels={"k": "v"}))
    (changed,) = await updated(api, created.id, "b")
    for _ in range(4):
        last = await api.update(api.resource(id=created.id, body="b", author="a"))
    await api.update(api.resource(id=created.id, labels={"k": "w"}), ["labels"])
    assert last.etag != changed.etag
    assert await revisions(api, created.id) == [created]

    bodies = ("b", "c", "c", "d")
    calls = [partial(api.update, api.resource(id=created.id, body=it)) for it in bodies]
    states = await run_in_one_batch(write_queue, api, database_url, calls)
    assert await revisions(api, created.id) == [states[2], states[0], created]


async def test_pages_of_versions(api: ResourceApi) -> None:
    """Of any size; a token of another resource is refused."""
    created = await api.create_one()
    other = await api.create_one()
    states = await updated(api, created.id, "b", "c", "d")
    expected = [*states[1::-1], created]
    found: list[Any] = []
    token = ""
    while not found or token:
        answer = await page(api, created.id, page_size=1, page_token=token)
        found += api.resources_in(answer)
        token = answer.next_page_token
        if len(found) == 1:
            error = await expect_error(page(api, other.id, page_token=token))
            assert error.reason == "PAGE_TOKEN_MISMATCH"

    assert found == expected
    for bad, reason in (
        ({"page_size": -1}, "FIELD_INVALID"),
        ({"page_token": "x"}, "PAGE_TOKEN_INVALID"),
        ({"id": 0}, "FIELD_INVALID"),
        ({"id": 10**15}, api.not_found),
    ):
        error = await expect_error(page(api, **{"id": created.id, **bad}))
        assert error.reason == reason


async def test_versions_of_a_deleted_resource(steps: ManualSteps, api: ResourceApi) -> None:
    """With show_deleted, until it is purged."""
    created = await api.create_one()
    await updated(api, created.id, "b")
    deleted = await api.delete(created.id)

    assert (await expect_error(page(api, created.id))).reason == api.not_found
    (version,) = await revisions(api, created.id, show_deleted=True)
    assert (version.body, version.etag) == (created.body, created.etag)
    assert version.purge_time == deleted.purge_time
    await api.call(f"Undelete{api.name}", id=created.id)
    assert await revisions(api, created.id) == [created]
    purge_time = (await api.delete(created.id)).purge_time.ToMicroseconds()
    await steps.purge(purge_time + 1)
    assert (await expect_error(page(api, created.id, show_deleted=True))).reason == api.not_found


async def test_versions_of_a_comment_that_became_a_tombstone(config: Config, database_url: str) -> None:
    """They are kept as long as the comment can be restored, otherwise removed."""
    for undelete_hours, kept in ((24, 1), (0, 0)):
        async with server_with(config, undelete_hours=undelete_hours) as (_, stubs):
            comments = ResourceApi("Comment", stubs, post_id=(await stubs.create_post()).id)
            created = await comments.create_one()
            await comments.create(comments.draft(reply_to_id=created.id))
            await updated(comments, created.id, "b")
            await comments.delete(created.id)

            selected = f"SELECT count(*) FROM revisions WHERE kind = 2 AND resource_id = {created.id}"
            assert query(database_url, selected) == [(kept,)]
            if kept:
                await comments.call("UndeleteComment", id=created.id)
                assert await revisions(comments, created.id) == [created]


async def test_batch_update_keeps_the_versions_of_each(api: ResourceApi) -> None:
    """An update that fails or changes nothing keeps none."""
    first, second = await api.create_many(2)
    await api.batch_update([(api.resource(id=it.id, body="b"), ()) for it in (first, second)])
    error = await expect_error(api.update(api.resource(id=first.id, body="c", etag=first.etag)))
    assert error.reason == "ETAG_MISMATCH"
    await api.update(api.resource(id=first.id, body="c"), validate_only=True)

    assert await revisions(api, first.id) == [first]
    assert await revisions(api, second.id) == [second]


async def test_updates_in_one_transaction_keep_each_version(
    write_queue: WriteQueue, api: ResourceApi, database_url: str
) -> None:
    """Of one resource, the last ones of them."""
    created = await api.create_one()
    calls = [partial(api.update, api.resource(id=created.id, body=f"body {n}")) for n in range(5)]
    states = await run_in_one_batch(write_queue, api, database_url, calls)

    assert await revisions(api, created.id) == states[3:0:-1]
    assert await api.get(created.id) == states[4]


@pytest.mark.parametrize("name", ["Post", "Comment"])
async def test_no_versions_with_setting_0(config: Config, database_url: str, name: str) -> None:
    """And an update removes those that were kept before."""
    async with server_with(config) as (_, stubs):
        post = await stubs.create_post()
        api = ResourceApi(name, stubs, post_id=post.id if name == "Comment" else 0)
        created = await api.create_one()
        await updated(api, created.id, "b", "c")
    async with server_with(config, revisions=0) as (_, stubs):
        api = ResourceApi(name, stubs)
        await updated(api, created.id, "d")
        assert await revisions(api, created.id) == []

    assert query(database_url, "SELECT count(*) FROM revisions") == [(0,)]


@pytest.mark.parametrize("name", ["Post", "Comment"])
async def test_versions_of_a_removed_resource_are_removed(
    config: Config, database_url: str, name: str
) -> None:
    """If it cannot be restored."""
    async with server_with(config, undelete_hours=0) as (_, stubs):
        post = await stubs.create_post()
        api = ResourceApi(name, stubs, post_id=post.id if name == "Comment" else 0)
        created = await api.create_one()
        await updated(api, created.id, "b")
        await api.delete(created.id)

    assert query(database_url, "SELECT count(*) FROM revisions") == [(0,)]
