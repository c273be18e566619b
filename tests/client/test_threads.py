"""Trees of comments."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from storeapi import Comment, CommentNode, comment_tree

MAX_DEPTH = 128


def comment(id: int, reply_to_id: int = 0, depth: int = 0) -> Comment:
    return Comment(id=id, body="a", post_id=1, reply_to_id=reply_to_id, depth=depth)


def shape(nodes: Iterable[CommentNode]) -> list[object]:
    """The ids of a tree as nested lists."""
    return [(node.comment.id, shape(node.replies)) for node in nodes]


def test_replies_are_below_their_comments() -> None:
    """In the given order."""
    thread = [comment(1), comment(3, 1, 1), comment(4, 3, 2), comment(5, 1, 1), comment(2)]

    assert shape(comment_tree(thread)) == [(1, [(3, [(4, [])]), (5, [])]), (2, [])]
    assert shape(comment_tree(iter([comment(2, 1, 1), comment(3, 2, 2), comment(1)]))) == [
        (1, [(2, [(3, [])])])
    ]
    assert comment_tree([]) == []


@pytest.mark.parametrize("missing", [1, 2])
def test_reply_without_its_parent_is_a_root(missing: int) -> None:
    """Where it is in the given order. Its replies stay below it."""
    thread = [comment(1), comment(2, 1, 1), comment(3, 2, 2), comment(4)]
    given = [it for it in thread if it.id != missing]

    assert (
        shape(comment_tree(given))
        == {
            1: [(2, [(3, [])]), (4, [])],
            2: [(1, []), (3, []), (4, [])],
        }[missing]
    )


def test_comment_that_is_given_twice_is_in_the_tree_once() -> None:
    """As when two reads of a thread are joined."""
    thread = [comment(1), comment(2, 1, 1), comment(3)]
    changed = replace(comment(1), body="changed")

    tree = comment_tree([*thread, changed])

    assert shape(tree) == [(1, [(2, [])]), (3, [])]
    assert tree[0].comment == changed


def test_deepest_thread_has_a_repr_and_compares() -> None:
    """No recursion limit is reached."""
    thread = [comment(id, id - 1, id - 1) for id in range(1, MAX_DEPTH + 2)]

    tree = comment_tree(reversed(thread))

    assert tree == comment_tree(thread)
    assert f"id={MAX_DEPTH + 1}," in repr(tree)
