"""validate_only: every write can be tried; it changes nothing and says what the write would say."""

from typing import Any

import pytest

from tests.support.database import database_contents
from tests.support.errors import expect_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs


async def test_validate_only_create_omits_server_fields(api: ResourceApi, database_url: str) -> None:
    """The response has the sent fields without id, times and etag."""
    before = database_contents(database_url)
    draft = api.draft("tried")

    assert await api.create(draft, validate_only=True) == draft

    assert database_contents(database_url) == before


async def test_validate_only_batch_create_omits_server_fields(api: ResourceApi, database_url: str) -> None:
    """The same for every member of a batch, in their order."""
    before = database_contents(database_url)
    drafts = [api.draft("one"), api.draft("two")]

    assert api.resources_in(await api.batch_create(drafts, validate_only=True)) == drafts

    assert database_contents(database_url) == before


async def test_validate_only_update_omits_server_fields(api: ResourceApi, database_url: str) -> None:
    """The response has the new body and the stored rest, without update_time and etag."""
    resource = await api.create_one("before")
    before = database_contents(database_url)

    changed = api.resource(id=resource.id, body="after", etag=resource.etag)
    answer = await api.update(changed, validate_only=True)

    expected = api.draft("after", id=resource.id, create_time=resource.create_time)
    assert answer == expected
    assert database_contents(database_url) == before


async def test_validate_only_delete_returns_the_stored_resource(api: ResourceApi, database_url: str) -> None:
    """The answer is the resource as it is and stays."""
    resource = await api.create_one()
    before = database_contents(database_url)

    assert await api.delete(resource.id, validate_only=True) == resource
    assert await api.delete(404, allow_missing=True, validate_only=True) == api.resource(id=404)

    assert database_contents(database_url) == before


async def test_validate_only_batch_delete_returns_the_stored_resources(
    api: ResourceApi, database_url: str
) -> None:
    """With the missing ids."""
    one, two = await api.create_many(2)
    before = database_contents(database_url)

    answer = await api.batch_delete([two.id, 404, one.id], allow_missing=True, validate_only=True)

    assert (api.resources_in(answer), list(answer.missing_ids)) == ([two, one], [404])
    assert database_contents(database_url) == before


async def test_validate_only_force_keeps_the_comments(
    stubs: Stubs, posts: ResourceApi, database_url: str
) -> None:
    """Trying to delete posts with their comments deletes neither."""
    post = await posts.create_one()
    await stubs.create_comment(post.id)
    before = database_contents(database_url)

    assert await posts.delete(post.id, force=True, validate_only=True) == post
    assert posts.resources_in(await posts.batch_delete([post.id], force=True, validate_only=True)) == [post]

    assert database_contents(database_url) == before


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # PostgreSQL's sequences never go back
async def test_validate_only_uses_no_ids(api: ResourceApi) -> None:
    """On SQLite not even a gap remains."""
    before = await api.create_one()

    await api.create(api.draft(), validate_only=True)
    await api.batch_create([api.draft()] * 10, validate_only=True)

    assert (await api.create_one()).id == before.id + 1


async def test_validate_only_sees_earlier_writes(api: ResourceApi) -> None:
    resource = await api.create_one()
    await api.delete(resource.id)

    assert (await expect_error(api.delete(resource.id, validate_only=True))).reason == api.not_found


WRONG: dict[str, Any] = {
    "create: no resource": lambda api, **options: api.call(f"Create{api.name}", **options),
    "create: empty body": lambda api, **options: api.create(api.draft(""), **options),
    "create: id": lambda api, **options: api.create(api.draft(id=1), **options),
    "create: request_id": lambda api, **options: api.create(api.draft(), request_id="x", **options),
    "batch create: empty": lambda api, **options: api.batch_create([], **options),
    "batch create: too many": lambda api, **options: api.batch_create([api.draft()] * 1001, **options),
    "batch create: a wrong one": lambda api, **options: api.batch_create(
        [api.draft(), api.draft("")], **options
    ),
    "update: no resource": lambda api, **options: api.call(f"Update{api.name}", **options),
    "update: missing": lambda api, **options: api.update(api.resource(id=404, body="x"), **options),
    "update: etag": lambda api, **options: api.update(api.resource(id=1, body="x", etag="x"), **options),
    "update: mask": lambda api, **options: api.update(api.resource(id=1, body="x"), ["x"], **options),
    "update: create_time": lambda api, **options: api.update(
        api.resource(id=1, body="x", create_time={"seconds": 1}), **options
    ),
    "delete: no id": lambda api, **options: api.delete(0, **options),
    "delete: missing": lambda api, **options: api.delete(404, **options),
    "delete: etag": lambda api, **options: api.delete(1, etag="x", **options),
    "batch delete: empty": lambda api, **options: api.batch_delete([], **options),
    "batch delete: twice": lambda api, **options: api.batch_delete([1, 1], **options),
    "batch delete: missing": lambda api, **options: api.batch_delete([1, 404], **options),
    "batch delete: too many": lambda api, **options: api.batch_delete(range(1, 1002), **options),
}
"""Writes that fail, of both services; 1 is there, 404 is not."""


async def test_validate_only_fails_as_the_write_would(api: ResourceApi, database_url: str) -> None:
    assert (await api.create_one()).id == 1
    before = database_contents(database_url)

    for name, write in WRONG.items():
        done = await expect_error(write(api))
        tried = await expect_error(write(api, validate_only=True))

        assert (tried.code, tried.message, tried.details) == (done.code, done.message, done.details), name
        assert database_contents(database_url) == before, name


async def test_validate_only_finds_the_comments_of_a_post(stubs: Stubs, posts: ResourceApi) -> None:
    post = await posts.create_one()
    await stubs.create_comment(post.id)

    one = await expect_error(posts.delete(post.id, validate_only=True))
    many = await expect_error(posts.batch_delete([post.id], validate_only=True))

    assert (one.reason, many.reason) == ("POST_HAS_COMMENTS", "POST_HAS_COMMENTS")


async def test_validate_only_finds_a_missing_post(comments: ResourceApi) -> None:
    one = await expect_error(comments.create(comments.draft(post_id=404), validate_only=True))
    many = await expect_error(
        comments.batch_create([comments.draft(), comments.draft(post_id=404)], validate_only=True)
    )

    assert (one.reason, many.reason) == ("POST_NOT_FOUND", "POST_NOT_FOUND")
