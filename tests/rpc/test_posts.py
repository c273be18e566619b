"""PostService, over a real channel: what each method does when all is well, and what only posts know."""

import time

import grpc
from google.rpc import error_details_pb2
from storeapi.v1 import posts_pb2 as pb

from tests.support.database import database_contents
from tests.support.errors import expect_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs


async def test_created_post_can_be_read(stubs: Stubs) -> None:
    created = await stubs.create_post("hello")

    assert created.body == "hello"
    assert await stubs.posts.GetPost(pb.GetPostRequest(id=created.id)) == created


async def test_created_post_has_id_times_and_etag(stubs: Stubs) -> None:
    before = time.time_ns() // 1000
    post = await stubs.create_post()
    after = time.time_ns() // 1000

    assert post.id > 0
    assert post.etag
    assert before <= post.create_time.ToMicroseconds() <= after
    assert post.update_time == post.create_time


async def test_created_post_is_committed_when_it_is_returned(stubs: Stubs, database_url: str) -> None:
    """The row is in the file, for every other reader, as soon as the caller has the answer."""
    post = await stubs.create_post("kept")

    assert [row[:2] for row in database_contents(database_url).posts] == [(post.id, "kept")]


async def test_missing_post_is_not_found(stubs: Stubs) -> None:
    """An id that names no post is an error with the id in it."""
    error = await expect_error(stubs.posts.GetPost(pb.GetPostRequest(id=42)))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "POST_NOT_FOUND")
    assert error.metadata["post_id"] == "42"


async def test_posts_are_listed_oldest_first(posts: ResourceApi) -> None:
    """A list holds every post, in the order in which they were created."""
    created = [await posts.create_one("one"), await posts.create_one("two"), await posts.create_one("three")]

    answer = await posts.page()

    assert posts.resources_in(answer) == created
    assert answer.next_page_token == ""


async def test_update_of_post_changes_body_update_time_and_etag(posts: ResourceApi) -> None:
    """An update returns the whole post with the new values; id and create_time stay."""
    post = await posts.create_one("before")

    updated = await posts.update(posts.resource(id=post.id, body="after"))

    assert (updated.id, updated.body, updated.create_time) == (post.id, "after", post.create_time)
    assert updated.update_time.ToMicroseconds() > post.update_time.ToMicroseconds()
    assert updated.etag != post.etag
    assert await posts.get(post.id) == updated


async def test_deleted_post_is_returned_and_gone(posts: ResourceApi) -> None:
    post = await posts.create_one()

    deleted = await posts.delete(post.id)

    assert deleted == post
    assert (await expect_error(posts.get(post.id))).reason == "POST_NOT_FOUND"


async def test_posts_are_returned_in_requested_order(posts: ResourceApi) -> None:
    """The answer to a batch is in the order of its ids, not of the table."""
    one, two, three = await posts.create_many(3)

    answer = await posts.batch_get([three.id, one.id, two.id])

    assert posts.resources_in(answer) == [three, one, two]
    assert list(answer.missing_ids) == []


async def test_batch_of_posts_is_created_in_order(posts: ResourceApi) -> None:
    """Ids increase in that order."""
    answer = posts.resources_in(
        await posts.batch_create([posts.draft("z"), posts.draft("a"), posts.draft("m")])
    )

    assert [post.body for post in answer] == ["z", "a", "m"]
    assert [post.id for post in answer] == sorted(post.id for post in answer)
    assert posts.resources_in(await posts.page()) == answer


async def test_batch_of_posts_is_deleted_and_returned(posts: ResourceApi) -> None:
    one, two, three = await posts.create_many(3)

    answer = await posts.batch_delete([three.id, one.id])

    assert posts.resources_in(answer) == [three, one]
    assert posts.resources_in(await posts.page()) == [two]


async def test_id_is_never_given_twice(posts: ResourceApi) -> None:
    """The id of a deleted post is not given to the next one."""
    post = await posts.create_one()
    await posts.delete(post.id)

    assert (await posts.create_one()).id > post.id


async def test_post_with_comments_is_not_deleted_without_force(stubs: Stubs, posts: ResourceApi) -> None:
    """A post that has comments stays, with them, unless the caller says force."""
    post = await stubs.create_post()
    comments = [await stubs.create_comment(post.id), await stubs.create_comment(post.id)]

    error = await expect_error(posts.delete(post.id))

    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "POST_HAS_COMMENTS")
    assert error.metadata == {"post_id": str(post.id), "comment_count": "2"}
    (violation,) = error.detail(error_details_pb2.PreconditionFailure).violations
    assert violation.subject == f"storeapi.v1.Post/{post.id}"
    assert await posts.get(post.id) == post
    assert ResourceApi("Comment", stubs).resources_in(await ResourceApi("Comment", stubs).page()) == comments


async def test_force_deletes_a_post_with_its_comments(
    stubs: Stubs, posts: ResourceApi, database_url: str
) -> None:
    """With force the comments of the post go with it; those of other posts stay."""
    post, other = await stubs.create_post(), await stubs.create_post()
    await stubs.create_comment(post.id)
    kept = await stubs.create_comment(other.id)

    assert await posts.delete(post.id, force=True) == post

    left = database_contents(database_url)
    assert [row[0] for row in left.posts] == [other.id]
    assert [row[0] for row in left.comments] == [kept.id]


async def test_force_is_not_needed_without_comments(stubs: Stubs, posts: ResourceApi) -> None:
    """Only comments that are still there stand in the way."""
    post = await stubs.create_post()
    comment = await stubs.create_comment(post.id)
    await ResourceApi("Comment", stubs).delete(comment.id)

    assert await posts.delete(post.id) == post


async def test_post_with_comments_fails_a_batch_delete(stubs: Stubs, posts: ResourceApi) -> None:
    """The error counts them."""
    plain, commented, also = await posts.create_many(3)
    for post in (commented, also, also):
        await stubs.create_comment(post.id)

    error = await expect_error(posts.batch_delete([plain.id, commented.id, also.id]))

    assert error.reason == "POST_HAS_COMMENTS"
    assert error.metadata == {"post_id": f"{commented.id},{also.id}", "comment_count": "3"}
    subjects = [it.subject for it in error.detail(error_details_pb2.PreconditionFailure).violations]
    assert subjects == [f"storeapi.v1.Post/{commented.id}", f"storeapi.v1.Post/{also.id}"]
    assert posts.resources_in(await posts.page()) == [plain, commented, also]


async def test_force_deletes_a_batch_of_posts_with_their_comments(
    stubs: Stubs, posts: ResourceApi, database_url: str
) -> None:
    """With force a batch takes the comments of all its posts along."""
    created = await posts.create_many(3)
    for post in created:
        await stubs.create_comment(post.id)

    assert (
        posts.resources_in(await posts.batch_delete([post.id for post in created[:2]], force=True))
        == created[:2]
    )

    left = database_contents(database_url)
    assert [row[0] for row in left.posts] == [created[2].id]
    assert [row[2] for row in left.comments] == [created[2].id]
