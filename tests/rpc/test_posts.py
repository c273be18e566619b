"""PostService, over a real channel: what each method does when all is well, and what only posts know."""

import time

import grpc
from google.rpc import error_details_pb2
from storeapi.v1 import posts_pb2 as pb

from tests.rpc.helpers import Side, contents
from tests.support import Stubs, failure


async def test_a_created_post_can_be_read(stubs: Stubs) -> None:
    """What was stored is what is read, with everything that the server added."""
    created = await stubs.create_post("hello")

    assert created.body == "hello"
    assert await stubs.posts.GetPost(pb.GetPostRequest(id=created.id)) == created


async def test_a_created_post_has_an_id_times_and_an_etag(stubs: Stubs) -> None:
    """The server sets what the caller may not: a positive id, both times as now, and an etag."""
    before = time.time_ns() // 1000
    post = await stubs.create_post()
    after = time.time_ns() // 1000

    assert post.id > 0
    assert post.etag
    assert before <= post.create_time.ToMicroseconds() <= after
    assert post.update_time == post.create_time


async def test_a_post_is_on_disk_when_it_is_answered(stubs: Stubs, database_url: str) -> None:
    """The row is in the file, for every other reader, as soon as the caller has the answer."""
    post = await stubs.create_post("kept")

    assert [row[:2] for row in contents(database_url).posts] == [(post.id, "kept")]


async def test_a_missing_post_is_not_found(stubs: Stubs) -> None:
    """An id that names no post is an error with the id in it."""
    error = await failure(stubs.posts.GetPost(pb.GetPostRequest(id=42)))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "POST_NOT_FOUND")
    assert error.metadata["post_id"] == "42"


async def test_posts_are_listed_oldest_first(posts: Side) -> None:
    """A list holds every post, in the order in which they were created."""
    created = [await posts.stored("one"), await posts.stored("two"), await posts.stored("three")]

    answer = await posts.page()

    assert posts.of(answer) == created
    assert answer.next_page_token == ""


async def test_an_update_changes_the_body_the_update_time_and_the_etag(posts: Side) -> None:
    """An update answers the whole post as it is from now on; id and create_time stay."""
    post = await posts.stored("before")

    updated = await posts.update(posts.resource(id=post.id, body="after"))

    assert (updated.id, updated.body, updated.create_time) == (post.id, "after", post.create_time)
    assert updated.update_time.ToMicroseconds() > post.update_time.ToMicroseconds()
    assert updated.etag != post.etag
    assert await posts.get(post.id) == updated


async def test_a_deleted_post_is_answered_as_it_last_was_and_is_gone(posts: Side) -> None:
    """A delete returns what it took away."""
    post = await posts.stored()

    deleted = await posts.delete(post.id)

    assert deleted == post
    assert (await failure(posts.get(post.id))).reason == "POST_NOT_FOUND"


async def test_a_batch_of_posts_is_got_in_the_order_asked_for(posts: Side) -> None:
    """The answer to a batch is in the order of its ids, not of the table."""
    one, two, three = await posts.several(3)

    answer = await posts.batch_get([three.id, one.id, two.id])

    assert posts.of(answer) == [three, one, two]
    assert list(answer.missing_ids) == []


async def test_a_batch_of_posts_is_created_in_the_order_of_its_requests(posts: Side) -> None:
    """Post n of the answer is that of request n, and ids count up in that order."""
    answer = posts.of(await posts.batch_create([posts.draft("z"), posts.draft("a"), posts.draft("m")]))

    assert [post.body for post in answer] == ["z", "a", "m"]
    assert [post.id for post in answer] == sorted(post.id for post in answer)
    assert posts.of(await posts.page()) == answer


async def test_a_batch_of_posts_is_deleted_and_answered(posts: Side) -> None:
    """A batch delete returns what it took away in the order asked for, and leaves the rest."""
    one, two, three = await posts.several(3)

    answer = await posts.batch_delete([three.id, one.id])

    assert posts.of(answer) == [three, one]
    assert posts.of(await posts.page()) == [two]


async def test_an_id_is_never_given_twice(posts: Side) -> None:
    """The id of a deleted post is not given to the next one."""
    post = await posts.stored()
    await posts.delete(post.id)

    assert (await posts.stored()).id > post.id


async def test_a_post_with_comments_is_not_deleted_without_force(stubs: Stubs, posts: Side) -> None:
    """A post that has comments stays, with them, unless the caller says force."""
    post = await stubs.create_post()
    comments = [await stubs.create_comment(post.id), await stubs.create_comment(post.id)]

    error = await failure(posts.delete(post.id))

    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "POST_HAS_COMMENTS")
    assert error.metadata == {"post_id": str(post.id), "comment_count": "2"}
    (violation,) = error.detail(error_details_pb2.PreconditionFailure).violations
    assert violation.subject == f"storeapi.v1.Post/{post.id}"
    assert await posts.get(post.id) == post
    assert Side("Comment", stubs).of(await Side("Comment", stubs).page()) == comments


async def test_force_deletes_a_post_and_its_comments_and_no_others(
    stubs: Stubs, posts: Side, database_url: str
) -> None:
    """With force the comments of the post go with it; those of other posts stay."""
    post, other = await stubs.create_post(), await stubs.create_post()
    await stubs.create_comment(post.id)
    kept = await stubs.create_comment(other.id)

    assert await posts.delete(post.id, force=True) == post

    left = contents(database_url)
    assert [row[0] for row in left.posts] == [other.id]
    assert [row[0] for row in left.comments] == [kept.id]


async def test_force_is_not_needed_once_the_comments_are_gone(stubs: Stubs, posts: Side) -> None:
    """Only comments that are still there stand in the way."""
    post = await stubs.create_post()
    comment = await stubs.create_comment(post.id)
    await Side("Comment", stubs).delete(comment.id)

    assert await posts.delete(post.id) == post


async def test_one_post_with_comments_stops_a_whole_batch_delete(stubs: Stubs, posts: Side) -> None:
    """Without force all posts of the batch stay when some have comments; the error counts them."""
    plain, commented, also = await posts.several(3)
    for post in (commented, also, also):
        await stubs.create_comment(post.id)

    error = await failure(posts.batch_delete([plain.id, commented.id, also.id]))

    assert error.reason == "POST_HAS_COMMENTS"
    assert error.metadata == {"post_id": f"{commented.id},{also.id}", "comment_count": "3"}
    subjects = [it.subject for it in error.detail(error_details_pb2.PreconditionFailure).violations]
    assert subjects == [f"storeapi.v1.Post/{commented.id}", f"storeapi.v1.Post/{also.id}"]
    assert posts.of(await posts.page()) == [plain, commented, also]


async def test_force_deletes_a_batch_of_posts_with_their_comments(
    stubs: Stubs, posts: Side, database_url: str
) -> None:
    """With force a batch takes the comments of all its posts along."""
    created = await posts.several(3)
    for post in created:
        await stubs.create_comment(post.id)

    assert posts.of(await posts.batch_delete([post.id for post in created[:2]], force=True)) == created[:2]

    left = contents(database_url)
    assert [row[0] for row in left.posts] == [created[2].id]
    assert [row[2] for row in left.comments] == [created[2].id]
