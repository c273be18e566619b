"""Statements of exports and imports, for each type of resource, and the conversion of rows.

An import stores rows as they are: with ids, times and versions. It runs in transactions that exclude other
writes, because it decides what to store from what it has read.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    select,
    tuple_,
    update,
)
from sqlalchemy import table as table_named
from sqlalchemy.dialects.postgresql import REGCLASS

from store_service.database.change_writes import (
    WriteWithChanges,
    insert_with_changes,
    update_with_changes,
)
from store_service.database.comments import COMMENTS
from store_service.database.deletions import is_in_visible_thread, is_visible
from store_service.database.posts import POSTS
from store_service.database.resource_sql import ResourceSql
from store_service.database.revisions import FIELDS
from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.database.tables import (
    comment_table,
    deleted_comment_table,
    deleted_post_table,
    post_table,
)
from store_service.database.tables import revision_table as revision
from store_service.model import DELETION_FIELDS, Comment, Post, ResourceKind

R = TypeVar("R", Post, Comment)

_sequences = table_named("sqlite_sequence", column("name", Text), column("seq", BigInteger))
_after, _limit = parameter("after", BigInteger), parameter("limit", Integer)


class TransferSql(Generic[R]):
    """The statements of one type of resource. Primary keys serve them, unless stated otherwise."""

    def __init__(self, sql: ResourceSql[R], table: Table, deleted: Table, kind: ResourceKind) -> None:
        """Takes the other statements, the table of the resources, and the table of deleted ones."""
        self.sql: ResourceSql[R] = sql
        self._kind: ColumnElement[int] = literal_column(str(int(kind)))
        is_post: bool = kind is ResourceKind.POST
        visible = [is_visible(table.c.id if is_post else table.c.post_id)]
        if not is_post:
            visible.append(is_in_visible_thread(table))
        is_shown = case((and_(*visible), 1), else_=0).label("is_shown")

        live = select(*table.c, is_shown)
        self.page: Statement = Statement(live.where(table.c.id > _after).order_by(table.c.id).limit(_limit))
        """The next `limit` rows after an id, and whether callers see each."""
        self.by_ids: Statement = Statement(live.where(one_of(table.c.id, "ids")))
        """The rows with these ids, as `page` has them."""
        place = [table.c.id, table.c.id if is_post else table.c.post_id, *([] if is_post else [table.c.path])]
        self.places: Statement = Statement(select(*place).where(one_of(table.c.id, "ids"), *visible))
        """Id, post and path of those of these resources that callers see, with tombstones."""
        self.places_by_external_id: Statement = Statement(
            select(table.c.external_id, *place).where(
                one_of(table.c.external_id, "ids", type_=Text),
                table.c.external_id != literal_column("''"),
                *visible,
            )
        )
        """Same as `places`, found by external id. Served by the unique index on external ids."""

        has_cause: bool = "deleted_with" in deleted.c
        cause = deleted.c.deleted_with if has_cause else literal_column("0").label("deleted_with")
        all_deleted = select(*[deleted.c[it] for it in sql.deleted.names], cause)
        self.page_of_deleted: Statement = Statement(
            all_deleted.where(deleted.c.id > _after).order_by(deleted.c.id).limit(_limit)
        )
        """The next `limit` deleted resources after an id, with the value of `deleted_with`."""
        self.deleted_by_ids: Statement = Statement(all_deleted.where(one_of(deleted.c.id, "ids")))
        """The deleted resources with these ids, as `page_of_deleted` has them."""
        place = [deleted.c[it.name] for it in place]
        self.deleted_places: Statement = Statement(select(*place).where(one_of(deleted.c.id, "ids")))
        """Same as `places` for deleted resources."""

        of_kind = revision.c.kind == self._kind
        columns = [revision.c.resource_id, *[revision.c[it] for it in FIELDS]]
        key = tuple_(revision.c.resource_id, revision.c.version)
        versions = select(*columns).where(of_kind)
        in_order = versions.order_by(revision.c.resource_id, revision.c.version)
        self.page_of_revisions: Statement = Statement(
            in_order.where(key > tuple_(_after, parameter("after_version", BigInteger))).limit(_limit)
        )
        """The next `limit` former versions after an id and a version: the id, and `revisions.FIELDS`."""
        self.revisions_of: Statement = Statement(in_order.where(one_of(revision.c.resource_id, "ids")))
        """The former versions of these resources, as `page_of_revisions` has them."""
        named = rows("named", resource_id=BigInteger, version=BigInteger)
        is_named = exists(
            select(literal_column("1")).where(
                named.c.resource_id == revision.c.resource_id, named.c.version == revision.c.version
            )
        )
        named_ids = one_of(revision.c.resource_id, "ids")
        self.remove_revisions: Statement = Statement(delete(revision).where(of_kind, named_ids, is_named))
        """Removes the `named` former versions, which have these ids."""
        lowered = rows("lowered", resource_id=BigInteger, version=BigInteger)
        is_newer = exists(
            select(literal_column("1")).where(
                lowered.c.resource_id == revision.c.resource_id, lowered.c.version <= revision.c.version
            )
        )
        self.remove_newer_revisions: Statement = Statement(
            delete(revision).where(of_kind, named_ids, is_newer)
        )
        """Removes the former versions of these resources from the `lowered` version on."""

        self._stored: list[str] = [it for it in sql.names if it not in DELETION_FIELDS]
        imported = rows("imported", **_types(table, self._stored))
        in_position = select(*[imported.c[it] for it in self._stored]).order_by(imported.c.position)
        self.insert: WriteWithChanges = insert_with_changes(
            table, kind, self._stored, in_position, has_requests=False
        )
        """Stores the resources `imported`, with their changes."""
        self.insert_tombstones: Statement = _insert(table, sql.names)
        """Stores the tombstones `imported`."""
        self.remove_tombstones: Statement = Statement(delete(table).where(one_of(table.c.id, "ids")))
        """Removes tombstones, which are stored again."""
        self._deleted_names: tuple[str, ...] = (*sql.deleted.names, *(["deleted_with"] if has_cause else []))
        self.insert_deleted: Statement = _insert(deleted, self._deleted_names)
        """Stores the deleted resources `imported`."""
        self.remove_deleted: Statement = Statement(delete(deleted).where(one_of(deleted.c.id, "ids")))
        """Removes deleted resources, which are stored again."""
        changed = rows("updates", **_types(table, self._stored), before=Text)
        replaced = [it for it in self._stored if it not in ("id", "post_id", "reply_to_id", "path")]
        self.overwrite: WriteWithChanges = update_with_changes(
            kind,
            update(table)
            .values({name: changed.c[name] for name in replaced})
            .where(table.c.id == changed.c.id),
            changed,
        )
        """Replaces resources by `updates`: columns in the order of the table without those of deletions, and
        `before`, as for `ResourceSql.update`. Each resource occurs once."""
        self.count: Statement = Statement(select(func.count()).select_from(table))
        self.count_deleted: Statement = Statement(select(func.count()).select_from(deleted))
        self.count_revisions: Statement = Statement(select(func.count()).select_from(revision).where(of_kind))

        name: ColumnElement[str] = literal_column(f"'{table.name}'")
        own = _sequences.c.name == name
        last = func.coalesce(select(_sequences.c.seq).where(own).scalar_subquery(), literal_column("0"))
        on_postgresql = cast(func.pg_get_serial_sequence(name, literal_column("'id'")), REGCLASS)
        id = parameter("id", BigInteger)
        first: Any = select(name, literal_column("0")).where(~exists(select(_sequences.c.seq).where(own)))
        self.skip_ids: tuple[Statement, ...] = (
            # SQLite adds the row with the first insert into the table.
            Statement(insert(_sequences).from_select(["name", "seq"], first), on_postgresql=select(null())),
            Statement(
                update(_sequences).values(seq=id).where(own, _sequences.c.seq < id),
                # Never backwards. No other transaction takes an id meanwhile, because of the order lock.
                on_postgresql=select(func.setval(on_postgresql, id)).where(
                    id > func.coalesce(func.pg_sequence_last_value(on_postgresql), literal_column("0"))
                ),
            ),
        )
        """Makes new ids greater than `id`. On PostgreSQL a rollback does not undo it, which only leaves ids
        unused."""
        self.may_skip_ids: Statement = Statement(
            select(literal_column("1")),
            on_postgresql=select(
                cast(func.has_sequence_privilege(on_postgresql, literal_column("'UPDATE'")), Integer)
            ),
        )
        """1, or 0 if the role lacks the privilege for `skip_ids` and `take_ids`."""
        taken = rows("taken")
        self.take_ids: Statement = Statement(
            select(last + taken.c.position),
            on_postgresql=select(func.nextval(on_postgresql)).select_from(taken),
        )
        """Returns a new id for each row of `taken`, which are numbered from 1. On SQLite the same transaction
        has to store them."""

    def live_row(self, resource: R) -> tuple[Any, ...]:
        """Returns the values for `insert` and `overwrite`."""
        return self.sql.to_row(resource)

    def tombstone_row(self, resource: R) -> tuple[Any, ...]:
        """Returns the values for `insert_tombstones`."""
        row: tuple[Any, ...] = attrgetter(*self.sql.names)(resource)
        return row

    def deleted_row(self, resource: R, deleted_with: int) -> tuple[Any, ...]:
        """Returns the values for `insert_deleted`."""
        row: tuple[Any, ...] = attrgetter(*self.sql.deleted.names)(resource)
        return (*row, deleted_with) if len(self._deleted_names) > len(row) else row


def _insert(table: Table, names: Sequence[str]) -> Statement:
    imported = rows("imported", **_types(table, names))
    values: Select[Any] = select(*[imported.c[it] for it in names])
    return Statement(insert(table).from_select(list(names), values))


def _types(table: Table, names: Sequence[str]) -> dict[str, Any]:
    return {name: type(table.c[name].type) for name in names}


TRANSFERS: dict[ResourceKind, TransferSql[Any]] = {
    ResourceKind.POST: TransferSql(POSTS, post_table, deleted_post_table, ResourceKind.POST),
    ResourceKind.COMMENT: TransferSql(COMMENTS, comment_table, deleted_comment_table, ResourceKind.COMMENT),
}
"""The statements of each kind. Tombstones exist only of comments."""
