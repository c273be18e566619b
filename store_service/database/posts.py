"""Statements that only posts have, with the index that serves each. See `resource_sql` for the others."""

from sqlalchemy import (
    BigInteger,
    Integer,
    Text,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    true,
    update,
)

from store_service.database.change_writes import delete_with_changes
from store_service.database.deletions import is_visible
from store_service.database.resource_sql import ResourceSql
from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.database.tables import deleted_post_table as deleted_post
from store_service.database.tables import post_deletion_table as mark
from store_service.database.tables import post_table as post
from store_service.model import DELETION_FIELDS, Post, ResourceKind

POSTS = ResourceSql(Post, post, deleted_post, ResourceKind.POST, post_id=post.c.id)

_ids_by_id = select(post.c.id).where(one_of(post.c.id, "ids"), is_visible(post.c.id))

POST_IDS = Statement(_ids_by_id)
"""Those of these ids that are ids of posts. Served by the primary key."""

KEPT_POST_IDS = Statement(_ids_by_id.order_by(post.c.id).with_for_update(read=True, key_share=True))
"""Same as POST_IDS, and locks the posts against deletion until the end of the transaction."""

CHECK_KEYS_BY_INDEX = Statement(
    select(literal(1, Integer)),
    on_postgresql=select(
        func.set_config("enable_seqscan", "off", true()),
        func.set_config("plan_cache_mode", "force_custom_plan", true()),
    ),
)
"""Has to run before posts are deleted, in the same transaction. PostgreSQL checks that the posts have no
comments. With statistics from before their comments were deleted, the check would read all comments."""

_by_ids = one_of(post.c.id, "ids")
_requests = rows("requests", key=BigInteger, request_id=Text)

MARK_POSTS = delete_with_changes(
    ResourceKind.POST,
    _by_ids,
    insert(mark).from_select(
        ["post_id", "request_id", *DELETION_FIELDS],
        select(post.c.id, _requests.c.request_id, *[parameter(it, BigInteger) for it in DELETION_FIELDS])
        .select_from(post.outerjoin(_requests, _requests.c.key == post.c.id))
        .where(_by_ids),
    ),
)
"""Deletes posts for callers. The rows of the posts and their comments remain. Served by the primary key."""

RELEASE_EXTERNAL_IDS = Statement(
    update(post)
    .values(external_id=literal_column("''"))
    .where(one_of(post.c.id, "ids"), post.c.external_id != literal_column("''"))
)
"""Frees the external ids of marked posts. Served by the primary key."""

REMOVE_POSTS = Statement(delete(post).where(one_of(post.c.id, "ids")))
"""Removes marked posts, which must have no comments any more. Served by the primary key."""

DELETED_POST_IDS = Statement(
    select(deleted_post.c.id).where(one_of(deleted_post.c.id, "ids"), deleted_post.c.purge_time.is_not(None))
)
"""Those of these ids that are ids of deleted posts that can be restored. Served by the primary key."""
