"""Statements that find and remove what an author wrote, with the index that serves each."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Table,
    Text,
    UpdateBase,
    and_,
    delete,
    func,
    literal_column,
    null,
    select,
    tuple_,
    update,
)

from store_service.database.change_writes import WriteWithChanges, contentless_changes
from store_service.database.deletions import MARKED, body_bytes, first_reply, is_live
from store_service.database.statements import Statement, after_in, one_of, parameter, rows
from store_service.database.tables import (
    comment_table as comment,
)
from store_service.database.tables import (
    deleted_comment_table as deleted_comment,
)
from store_service.database.tables import (
    deleted_post_table as deleted_post,
)
from store_service.database.tables import (
    post_table as post,
)
from store_service.database.tables import (
    revision_table as revision,
)
from store_service.model import CONTENT_TEXTS, DELETION_FIELDS, Action, ResourceKind

_author, _limit = parameter("author", Text), parameter("limit", Integer)
_no_text: ColumnElement[str] = literal_column("''", Text)
_empty = dict.fromkeys(CONTENT_TEXTS, _no_text)


class AuthorSql:
    """The statements of one table of posts or comments. Those that take `ids` use the primary key."""

    def __init__(self, table: Table, kind: ResourceKind, *, is_deleted: bool) -> None:
        """Takes the table, its kind, and whether it has deleted resources."""
        is_post = kind is ResourceKind.POST
        post_id: ColumnElement[int] = table.c.id if is_post else table.c.post_id
        path = _no_text if is_post else table.c.path
        with_content: list[ColumnElement[bool]]
        if is_deleted:
            with_content = [table.c.purge_time.is_not(None)]
            if is_post:
                # The deletion of a marked post is not finished.
                with_content.append(table.c.id.not_in(MARKED))
        else:
            with_content = is_live(table, post_id)
        of_author = and_(
            after_in(((table.c.author, _author),), table.c.id, parameter("after", BigInteger)),
            table.c.author != _no_text,
            *with_content,
        )
        on_sqlite, on_postgresql = [
            select(table.c.id, post_id, path, body_bytes(table, it))
            .where(of_author)
            .order_by(table.c.author, table.c.id)
            .limit(_limit)
            for it in ("sqlite", "postgresql")
        ]
        self.of_author: Statement = Statement(on_sqlite, on_postgresql=on_postgresql)
        """Id, post, path and bytes of the next `limit` resources of an author after an id. Served by the
        index on authors."""
        self.with_content: Statement = Statement(
            select(table.c.id).where(one_of(table.c.id, "ids"), *with_content)
        )
        """Those of these resources that have content."""


AUTHORS: dict[tuple[ResourceKind, bool], AuthorSql] = {
    (kind, is_deleted): AuthorSql(table, kind, is_deleted=is_deleted)
    for table, kind, is_deleted in (
        (post, ResourceKind.POST, False),
        (deleted_post, ResourceKind.POST, True),
        (comment, ResourceKind.COMMENT, False),
        (deleted_comment, ResourceKind.COMMENT, True),
    )
}
"""The statements by kind, and by whether the resources are deleted."""


def _removal(
    table: Table,
    kind: ResourceKind,
    condition: ColumnElement[bool],
    write: UpdateBase,
    *logged: ColumnElement[bool],
) -> WriteWithChanges:
    """Returns a write of the rows that meet a condition, with a deletion for each that is logged."""
    columns = [it for it in table.c if it.name not in (*CONTENT_TEXTS, *DELETION_FIELDS)]
    times = [parameter(it, BigInteger).label(it) for it in DELETION_FIELDS]
    erased = select(*columns, *times).where(condition, *logged)
    return contentless_changes(Action.DELETE, kind, erased.subquery("removed"), write)


_posts_by_id = one_of(post.c.id, "ids")
ERASE_POSTS = _removal(post, ResourceKind.POST, _posts_by_id, delete(post).where(_posts_by_id))
"""Removes posts without comments. Served by the primary key."""

_comments_by_id = one_of(comment.c.id, "ids")
_not_tombstone = comment.c.delete_time.is_(None)
ERASE_COMMENTS = _removal(
    comment, ResourceKind.COMMENT, _comments_by_id, delete(comment).where(_comments_by_id), _not_tombstone
)
"""Removes comments and tombstones. Served by the primary key."""

_live_comments = and_(_comments_by_id, _not_tombstone)
MAKE_ERASED_TOMBSTONES = _removal(
    comment,
    ResourceKind.COMMENT,
    _live_comments,
    update(comment)
    .values(**_empty, **{it: parameter(it, BigInteger) for it in DELETION_FIELDS})
    .where(_live_comments),
)
"""Makes comments tombstones. Served by the primary key."""

_version = post.c.version + 1
_now = parameter("now", BigInteger)
CLEAR_POSTS: WriteWithChanges = contentless_changes(
    Action.UPDATE,
    ResourceKind.POST,
    select(
        post.c.id,
        post.c.create_time,
        _now.label("update_time"),
        _version.label("version"),
        null().label("before"),
    )
    .where(_posts_by_id)
    .subquery("cleared"),
    update(post).values(**_empty, update_time=_now, version=_version).where(_posts_by_id),
)
"""Removes the content of posts. Served by the primary key."""


def _deleted_changes(table: Table, kind: ResourceKind) -> WriteWithChanges:
    names = [it.name for it in table.c if it.name not in (*CONTENT_TEXTS, "purge_time", "deleted_with")]
    erased = select(*[table.c[it] for it in names]).where(
        one_of(table.c.id, "ids"), table.c.purge_time.is_not(None)
    )
    return contentless_changes(Action.DELETE, kind, erased.subquery("erased"))


DELETED_CHANGES: dict[ResourceKind, WriteWithChanges] = {
    ResourceKind.POST: _deleted_changes(deleted_post, ResourceKind.POST),
    ResourceKind.COMMENT: _deleted_changes(deleted_comment, ResourceKind.COMMENT),
}
"""Adds a deletion without content for each of these deleted resources. Served by the primary key."""

CLEAR_DELETED_POSTS = Statement(
    update(deleted_post)
    .values(**_empty, version=deleted_post.c.version + 1)
    .where(one_of(deleted_post.c.id, "ids"))
)
"""Removes the content of deleted posts, which can still be restored. Served by the primary key."""

_wanted = rows("wanted", id=BigInteger)


def _with_replies(table: Table) -> Statement:
    first = first_reply(_wanted.c.id, table).scalar_subquery()
    return Statement(select(_wanted.c.id).where(first.is_not(None)))


WITH_REPLIES = _with_replies(comment)
"""Those of these comments (`wanted`) that have replies, also tombstones. Served by
comments_reply_to_id_id_idx."""

WITH_DELETED_REPLIES = _with_replies(deleted_comment)
"""Those of these comments (`wanted`) that have deleted replies. Served by
deleted_comments_reply_to_id_id_idx."""


def _with_comments(table: Table, *more: ColumnElement[bool]) -> Statement:
    first = (
        select(table.c.id)
        .where(after_in(((table.c.post_id, _wanted.c.id),), table.c.id, literal_column("0")), *more)
        .order_by(table.c.post_id, table.c.id)
        .limit(1)
    )
    return Statement(select(_wanted.c.id).where(first.scalar_subquery().is_not(None)))


COMMENTS_OF = _with_comments(comment)
"""Those of these posts (`wanted`) that have comments. Served by comments_post_id_id_idx."""

DELETED_COMMENTS_OF = _with_comments(deleted_comment)
"""Those of these posts (`wanted`) that have deleted comments. Served by deleted_comments_post_id_id_idx."""

RESTORABLE_COMMENTS_OF = _with_comments(deleted_comment, deleted_comment.c.purge_time.is_not(None))
"""Those of these posts that have deleted comments that can be restored. Served the same way."""

# Former versions


def _revision_bytes(dialect: str) -> ColumnElement[int]:
    return body_bytes(revision, dialect)


_kind = parameter("kind", Integer)


def _revisions(*where: ColumnElement[bool], order: Sequence[ColumnElement[Any]]) -> Statement:
    on_sqlite, on_postgresql = [
        select(revision.c.kind, revision.c.resource_id, revision.c.version, _revision_bytes(it))
        .where(*where)
        .order_by(*order)
        .limit(_limit)
        for it in ("sqlite", "postgresql")
    ]
    return Statement(on_sqlite, on_postgresql=on_postgresql)


_key = (revision.c.kind, revision.c.resource_id, revision.c.version)
REVISIONS_OF = _revisions(revision.c.kind == _kind, one_of(revision.c.resource_id, "ids"), order=_key)
"""Kind, id, version and bytes of `limit` former versions of these resources. Served by the primary key."""

REVISIONS_OF_AUTHOR = _revisions(
    revision.c.author == _author, revision.c.author != _no_text, order=(revision.c.author, *_key)
)
"""Kind, id, version and bytes of `limit` former versions of an author. Served by revisions_author_idx."""

_removed = rows("removed", kind=Integer, resource_id=BigInteger, version=BigInteger)
REMOVE_REVISIONS = Statement(
    delete(revision).where(
        tuple_(*_key).in_(select(_removed.c.kind, _removed.c.resource_id, _removed.c.version))
    )
)
"""Removes these former versions. Served by the primary key."""

AUTHOR_REVISIONS_AFTER = Statement(
    select(*_key)
    .where(
        revision.c.author == _author,
        revision.c.author != _no_text,
        tuple_(*_key) > tuple_(_kind, parameter("resource_id", BigInteger), parameter("version", BigInteger)),
    )
    .order_by(revision.c.author, *_key)
    .limit(_limit)
)
"""Kind, id and version of the next `limit` former versions of an author. Served by revisions_author_idx."""

COUNT_REVISIONS = Statement(
    select(func.count()).where(revision.c.kind == _kind, one_of(revision.c.resource_id, "ids"))
)
"""The number of former versions of these resources. Served by the primary key."""
