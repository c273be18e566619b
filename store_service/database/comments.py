"""Every statement about comments, with the index that serves it."""

from sqlalchemy import BigInteger, Integer, Select, Text, func, select, update

from store_service.database.changes import logged_delete, logged_insert, logged_update
from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.database.tables import comment_table as comment
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


COMMENTS_BY_ID = Statement(select(*_COLUMNS).where(one_of(comment.c.id, "ids")))
"""Comments with these ids, in no order. Served by the primary key."""

LOCKED_COMMENTS_BY_ID = Statement(
    select(*_COLUMNS).where(one_of(comment.c.id, "ids")).order_by(comment.c.id).with_for_update()
)
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

DELETE_COMMENTS_OF_POSTS = logged_delete(
    comment, Kind.COMMENT, one_of(comment.c.post_id, "post_ids"), key="post_id"
)
"""Deletes every comment of these posts. Served by comments_post_id_id_idx."""

COMMENT_COUNTS = Statement(
    select(comment.c.post_id, func.count())
    .where(one_of(comment.c.post_id, "post_ids"))
    .group_by(comment.c.post_id)
)
"""How many comments these posts have; no row for none. Served by comments_post_id_id_idx alone."""


def _page(order: Order, *, of_one_post: bool) -> Select[tuple[int, str, int, int, int, int]]:
    page = select(*_COLUMNS).limit(parameter("limit", Integer))
    if of_one_post:
        page = page.where(comment.c.post_id == parameter("post_id", BigInteger))
    if order == "id":
        return page.where(comment.c.id > parameter("after", BigInteger)).order_by(comment.c.id)
    return page.where(comment.c.id < parameter("after", BigInteger)).order_by(comment.c.id.desc())


PAGE_OF_ALL_COMMENTS: dict[Order, Statement] = {
    "id": Statement(_page("id", of_one_post=False)),
    "id desc": Statement(_page("id desc", of_one_post=False)),
}
"""The next `limit` comments beyond the id `after`. Served by the primary key, wherever the page is."""

PAGE_OF_COMMENTS: dict[Order, Statement] = {
    "id": Statement(_page("id", of_one_post=True)),
    "id desc": Statement(_page("id desc", of_one_post=True)),
}
"""The same of one post. Served by comments_post_id_id_idx, wherever the page is."""
