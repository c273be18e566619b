"""Chooses the comments that are deleted in the transaction of their post.

Comments that fit into the budget are deleted in the transaction of the post. A post with more comments is
marked. From that commit on, the post and its comments do not exist for callers. Their rows are removed in
steps, each of which is a small write (docs/decisions/0031).
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from store_service.database import deletions as sql
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.service.comment_removal import FETCH_ROWS, MAX_BYTES, MAX_ROWS


@dataclass
class Removable:
    """Comments that one transaction can remove."""

    comments: dict[int, list[int]] = field(default_factory=dict)
    """Ids of comments by post id."""
    complete: set[int] = field(default_factory=set)
    """The posts all of whose comments are in `comments`."""
    rows: int = 0
    bytes: int = 0


async def removable(
    connection: Connection, post_ids: Collection[int], *, after: int = 0, rows: int = 0, bytes: int = 0
) -> Removable:
    """Returns comments of posts that fit into the budget of one transaction. Reads few comments more.

    Args:
        connection: A connection in a write transaction.
        post_ids: The posts.
        after: Only comments with larger ids; requires a single post.
        rows: The number of other comments that the transaction removes.
        bytes: The size of those comments.
    """
    assert not after or len(post_ids) == 1, "`after` is an id among the comments of one post"
    found = Removable(rows=rows, bytes=bytes)
    left = sorted(post_ids)
    while left:
        # One more row than fits shows whether a post is complete.
        limit = min(FETCH_ROWS, MAX_ROWS + 1 - found.rows)
        if after:
            sizes = await connection.fetch(
                sql.SIZES_OF_COMMENTS_AFTER, post_id=left[0], after=after, limit=limit
            )
        else:
            sizes = await connection.fetch(sql.SIZES_OF_COMMENTS, post_ids=as_json(left), limit=limit)
        for id, post_id, size in sizes:
            if found.rows == MAX_ROWS or (found.rows and found.bytes + size > MAX_BYTES):
                found.complete.update(it for it in left if it < post_id)
                return found
            found.comments.setdefault(post_id, []).append(id)
            found.rows += 1
            found.bytes += size
        if len(sizes) == limit:
            after, last, _ = sizes[-1]
        else:
            # All comments of the first post were read, or, without `after`, of every post.
            last = left[0] + 1 if after else left[-1] + 1
            after = 0
        found.complete.update(it for it in left if it < last)
        left = [it for it in left if it >= last]
    return found
