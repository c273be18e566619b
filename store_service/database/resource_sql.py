"""The statements that every resource has, built from its table and its dataclass.

Columns come in the order of the table. The first two are `id` and `body`. A column that the table has and the
dataclass has too is stored, read, changed and told in the change feed without a word here.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar

from sqlalchemy import BigInteger, ColumnElement, Integer, Select, Table, select, update

from store_service.compiled import compiled
from store_service.database.change_writes import (
    WriteWithChanges,
    delete_with_changes,
    insert_with_changes,
    update_with_changes,
)
from store_service.database.deletions import is_visible, visible_body
from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.model import ORDERS, Comment, Order, Post, ResourceFields, ResourceKind

R = TypeVar("R", Post, Comment)

_after, _limit = parameter("after", BigInteger), parameter("limit", Integer)
_now = parameter("now", BigInteger)


class ResourceSql(Generic[R]):
    """Statements and rows of one resource. Every statement is served by the primary key."""

    def __init__(
        self, model: type[R], table: Table, kind: ResourceKind, *, post_id: ColumnElement[int]
    ) -> None:
        """Takes the dataclass, the table with a column for each of its fields, and the column that names the
        post."""
        self._table: Table = table
        self._post_id: ColumnElement[int] = post_id
        self._names: tuple[str, ...] = tuple(column.name for column in table.columns)
        self._row: Callable[[R], tuple[Any, ...]] = attrgetter(*self._names)
        values = ", ".join([f"{name}={name}" for name in self._names])
        self.from_row: Callable[[Sequence[Any]], R] = compiled(
            ["row"], [f"{', '.join(self._names)} = row", f"return model({values})"], model=model
        )
        """The resource in a row that holds all columns."""
        fields: ResourceFields = ResourceFields(model)
        assert self._names[:2] == ("id", "body"), "pages look there"
        assert set(self._names) == set(fields.names), "each field has a column, and each column a field"
        self.content: tuple[str, ...] = tuple(name for name in self._names if name in fields.content)
        """The columns of a draft, in this order."""
        content = ", ".join([f"it.{name}" for name in self.content])
        self.draft_rows: Callable[[Sequence[Any]], list[tuple[Any, ...]]] = compiled(
            ["drafts"], [f"return [(n, {content}) for n, it in enumerate(drafts)]"]
        )
        """Converts drafts to the rows of the parameter `drafts` of `insert`."""
        values = ", ".join([f"{name}=it.{name}" for name in self.content])
        self.inserted: Callable[[Sequence[Sequence[Any]], Sequence[Any], int], list[R]] = compiled(
            ["rows", "drafts", "now"],
            [
                f"return [model(id=id, {values}, create_time=now, update_time=now, version=1)",
                "        for (id,), it in zip(rows, drafts, strict=True)]",
            ],
            model=model,
        )
        """Returns the resources that `insert` has stored, from the rows that it returned."""

        by_id = select(*table.columns).where(one_of(table.c.id, "ids"), is_visible(post_id))
        self.by_id: Statement = Statement(by_id)
        """Resources with these ids, in no order."""
        self.locked_by_id: Statement = Statement(by_id.order_by(table.c.id).with_for_update())
        """The same, kept by PostgreSQL from other writers until the end of the transaction; on SQLite the one
        writer has locked everything. Locked in the order of ids, so that two writers do not wait for each
        other."""

        draft = rows("drafts", **self._types(self.content))
        self.insert: WriteWithChanges = insert_with_changes(
            table,
            kind,
            [*self.content, "create_time", "update_time"],
            select(*[draft.c[name] for name in self.content], _now, _now).order_by(draft.c.position),
        )
        """Stores `drafts` (rows of the content) at the time `now` and returns their ids, ascending as the
        drafts are."""

        changed = rows("updates", **self._types(self._names), is_last=Integer)
        self.update: WriteWithChanges = update_with_changes(
            kind,
            update(table)
            .values({name: changed.c[name] for name in (*fields.mutable, "update_time", "version")})
            .where(table.c.id == changed.c.id, changed.c.is_last == 1),
            changed,
        )
        """Writes `updates` (rows of all columns and `is_last`), of which the last of each resource stays."""

        self.delete: WriteWithChanges = delete_with_changes(table, kind, one_of(table.c.id, "ids"), key="id")
        """Deletes resources that nothing refers to."""
        self.pages: dict[Order, Statement] = {
            order: Statement(self.page(order, visible_only=False)) for order in ORDERS
        }
        """The next `limit` resources beyond the id `after`; without a body those that are deleted. A page
        costs the same wherever it is."""

    def page(self, order: Order, *, visible_only: bool) -> Select[Any]:
        """The next `limit` rows beyond the id `after`; deleted ones have no body unless `visible_only` says
        that there are none."""
        id, body, *rest = self._table.columns
        page = select(id, body if visible_only else visible_body(body, self._post_id), *rest).limit(_limit)
        if order == "id":
            return page.where(id > _after).order_by(id)
        return page.where(id < _after).order_by(id.desc())

    def to_row(self, resource: R, *more: Any) -> tuple[Any, ...]:
        """All columns of a resource, and more values."""
        return (*self._row(resource), *more)

    def _types(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: type(self._table.c[name].type) for name in names}
