"""Filters and orders of lists and counts, compared with a plain implementation."""

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from storeapi.v1 import comments_pb2, filters_pb2, posts_pb2

from store_service.database import connect
from store_service.errors import ShuttingDown
from store_service.model import (
    ORDERS,
    THREAD_ORDERS,
    Comment,
    PageRequest,
    PostDraft,
    Query,
    ResourceFilter,
    WatchFilter,
    WatchStart,
    labels_to_text,
)
from store_service.rpc.validation.queries import resource_filter
from store_service.rpc.validation.violations import Violations
from store_service.service import counting, matching_count, pages
from store_service.service.feed import Feed
from store_service.service.posts import Posts
from store_service.service.scans import AFTER_ALL_TIMES
from tests.support.database import execute
from tests.support.errors import expect_error
from tests.support.stubs import Stubs
from tests.support.watches import Watch

AUTHORS = ["", "ann", "bob"]
STATUSES = [None, "new", "hidden"]
TIMES = [None, 1_000_000, 2_000_000, 2_000_000, 3_000_000]
"""Microseconds. None: a row of a legacy database."""


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and counts read few rows at once, so that they end everywhere."""
    monkeypatch.setattr(pages, "FETCH_ROWS", 5)
    monkeypatch.setattr(pages, "MAX_EXAMINED_ROWS", 12)
    monkeypatch.setattr(matching_count, "MAX_ROWS", 7)
    monkeypatch.setattr(matching_count, "MAX_STATEMENTS", 3)


@dataclass
class Stored:
    """All posts and comments of a test."""

    posts: list[posts_pb2.Post]
    comments: list[comments_pb2.Comment]


def labels_of(randomness: random.Random) -> dict[str, str]:
    status, topic = randomness.choice(STATUSES), randomness.choice(["a", "b"])
    return {"topic": topic} | ({"status": status} if status else {})


@pytest.fixture
async def stored(stubs: Stubs, database_url: str) -> Stored:
    """Four posts and 60 comments in random threads, with equal and missing times."""
    randomness = random.Random(20)
    posts = []
    for _ in range(4):
        post = posts_pb2.Post(body="x", author=randomness.choice(AUTHORS), labels=labels_of(randomness))
        posts.append(await stubs.posts.CreatePost(posts_pb2.CreatePostRequest(post=post)))
    comments: list[comments_pb2.Comment] = []
    for _ in range(60):
        post_id = randomness.choice(posts[:3]).id
        above = [it for it in comments if it.post_id == post_id]
        comment = comments_pb2.Comment(
            body="x",
            post_id=post_id,
            author=randomness.choice(AUTHORS),
            labels=labels_of(randomness),
            reply_to_id=randomness.choice(above).id if above and randomness.random() < 0.7 else 0,
        )
        request = comments_pb2.CreateCommentRequest(comment=comment)
        comments.append(await stubs.comments.CreateComment(request))
    for table, resources in (("posts", posts), ("comments", comments)):
        times = {it.id: randomness.choice(TIMES) for it in resources}
        cases = " ".join(f"WHEN {id} THEN {time or 'NULL'}" for id, time in times.items())
        execute(database_url, f"UPDATE {table} SET create_time = CASE id {cases} END")
        for it in resources:
            it.ClearField("create_time")
            if time := times[it.id]:
                it.create_time.FromMicroseconds(time)
    return Stored(posts, comments)


def timestamp(microseconds: int) -> Timestamp:
    time = Timestamp()
    time.FromMicroseconds(microseconds)
    return time


def filters() -> Iterator[dict[str, Any]]:
    """Conditions of a filter, in every combination."""
    choices: list[list[dict[str, Any]]] = [
        [{}, {"author": "ann"}],
        [{}, {"labels": {"status": "new"}}, {"labels": {"status": "new", "topic": "b"}}],
        [
            {},
            {"create_time_from": timestamp(2_000_000)},
            {"create_time_before": timestamp(2_000_000)},
            {"create_time_from": timestamp(1_000_000), "create_time_before": timestamp(3_000_000)},
        ],
    ]
    for conditions in product(*choices):
        yield {key: value for condition in conditions for key, value in condition.items()}


def matches(it: Any, conditions: dict[str, Any]) -> bool:
    """Whether a resource meets the conditions."""
    time = it.create_time.ToMicroseconds() if it.HasField("create_time") else None
    return (
        conditions.get("author", it.author) == it.author
        and conditions.get("labels", {}).items() <= dict(it.labels).items()
        and (
            "create_time_from" not in conditions
            or (time is not None and time >= conditions["create_time_from"].ToMicroseconds())
        )
        and (
            "create_time_before" not in conditions
            or (time is not None and time < conditions["create_time_before"].ToMicroseconds())
        )
        and conditions.get("reply_to_id", getattr(it, "reply_to_id", 0)) == getattr(it, "reply_to_id", 0)
    )


def path(comment: comments_pb2.Comment, all_comments: list[comments_pb2.Comment]) -> tuple[int, ...]:
    """The ids from the top-level comment down to a comment."""
    by_id = {it.id: it for it in all_comments}
    ids = [comment.id]
    while comment.reply_to_id:
        comment = by_id[comment.reply_to_id]
        ids.append(comment.id)
    return tuple(reversed(ids))


def in_order(resources: list[Any], order_by: str, stored: Stored) -> list[int]:
    """The ids of resources in the order of a list."""
    keys: dict[str, Callable[[Any], Any]] = {
        "id": lambda it: it.id,
        "create_time": lambda it: (it.create_time.ToMicroseconds(), it.id),
        "thread": lambda it: path(it, stored.comments),
    }
    name, _, direction = order_by.partition(" ")
    if order_by == "thread desc":
        keys[name] = lambda it: (-path(it, stored.comments)[0], path(it, stored.comments))
        direction = ""
    return [it.id for it in sorted(resources, key=keys[name], reverse=bool(direction))]


async def listed(call: Any, request: Any, page_size: int) -> list[int]:
    """The ids of all pages of a list."""
    ids: list[int] = []
    request.page_size = page_size
    for _ in range(1000):
        response = await call(request)
        found = response.posts if isinstance(response, posts_pb2.ListPostsResponse) else response.comments
        assert len(found) <= page_size
        ids += [it.id for it in found]
        request.page_token = response.next_page_token
        if not request.page_token:
            return ids
    raise AssertionError("the list has no end")


async def test_posts_are_filtered_and_ordered(stubs: Stubs, stored: Stored) -> None:
    """Every combination of conditions, in pages of several sizes."""
    cases = list(product(filters(), (1, 3, 1000)))
    for order_by in ORDERS:
        lists = await asyncio.gather(
            *(
                listed(
                    stubs.posts.ListPosts,
                    posts_pb2.ListPostsRequest(
                        order_by=order_by, filter=filters_pb2.PostFilter(**conditions)
                    ),
                    page_size,
                )
                for conditions, page_size in cases
            )
        )

        for (conditions, _), found in zip(cases, lists, strict=True):
            expected = in_order([it for it in stored.posts if matches(it, conditions)], order_by, stored)
            assert found == expected, (order_by, conditions)


async def test_comments_are_filtered_and_ordered(stubs: Stubs, stored: Stored) -> None:
    """Every combination of conditions, of one post or of all, in pages of several sizes."""
    parent = stored.comments[0].reply_to_id or stored.comments[0].id
    replies: list[dict[str, Any]] = [{}, {"reply_to_id": 0}, {"reply_to_id": parent}]
    for order_by in (*ORDERS, *THREAD_ORDERS):
        post_ids = [0, stored.posts[0].id] if "thread" not in order_by else [stored.posts[0].id]
        cases = [
            (conditions | reply_to, post_id, page_size)
            for conditions, reply_to, post_id, page_size in product(filters(), replies, post_ids, (4, 11))
        ]

        lists = await asyncio.gather(
            *(
                listed(
                    stubs.comments.ListComments,
                    comments_pb2.ListCommentsRequest(
                        order_by=order_by, post_id=post_id, filter=filters_pb2.CommentFilter(**wanted)
                    ),
                    page_size,
                )
                for wanted, post_id, page_size in cases
            )
        )

        for (wanted, post_id, _), found in zip(cases, lists, strict=True):
            of_post = [it for it in stored.comments if post_id in (0, it.post_id)]
            expected = in_order([it for it in of_post if matches(it, wanted)], order_by, stored)
            assert found == expected, (order_by, wanted)


async def test_watches_have_the_same_conditions(stored: Stored) -> None:
    """`ResourceFilter.matches`, which they check, is compared with the implementation that lists are."""
    parent = stored.comments[0].reply_to_id or stored.comments[0].id
    for conditions, reply_to in product(filters(), (None, 0, parent)):
        wanted = conditions if reply_to is None else conditions | {"reply_to_id": reply_to}
        filter = resource_filter(filters_pb2.CommentFilter(**wanted), "filter", Violations(1000))
        for it in stored.comments:
            comment = Comment(
                id=it.id,
                body=it.body,
                post_id=it.post_id,
                author=it.author,
                labels=labels_to_text(it.labels),
                reply_to_id=it.reply_to_id,
                create_time=it.create_time.ToMicroseconds() if it.HasField("create_time") else None,
                update_time=None,
                version=1,
            )
            assert filter.matches(comment) == matches(it, wanted), wanted


LIMITS = (0, 1, 3, 2**40)
"""Values of max_count: none, less than most counts, and more than all."""


def limited(count: int, limit: int) -> int:
    return min(count, limit) if limit else count


async def test_counts_equal_the_lists(stubs: Stubs, stored: Stored) -> None:
    """Posts, comments of posts and of all posts, and replies."""
    for conditions in filters():
        post_filter = filters_pb2.PostFilter(**conditions)
        for limit in LIMITS:
            count = await stubs.posts.CountPosts(
                posts_pb2.CountPostsRequest(filter=post_filter, max_count=limit)
            )
            assert count.count == limited(sum(matches(it, conditions) for it in stored.posts), limit)

        filter = filters_pb2.CommentFilter(**conditions)
        matching = [it for it in stored.comments if matches(it, conditions)]
        post_ids = [post.id for post in stored.posts] + [999]
        ids = [comment.id for comment in stored.comments]
        for limit in LIMITS:
            response = await stubs.comments.CountComments(
                comments_pb2.CountCommentsRequest(post_ids=post_ids, filter=filter, max_count=limit)
            )
            expected = {id: limited(sum(it.post_id == id for it in matching), limit) for id in post_ids}
            assert dict(response.counts) == expected
            assert response.total == sum(expected.values())

            total = await stubs.comments.CountComments(
                comments_pb2.CountCommentsRequest(all_posts=True, filter=filter, max_count=limit)
            )
            assert (total.total, dict(total.counts)) == (limited(len(matching), limit), {})

            replies = await stubs.comments.CountReplies(
                comments_pb2.CountRepliesRequest(comment_ids=[*ids, ids[0]], filter=filter, max_count=limit)
            )
            assert dict(replies.counts) == {
                id: limited(sum(it.reply_to_id == id for it in matching), limit) for id in ids
            }


async def test_limited_count_reads_few_comments(
    stubs: Stubs, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count of many posts takes several steps. Tombstones are not counted, and the rest of a post is."""
    monkeypatch.setattr(counting, "MAX_ROWS", 10)
    monkeypatch.setattr(counting, "MAX_LIMITED_ROWS", 10)
    posts = [await stubs.create_post(f"post {n}") for n in range(7)]
    for number, post in enumerate(posts):
        comments = [await stubs.create_comment(post.id) for _ in range(4 * number)]
        for comment in comments[: 2 * number]:
            reply = comments_pb2.Comment(post_id=post.id, body="reply", reply_to_id=comment.id)
            await stubs.comments.CreateComment(comments_pb2.CreateCommentRequest(comment=reply))
        for comment in comments[: 2 * number]:
            # It has a reply, so it becomes a tombstone.
            await stubs.comments.DeleteComment(comments_pb2.DeleteCommentRequest(id=comment.id))
    ids = [post.id for post in posts]
    for limit in (1, 3, 7, 12, 100):
        request = comments_pb2.CountCommentsRequest(post_ids=ids, max_count=limit)
        counts = (await stubs.comments.CountComments(request)).counts
        assert [counts[id] for id in ids] == [min(4 * number, limit) for number in range(7)]


