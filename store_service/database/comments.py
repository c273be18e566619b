"""Statements that only comments have, with the index that serves each. See `resource_sql` for the others."""

from sqlalchemy import BigInteger, Integer, func, select

from store_service.database.change_writes import delete_with_changes
from store_service.database.deletions import MARKED, comments_after, in_order, is_visible
from store_service.database.resource_sql import ResourceSql
from store_service.database.statements import Statement, one_of, parameter
from store_service.database.tables import comment_table as comment
from store_service.database.tables import post_table as post
from store_service.model import Comment, ResourceKind

COMMENTS = ResourceSql(Comment, comment, ResourceKind.COMMENT, post_id=comment.c.post_id)

DELETE_COMMENTS_OF_POSTS = delete_with_changes(
    comment, ResourceKind.COMMENT, one_of(comment.c.id, "ids"), key="post_id"
)
"""Deletes comments. The key of a request is the id of the post. Served by the primary key."""

_post_id, _after = parameter("post_id", BigInteger), parameter("after", BigInteger)
_limit = parameter("limit", Integer)

COMMENTED_POSTS = Statement(
    select(post.c.id).where(
        one_of(post.c.id, "post_ids"),
        in_order(select(comment.c.id).where(comments_after(post.c.id, 0)))
        .limit(1)
        .scalar_subquery()
        .is_not(None),
    )
)
"""Those of these posts that have comments. Served by comments_post_id_id_idx alone, one row for each post."""


_keys = in_order(select(comment.c.post_id, comment.c.id)).limit(_limit)
_keys_of_posts = _keys.where(one_of(comment.c.post_id, "post_ids", except_for=MARKED)).subquery("keys")
_keys_of_post = _keys.where(comments_after(_post_id, _after), is_visible(_post_id)).subquery("keys")

COMMENT_COUNTS = Statement(
    select(_keys_of_posts.c.post_id, func.count(), func.max(_keys_of_posts.c.id)).group_by(
        _keys_of_posts.c.post_id
    )
)
"""Number of comments of each of these posts, and the id of the last one counted. Counts at most `limit`
comments in total. No row for posts without comments. Served by comments_post_id_id_idx alone."""

COMMENT_COUNT_AFTER = Statement(select(func.count(), func.max(_keys_of_post.c.id)))
"""Same as COMMENT_COUNTS for one post, after the id `after`. One row also if there are no comments."""
