"""validate_only: every write can be tried; it changes nothing and says what the write would say."""

from typing import Any

import pytest

from tests.rpc.helpers import Side, contents
from tests.support import Stubs, failure


async def test_a_create_that_is_only_tried_answers_without_what_it_was_not_given(
    side: Side, database_url: str
) -> None:
    """The answer has what the caller sent, and no id, times or etag, for none were given."""
    before = contents(database_url)
    draft = side.draft("tried")

    assert await side.create(draft, validate_only=True) == draft

    assert contents(database_url) == before


async def test_a_batch_create_that_is_only_tried_answers_without_what_it_was_not_given(
    side: Side, database_url: str
) -> None:
    """The same for every member of a batch, in their order."""
    before = contents(database_url)
    drafts = [side.draft("one"), side.draft("two")]

    assert side.of(await side.batch_create(drafts, validate_only=True)) == drafts

    assert contents(database_url) == before


async def test_an_update_that_is_only_tried_answers_without_what_it_was_not_given(
    side: Side, database_url: str
) -> None:
    """The answer has the new body beside what stays, and no update_time or etag."""
    resource = await side.stored("before")
    before = contents(database_url)

    changed = side.resource(id=resource.id, body="after", etag=resource.etag)
    answer = await side.update(changed, validate_only=True)

    expected = side.draft("after", id=resource.id, create_time=resource.create_time)
    assert answer == expected
    assert contents(database_url) == before


async def test_a_delete_that_is_only_tried_answers_what_is_there(side: Side, database_url: str) -> None:
    """The answer is the resource as it is and stays."""
    resource = await side.stored()
    before = contents(database_url)

    assert await side.delete(resource.id, validate_only=True) == resource
    assert await side.delete(404, allow_missing=True, validate_only=True) == side.resource(id=404)

    assert contents(database_url) == before


async def test_a_batch_delete_that_is_only_tried_answers_what_is_there(side: Side, database_url: str) -> None:
    """The answer is as it would be, with what is missing, and all stays."""
    one, two = await side.several(2)
    before = contents(database_url)

    answer = await side.batch_delete([two.id, 404, one.id], allow_missing=True, validate_only=True)

    assert (side.of(answer), list(answer.missing_ids)) == ([two, one], [404])
    assert contents(database_url) == before


async def test_force_that_is_only_tried_keeps_the_comments(
    stubs: Stubs, posts: Side, database_url: str
) -> None:
    """Trying to delete posts with their comments deletes neither."""
    post = await posts.stored()
    await stubs.create_comment(post.id)
    before = contents(database_url)

    assert await posts.delete(post.id, force=True, validate_only=True) == post
    assert posts.of(await posts.batch_delete([post.id], force=True, validate_only=True)) == [post]

    assert contents(database_url) == before


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # PostgreSQL's sequences never go back
async def test_ids_that_were_only_tried_are_not_used_up(side: Side) -> None:
    """A write that is tried leaves no trace on SQLite, not even a gap."""
    before = await side.stored()

    await side.create(side.draft(), validate_only=True)
    await side.batch_create([side.draft()] * 10, validate_only=True)

    assert (await side.stored()).id == before.id + 1


async def test_a_try_sees_what_was_written_before_it(side: Side) -> None:
    """A try is judged by what is stored now."""
    resource = await side.stored()
    await side.delete(resource.id)

    assert (await failure(side.delete(resource.id, validate_only=True))).reason == side.not_found


WRONG: dict[str, Any] = {
    "create: no resource": lambda side, **options: side.call(f"Create{side.name}", **options),
    "create: empty body": lambda side, **options: side.create(side.draft(""), **options),
    "create: id": lambda side, **options: side.create(side.draft(id=1), **options),
    "create: request_id": lambda side, **options: side.create(side.draft(), request_id="x", **options),
    "batch create: empty": lambda side, **options: side.batch_create([], **options),
    "batch create: too many": lambda side, **options: side.batch_create([side.draft()] * 1001, **options),
    "batch create: a wrong one": lambda side, **options: side.batch_create(
        [side.draft(), side.draft("")], **options
    ),
    "update: no resource": lambda side, **options: side.call(f"Update{side.name}", **options),
    "update: missing": lambda side, **options: side.update(side.resource(id=404, body="x"), **options),
    "update: etag": lambda side, **options: side.update(side.resource(id=1, body="x", etag="x"), **options),
    "update: mask": lambda side, **options: side.update(side.resource(id=1, body="x"), ["x"], **options),
    "update: create_time": lambda side, **options: side.update(
        side.resource(id=1, body="x", create_time={"seconds": 1}), **options
    ),
    "delete: no id": lambda side, **options: side.delete(0, **options),
    "delete: missing": lambda side, **options: side.delete(404, **options),
    "delete: etag": lambda side, **options: side.delete(1, etag="x", **options),
    "batch delete: empty": lambda side, **options: side.batch_delete([], **options),
    "batch delete: twice": lambda side, **options: side.batch_delete([1, 1], **options),
    "batch delete: missing": lambda side, **options: side.batch_delete([1, 404], **options),
    "batch delete: too many": lambda side, **options: side.batch_delete(range(1, 1002), **options),
}
"""Writes that fail, of both services; 1 is there, 404 is not."""


async def test_a_try_fails_as_the_write_fails(side: Side, database_url: str) -> None:
    """What a write would be refused for, its try is refused for, in the same words."""
    assert (await side.stored()).id == 1
    before = contents(database_url)

    for name, write in WRONG.items():
        done = await failure(write(side))
        tried = await failure(write(side, validate_only=True))

        assert (tried.code, tried.message, tried.details) == (done.code, done.message, done.details), name
        assert contents(database_url) == before, name


async def test_a_try_finds_comments_in_the_way(stubs: Stubs, posts: Side) -> None:
    """Posts with comments are refused without force, also when only tried."""
    post = await posts.stored()
    await stubs.create_comment(post.id)

    one = await failure(posts.delete(post.id, validate_only=True))
    many = await failure(posts.batch_delete([post.id], validate_only=True))

    assert (one.reason, many.reason) == ("POST_HAS_COMMENTS", "POST_HAS_COMMENTS")


async def test_a_try_finds_that_a_post_is_missing(comments: Side) -> None:
    """A comment on a missing post is refused, also when only tried."""
    one = await failure(comments.create(comments.draft(post_id=404), validate_only=True))
    many = await failure(
        comments.batch_create([comments.draft(), comments.draft(post_id=404)], validate_only=True)
    )

    assert (one.reason, many.reason) == ("POST_NOT_FOUND", "POST_NOT_FOUND")
