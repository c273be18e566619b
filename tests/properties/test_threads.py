"""Thread order: depth first, and each comment that stays exactly once, whatever changes between pages."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storeapi.v1 import comments_pb2

from tests.support.property_server import LiveServer

PROGRAM = Path(__file__).parent / "small_transactions.py"
TURNS_WITH_CHANGES = 6
Path_ = tuple[int, ...]


@pytest.fixture(scope="module")
def server_program() -> tuple[str, ...]:
    """A server that reads few rows at once."""
    return (str(PROGRAM),)


class Threads:
    """The comments of one post, and where each is in its thread."""

    def __init__(self, live: LiveServer) -> None:
        """Creates two posts; the other one has a comment before and after each of this one."""
        self._live = live
        self._post, self._other = live.create_posts("a post", "another")
        self.paths: dict[int, Path_] = {}
        """The path of each comment, also of deleted ones."""
        self.present: set[int] = set()

    def create(self, reply_to_id: int) -> None:
        """Creates a comment."""
        self._live.create_comments(self._other.id, "of another list")
        comment = comments_pb2.Comment(post_id=self._post.id, body="x", reply_to_id=reply_to_id)
        request = comments_pb2.CreateCommentRequest(comment=comment)
        created = self._live.do(self._live.comments.CreateComment, request)
        self.paths[created.id] = (*self.paths.get(reply_to_id, ()), created.id)
        self.present.add(created.id)
        assert created.depth == len(self.paths[created.id]) - 1

    def delete(self, id: int) -> None:
        """Deletes a comment. Its replies stay where they are."""
        self._live.do(self._live.comments.DeleteComment, comments_pb2.DeleteCommentRequest(id=id))
        self.present.remove(id)

    def page(self, **query: Any) -> tuple[list[comments_pb2.Comment], str]:
        """Returns a page and the token of the next one."""
        request = comments_pb2.ListCommentsRequest(post_id=self._post.id, **query)
        response = self._live.do(self._live.comments.ListComments, request)
        return list(response.comments), response.next_page_token

    def position(self, id: int, order_by: str) -> tuple[int, Path_]:
        """Where a comment is in an order."""
        path = self.paths[id]
        return (-path[0] if order_by == "thread desc" else 0), path


def change(threads: Threads, data: st.DataObject, count: int) -> None:
    """Creates and deletes some comments."""
    for _ in range(count):
        if threads.present and data.draw(st.integers(0, 3), label="delete if 0") == 0:
            threads.delete(data.draw(st.sampled_from(sorted(threads.present)), label="deleted"))
        else:
            choices = st.sampled_from([0, *sorted(threads.present)])
            threads.create(data.draw(choices, label="reply to"))


@settings(max_examples=settings().max_examples // 2)
@given(data=st.data(), count=st.integers(0, 14), order_by=st.sampled_from(["thread", "thread desc"]))
def test_comments_that_stay_are_listed_once_in_thread_order(
    live: LiveServer, data: st.DataObject, count: int, order_by: str
) -> None:
    """While others are created and deleted between pages of any size."""
    threads = Threads(live)
    change(threads, data, count)
    stayed = set(threads.present)
    seen: list[int] = []
    token, turn = "", 0
    while turn == 0 or token:
        size = data.draw(st.sampled_from([1, 2, 3, 5, 1000]), label="page_size")
        comments, token = threads.page(order_by=order_by, page_size=size, page_token=token)
        assert len(comments) <= size
        comments = [it for it in comments if not it.HasField("delete_time")]
        assert {it.id for it in comments} <= threads.present
        for comment in comments:
            path = threads.paths[comment.id]
            assert (comment.depth, comment.reply_to_id) == (len(path) - 1, path[-2] if len(path) > 1 else 0)
        seen += [it.id for it in comments]
        turn += 1
        if turn <= TURNS_WITH_CHANGES:
            change(threads, data, data.draw(st.integers(0, 3), label="changes"))
            stayed &= threads.present

    positions = [threads.position(id, order_by) for id in seen]
    assert positions == sorted(set(positions))
    assert stayed <= set(seen)
