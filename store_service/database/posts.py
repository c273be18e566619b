"""Every statement about posts, with the index that serves it."""

from sqlalchemy import BigInteger, Integer, Text, delete, insert, select, update

from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.database.tables import post_table as post
from store_service.model import Order, Post

_COLUMNS = (post.c.id, post.c.body, post.c.create_time, post.c.update_time, post.c.version)


def post_of(row: tuple[int, str, int | None, int | None, int]) -> Post:
    """The post in a row that holds all columns."""
    id, body, create_time, update_time, version = row
    return Post(id=id, body=body, create_time=create_time, update_time=update_time, version=version)


POSTS_BY_ID = Statement(select(*_COLUMNS).where(one_of(post.c.id, "ids")))
"""Posts with these ids, in no order. Served by the primary key."""

LOCKED_POSTS_BY_ID = Statement(
    select(*_COLUMNS).where(one_of(post.c.id, "ids")).order_by(post.c.id).with_for_update()
)
"""The same, kept by PostgreSQL from other writers until the end of the transaction; on SQLite the one
writer has locked everything. Locked in the order of ids, so that two writers do not wait for each other."""

POST_IDS = Statement(select(post.c.id).where(one_of(post.c.id, "ids")))
"""Which of these ids name a post. Served by the primary key."""

KEPT_POST_IDS = Statement(
    select(post.c.id)
    .where(one_of(post.c.id, "ids"))
    .order_by(post.c.id)
    .with_for_update(read=True, key_share=True)
)
"""The same, and these posts cannot be deleted before the end of the transaction."""

_draft = rows("drafts", body=Text)
INSERT_POSTS = Statement(
    insert(post)
    .from_select(
        ["body", "create_time", "update_time"],
        select(_draft.c.body, parameter("now", BigInteger), parameter("now", BigInteger)).order_by(
            _draft.c.position
        ),
    )
    .returning(post.c.id)
)
"""Stores `drafts` (rows of body) at the time `now` and returns their ids, ascending as the drafts are."""

_change = rows("changes", id=BigInteger, body=Text, update_time=BigInteger, version=BigInteger)
UPDATE_POSTS = Statement(
    update(post)
    .values(body=_change.c.body, update_time=_change.c.update_time, version=_change.c.version)
    .where(post.c.id == _change.c.id)
)
"""Writes `changes` (rows of id, body, update_time, version). Served by the primary key."""

DELETE_POSTS = Statement(delete(post).where(one_of(post.c.id, "ids")))
"""Deletes posts, which must have no comments. Served by the primary key."""

PAGE_OF_POSTS: dict[Order, Statement] = {
    "id": Statement(
        select(*_COLUMNS)
        .where(post.c.id > parameter("after", BigInteger))
        .order_by(post.c.id)
        .limit(parameter("limit", Integer))
    ),
    "id desc": Statement(
        select(*_COLUMNS)
        .where(post.c.id < parameter("after", BigInteger))
        .order_by(post.c.id.desc())
        .limit(parameter("limit", Integer))
    ),
}
"""The next `limit` posts beyond the id `after`. Served by the primary key, wherever the page is."""
