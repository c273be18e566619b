"""CommentService, over a real channel: what each method does when all is well, and what posts do not have."""

import time

import grpc
from google.rpc import error_details_pb2
from storeapi.v1 import comments_pb2 as pb

from tests.support.database import database_contents
from tests.support.errors import expect_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs


async def test_created_comment_can_be_read(comments: ResourceApi) -> None:
    before = time.time_ns() // 1000
    comment = await comments.create(comments.draft("hello"))

    assert (comment.body, comment.post_id) == ("hello", comments.post_id)
    assert comment.id > 0
    assert comment.etag
    assert comment.create_time.ToMicroseconds() >= before
    assert comment.update_time == comment.create_time
    assert await comments.get(comment.id) == comment


async def test_missing_comment_is_not_found(comments: ResourceApi) -> None:
    """An id that names no comment is an error with the id in it."""
    error = await expect_error(comments.get(42))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "COMMENT_NOT_FOUND")
    assert error.metadata["comment_id"] == "42"
    resource = error.detail(error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("storeapi.v1.Comment", "42")


async def test_comment_on_a_missing_post_is_refused(comments: ResourceApi, database_url: str) -> None:
    """The error names the post and the field."""
    error = await expect_error(comments.create(comments.draft(post_id=404)))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "POST_NOT_FOUND")
    resource = error.detail(error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("storeapi.v1.Post", "404")
    assert "comment.post_id" in resource.description
    assert database_contents(database_url).comments == ()


async def test_comments_of_all_posts_are_listed_oldest_first(stubs: Stubs, comments: ResourceApi) -> None:
    """With post_id 0."""
    other = await stubs.create_post()
    created = [await comments.create_one(), await stubs.create_comment(other.id), await comments.create_one()]

    assert comments.resources_in(await comments.page()) == created


async def test_comments_of_one_post_are_listed(stubs: Stubs, comments: ResourceApi) -> None:
    """In either order."""
    other = await stubs.create_post()
    mine = [await comments.create_one()]
    await stubs.create_comment(other.id)
    mine.append(await comments.create_one())

    assert comments.resources_in(await comments.page(post_id=comments.post_id)) == mine
    assert (
        comments.resources_in(await comments.page(post_id=comments.post_id, order_by="id desc")) == mine[::-1]
    )


async def test_post_without_comments_has_an_empty_list(stubs: Stubs, comments: ResourceApi) -> None:
    await comments.create_one()
    other = await stubs.create_post()

    answer = await comments.page(post_id=other.id)

    assert answer.resume_token
    assert answer == pb.ListCommentsResponse(resume_token=answer.resume_token)


async def test_comments_of_a_missing_post_are_not_found(comments: ResourceApi) -> None:
    """A list of the comments of no post is an error that names the field."""
    error = await expect_error(comments.page(post_id=404))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "POST_NOT_FOUND")
    assert error.metadata["post_id"] == "404"
    assert "post_id" in error.detail(error_details_pb2.ResourceInfo).description


async def test_update_of_comment_changes_body_update_time_and_etag(comments: ResourceApi) -> None:
    """An update returns the whole comment with the new values; other fields stay."""
    comment = await comments.create_one("before")

    updated = await comments.update(comments.resource(id=comment.id, body="after"))

    assert (updated.id, updated.body, updated.post_id) == (comment.id, "after", comments.post_id)
    assert updated.create_time == comment.create_time
    assert updated.update_time.ToMicroseconds() > comment.update_time.ToMicroseconds()
    assert updated.etag != comment.etag
    assert await comments.get(comment.id) == updated


async def test_deleted_comment_is_returned_and_gone(comments: ResourceApi) -> None:
    """Its id is not given again."""
    comment = await comments.create_one()

    deleted = await comments.delete(comment.id)

    assert deleted == comment
    assert (await expect_error(comments.get(comment.id))).reason == "COMMENT_NOT_FOUND"
    assert (await comments.create_one()).id > comment.id


async def test_comments_are_returned_in_requested_order(comments: ResourceApi) -> None:
    """The answer to a batch is in the order of its ids, not of the table."""
    one, two, three = await comments.create_many(3)

    assert comments.resources_in(await comments.batch_get([three.id, one.id, two.id])) == [three, one, two]


async def test_batch_of_comments_may_refer_to_different_posts(stubs: Stubs, comments: ResourceApi) -> None:
    """Comment n of the answer is that of request n, on the post that it names."""
    other = await stubs.create_post()
    drafts = [comments.draft("z"), comments.draft("a", post_id=other.id), comments.draft("m")]

    created = comments.resources_in(await comments.batch_create(drafts))

    assert [(it.body, it.post_id) for it in created] == [(it.body, it.post_id) for it in drafts]
    assert [it.id for it in created] == sorted(it.id for it in created)
    assert comments.resources_in(await comments.page()) == created


async def test_batch_of_comments_is_deleted_and_returned(comments: ResourceApi) -> None:
    one, two, three = await comments.create_many(3)

    assert comments.resources_in(await comments.batch_delete([three.id, one.id])) == [three, one]

    assert comments.resources_in(await comments.page()) == [two]


async def test_comments_are_counted_by_post(stubs: Stubs, comments: ResourceApi) -> None:
    """A post without comments and a missing post have 0."""
    empty = await stubs.create_post()
    other = await stubs.create_post()
    await comments.create_many(3)
    await stubs.create_comment(other.id)

    ids = [comments.post_id, empty.id, 404]
    answer = await comments.call("CountComments", post_ids=ids)

    assert dict(answer.counts) == {comments.post_id: 3, empty.id: 0, 404: 0}


async def test_duplicate_post_is_counted_once(comments: ResourceApi) -> None:
    """The counts are by post, so naming one twice changes nothing."""
    await comments.create_many(2)

    answer = await comments.call("CountComments", post_ids=[comments.post_id, comments.post_id])

    assert dict(answer.counts) == {comments.post_id: 2}


async def test_up_to_1000_posts_are_counted(comments: ResourceApi) -> None:
    """The limit of every batch is the limit of a count too."""
    ids = list(range(1, 1001))

    assert len((await comments.call("CountComments", post_ids=ids)).counts) == 1000

    error = await expect_error(comments.call("CountComments", post_ids=[*ids, 1001]))
    assert (error.reason, error.fields) == ("BATCH_TOO_LARGE", ["post_ids"])
    assert error.metadata == {"count": "1001", "max_count": "1000"}


async def test_count_needs_positive_post_ids(comments: ResourceApi) -> None:
    """No posts, or posts that cannot be, are refused."""
    empty = await expect_error(comments.call("CountComments", post_ids=[]))
    wrong = await expect_error(comments.call("CountComments", post_ids=[1, 0, -1]))

    assert (empty.reason, empty.fields) == ("BATCH_EMPTY", ["post_ids"])
    assert empty.message == "post_ids: must not be empty unless all_posts is set"
    assert (wrong.reason, wrong.fields) == ("FIELD_INVALID", ["post_ids[1]", "post_ids[2]"])