async def test_negative_limit_is_refused(stubs: Stubs) -> None:
    calls = [
        stubs.posts.CountPosts(posts_pb2.CountPostsRequest(max_count=-1)),
        stubs.comments.CountComments(comments_pb2.CountCommentsRequest(post_ids=[1], max_count=-1)),
        stubs.comments.CountReplies(comments_pb2.CountRepliesRequest(comment_ids=[1], max_count=-1)),
    ]
    assert [(await expect_error(call)).fields for call in calls] == [["max_count"]] * 3


async def test_unfiltered_count_has_a_total(stubs: Stubs, stored: Stored) -> None:
    """The sum of the counts; each post once."""
    ids = [post.id for post in stored.posts]
    request = comments_pb2.CountCommentsRequest(post_ids=[*ids, ids[0]])
    assert (await stubs.comments.CountComments(request)).total == len(stored.comments)


INVALID: list[tuple[dict[str, Any], list[str]]] = [
    ({"author": "a\n"}, ["filter.author"]),
    ({"author": "é" * 129}, ["filter.author"]),
    ({"labels": {"Key": "x"}}, ["filter.labels"]),
    ({"labels": {f"k{n}": "x" for n in range(9)}}, ["filter.labels"]),
    ({"create_time_from": Timestamp(nanos=-1)}, ["filter.create_time_from"]),
    ({"create_time_before": Timestamp(seconds=2**60)}, ["filter.create_time_before"]),
    (
        {"create_time_from": timestamp(5), "create_time_before": timestamp(5)},
        ["filter.create_time_before"],
    ),
]


