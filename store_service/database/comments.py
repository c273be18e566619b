"""Every statement about comments, with the index that serves it."""

from sqlalchemy import BigInteger, Integer, Select, Text, delete, func, insert, select, update

from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.database.tables import comment_table as comment
from store_service.model import Comment, Order

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


COMMENTS_BY_ID = Statement(select(*_COLUMNS).where(one_of(comment.c.id, "ids")))
"""Comments with these ids, in no order. Served by the primary key."""

LOCKED_COMMENTS_BY_ID = Statement(
    select(*_COLUMNS).where(one_of(comment.c.id, "ids")).order_by(comment.c.id).with_for_update()
)
"""The same, kept by PostgreSQL from every other writer until the end of the transaction; see posts."""

_draft = rows("drafts", body=Text, post_id=BigInteger)
INSERT_COMMENTS = Statement(
    insert(comment)
    .from_select(
        ["body", "post_id", "create_time", "update_time"],
        select(
            _draft.c.body, _draft.c.post_id, parameter("now", BigInteger), parameter("now", BigInteger)
        ).order_by(_draft.c.position),
    )
    .returning(comment.c.id)
)
"""Stores `drafts` (rows of body, post_id) at the time `now`; returns their ids, ascending as they are."""

_change = rows("changes", id=BigInteger, body=Text, update_time=BigInteger, version=BigInteger)
UPDATE_COMMENTS = Statement(
    update(comment)
    .values(body=_change.c.body, update_time=_change.c.update_time, version=_change.c.version)
    .where(comment.c.id == _change.c.id)
)
"""Writes `changes` (rows of id, body, update_time, version). Served by the primary key."""

DELETE_COMMENTS = Statement(delete(comment).where(one_of(comment.c.id, "ids")))
"""Deletes comments. Served by the primary key."""

DELETE_COMMENTS_OF_POSTS = Statement(delete(comment).where(one_of(comment.c.post_id, "post_ids")))
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
