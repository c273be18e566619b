"""The statements that all resources have, built from the table and the dataclass of a resource.

Columns are in the order of the table. The first two are `id` and `body`. Each field of the dataclass is a
column of the table, which is stored, read, updated and added to the change feed without further code here.
"""

from collections.abc import Callable, Sequence
from dataclasses import MISSING
from dataclasses import fields as dataclass_fields
from operator import attrgetter
from typing import Any, Generic, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Table,
    Text,
    literal_column,
    select,
    update,
)

from store_service.compiled import compiled
from store_service.database.change_writes import (
    WriteWithChanges,
    delete_with_changes,
    insert_with_changes,
    update_with_changes,
)
from store_service.database.deletions import is_visible
from store_service.database.list_sql import ListSql
from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.model import Comment, Post, ResourceFields, ResourceKind

R = TypeVar("R", Post, Comment)

_now = parameter("now", BigInteger)


class InsertDrafts:
    """An insert of some columns of drafts; the other columns have their defaults."""

    def __init__(self, table: Table, kind: ResourceKind, columns: Sequence[str]) -> None:
        """Takes the table, its kind, and the columns."""
        values = ", ".join([f"it.{name}" for name in columns])
        self.draft_rows: Callable[[Sequence[Any]], list[tuple[Any, ...]]] = compiled(
            ["drafts"], [f"return [(n, {values}) for n, it in enumerate(drafts)]"]
        )
        """Converts drafts to the rows of the parameter `drafts`."""
        draft = rows("drafts", **_types(table, columns))
        self.statement: WriteWithChanges = insert_with_changes(
            table,
            kind,
            [*columns, "create_time", "update_time"],
            select(*[draft.c[name] for name in columns], _now, _now).order_by(draft.c.position),
        )
        """Stores `drafts` with the time `now`. Returns the ids, ascending in the order of the drafts."""


class ResourceSql(Generic[R]):
    """The statements of one resource, and the conversion of its rows. The primary key serves all
    statements."""

    def __init__(
        self, model: type[R], table: Table, kind: ResourceKind, *, post_id: ColumnElement[int]
    ) -> None:
        """Takes the dataclass, the table with a column for each field, and the column with the id of the
        post."""
        self.names: tuple[str, ...] = tuple(column.name for column in table.columns)
        """The names of the columns, in the order of rows."""
        self._row: Callable[[R], tuple[Any, ...]] = attrgetter(*self.names)
        values = ", ".join([f"{name}={name}" for name in self.names])
        self.from_row: Callable[[Sequence[Any]], R] = compiled(
            ["row"], [f"{', '.join(self.names)} = row", f"return model({values})"], model=model
        )
        """Returns the resource of a row with all columns."""
        fields: ResourceFields = ResourceFields(model)
        assert self.names[:2] == ("id", "body"), "pages need them first"
        assert set(self.names) == set(fields.names), "each field has a column, and each column a field"
        set_on_create = {*fields.content, *fields.derived}
        self.content: tuple[str, ...] = tuple(name for name in self.names if name in set_on_create)
        """The columns of a draft, in the order of the table."""
        optional = [it.name for it in dataclass_fields(model) if it.default is not MISSING]
        self.has_optional: Callable[[Sequence[Any]], bool] = compiled(
            ["drafts"], [f"return any([{' or '.join(f'it.{name}' for name in optional)} for it in drafts])"]
        )
        """Whether any draft has a value in a field with a default."""
        values = ", ".join([f"{name}=it.{name}" for name in self.content])
        self.inserted: Callable[[Sequence[Sequence[Any]], Sequence[Any], int], list[R]] = compiled(
            ["rows", "drafts", "now"],
            [
                f"return [model(id=id, {values}, create_time=now, update_time=now, version=1)",
                "        for (id,), it in zip(rows, drafts, strict=True)]",
            ],
            model=model,
        )
        """Returns the resources that an insert has stored, from the rows that it returned."""

        by_id = select(*table.columns).where(one_of(table.c.id, "ids"), is_visible(post_id))
        self.by_id: Statement = Statement(by_id)
        """Resources with these ids, in any order."""
        self.by_external_id: Statement = Statement(
            select(*table.columns).where(
                one_of(table.c.external_id, "ids", type_=Text),
                # The condition of the index, without which neither engine uses it.
                table.c.external_id != literal_column("''"),
                is_visible(post_id),
            )
        )
        """Resources with these external ids, in any order. Served by the unique index on external ids."""
        self.locked_by_id: Statement = Statement(by_id.order_by(table.c.id).with_for_update())
        """Same as `by_id`, locked until the end of the transaction. On SQLite the writer has locked the whole
        database. Rows are locked in the order of ids, so two writers do not wait for each other."""

        self.insert: InsertDrafts = InsertDrafts(table, kind, self.content)
        """Stores all fields of drafts."""
        required = [name for name in self.content if name not in optional]
        self.insert_required: InsertDrafts = InsertDrafts(table, kind, required)
        """Stores drafts of which no optional field is set: a third of the work for each draft is saved."""

        changed = rows("updates", **_types(table, self.names), is_last=Integer, before=Text)
        self.update: WriteWithChanges = update_with_changes(
            kind,
            update(table)
            .values({name: changed.c[name] for name in (*fields.mutable, "update_time", "version")})
            .where(table.c.id == changed.c.id, changed.c.is_last == 1),
            changed,
        )
        """Writes `updates` (rows of all columns, `is_last` and `before`). The last update of each resource
        is stored. `before` goes to the change; see `Change.before`."""

        self.delete: WriteWithChanges = delete_with_changes(table, kind, one_of(table.c.id, "ids"), key="id")
        """Deletes resources that no other row refers to."""
        self.list: ListSql = ListSql(table, kind, post_id=post_id)

    def to_row(self, resource: R, *more: Any) -> tuple[Any, ...]:
        """Returns the values of all columns of a resource, followed by more values."""
        return (*self._row(resource), *more)


def _types(table: Table, names: Sequence[str]) -> dict[str, Any]:
    return {name: type(table.c[name].type) for name in names}