async def test_invalid_filter_is_refused(stubs: Stubs) -> None:
    """With the paths of its conditions, by every method that takes a filter."""
    for conditions, fields in INVALID:
        posts, comments = filters_pb2.PostFilter(**conditions), filters_pb2.CommentFilter(**conditions)
        for call in (
            stubs.posts.ListPosts(posts_pb2.ListPostsRequest(filter=posts)),
            stubs.posts.CountPosts(posts_pb2.CountPostsRequest(filter=posts)),
            stubs.comments.ListComments(comments_pb2.ListCommentsRequest(filter=comments)),
            stubs.comments.CountComments(comments_pb2.CountCommentsRequest(all_posts=True, filter=comments)),
            stubs.comments.CountReplies(comments_pb2.CountRepliesRequest(comment_ids=[1], filter=comments)),
        ):
            error = await expect_error(call)
            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
            assert error.fields == fields, conditions


async def test_further_requests_are_refused(stubs: Stubs) -> None:
    """Conditions that contradict each other, and a thread of all posts."""
    replies = filters_pb2.CommentFilter(reply_to_id=1)
    for call, fields in (
        (stubs.comments.ListComments(comments_pb2.ListCommentsRequest(order_by="thread")), ["post_id"]),
        (stubs.posts.ListPosts(posts_pb2.ListPostsRequest(order_by="thread")), ["order_by"]),
        (
            stubs.comments.CountComments(comments_pb2.CountCommentsRequest(post_ids=[1], all_posts=True)),
            ["post_ids"],
        ),
        (
            stubs.comments.CountReplies(comments_pb2.CountRepliesRequest(comment_ids=[1], filter=replies)),
            ["filter.reply_to_id"],
        ),
        (
            stubs.comments.ListComments(
                comments_pb2.ListCommentsRequest(filter=filters_pb2.CommentFilter(reply_to_id=-1))
            ),
            ["filter.reply_to_id"],
        ),
    ):
        error = await expect_error(call)
        assert (error.reason, error.fields) == ("FIELD_INVALID", fields)
    error = await expect_error(stubs.comments.CountReplies(comments_pb2.CountRepliesRequest()))
    assert error.reason == "BATCH_EMPTY"


