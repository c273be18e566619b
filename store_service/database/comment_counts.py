"""Statements that count the comments of posts, with the index that serves each."""

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Subquery,
    cast,
    exists,
    func,
    literal_column,
    select,
)

from store_service.database.deletions import MARKED, comments_after, in_order, is_visible
from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.database.tables import comment_table as comment
from store_service.database.tables import thread_deletion_table as thread

_post_id, _after = parameter("post_id", BigInteger), parameter("after", BigInteger)
_limit = parameter("limit", Integer)

_keys = in_order(select(comment.c.post_id, comment.c.id)).limit(_limit)
_keys_of_posts = _keys.where(one_of(comment.c.post_id, "post_ids", except_for=MARKED)).subquery("keys")
_keys_of_post = _keys.where(comments_after(_post_id, _after), is_visible(_post_id)).subquery("keys")


def _counts(keys: Subquery, *post_ids: ColumnElement[int]) -> Statement:
    """Returns the statement that counts keys, less those of tombstones."""
    groups = (
        select(*post_ids, func.count().label("examined"), func.min(keys.c.id).label("first"))
        .add_columns(func.max(keys.c.id).label("last"))
        .group_by(*post_ids)
        .subquery("counted")
    )
    post_id = groups.c.post_id if post_ids else _post_id
    tombstones = (
        select(func.count())
        .where(
            comment.c.post_id == post_id,
            comment.c.delete_time.is_not(None),
            comment.c.id.between(groups.c.first, groups.c.last),
        )
        .scalar_subquery()
    )
    marked = exists(select(thread.c.comment_id))
    first = [groups.c.post_id] if post_ids else []
    return Statement(select(*first, groups.c.examined, groups.c.last, tombstones, cast(marked, Integer)))


COMMENT_COUNTS = _counts(_keys_of_posts, _keys_of_posts.c.post_id)
"""For each of these posts: the number of comments that were read, tombstones included, the id of the last
one, the number of tombstones among them, and whether there are marked threads, whose comments are included.

Reads at most `limit` comments in total. No row for posts without comments. Served by comments_tombstones_idx
and comments_post_id_id_idx alone."""

COMMENT_COUNT_AFTER = _counts(_keys_of_post)
"""Same as COMMENT_COUNTS for one post, after the id `after`. Returns one row even
if the post has no comments."""


_MAX_ID: ColumnElement[int] = literal_column(str(2**63 - 1))


def _limited_counts() -> Statement:
    ids = select(rows("posts", id=BigInteger).c.id).subquery("ids")
    of_post = comment.c.post_id == ids.c.id
    last = in_order(select(comment.c.id).where(of_post)).limit(1).offset(_limit - 1).scalar_subquery()
    # Otherwise SQLite would find the last comment again wherever its id is used.
    posts = select(ids.c.id, last.label("last")).where(is_visible(ids.c.id)).cte("limited")
    posts = posts.prefix_with("MATERIALIZED")
    of_post = comment.c.post_id == posts.c.id
    first = in_order(select(comment.c.id).where(of_post)).limit(_limit).correlate(posts).subquery("first")
    examined = select(func.count()).select_from(first).scalar_subquery()
    tombstones = (
        select(func.count())
        .where(
            of_post, comment.c.delete_time.is_not(None), comment.c.id <= func.coalesce(posts.c.last, _MAX_ID)
        )
        .scalar_subquery()
    )
    marked = exists(select(thread.c.comment_id))
    return Statement(select(posts.c.id, examined, posts.c.last, tombstones, cast(marked, Integer)))


LIMITED_COMMENT_COUNTS = _limited_counts()
"""Same as COMMENT_COUNTS for the first `limit` comments of each of these posts. The id of the last one is
null if there are fewer. Reads at most `limit` comments of each post."""
