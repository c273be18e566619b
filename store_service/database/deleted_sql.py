"""The statements for deleted resources of one type that can be restored.

Their rows are in a table of their own, so that they cost nothing in lists, counts and creates
(docs/decisions/0047). Rows without `purge_time` cannot be restored: they only keep threads connected.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import (
    BigInteger,
    Integer,
    Select,
    Table,
    Text,
    case,
    delete,
    exists,
    literal_column,
    null,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from store_service.compiled import compiled
from store_service.database.change_writes import WriteWithChanges, undelete_changes
from store_service.database.deletions import bytes_with_versions
from store_service.database.list_sql import ListSql
from store_service.database.own_objects import LABEL_KINDS
from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.model import CONTENT_TEXTS, DELETION_FIELDS, Comment, Post, ResourceKind

R = TypeVar("R", Post, Comment)


def row_reader(model: type[R], names: Sequence[str]) -> Callable[[Sequence[Any]], R]:
    """Returns the function that returns the resource of a row with these columns."""
    values = ", ".join([f"{name}={name}" for name in names])
    function: Callable[[Sequence[Any]], R] = compiled(
        ["row"], [f"{', '.join(names)} = row", f"return model({values})"], model=model
    )
    return function


class DeletedSql(Generic[R]):
    """The statements of one type. The primary key serves those that take `ids`."""

    def __init__(self, model: type[R], table: Table, deleted: Table, kind: ResourceKind) -> None:
        """Takes the dataclass, the table of resources that are not deleted, and the one of those that are."""
        stored: list[str] = [it.name for it in table.c if it.name not in DELETION_FIELDS]
        columns = [deleted.c[name] for name in (*stored, *DELETION_FIELDS)]
        self.names: tuple[str, ...] = tuple(column.name for column in columns)
        """The names of the columns, in the order of rows."""
        self.from_row: Callable[[Sequence[Any]], R] = row_reader(model, self.names)
        """Returns the resource of a row."""
        can_be_restored = deleted.c.purge_time.is_not(None)
        by_ids = one_of(deleted.c.id, "ids")

        self.by_id: Statement = Statement(select(*columns).where(by_ids, can_be_restored))
        """Resources with these ids, in any order."""
        other = deleted.alias("other")
        is_newest = ~exists(
            select(literal_column("1"))
            .where(
                other.c.external_id == deleted.c.external_id,
                other.c.external_id != literal_column("''"),
                other.c.id > deleted.c.id,
            )
            .correlate(deleted)
        )
        self.by_external_id: Statement = Statement(
            select(*columns).where(
                one_of(deleted.c.external_id, "ids", type_=Text),
                # The condition of the index, without which neither engine uses it.
                deleted.c.external_id != literal_column("''"),
                is_newest,
                can_be_restored,
            )
        )
        """The resource with each of these external ids that was created last. Served by the index on external
        ids."""
        self.list: ListSql = ListSql(
            deleted,
            kind,
            post_id=deleted.c.id if kind is ResourceKind.POST else deleted.c.post_id,
            columns=columns,
            label_kind=LABEL_KINDS[deleted.name],
            is_deleted=True,
        )

        added = rows("deleted", id=BigInteger, deleted_with=BigInteger)
        values = [
            *[table.c[name] for name in stored],
            *[parameter(name, BigInteger) for name in DELETION_FIELDS],
        ]
        names = list(self.names)
        if "deleted_with" in deleted.c:
            values.append(added.c.deleted_with)
            names.append("deleted_with")
        conditions = [table.c.delete_time.is_(None)] if "delete_time" in table.c else []
        self.add: Statement = Statement(
            deleted.insert().from_select(
                names,
                select(*values).select_from(added.join(table, table.c.id == added.c.id)).where(*conditions),
            )
        )
        """Copies resources that are deleted in this transaction, without tombstones. `deleted` has their ids,
        and the values of `deleted_with`."""

        self._table, self._deleted, self._stored = table, deleted, stored
        self.restore: Statement = Statement(
            self._restore(sqlite.insert(table)), on_postgresql=self._restore(postgresql.insert(table))
        )
        """Restores resources with these ids, as rows or in place of their tombstones. An external id that
        another resource has by now is not restored; of equal ones only the last."""
        self.undelete_changes: WriteWithChanges = undelete_changes(kind, one_of(table.c.id, "ids"))
        """Adds the changes of restored resources."""
        self.remove: Statement = Statement(delete(deleted).where(by_ids))
        """Removes resources that were restored or purged."""
        on_sqlite, on_postgresql = [self._due(dialect) for dialect in ("sqlite", "postgresql")]
        self.due: Statement = Statement(on_sqlite, on_postgresql=on_postgresql)
        """Id, estimated bytes and purge_time of the `limit` resources with the earliest purge_time, before a
        time. Served by the index on purge_time."""

    def _due(self, dialect: str) -> Select[Any]:
        deleted = self._deleted
        return (
            select(deleted.c.id, bytes_with_versions(deleted, dialect), deleted.c.purge_time)
            .where(deleted.c.purge_time < parameter("before", BigInteger))
            .order_by(deleted.c.purge_time, deleted.c.id)
            .limit(parameter("limit", Integer))
        )

    def _restore(self, insert: Any) -> Any:
        table, deleted = self._table, self._deleted
        other = table.alias("other")
        is_taken = exists(
            select(literal_column("1"))
            .where(other.c.external_id == deleted.c.external_id, other.c.external_id != literal_column("''"))
            .correlate(deleted)
        )
        later = deleted.alias("later")
        is_taken_later = exists(
            select(literal_column("1"))
            .where(
                later.c.external_id == deleted.c.external_id,
                later.c.external_id != literal_column("''"),
                later.c.id > deleted.c.id,
                one_of(later.c.id, "ids"),
            )
            .correlate(deleted)
        )
        computed = {
            "version": deleted.c.version + 1,
            "external_id": case(
                (or_(is_taken, is_taken_later), literal_column("''")), else_=deleted.c.external_id
            ),
        }
        values: Select[Any] = select(*[computed.get(it, deleted.c[it]) for it in self._stored]).where(
            one_of(deleted.c.id, "ids")
        )
        filled = insert.from_select(self._stored, values)
        changed = {it: filled.excluded[it] for it in ("version", *CONTENT_TEXTS)}
        if "delete_time" in table.c:
            changed |= dict.fromkeys(DELETION_FIELDS, null())
        return filled.on_conflict_do_update(index_elements=[table.c.id], set_=changed)
