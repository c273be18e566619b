"""Lists contain each permanent row exactly once, whatever changes between pages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from storeapi.v1 import comments_pb2, posts_pb2

from tests.support.property_server import LiveServer

ORDERS = ["", "id", "id desc"]
TURNS_WITH_CHANGES = 8
MAX_PAGE_BYTES = 3 * 1024 * 1024
MAX_BODY_BYTES = 65_536


@dataclass(frozen=True)
class Page:
    """One page of anything."""

    ids: list[int]
    size_bytes: int
    next: str


@dataclass(frozen=True)
class Rows:
    """The rows of one list, which change concurrently."""

    list: Callable[..., Page]
    """Asks for a page: order_by, page_size, page_token."""
    create: Callable[[list[str]], list[int]]
    """Adds rows with these bodies."""
    delete: Callable[[list[int]], object]


def posts(live: LiveServer) -> Rows:
    """All posts."""
    live.wipe()

    def list_posts(**query: Any) -> Page:
        answer = live.do(live.posts.ListPosts, posts_pb2.ListPostsRequest(**query))
        return Page([post.id for post in answer.posts], answer.ByteSize(), answer.next_page_token)

    return Rows(
        list=list_posts,
        create=lambda bodies: [post.id for post in live.create_posts(*bodies)],
        delete=lambda ids: live.do(live.posts.BatchDeletePosts, posts_pb2.BatchDeletePostsRequest(ids=ids)),
    )


def all_comments(live: LiveServer) -> Rows:
    """All comments, which belong to two posts by turns."""
    live.wipe()
    parents = live.create_posts("one", "another") * 1000

    def create(bodies: list[str]) -> list[int]:
        requests = [
            comments_pb2.CreateCommentRequest(comment=comments_pb2.Comment(post_id=post.id, body=body))
            for post, body in zip(parents, bodies, strict=False)
        ]
        batch = comments_pb2.BatchCreateCommentsRequest(requests=requests)
        return [comment.id for comment in live.do(live.comments.BatchCreateComments, batch).comments]

    return _comments(live, 0, create)


def comments_of_one_post(live: LiveServer) -> Rows:
    """The comments of one post; whenever it gets some, so does another post, before and after."""
    live.wipe()
    post, another = live.create_posts("a post", "another")

    def create(bodies: list[str]) -> list[int]:
        live.create_comments(another.id, "of another list")
        created = live.create_comments(post.id, *bodies)
        live.create_comments(another.id, "of another list")
        return [comment.id for comment in created]

    return _comments(live, post.id, create)


def _comments(live: LiveServer, post_id: int, create: Callable[[list[str]], list[int]]) -> Rows:
    def list_comments(**query: Any) -> Page:
        request = comments_pb2.ListCommentsRequest(post_id=post_id, **query)
        answer = live.do(live.comments.ListComments, request)
        return Page([comment.id for comment in answer.comments], answer.ByteSize(), answer.next_page_token)

    def delete(ids: list[int]) -> None:
        live.do(live.comments.BatchDeleteComments, comments_pb2.BatchDeleteCommentsRequest(ids=ids))

    return Rows(list=list_comments, create=create, delete=delete)


LISTS = [posts, all_comments, comments_of_one_post]


@pytest.mark.parametrize("rows_of", LISTS)
@given(data=st.data(), count=st.integers(0, 12), order_by=st.sampled_from(ORDERS))
def test_permanent_rows_are_listed_exactly_once(
    live: LiveServer, rows_of: Callable[[LiveServer], Rows], data: st.DataObject, count: int, order_by: str
) -> None:
    """While others are created and deleted between pages."""
    rows = rows_of(live)
    present = set(rows.create(["a row"] * count)) if count else set()
    stayed, ever, seen = set(present), set(present), list[int]()
    turn, token = 0, ""

    while turn == 0 or token:
        size = data.draw(st.integers(1, 5), label="page_size")
        page = rows.list(order_by=order_by, page_size=size, page_token=token)
        assert len(page.ids) <= size
        assert set(page.ids) <= present, "a row is seen that is not there"
        seen += page.ids
        turn, token = turn + 1, page.next
        if turn > TURNS_WITH_CHANGES:
            continue

        gone = data.draw(
            st.sets(st.sampled_from(sorted(present)), max_size=4) if present else st.just(set()), "deleted"
        )
        if gone:
            rows.delete(sorted(gone))
        present, stayed = present - gone, stayed - gone
        if bodies := ["a new row"] * data.draw(st.integers(0, 3), label="created"):
            new = set(rows.create(bodies))
            assert not new & ever, "an id was given twice"
            present, ever = present | new, ever | new

    assert len(set(seen)) == len(seen)
    assert seen == sorted(seen, reverse=order_by == "id desc")
    assert stayed <= set(seen)


@pytest.mark.parametrize("rows_of", LISTS)
@settings(max_examples=settings().max_examples // 4)
@given(
    count=st.integers(1, 110),
    sizes=st.lists(st.sampled_from([1, 30_000, MAX_BODY_BYTES - 1, MAX_BODY_BYTES]), min_size=1, max_size=4),
    page_sizes=st.lists(st.sampled_from([0, 7, 46, 47, 48, 1000, 2**31 - 1]), min_size=1, max_size=3),
    order_by=st.sampled_from(ORDERS),
)
@example(count=110, sizes=[MAX_BODY_BYTES], page_sizes=[1000], order_by="id desc")
@example(count=410, sizes=[1], page_sizes=[1000], order_by="id")
@example(count=410, sizes=[1], page_sizes=[201, 199], order_by="id desc")
def test_large_and_many_rows_are_listed_exactly_once(
    live: LiveServer,
    rows_of: Callable[[LiveServer], Rows],
    count: int,
    sizes: list[int],
    page_sizes: list[int],
    order_by: str,
) -> None:
    """A page limited by bytes is not empty, and the rest follows."""
    rows = rows_of(live)
    bodies = ["x" * sizes[n % len(sizes)] for n in range(count)]
    created = [id for start in range(0, count, 40) for id in rows.create(bodies[start : start + 40])]
    seen: list[int] = []
    turn, token = 0, ""

    while turn == 0 or token:
        page = rows.list(order_by=order_by, page_size=page_sizes[turn % len(page_sizes)], page_token=token)
        assert page.ids
        assert page.size_bytes <= MAX_PAGE_BYTES
        seen += page.ids
        turn, token = turn + 1, page.next

    assert seen == sorted(created, reverse=order_by == "id desc")
