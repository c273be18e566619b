"""Trees of comments, whatever is missing and in any order."""

import random

from hypothesis import given
from hypothesis import strategies as st
from storeapi import Comment, CommentNode, comment_tree

MAX_DEPTH = 128


def in_thread_order(comments: list[Comment], *, newest_first: bool) -> list[Comment]:
    """Depth first, as the service does."""
    replies: dict[int, list[Comment]] = {}
    for it in comments:
        replies.setdefault(it.reply_to_id, []).append(it)
    waiting = sorted(replies.get(0, []), key=lambda it: it.id, reverse=not newest_first)
    ordered = []
    while waiting:
        ordered.append(waiting.pop())
        waiting.extend(reversed(replies.get(ordered[-1].id, [])))
    return ordered


@st.composite
def threads(draw: st.DrawFn) -> list[Comment]:
    """All comments of a post. Each is at the top level or replies to an earlier one, often to the last."""
    comments: list[Comment] = []
    for id in range(1, draw(st.integers(0, 200)) + 1):
        above = draw(st.sampled_from([0, 1, 1, 1, 2, 5]))
        parent = comments[-min(above, len(comments))] if comments and above else None
        if parent is None or parent.depth == MAX_DEPTH:
            comments.append(Comment(id=id, body="a", post_id=1))
        else:
            comments.append(
                Comment(id=id, body="a", post_id=1, reply_to_id=parent.id, depth=parent.depth + 1)
            )
    return comments


@given(thread=threads(), data=st.data())
def test_tree_has_every_comment_below_its_parent(thread: list[Comment], data: st.DataObject) -> None:
    """Whatever is missing, and in any order."""
    missing = data.draw(st.sets(st.sampled_from(thread)) if thread else st.just(set()))
    seed = data.draw(st.one_of(st.none(), st.integers()))
    given_comments = [
        it for it in in_thread_order(thread, newest_first=data.draw(st.booleans())) if it not in missing
    ]
    if seed is not None:
        random.Random(seed).shuffle(given_comments)
    place = {it.id: number for number, it in enumerate(given_comments)}

    roots = comment_tree(given_comments)

    seen = []
    waiting: list[tuple[int, list[CommentNode]]] = [(0, roots)]
    while waiting:
        parent, nodes = waiting.pop()
        assert [place[it.comment.id] for it in nodes] == sorted(place[it.comment.id] for it in nodes)
        for node in nodes:
            reply_to_id = node.comment.reply_to_id
            assert (reply_to_id if reply_to_id in place else 0) == parent
            waiting.append((node.comment.id, node.replies))
            seen.append(node.comment)
    assert sorted(seen, key=lambda it: it.id) == sorted(given_comments, key=lambda it: it.id)
    if not missing and seed is None:
        assert flattened(roots) == given_comments


def flattened(roots: list[CommentNode]) -> list[Comment]:
    """Depth first."""
    waiting, found = roots[::-1], []
    while waiting:
        node = waiting.pop()
        found.append(node.comment)
        waiting.extend(reversed(node.replies))
    return found
