"""Every statement about comments, with the index that serves it."""

from sqlalchemy import BigInteger, Integer, Select, Text, func, select, update

from store_service.database.changes import logged_delete, logged_insert, logged_update
from store_service.database.deletions import MARKED, comments_after, in_order, is_visible, visible_body
from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.database.tables import comment_table as comment
from store_service.database.tables import post_table as post
from store_service.model import Comment, Kind, Order

_COLUMNS = (
    comment.c.id,
    comment.c.body,
    comment.c.post_id,
    comment.c.create_time,
    comment.c.update_time,
    comment.c.version,
)


def comment_of(row: tuple[int, str, int, int | None, int | None, int]) -> Comment:
    """The comment in a row that holds all columns."""
    id, body, post_id, create_time, update_time, version = row
    return Comment(
        id=id, body=body, post_id=post_id, create_time=create_time, update_time=update_time, version=version
    )


def row_of(comment: Comment) -> tuple[int, str, int, int | None, int | None, int]:
    """All columns of a comment."""
    return (
        comment.id,
        comment.body,
        comment.post_id,
        comment.create_time,
        comment.update_time,
        comment.version,
    )


_by_id = select(*_COLUMNS).where(one_of(comment.c.id, "ids"), is_visible(comment.c.post_id))

COMMENTS_BY_ID = Statement(_by_id)
"""Comments with these ids, in no order. Served by the primary key."""

LOCKED_COMMENTS_BY_ID = Statement(_by_id.order_by(comment.c.id).with_for_update())
"""The same, kept by PostgreSQL from every other writer until the end of the transaction; see posts."""

_draft = rows("drafts", body=Text, post_id=BigInteger)
INSERT_COMMENTS = logged_insert(
    comment,
    Kind.COMMENT,
    ["body", "post_id", "create_time", "update_time"],
    select(
        _draft.c.body, _draft.c.post_id, parameter("now", BigInteger), parameter("now", BigInteger)
    ).order_by(_draft.c.position),
)
"""Stores `drafts` (rows of body, post_id) at the time `now`; returns their ids, ascending as they are."""

_update = rows(
    "updates",
    id=BigInteger,
    body=Text,
    post_id=BigInteger,
    create_time=BigInteger,
    update_time=BigInteger,
    version=BigInteger,
    is_last=Integer,
)
UPDATE_COMMENTS = logged_update(
    Kind.COMMENT,
    update(comment)
    .values(body=_update.c.body, update_time=_update.c.update_time, version=_update.c.version)
    .where(comment.c.id == _update.c.id, _update.c.is_last == 1),
    _update,
)
"""Writes `updates`, of which the last of each comment stays. Served by the primary key."""

DELETE_COMMENTS = logged_delete(comment, Kind.COMMENT, one_of(comment.c.id, "ids"), key="id")
"""Deletes comments. Served by the primary key."""

DELETE_COMMENTS_OF_POSTS = logged_delete(comment, Kind.COMMENT, one_of(comment.c.id, "ids"), key="post_id")
"""The same, with the posts' requests."""

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
"""Which of these posts have comments. Served by comments_post_id_id_idx alone, one row of it for each."""


_keys = in_order(select(comment.c.post_id, comment.c.id)).limit(_limit)
_keys_of_posts = _keys.where(one_of(comment.c.post_id, "post_ids", except_for=MARKED)).subquery("keys")
_keys_of_post = _keys.where(comments_after(_post_id, _after), is_visible(_post_id)).subquery("keys")

COMMENT_COUNTS = Statement(
    select(_keys_of_posts.c.post_id, func.count(), func.max(_keys_of_posts.c.id)).group_by(
        _keys_of_posts.c.post_id
    )
)
"""How many comments these posts have, and the last of them, counting no more than the first `limit`; no row
for none. Served by comments_post_id_id_idx alone."""

COMMENT_COUNT_AFTER = Statement(select(func.count(), func.max(_keys_of_post.c.id)))
"""The same of one post, beyond the id `after`; one row also for none."""


def _page(order: Order, *, of_one_post: bool) -> Select[tuple[int, str, int, int, int, int]]:
    id, body, *rest = _COLUMNS
    page = select(id, body if of_one_post else visible_body(body, comment.c.post_id), *rest).limit(_limit)
    if of_one_post:
        # Decided once, before any comment is read.
        page = page.where(comment.c.post_id == _post_id, is_visible(_post_id))
    if order == "id":
        return page.where(comment.c.id > _after).order_by(comment.c.id)
    return page.where(comment.c.id < _after).order_by(comment.c.id.desc())


PAGE_OF_ALL_COMMENTS: dict[Order, Statement] = {
    "id": Statement(_page("id", of_one_post=False)),
    "id desc": Statement(_page("id desc", of_one_post=False)),
}
"""The next `limit` comments beyond the id `after`; without a body those of deleted posts. Served by the
primary key, wherever the page is."""

PAGE_OF_COMMENTS: dict[Order, Statement] = {
    "id": Statement(_page("id", of_one_post=True)),
    "id desc": Statement(_page("id desc", of_one_post=True)),
}
"""The same of one post. Served by comments_post_id_id_idx, wherever the page is."""