async def test_fraction_of_a_microsecond_is_rounded_up(stubs: Stubs, stored: Stored) -> None:
    """A time with nanoseconds lies between two times that are stored."""
    after, before = Timestamp(seconds=1, nanos=1), Timestamp(seconds=2, nanos=1)
    filter = filters_pb2.PostFilter(create_time_from=after, create_time_before=before)
    expected = [it.id for it in stored.posts if it.create_time.ToMicroseconds() == 2_000_000]
    request = posts_pb2.ListPostsRequest(filter=filter)
    assert await listed(stubs.posts.ListPosts, request, 10) == expected


async def test_page_token_is_bound_to_its_filter(stubs: Stubs, stored: Stored) -> None:
    """The order of labels does not matter, their values do."""
    labels = {"status": "new", "topic": "a"}
    request = comments_pb2.ListCommentsRequest(page_size=1, filter=filters_pb2.CommentFilter(labels=labels))
    token = (await stubs.comments.ListComments(request)).next_page_token
    assert token
    reversed_labels = dict(reversed(labels.items()))
    same = comments_pb2.ListCommentsRequest(
        page_token=token, filter=filters_pb2.CommentFilter(labels=reversed_labels)
    )
    await stubs.comments.ListComments(same)
    for filter in (
        filters_pb2.CommentFilter(),
        filters_pb2.CommentFilter(labels=labels | {"topic": "b"}),
        filters_pb2.CommentFilter(labels=labels, author="ann"),
        filters_pb2.CommentFilter(labels=labels, reply_to_id=0),
    ):
        other = comments_pb2.ListCommentsRequest(page_token=token, filter=filter)
        assert (await expect_error(stubs.comments.ListComments(other))).reason == "PAGE_TOKEN_MISMATCH"


