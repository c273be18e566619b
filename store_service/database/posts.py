"""Every statement about posts, with the index that serves it."""

from sqlalchemy import BigInteger, Integer, Text, delete, func, literal, select, true, update

from store_service.database.changes import logged_delete, logged_insert, logged_mark, logged_update
from store_service.database.deletions import is_visible, visible_body
from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.database.tables import post_deletion_table
from store_service.database.tables import post_table as post
from store_service.model import Kind, Order, Post

_COLUMNS = (post.c.id, post.c.body, post.c.create_time, post.c.update_time, post.c.version)


def post_of(row: tuple[int, str, int | None, int | None, int]) -> Post:
    """The post in a row that holds all columns."""
    id, body, create_time, update_time, version = row
    return Post(id=id, body=body, create_time=create_time, update_time=update_time, version=version)


def row_of(post: Post) -> tuple[int, str, int | None, int | None, int]:
    """All columns of a post."""
    return post.id, post.body, post.create_time, post.update_time, post.version


_by_id = select(*_COLUMNS).where(one_of(post.c.id, "ids"), is_visible(post.c.id))
_ids_by_id = select(post.c.id).where(one_of(post.c.id, "ids"), is_visible(post.c.id))

POSTS_BY_ID = Statement(_by_id)
"""Posts with these ids, in no order. Served by the primary key."""

LOCKED_POSTS_BY_ID = Statement(_by_id.order_by(post.c.id).with_for_update())
"""The same, kept by PostgreSQL from other writers until the end of the transaction; on SQLite the one
writer has locked everything. Locked in the order of ids, so that two writers do not wait for each other."""

POST_IDS = Statement(_ids_by_id)
"""Which of these ids name a post. Served by the primary key."""

KEPT_POST_IDS = Statement(_ids_by_id.order_by(post.c.id).with_for_update(read=True, key_share=True))
"""The same, and these posts cannot be deleted before the end of the transaction."""

_draft = rows("drafts", body=Text)
INSERT_POSTS = logged_insert(
    post,
    Kind.POST,
    ["body", "create_time", "update_time"],
    select(_draft.c.body, parameter("now", BigInteger), parameter("now", BigInteger)).order_by(
        _draft.c.position
    ),
)
"""Stores `drafts` (rows of body) at the time `now` and returns their ids, ascending as the drafts are."""

_update = rows(
    "updates",
    id=BigInteger,
    body=Text,
    create_time=BigInteger,
    update_time=BigInteger,
    version=BigInteger,
    is_last=Integer,
)
UPDATE_POSTS = logged_update(
    Kind.POST,
    update(post)
    .values(body=_update.c.body, update_time=_update.c.update_time, version=_update.c.version)
    .where(post.c.id == _update.c.id, _update.c.is_last == 1),
    _update,
)
"""Writes `updates`, of which the last of each post stays. Served by the primary key."""

CHECK_KEYS_BY_INDEX = Statement(
    select(literal(1, Integer)),
    on_postgresql=select(
        func.set_config("enable_seqscan", "off", true()),
        func.set_config("plan_cache_mode", "force_custom_plan", true()),
    ),
)
"""To be run before posts are deleted, in the same transaction. PostgreSQL checks that they have no comments.
With statistics from before their comments were deleted it would read all comments for it."""

DELETE_POSTS = logged_delete(post, Kind.POST, one_of(post.c.id, "ids"), key="id")
"""Deletes posts, which must have no comments. Served by the primary key."""

MARK_POSTS = logged_mark(
    post,
    Kind.POST,
    one_of(post.c.id, "ids"),
    key="id",
    marks=post_deletion_table,
    columns=["post_id", "request_id"],
)
"""Deletes posts for every caller, while they and their comments stay stored. Served by the primary key."""

REMOVE_POSTS = Statement(delete(post).where(one_of(post.c.id, "ids")))
"""Removes posts that were marked, and must have no comments any more. Served by the primary key."""

_listed = select(
    post.c.id,
    visible_body(post.c.body, post.c.id),
    post.c.create_time,
    post.c.update_time,
    post.c.version,
)
PAGE_OF_POSTS: dict[Order, Statement] = {
    "id": Statement(
        _listed.where(post.c.id > parameter("after", BigInteger))
        .order_by(post.c.id)
        .limit(parameter("limit", Integer))
    ),
    "id desc": Statement(
        _listed.where(post.c.id < parameter("after", BigInteger))
        .order_by(post.c.id.desc())
        .limit(parameter("limit", Integer))
    ),
}
"""The next `limit` posts beyond the id `after`; without a body those that are deleted. Served by the
primary key, wherever the page is."""
