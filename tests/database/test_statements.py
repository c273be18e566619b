"""Statements: written once, prepared once, and each served by its index."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import BigInteger, Integer, Text, literal_column, select

from store_service.database import changes, comment_counts, comments, deletions, idempotency, posts, schema
from store_service.database.change_writes import NewIds, WriteWithChanges
from store_service.database.deleted_sql import DeletedSql
from store_service.database.resource_sql import InsertDrafts, ResourceSql
from store_service.database.revisions import RevisionSql
from store_service.database.statements import Statement, as_json, one_of, parameter, rows
from tests.support.database import execute
from tests.support.postgresql import new_database

ENGINES = ("sqlite", "postgresql")


def statements_of(value: object) -> Iterator[tuple[str, tuple[str, ...], Statement]]:
    """Yields the statements of a module attribute, each with its variant and engines."""
    if isinstance(value, Statement):
        yield "", ENGINES, value
    elif isinstance(value, WriteWithChanges):
        for number, step in enumerate(value.steps, 1):
            yield f" {number}" if len(value.steps) > 1 else "", ("sqlite",), step
        yield "", ("postgresql",), value.in_one
    elif isinstance(value, dict | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from ((f"[{key}]{more}", engines, it) for more, engines, it in statements_of(item))
    elif isinstance(value, InsertDrafts):
        yield from statements_of(value.statement)
        for more, engines, it in statements_of(value.without_requests):
            yield f".without_requests{more}", engines, it
    elif isinstance(value, NewIds):
        yield from ((f".{key}", ("sqlite",), it) for key, it in vars(value).items())
    elif isinstance(value, ResourceSql | DeletedSql | RevisionSql):
        for key, item in vars(value).items():
            yield from ((f".{key}{more}", engines, it) for more, engines, it in statements_of(item))


STATEMENTS: dict[str, dict[str, Statement]] = {
    engine: {
        f"{module.__name__.rpartition('.')[2]}.{name}{more}": statement
        for module in (posts, comments, comment_counts, deletions, changes, idempotency)
        for name, value in vars(module).items()
        for more, engines, statement in statements_of(value)
        if engine in engines
    }
    for engine in ENGINES
}
"""All statements of each engine, by name. Writes with changes have several statements on SQLite."""

VALUES = {
    "last_id": 1,
    "ids": "[1, 2]",
    "post_ids": "[1, 2]",
    "posts": "[[0, 1], [1, 2]]",
    # Of a comment. A post has fewer columns, and no value here is wrong for them.
    "drafts": '[[0, "a", 1, "", "", "", 0, ""]]',
    "external_ids": '["x"]',
    "requests": '[[0, 1, "x"]]',
    "written": "[1, 2]",
    "done": '[[0, "x", "y", 1, "z"]]',
    "now": 1,
    "before": 1,
    "after": 0,
    "limit": 10,
    "post_id": 1,
    "removed_id": 1,
    "after_xid": 0,
    "after_seq": 0,
    "until_xid": 10,
    "until_seq": 10,
    "store_id": "x",
    "xid": 1,
    "seq": 1,
    "seqs": "[1, 2]",
    "clock": "{}",
    "delete_time": 1,
    "purge_time": 2,
    "except_ids": "[2]",
    "keep_all": 0,
    "key": "00000000000000ff",
    "comment_id": 1,
    "deleted_with": -1,
    "request_id": "x",
    "count": 1,
    "deleted": "[[0, 1, 0], [1, 2, 0]]",
    "wanted": '[[0, "x"]]',
    "former": '[[0, 1, 7, "b", 5, "", ""]]',
    "id": 1,
}

UPDATES = {
    "posts": '[[0, 1, "b", 5, 5, 2, "", "", "", 1, null]]',
    "comments": '[[0, 1, "b", 1, 5, 5, 2, "", "", "", 0, "", 1, null]]',
}
"""The parameter `updates` of each resource."""


def values_of(name: str) -> dict[str, object]:
    """Returns the parameters of a statement."""
    return VALUES | {"later": 1, "updates": UPDATES.get(name.partition(".")[0], "")}


SERVED_BY = {
    "posts.POSTS.by_id": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.by_single_id": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.new_ids.above": "posts USING INTEGER PRIMARY KEY",
    "posts.POST_IDS": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.by_external_id": "posts USING INDEX posts_external_id_idx (external_id=?)",
    "posts.POSTS.by_single_external_id": "posts USING INDEX posts_external_id_idx (external_id=?)",
    "posts.RELEASE_EXTERNAL_IDS": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.locked_by_id": "posts USING INTEGER PRIMARY KEY",
    "posts.KEPT_POST_IDS": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.insert 2": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.insert.without_requests 2": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.insert_required 2": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.insert_required.without_requests 2": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.update 1": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.delete 1": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.delete 2": "posts USING INTEGER PRIMARY KEY",
    "posts.MARK_POSTS 1": "posts USING INTEGER PRIMARY KEY",
    "posts.MARK_POSTS 2": "posts USING INTEGER PRIMARY KEY",
    "posts.REMOVE_POSTS": "posts USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.by_id": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.by_single_id": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.new_ids.above": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.locked_by_id": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.by_external_id": "comments USING INDEX comments_external_id_idx (external_id=?)",
    "comments.COMMENTS.by_single_external_id": "comments USING INDEX comments_external_id_idx",
    "comments.COMMENTS.insert 2": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.insert.without_requests 2": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.insert_required 2": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.insert_required.without_requests 2": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.update 1": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.delete 1": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.delete 2": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTED_POSTS": "USING COVERING INDEX comments_post_id_id_idx (post_id=? AND id>?)",
    "comment_counts.COMMENT_COUNTS": "USING COVERING INDEX comments_post_id_id_idx (post_id=?)",
    "comment_counts.LIMITED_COMMENT_COUNTS": "USING COVERING INDEX comments_post_id_id_idx (post_id=?)",
    "comment_counts.COMMENT_COUNT_AFTER": "USING COVERING INDEX comments_post_id_id_idx (post_id=? AND id>?)",
    "deletions.SIZES_OF_COMMENTS": "comments_post_id_id_idx (post_id=?)",
    "deletions.SIZES_OF_COMMENTS_AFTER": "comments_post_id_id_idx (post_id=? AND id>?)",
    "deletions.MARKED_COMMENTS": "comments USING INDEX comments_external_id_idx (external_id=?)",
    "deletions.SET_REMOVED": "post_deletions USING INTEGER PRIMARY KEY",
    "deletions.UNMARK_POSTS": "post_deletions USING INTEGER PRIMARY KEY",
    "changes.FEED": "SEARCH sqlite_sequence",
    "changes.LAST_SEQ": "SEARCH sqlite_sequence",
    "changes.COMMIT_TIMES": "changes USING INTEGER PRIMARY KEY",
    "changes.NEWEST_TIME": "changes USING INTEGER PRIMARY KEY",
    "changes.CHANGE_AT": "changes USING INTEGER PRIMARY KEY",
    "changes.FEED_AT": "changes USING INTEGER PRIMARY KEY",
    "changes.LAST_XID": "changes USING INTEGER PRIMARY KEY",
    "changes.SIZES": "changes USING INTEGER PRIMARY KEY (rowid>?)",
    "changes.KEYS": "changes USING INTEGER PRIMARY KEY (rowid>?)",
    "changes.CHANGES": "changes USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
    "changes.DELETE_CHANGES": "changes USING INTEGER PRIMARY KEY (rowid<?)",
    "idempotency.REQUESTS_BY_ID": "requests USING INDEX sqlite_autoindex_requests_1 (id=?)",
    "idempotency.ANSWERS_BY_ID": "requests USING INDEX sqlite_autoindex_requests_1 (id=?)",
    "idempotency.SIZES": "requests_create_time_idx (create_time<?)",
    "idempotency.DELETE_OLD_REQUESTS": "requests_create_time_idx (create_time<?)",
    "idempotency.NEWEST_TIME": "requests USING COVERING INDEX requests_create_time_idx",
    "idempotency.RESTAMP_FUTURE_REQUESTS": "requests_create_time_idx (create_time>?)",
    "posts.POSTS.update_with_history 1": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.update_with_history 2": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.deleted.by_id": "deleted_posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.deleted.by_external_id": "deleted_posts_external_id_id_idx (external_id=?)",
    "posts.POSTS.deleted.add": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.deleted.restore": "deleted_posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.deleted.undelete_changes": "posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.deleted.remove": "deleted_posts USING INTEGER PRIMARY KEY",
    "posts.POSTS.deleted.due": "deleted_posts_purge_time_idx (purge_time<?)",
    "posts.POSTS.revisions.page": "sqlite_autoindex_revisions_1 (kind=? AND resource_id=? AND version<?)",
    "posts.POSTS.revisions.remove": "sqlite_autoindex_revisions_1 (kind=? AND resource_id=?)",
    "posts.POSTS.revisions.trim": "sqlite_autoindex_revisions_1 (kind=? AND resource_id=?)",
    "comments.COMMENTS.update_with_history 1": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.update_with_history 2": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.deleted.by_id": "deleted_comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.deleted.by_external_id": "deleted_comments_external_id_id_idx (external_id=?)",
    "comments.COMMENTS.deleted.add": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.deleted.restore": "deleted_comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.deleted.undelete_changes": "comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.deleted.remove": "deleted_comments USING INTEGER PRIMARY KEY",
    "comments.COMMENTS.deleted.due": "deleted_comments_purge_time_idx (purge_time<?)",
    "comments.COMMENTS.revisions.page": "revisions_1 (kind=? AND resource_id=? AND version<?)",
    "comments.COMMENTS.revisions.remove": "sqlite_autoindex_revisions_1 (kind=? AND resource_id=?)",
    "comments.COMMENTS.revisions.trim": "sqlite_autoindex_revisions_1 (kind=? AND resource_id=?)",
    "posts.DELETED_POST_IDS": "deleted_posts USING INTEGER PRIMARY KEY",
    "comments.MAKE_TOMBSTONES 1": "comments USING INTEGER PRIMARY KEY",
    "comments.MAKE_TOMBSTONES 2": "comments USING INTEGER PRIMARY KEY",
    "comments.EXISTING_IDS": "comments USING INTEGER PRIMARY KEY",
    "comments.REMOVE_TOMBSTONES": "comments USING INTEGER PRIMARY KEY",
    "comments.CLOSE_TOMBSTONES": "comments USING INTEGER PRIMARY KEY",
    "comments.ADD_TOMBSTONES": "deleted_comments USING INTEGER PRIMARY KEY",
    "comments.REMOVE_LINKS": "deleted_comments USING INTEGER PRIMARY KEY",
    "comments.LINKS_OF": "deleted_comments USING INTEGER PRIMARY KEY",
    "comments.KEEP_ONLY_LINKS": "deleted_comments USING INTEGER PRIMARY KEY",
    "comments.KEEP_LONGER": "deleted_comments USING INTEGER PRIMARY KEY",
    "deletions.IN_MARKED_THREADS": "comments USING INTEGER PRIMARY KEY",
    "comments.WITH_REPLIES": "INDEX comments_reply_to_id_id_idx (reply_to_id=? AND id>?)",
    "comments.CHILDLESS_TOMBSTONES": "INDEX comments_reply_to_id_id_idx (reply_to_id=? AND id>?)",
    "comments.KEEP_LINKS": "deleted_reply USING INDEX deleted_comments_thread_idx (post_id=?",
    "comments.WITH_DELETED_REPLIES": "INDEX deleted_comments_reply_to_id_id_idx (reply_to_id=? AND id>?)",
    "comments.CHILDLESS_LINKS": "INDEX deleted_comments_reply_to_id_id_idx (reply_to_id=? AND id>?)",
    "comments.ROWS_OF_THREAD": "comments USING INDEX comments_thread_idx (post_id=? AND <expr><?)",
    "comments.ROWS_OF_DELETED_THREAD": "INDEX deleted_comments_thread_idx (post_id=? AND <expr><?)",
    "comments.DELETED_WITH": "deleted_comments_deleted_with_idx (post_id=? AND deleted_with=? AND <expr>>?)",
    "deletions.MARKED_REPLIES": "comments USING INDEX comments_external_id_idx (external_id=?)",
    "deletions.MARK_THREADS": "comments USING INTEGER PRIMARY KEY",
    "deletions.THREADS_ABOVE": "thread_deletions USING INTEGER PRIMARY KEY",
    "deletions.UNMARK_THREADS": "thread_deletions USING INTEGER PRIMARY KEY",
    "deletions.SET_REMOVED_KEY": "thread_deletions USING INTEGER PRIMARY KEY",
    "deletions.ADVANCE_RESTORATION": "sqlite_autoindex_restorations_1 (post_id=? AND deleted_with=?)",
    "deletions.END_RESTORATION": "sqlite_autoindex_restorations_1 (post_id=? AND deleted_with=?)",
    "deletions.END_RESTORATIONS_OF_POSTS": "sqlite_autoindex_restorations_1 (post_id=?)",
    "deletions.RESTORED_POSTS": "sqlite_autoindex_restorations_1 (post_id=?)",
}
"""The index that SQLite must use for each statement that searches rows."""

SERVED_BY_ON_POSTGRESQL = {
    "posts.POSTS.by_id": "posts_pkey",
    "posts.POST_IDS": "posts_pkey",
    "posts.POSTS.by_external_id": "posts_external_id_idx",
    "posts.RELEASE_EXTERNAL_IDS": "posts_pkey",
    "posts.POSTS.locked_by_id": "posts_pkey",
    "posts.KEPT_POST_IDS": "posts_pkey",
    "posts.POSTS.update": "posts_pkey",
    "posts.POSTS.delete": "posts_pkey",
    "posts.MARK_POSTS": "posts_pkey",
    "posts.REMOVE_POSTS": "posts_pkey",
    "comments.COMMENTS.by_id": "comments_pkey",
    "comments.COMMENTS.locked_by_id": "comments_pkey",
    "comments.COMMENTS.by_external_id": "comments_external_id_idx",
    "comments.COMMENTS.update": "comments_pkey",
    "comments.COMMENTS.delete": "comments_pkey",
    "comments.COMMENTED_POSTS": "comments_post_id_id_idx",
    "comment_counts.COMMENT_COUNTS": "comments_post_id_id_idx",
    "comment_counts.LIMITED_COMMENT_COUNTS": "comments_post_id_id_idx",
    "comment_counts.COMMENT_COUNT_AFTER": "comments_post_id_id_idx",
    "deletions.SIZES_OF_COMMENTS": "comments_post_id_id_idx",
    "deletions.SIZES_OF_COMMENTS_AFTER": "comments_post_id_id_idx",
    "deletions.MARKED_COMMENTS": "comments_external_id_idx",
    "changes.LAST_SEQ": "changes_pkey",
    "changes.HAS_OWN_PAST": "changes_xid_seq_idx",
    "changes.COMMIT_TIMES": "changes_pkey",
    "changes.NEWEST_TIME": "changes_pkey",
    "changes.NEWEST": "changes_xid_seq_idx",
    "changes.CHANGE_AT": "changes_pkey",
    "changes.FEED_AT": "changes_pkey",
    "changes.LAST_XID": "changes_pkey",
    "changes.SIZES": "changes_xid_seq_idx",
    "changes.KEYS": "changes_xid_seq_idx",
    "changes.CHANGES": "changes_xid_seq_idx",
    "changes.DELETE_CHANGES": "changes_xid_seq_idx",
    "idempotency.REQUESTS_BY_ID": "requests_pkey",
    "idempotency.ANSWERS_BY_ID": "requests_pkey",
    "idempotency.SIZES": "requests_create_time_idx",
    "idempotency.DELETE_OLD_REQUESTS": "requests_create_time_idx",
    "idempotency.NEWEST_TIME": "requests_create_time_idx",
    "idempotency.RESTAMP_FUTURE_REQUESTS": "requests_create_time_idx",
    "posts.POSTS.update_with_history": "posts_pkey",
    "posts.POSTS.deleted.by_id": "deleted_posts_pkey",
    "posts.POSTS.deleted.by_external_id": "deleted_posts_external_id_id_idx",
    "posts.POSTS.deleted.add": "posts_pkey",
    "posts.POSTS.deleted.restore": "deleted_posts_pkey",
    "posts.POSTS.deleted.undelete_changes": "posts_pkey",
    "posts.POSTS.deleted.remove": "deleted_posts_pkey",
    "posts.POSTS.deleted.due": "deleted_posts_purge_time_idx",
    "posts.POSTS.revisions.page": "revisions_pkey",
    "posts.POSTS.revisions.remove": "revisions_pkey",
    "posts.POSTS.revisions.trim": "revisions_pkey",
    "comments.COMMENTS.update_with_history": "comments_pkey",
    "comments.COMMENTS.deleted.by_id": "deleted_comments_pkey",
    "comments.COMMENTS.deleted.by_external_id": "deleted_comments_external_id_id_idx",
    "comments.COMMENTS.deleted.add": "comments_pkey",
    "comments.COMMENTS.deleted.restore": "deleted_comments_pkey",
    "comments.COMMENTS.deleted.undelete_changes": "comments_pkey",
    "comments.COMMENTS.deleted.remove": "deleted_comments_pkey",
    "comments.COMMENTS.deleted.due": "deleted_comments_purge_time_idx",
    "comments.COMMENTS.revisions.page": "revisions_pkey",
    "comments.COMMENTS.revisions.remove": "revisions_pkey",
    "comments.COMMENTS.revisions.trim": "revisions_pkey",
    "posts.DELETED_POST_IDS": "deleted_posts_pkey",
    "comments.MAKE_TOMBSTONES": "comments_pkey",
    "comments.EXISTING_IDS": "comments_pkey",
    "comments.REMOVE_TOMBSTONES": "comments_pkey",
    "comments.CLOSE_TOMBSTONES": "comments_pkey",
    "comments.ADD_TOMBSTONES": "deleted_comments_pkey",
    "comments.REMOVE_LINKS": "deleted_comments_pkey",
    "comments.LINKS_OF": "deleted_comments_pkey",
    "comments.KEEP_ONLY_LINKS": "deleted_comments_pkey",
    "comments.KEEP_LONGER": "deleted_comments_pkey",
    "deletions.IN_MARKED_THREADS": "comments_pkey",
    "comments.WITH_REPLIES": "comments_reply_to_id_id_idx",
    "comments.CHILDLESS_TOMBSTONES": "comments_reply_to_id_id_idx",
    "comments.KEEP_LINKS": "deleted_comments_thread_idx",
    "comments.WITH_DELETED_REPLIES": "deleted_comments_reply_to_id_id_idx",
    "comments.CHILDLESS_LINKS": "deleted_comments_reply_to_id_id_idx",
    "comments.ROWS_OF_THREAD": "comments_thread_idx",
    "comments.ROWS_OF_DELETED_THREAD": "deleted_comments_thread_idx",
    "comments.DELETED_WITH": "deleted_comments_deleted_with_idx",
    "deletions.MARKED_REPLIES": "comments_external_id_idx",
    "deletions.MARK_THREADS": "comments_pkey",
}
"""The same for PostgreSQL."""

WITHOUT_INDEX = {
    "sqlite": {
        "posts.POSTS.insert 1",
        "posts.POSTS.insert.without_requests 1",
        "posts.POSTS.insert_required 1",
        # The last row of the table.
        "posts.POSTS.new_ids.last",
        "posts.POSTS.insert_required.without_requests 1",
        "comments.COMMENTS.insert 1",
        "comments.COMMENTS.insert.without_requests 1",
        "comments.COMMENTS.insert_required 1",
        # The last row of the table.
        "comments.COMMENTS.new_ids.last",
        "comments.COMMENTS.insert_required.without_requests 1",
        # They read rows of their own parameter.
        "posts.POSTS.update 2",
        "comments.COMMENTS.update 2",
        # The last row of the primary key.
        "changes.NEWEST",
        # The one row of `feed`.
        "changes.LOCKED_FEED",
        "changes.SET_TRIMMED",
        "changes.CLOCK",
        "changes.SAVE_CLOCK",
        "changes.BEGIN_ANEW[1]",
        # Deletes everything.
        "changes.BEGIN_ANEW[0]",
        # A constant on SQLite.
        "changes.HAS_OWN_PAST",
        "changes.IS_SAME_SYSTEM",
        "changes.SYSTEM_ID",
        "changes.SET_SYSTEM_ID",
        "changes.IS_STANDBY",
        "posts.CHECK_KEYS_BY_INDEX",
        # There are few or no unfinished deletions and restorations.
        "deletions.MARKS",
        "deletions.MARKED_THREADS",
        "deletions.RESTORATIONS",
        "deletions.END_RESTORATIONS_OF_THREADS",
        "deletions.ADD_RESTORATION",
        "posts.POSTS.update_with_history 3",
        "comments.COMMENTS.update_with_history 3",
        "posts.POSTS.revisions.add",
        "comments.COMMENTS.revisions.add",
        "idempotency.INSERT_REQUESTS",
    },
    "postgresql": {
        # Only SQLite executes them.
        "posts.POSTS.by_single_id",
        "posts.POSTS.by_single_external_id",
        "comments.COMMENTS.by_single_id",
        "comments.COMMENTS.by_single_external_id",
        "posts.CHECK_KEYS_BY_INDEX",
        "changes.IS_STANDBY",
        # PostgreSQL scans tables of one or two pages.
        "deletions.MARKS",
        "deletions.SET_REMOVED",
        "deletions.UNMARK_POSTS",
        "deletions.MARKED_THREADS",
        "deletions.RESTORATIONS",
        "deletions.END_RESTORATIONS_OF_THREADS",
        "deletions.ADD_RESTORATION",
        "deletions.THREADS_ABOVE",
        "deletions.UNMARK_THREADS",
        "deletions.SET_REMOVED_KEY",
        "deletions.ADVANCE_RESTORATION",
        "deletions.END_RESTORATION",
        "deletions.END_RESTORATIONS_OF_POSTS",
        "deletions.RESTORED_POSTS",
        # They read rows of their own parameter.
        "posts.POSTS.revisions.add",
        "comments.COMMENTS.revisions.add",
        # Inserts read the rows that they have just written.
        "posts.POSTS.insert",
        "posts.POSTS.insert.without_requests",
        "posts.POSTS.insert_required",
        "posts.POSTS.insert_required.without_requests",
        "comments.COMMENTS.insert",
        "comments.COMMENTS.insert.without_requests",
        "comments.COMMENTS.insert_required",
        "comments.COMMENTS.insert_required.without_requests",
        "changes.FEED",
        "changes.LOCKED_FEED",
        "changes.SET_TRIMMED",
        "changes.CLOCK",
        "changes.SAVE_CLOCK",
        "changes.BEGIN_ANEW[0]",
        "changes.BEGIN_ANEW[1]",
        "changes.IS_SAME_SYSTEM",
        "changes.SYSTEM_ID",
        "changes.SET_SYSTEM_ID",
        "idempotency.INSERT_REQUESTS",
    },
}
"""Statements that search no rows, or whose table has few rows."""

SORTS_ITS_BATCH = {
    "posts.POSTS.update_with_history",
    "comments.COMMENTS.update_with_history",
    "posts.POSTS.deleted.undelete_changes",
    "comments.COMMENTS.deleted.undelete_changes",
    "comments.MAKE_TOMBSTONES",
    # Their table has few or no rows.
    "deletions.MARKED_THREADS",
    "deletions.RESTORATIONS",
    "posts.POSTS.insert 2",
    "posts.POSTS.insert_required 2",
    "posts.POSTS.update",
    "posts.POSTS.delete",
    "posts.MARK_POSTS",
    "comments.COMMENTS.insert 2",
    "comments.COMMENTS.insert_required 2",
    "comments.COMMENTS.update",
    "comments.COMMENTS.delete",
    # The marked threads of a batch are few or none.
    "deletions.IN_MARKED_THREADS",
    # PostgreSQL estimates the two ends of a change batch separately and expects many rows.
    "changes.CHANGES",
}
"""Statements that may sort. The changes of a batch are added in the order of its requests, which no index
has. A change batch is small and may be sorted after it was read by its index."""


UNFINISHED = ("post_deletions", "thread_deletions", "restorations")
"""Tables of unfinished deletions and restorations, which have few or no rows."""

FILTERS_ITS_BATCH = {
    "posts.RELEASE_EXTERNAL_IDS",
    "posts.DELETED_POST_IDS",
    *(
        f"{name}.{statement}"
        for name in ("posts.POSTS", "comments.COMMENTS")
        for statement in ("deleted.by_id", "deleted.by_external_id", "deleted.add", "deleted.restore")
    ),
    *(f"comments.COMMENTS.{name}" for name in ("by_id", "locked_by_id", "by_external_id", "delete")),
    *(
        f"comments.{name}"
        for name in (
            *("WITH_REPLIES", "CHILDLESS_TOMBSTONES", "KEEP_LINKS", "CLOSE_TOMBSTONES", "REMOVE_LINKS"),
            *("WITH_DELETED_REPLIES", "CHILDLESS_LINKS", "DELETED_WITH"),
        )
    ),
    *("deletions.MARKED_COMMENTS", "deletions.MARKED_REPLIES", "deletions.IN_MARKED_THREADS"),
    "comments.KEEP_LONGER",
}


def run(statement: Statement, **values: object) -> list[tuple[object, ...]]:
    """Returns the rows of a statement in a database without tables."""
    text, arguments = statement.on("sqlite", values)
    with closing(sqlite3.connect(":memory:")) as connection:
        return connection.execute(text, arguments).fetchall()


def test_every_statement_is_in_the_index_table() -> None:
    """Each new statement has to be added to the table above."""
    for engine, served_by in (("sqlite", SERVED_BY), ("postgresql", SERVED_BY_ON_POSTGRESQL)):
        assert served_by.keys() | WITHOUT_INDEX[engine] == STATEMENTS[engine].keys()
        assert not served_by.keys() & WITHOUT_INDEX[engine]


def test_statements_of_every_shape_are_found() -> None:
    """STATEMENTS includes single statements, tuples of statements, and both forms of writes."""
    assert {"posts.POSTS.delete 1", "posts.POSTS.delete 2"} <= STATEMENTS["sqlite"].keys()
    assert "posts.POSTS.delete" in STATEMENTS["postgresql"].keys() - STATEMENTS["sqlite"].keys()
    assert {"posts.POSTS.insert 1", "changes.BEGIN_ANEW[0]"} <= STATEMENTS["sqlite"].keys()


@pytest.mark.parametrize("name", SERVED_BY)
def test_statement_uses_its_index_on_sqlite(database_file: Path, name: str) -> None:
    """No table scan, no sort, and no other index."""
    text, arguments = STATEMENTS["sqlite"][name].on("sqlite", values_of(name))
    with closing(sqlite3.connect(database_file)) as connection:
        plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", arguments)]

    assert any(SERVED_BY[name] in step for step in plan), plan
    assert not [step for step in plan if step.startswith("SCAN") and not is_small(step, plan)], plan
    assert name in SORTS_ITS_BATCH or not [step for step in plan if "FOR ORDER BY" in step], plan


def is_small(scan: str, plan: list[str]) -> bool:
    """Whether a scan reads only the batch, rows derived from it, or the one row of `feed`."""
    if "VIRTUAL TABLE" in scan or scan == "SCAN CONSTANT ROW":
        return True
    what = scan.split()[1]
    if what in UNFINISHED:
        return True
    return what == "feed" or f"MATERIALIZE {what}" in plan or f"CO-ROUTINE {what}" in plan


@pytest.fixture(scope="module")
def filled_database(postgres: str) -> Iterator[str]:
    """50,000 posts and requests, 100,000 comments and changes; 200 of the comments are on the first post.
    As many deleted posts and comments, and former versions.

    PostgreSQL reads a smaller table whole, and rightly: its plans go by what a statement costs.
    """
    with new_database(postgres) as url:
        schema.upgrade(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("INSERT INTO posts (body) SELECT 'x' FROM generate_series(1, 50000)")
            connection.execute(
                "INSERT INTO comments (body, post_id)"
                " SELECT 'x', CASE WHEN n % 500 = 0 THEN 1 ELSE 1 + n % 5000 END"
                " FROM generate_series(1, 100000) AS n"
            )
            connection.execute(
                "INSERT INTO changes"
                " (xid, action, kind, resource_id, post_id, payload, size, commit_time)"
                " SELECT n / 2, 2, 1, n, n, '{}', 1, n FROM generate_series(1, 100000) AS n"
            )
            connection.execute(
                "INSERT INTO requests SELECT 'request ' || n, 'x', 'x', n FROM generate_series(1, 50000) AS n"
            )
            connection.execute(
                "INSERT INTO deleted_posts (id, body, external_id, delete_time, purge_time)"
                " SELECT n, 'x', 'x' || n, n, n FROM generate_series(50001, 100000) AS n"
            )
            connection.execute(
                "INSERT INTO deleted_comments"
                " (id, body, post_id, reply_to_id, path, external_id, delete_time, purge_time, deleted_with)"
                " SELECT n, 'x', 1 + n % 5000, n - 1, lpad(to_hex(n - 1), 16, '0'), 'x' || n, n, n, -1"
                " FROM generate_series(100001, 200000) AS n"
            )
            connection.execute(
                "INSERT INTO revisions (kind, resource_id, version, body)"
                " SELECT 1 + n % 2, n / 10, n % 10, 'x' FROM generate_series(1, 100000) AS n"
            )
            # VACUUM creates the visibility map, ANALYZE the statistics.
            connection.execute(
                "VACUUM ANALYZE posts, comments, deleted_posts, deleted_comments, revisions, changes,"
                " requests"
            )
        yield url


@pytest.fixture(scope="module")
def skewed_database(postgres: str) -> Iterator[str]:
    """Statistics by which all comments reply to one comment, all deleted ones went with it, and all resources
    have the same author.

    The statistics of a table can be those of earlier rows, as after a large import or deletion.
    """
    with new_database(postgres) as url:
        schema.upgrade(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO posts (body, author) SELECT 'x', 'a' FROM generate_series(1, 50000)"
            )
            connection.execute(
                "INSERT INTO deleted_posts (id, body, author, delete_time, purge_time)"
                " SELECT n, 'x', 'a', 1, 1 FROM generate_series(50001, 100000) AS n"
            )
            connection.execute(
                "INSERT INTO comments (body, post_id, reply_to_id, path, author)"
                " SELECT 'x', 1, 1, lpad('1', 16, '0'), 'a' FROM generate_series(1, 50000)"
            )
            connection.execute(
                "INSERT INTO deleted_comments"
                " (id, body, post_id, reply_to_id, path, author, delete_time, purge_time, deleted_with)"
                " SELECT n, 'x', 1, 1, lpad('1', 16, '0'), 'a', 1, 1, 1"
                " FROM generate_series(50001, 100000) AS n"
            )
            connection.execute("VACUUM ANALYZE posts, comments, deleted_posts, deleted_comments")
        yield url


@pytest.mark.parametrize(
    "name", [name for name, index in SERVED_BY_ON_POSTGRESQL.items() if "post" in index or "comment" in index]
)
def test_statement_scans_no_table_for_skewed_statistics(skewed_database: str, name: str) -> None:
    with psycopg.connect(skewed_database, autocommit=True) as connection:
        plan = run_on_postgresql(connection, "EXPLAIN (COSTS OFF) ", name)

    steps = [str(step) for (step,) in plan]
    scans = [step for step in steps if "Seq Scan" in step]
    assert not [step for step in scans if not any(f"on {table}" in step for table in UNFINISHED)], steps


@pytest.mark.parametrize("name", SERVED_BY_ON_POSTGRESQL)
def test_statement_uses_its_index_on_postgresql(filled_database: str, name: str) -> None:
    """No table is scanned or sorted, and the plan names the index."""
    with psycopg.connect(filled_database, autocommit=True) as connection:
        values = {"after": 25_000, "after_xid": 25_000, "after_seq": 50_000}
        values |= (
            {"until_xid": 10, "until_seq": 20} if "DELETE" in name else {"until_xid": 25_100, "until_seq": 0}
        )
        plan = run_on_postgresql(connection, "EXPLAIN (COSTS OFF) ", name, **values)

    steps = [str(step) for (step,) in plan]
    index = SERVED_BY_ON_POSTGRESQL[name]
    assert any(f"{index} " in f"{step} " for step in steps), steps
    # `feed` has one row. The marked posts are read once per statement; there are few or none.
    scans = [step for step in steps if "Seq Scan" in step]
    small = [f"on {table}" for table in ("feed", *UNFINISHED)]
    assert not [step for step in scans if not any(table in step for table in small)], steps
    assert name in SORTS_ITS_BATCH or not [step for step in steps if "Sort" in step], steps
    if name in FILTERS_ITS_BATCH:
        return
    # The exclusion from the batch, which is a function result, needs no index.
    filtered = [before for before, step in pairwise(steps) if "Filter" in step and "SubPlan" not in step]
    assert not [step for step in filtered if "Function Scan on json_array_elements" not in step], steps


def run_on_postgresql(
    connection: psycopg.Connection[Any], prefix: str, name: str, **values: object
) -> list[tuple[Any, ...]]:
    """Runs a statement as the driver of the service does, with separate parameters."""
    text, arguments = STATEMENTS["postgresql"][name].on("postgresql", values_of(name) | values)
    with psycopg.RawCursor(connection) as cursor:
        cursor.execute((prefix + text).encode(), arguments)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize("name", STATEMENTS["sqlite"])
def test_statement_runs_on_the_current_schema_of_sqlite(database_file: Path, name: str) -> None:
    """Checks the names of tables and columns against the last revision."""
    text, arguments = STATEMENTS["sqlite"][name].on("sqlite", values_of(name))
    with closing(sqlite3.connect(database_file)) as connection:
        connection.execute("INSERT INTO posts (body) VALUES ('a')")
        connection.execute(text, arguments).fetchall()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("name", STATEMENTS["postgresql"])
def test_statement_runs_on_the_current_schema_of_postgresql(database_url: str, name: str) -> None:
    """Checks names and types against PostgreSQL."""
    execute(database_url, "INSERT INTO posts (body) VALUES ('a')")
    with psycopg.connect(database_url) as connection:
        run_on_postgresql(connection, "", name)
        connection.rollback()


def test_statement_text_is_independent_of_the_batch_size() -> None:
    """SQLite prepares the statement once and never reaches its limit of parameters."""
    few, _ = posts.POSTS.by_id.on("sqlite", {"ids": as_json([1])})
    many, arguments = posts.POSTS.by_id.on("sqlite", {"ids": as_json(list(range(100_000)))})

    assert few is many
    assert len(arguments) == 1


def test_ids_are_passed_as_numbers() -> None:
    """This includes the extreme values and an empty list."""
    wanted = [1, 2**63 - 1, -(2**63), 0]

    def found(numbers: str) -> list[int]:
        statements = {id: Statement(select(one_of(literal_column(str(id)), "ids"))) for id in wanted}
        return [id for id, statement in statements.items() if run(statement, ids=numbers) == [(1,)]]

    assert found(as_json(wanted)) == wanted
    assert found(as_json([0])) == [0]
    assert found("[]") == []


def test_rows_keep_their_types_and_order() -> None:
    bodies = [
        "",
        "'\"",
        '[1,"2"]',
        "\\n\n\r\t",
        "é日😀\u2028\ud7ff\uffff",
        "12",
        "null",
        "1e999",
        "x" * 100_000,
    ]
    table = rows("drafts", body=Text, post_id=BigInteger)
    wanted = [(number, body, 2**63 - 1 - number) for number, body in enumerate(bodies)]

    seen = run(Statement(select(table).order_by(table.c.position)), drafts=as_json(wanted))
    assert seen == wanted


def test_json_is_compact() -> None:
    """There are no spaces and no escapes of non-ASCII characters."""
    assert as_json([[0, "é"], [1, "b"]]) == '[[0,"é"],[1,"b"]]'
    assert json.loads(as_json([])) == []


def test_missing_parameter_is_an_error() -> None:
    """A missing parameter must not become NULL."""
    statement = Statement(select(parameter("one", Integer), parameter("two", Integer)))

    assert run(statement, two=2, one=1) == [(1, 2)]
    with pytest.raises(KeyError, match="two"):
        statement.on("sqlite", {"one": 1})


def test_constant_of_a_statement_needs_no_parameter() -> None:
    """SQLAlchemy converts constants to parameters, which keep their values."""
    statement = Statement(select(parameter("one", Integer) + 5).limit(1))

    assert run(statement, one=1) == [(6,)]
