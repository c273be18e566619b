"""Makes trees of comments."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from storeapi.model import Comment


@dataclass(frozen=True, kw_only=True, slots=True)
class CommentNode:
    """A comment with the replies to it, as `comment_tree` returns it."""

    comment: Comment
    """The comment."""
    replies: "list[CommentNode]" = field(default_factory=list)
    """The direct replies, each with the replies to it."""


def comment_tree(comments: Iterable[Comment]) -> list[CommentNode]:
    """Makes a tree of the comments of a thread, of a page of it, or of any others.

        for node in storeapi.comment_tree(client.comments.thread(1)):
            print(node.comment.body, len(node.replies))

    Roots and replies keep the order in which the comments are given, so the order of a thread is kept. A
    reply may come before the comment that it replies to. The tombstone of a deleted comment is a node like
    any other. A comment whose parent is not given, because it does not match a filter, is on another page or
    was deleted before there were tombstones, is a root; its `depth` is still that in the whole thread. A
    comment that is given twice is in the tree once, at its first place and as it was given last.

    Args:
        comments: The comments, such as the result of `thread` or `list`, or the items of a page.
    """
    nodes = {it.id: CommentNode(comment=it) for it in comments}
    roots: list[CommentNode] = []
    for node in nodes.values():
        reply_to_id = node.comment.reply_to_id
        parent = nodes.get(reply_to_id) if reply_to_id else None
        (roots if parent is None else parent.replies).append(node)
    return roots