async def test_replies_are_only_those_of_the_post(stubs: Stubs, stored: Stored) -> None:
    """With the comment that is replied to and another post, there are none."""
    reply = next(it for it in stored.comments if it.reply_to_id)
    filter = filters_pb2.CommentFilter(reply_to_id=reply.reply_to_id)
    other = next(it.id for it in stored.posts[:3] if it.id != reply.post_id)
    for post_id in (reply.post_id, other):
        expected = [
            it.id for it in stored.comments if (it.post_id, it.reply_to_id) == (post_id, reply.reply_to_id)
        ]
        listing = comments_pb2.ListCommentsRequest(post_id=post_id, filter=filter)
        assert await listed(stubs.comments.ListComments, listing, 10) == expected
        counting = comments_pb2.CountCommentsRequest(post_ids=[post_id], filter=filter)
        assert (await stubs.comments.CountComments(counting)).total == len(expected)
    assert not expected


async def test_page_counts_the_rows_that_do_not_match(database_url: str) -> None:
    """In the order of ids an index has only posts of the author. By time, other posts are read too."""
    async with connect.open_database(database_url) as store:
        posts = Posts(store)
        await posts.create([PostDraft(body="x")] * 20)
        await posts.create([PostDraft(body="x", author="ann")])
        found = []
        for order in ORDERS:
            query = Query(resource="posts", order=order, filter=ResourceFilter(author="ann"))
            page = await posts.list_page(PageRequest(query=query, page_size=5, page_token=""))
            found.append((order, len(page.items), page.skipped_rows))
    assert found == [("id", 1, 0), ("id desc", 1, 0), ("create_time", 0, 15), ("create_time desc", 1, 14)]


