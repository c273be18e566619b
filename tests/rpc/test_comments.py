"""CommentService, over a real channel: what each method does when all is well, and what posts do not have."""

import time

import grpc
from google.rpc import error_details_pb2
from storeapi.v1 import comments_pb2 as pb

from tests.rpc.helpers import Side, contents
from tests.support import Stubs, failure


async def test_a_created_comment_can_be_read(comments: Side) -> None:
    """What was stored is what is read, with everything that the server added."""
    before = time.time_ns() // 1000
    comment = await comments.create(comments.draft("hello"))

    assert (comment.body, comment.post_id) == ("hello", comments.post_id)
    assert comment.id > 0
    assert comment.etag
    assert comment.create_time.ToMicroseconds() >= before
    assert comment.update_time == comment.create_time
    assert await comments.get(comment.id) == comment


async def test_a_missing_comment_is_not_found(comments: Side) -> None:
    """An id that names no comment is an error with the id in it."""
    error = await failure(comments.get(42))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "COMMENT_NOT_FOUND")
    assert error.metadata["comment_id"] == "42"
    resource = error.detail(error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("storeapi.v1.Comment", "42")


async def test_a_comment_on_a_missing_post_is_refused(comments: Side, database_url: str) -> None:
    """There is no comment without its post; the error names the post and the field that named it."""
    error = await failure(comments.create(comments.draft(post_id=404)))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "POST_NOT_FOUND")
    resource = error.detail(error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("storeapi.v1.Post", "404")
    assert "comment.post_id" in resource.description
    assert contents(database_url).comments == ()


async def test_comments_of_all_posts_are_listed_oldest_first(stubs: Stubs, comments: Side) -> None:
    """post_id 0 lists every comment, whichever post it is of."""
    other = await stubs.create_post()
    created = [await comments.stored(), await stubs.create_comment(other.id), await comments.stored()]

    assert comments.of(await comments.page()) == created


async def test_the_comments_of_one_post_are_listed_alone(stubs: Stubs, comments: Side) -> None:
    """post_id lists the comments of that post, in either order."""
    other = await stubs.create_post()
    mine = [await comments.stored()]
    await stubs.create_comment(other.id)
    mine.append(await comments.stored())

    assert comments.of(await comments.page(post_id=comments.post_id)) == mine
    assert comments.of(await comments.page(post_id=comments.post_id, order_by="id desc")) == mine[::-1]


async def test_a_post_without_comments_lists_none(stubs: Stubs, comments: Side) -> None:
    """An empty list is no error while the post is there."""
    await comments.stored()
    other = await stubs.create_post()

    answer = await comments.page(post_id=other.id)

    assert answer.resume_token
    assert answer == pb.ListCommentsResponse(resume_token=answer.resume_token)


async def test_the_comments_of_a_missing_post_are_not_found(comments: Side) -> None:
    """A list of the comments of no post is an error that names the field."""
    error = await failure(comments.page(post_id=404))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "POST_NOT_FOUND")
    assert error.metadata["post_id"] == "404"
    assert "post_id" in error.detail(error_details_pb2.ResourceInfo).description


async def test_an_update_changes_the_body_the_update_time_and_the_etag(comments: Side) -> None:
    """An update answers the whole comment as it is from now on; the rest stays."""
    comment = await comments.stored("before")

    updated = await comments.update(comments.resource(id=comment.id, body="after"))

    assert (updated.id, updated.body, updated.post_id) == (comment.id, "after", comments.post_id)
    assert updated.create_time == comment.create_time
    assert updated.update_time.ToMicroseconds() > comment.update_time.ToMicroseconds()
    assert updated.etag != comment.etag
    assert await comments.get(comment.id) == updated


async def test_a_deleted_comment_is_answered_as_it_last_was_and_is_gone(comments: Side) -> None:
    """A delete returns what it took away; its id is not given again."""
    comment = await comments.stored()

    deleted = await comments.delete(comment.id)

    assert deleted == comment
    assert (await failure(comments.get(comment.id))).reason == "COMMENT_NOT_FOUND"
    assert (await comments.stored()).id > comment.id


async def test_a_batch_of_comments_is_got_in_the_order_asked_for(comments: Side) -> None:
    """The answer to a batch is in the order of its ids, not of the table."""
    one, two, three = await comments.several(3)

    assert comments.of(await comments.batch_get([three.id, one.id, two.id])) == [three, one, two]


async def test_a_batch_of_comments_may_be_of_different_posts(stubs: Stubs, comments: Side) -> None:
    """Comment n of the answer is that of request n, on the post that it names."""
    other = await stubs.create_post()
    drafts = [comments.draft("z"), comments.draft("a", post_id=other.id), comments.draft("m")]

    created = comments.of(await comments.batch_create(drafts))

    assert [(it.body, it.post_id) for it in created] == [(it.body, it.post_id) for it in drafts]
    assert [it.id for it in created] == sorted(it.id for it in created)
    assert comments.of(await comments.page()) == created


async def test_a_batch_of_comments_is_deleted_and_answered(comments: Side) -> None:
    """A batch delete returns what it took away in the order asked for, and leaves the rest."""
    one, two, three = await comments.several(3)

    assert comments.of(await comments.batch_delete([three.id, one.id])) == [three, one]

    assert comments.of(await comments.page()) == [two]


async def test_comments_are_counted_by_post(stubs: Stubs, comments: Side) -> None:
    """Every post asked for has a count: 0 without comments, and 0 when it is no post at all."""
    empty = await stubs.create_post()
    other = await stubs.create_post()
    await comments.several(3)
    await stubs.create_comment(other.id)

    ids = [comments.post_id, empty.id, 404]
    answer = await comments.call("CountComments", post_ids=ids)

    assert dict(answer.counts) == {comments.post_id: 3, empty.id: 0, 404: 0}


async def test_a_post_counted_twice_is_answered_once(comments: Side) -> None:
    """The counts are by post, so naming one twice changes nothing."""
    await comments.several(2)

    answer = await comments.call("CountComments", post_ids=[comments.post_id, comments.post_id])

    assert dict(answer.counts) == {comments.post_id: 2}


async def test_a_thousand_posts_are_counted_at_once_and_no_more(comments: Side) -> None:
    """The limit of every batch is the limit of a count too."""
    ids = list(range(1, 1001))

    assert len((await comments.call("CountComments", post_ids=ids)).counts) == 1000

    error = await failure(comments.call("CountComments", post_ids=[*ids, 1001]))
    assert (error.reason, error.fields) == ("BATCH_TOO_LARGE", ["post_ids"])
    assert error.metadata == {"count": "1001", "max_count": "1000"}


async def test_a_count_needs_posts_with_positive_ids(comments: Side) -> None:
    """No posts, or posts that cannot be, are refused."""
    empty = await failure(comments.call("CountComments", post_ids=[]))
    wrong = await failure(comments.call("CountComments", post_ids=[1, 0, -1]))

    assert (empty.reason, empty.fields) == ("BATCH_EMPTY", ["post_ids"])
    assert (wrong.reason, wrong.fields) == ("FIELD_INVALID", ["post_ids[1]", "post_ids[2]"])