class TestWatch:
    """Watches with filters."""

    async def test_changes_that_match_before_or_after_are_sent(
        self, stubs: Stubs, channel: grpc.aio.Channel
    ) -> None:
        """So the watch receives the update with which a comment stops matching, and nothing after it."""
        post = await stubs.create_post("a post")
        pending = filters_pb2.CommentFilter(labels={"status": "pending"})
        watch = Watch(channel, kinds=[2], comment_filter=pending)
        await watch.read()

        async def create(status: str) -> comments_pb2.Comment:
            comment = comments_pb2.Comment(body="x", post_id=post.id, labels={"status": status})
            return await stubs.comments.CreateComment(comments_pb2.CreateCommentRequest(comment=comment))

        async def set_status(id: int, status: str) -> None:
            request = comments_pb2.UpdateCommentRequest(
                comment=comments_pb2.Comment(id=id, labels={"status": status})
            )
            request.update_mask.paths.append("labels.status")
            await stubs.comments.UpdateComment(request)

        await create("approved")
        first = await create("pending")
        await set_status(first.id, "approved")
        await set_status(first.id, "hidden")
        await set_status(first.id, "pending")
        last = await create("pending")

        changes = await watch.until(last.id, kind=2)
        seen = [(it.id, it.action, it.comment.labels["status"]) for it in changes]
        assert seen == [
            (first.id, 2, "pending"),
            (first.id, 3, "approved"),
            (first.id, 3, "pending"),
            (last.id, 2, "pending"),
        ]

    async def test_change_of_the_author_is_sent(self, stubs: Stubs, channel: grpc.aio.Channel) -> None:
        """To a watch of the author before the change, as to one of the author after it."""
        watches = [Watch(channel, post_filter=filters_pb2.PostFilter(author=it)) for it in ("ann", "bob")]
        for watch in watches:
            await watch.read()
        post = posts_pb2.Post(body="x", author="ann")
        created = await stubs.posts.CreatePost(posts_pb2.CreatePostRequest(post=post))
        for author in ("bob", "eve", "bob"):
            update = posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=created.id, author=author))
            await stubs.posts.UpdatePost(update)
        await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=created.id))

        assert [it.post.author for it in await watches[0].changes(2)] == ["ann", "bob"]
        assert [it.post.author for it in await watches[1].changes(4)] == ["bob", "eve", "bob", "bob"]

    async def test_initial_state_of_some_posts_is_filtered(
        self, channel: grpc.aio.Channel, stored: Stored
    ) -> None:
        """Posts that are named match, too."""
        post_ids = [it.id for it in stored.posts[1:]]
        for author in AUTHORS[1:]:
            filter = filters_pb2.PostFilter(author=author)
            watch = Watch(channel, initial_state=True, kinds=[1], post_ids=post_ids, post_filter=filter)
            expected = [it.id for it in stored.posts[1:] if it.author == author]
            assert len(expected) < len(post_ids)
            assert [it.id for it in await watch.initial_state()] == expected

    async def test_initial_state_is_filtered(
        self, stubs: Stubs, channel: grpc.aio.Channel, stored: Stored
    ) -> None:
        """Each resource by the filter of its type."""
        post_filter = filters_pb2.PostFilter(author="ann")
        comment_filter = filters_pb2.CommentFilter(labels={"status": "new"})
        watch = Watch(channel, initial_state=True, post_filter=post_filter, comment_filter=comment_filter)
        found = {(it.kind, it.id) for it in await watch.initial_state()}
        expected = {(1, it.id) for it in stored.posts if it.author == "ann"}
        expected |= {(2, it.id) for it in stored.comments if it.labels.get("status") == "new"}
        assert found == expected

    async def test_initial_state_without_matches_has_heartbeats(self, database_url: str) -> None:
        """Their tokens continue after the rows that were read. A stop does not wait for the other rows."""
        filter = WatchFilter(post_filter=ResourceFilter(create_time_from=AFTER_ALL_TIMES))
        async with connect.open_database(database_url) as store:
            posts, feed = Posts(store), Feed(store, max_watches=1)
            first, *_ = await posts.create([PostDraft(body="x")] * 40)
            watch = feed.watch(WatchStart(initial_state=True), filter, heartbeat_seconds=0)
            tokens = []
            async for event in watch:
                if event.snapshot_complete:
                    break
                assert not event.snapshot
                tokens.append(event.resume_token)
            assert len(set(tokens)) == len(tokens) == 2
            await watch.aclose()

            rest = feed.watch(WatchStart(resume_token=tokens[0]), WatchFilter(), heartbeat_seconds=3600)
            assert (await anext(rest)).snapshot[0].post_id - first.id == 15
            await rest.aclose()

            stopped = feed.watch(WatchStart(initial_state=True), filter, heartbeat_seconds=3600)
            reading = asyncio.create_task(anext(stopped))
            await asyncio.sleep(0)
            feed._stopping = True
            assert not (await reading).snapshot_complete
            with pytest.raises(ShuttingDown):
                await anext(stopped)

    async def test_invalid_filter_is_refused(self, channel: grpc.aio.Channel) -> None:
        """With the path of the condition."""
        watch = Watch(channel, post_filter=filters_pb2.PostFilter(author="\t"))
        error = await expect_error(watch.read())
        assert (error.reason, error.fields) == ("FIELD_INVALID", ["post_filter.author"])


async def test_page_of_the_newest_threads_can_end_inside_a_thread(
    stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the thread was read completely, together with comments that do not match."""
    monkeypatch.setattr(pages, "FETCH_ROWS", 200)
    post = await stubs.posts.CreatePost(posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="x")))

    async def create(author: str, reply_to_id: int = 0) -> int:
        comment = comments_pb2.Comment(post_id=post.id, body="x", author=author, reply_to_id=reply_to_id)
        return (await stubs.comments.CreateComment(comments_pb2.CreateCommentRequest(comment=comment))).id

    oldest, root = await create("ann"), await create("ann")
    reply = await create("ann", root)
    for _ in range(2):
        await create("bob")

    request = comments_pb2.ListCommentsRequest(
        post_id=post.id, order_by="thread desc", filter=filters_pb2.CommentFilter(author="ann")
    )
    assert await listed(stubs.comments.ListComments, request, page_size=1) == [root, reply, oldest]
