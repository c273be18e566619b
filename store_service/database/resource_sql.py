"""The statements that all resources have, built from the table and the dataclass of a resource.

Columns are in the order of the table. The first two are `id` and `body`. Each field of the dataclass is a
column of the table, which is stored, read, updated and added to the change feed without further code here.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Table,
    Text,
    delete,
    literal_column,
    select,
    update,
)

from store_service.compiled import compiled
from store_service.database.change_writes import (
    NewIds,
    WriteWithChanges,
    delete_with_changes,
    insert_with_changes,
    update_with_changes,
)
from store_service.database.deleted_sql import DeletedSql, row_reader
from store_service.database.deletions import is_live, is_not_tombstone
from store_service.database.list_sql import ListSql
from store_service.database.revisions import RevisionSql
from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.model import DELETION_FIELDS, Comment, Post, ResourceFields, ResourceKind

R = TypeVar("R", Post, Comment)

_now = parameter("now", BigInteger)


class InsertDrafts:
    """An insert of some columns of drafts; the other columns have their defaults."""

    def __init__(self, table: Table, kind: ResourceKind, columns: Sequence[str], new_ids: NewIds) -> None:
        """Takes the table, its kind, the columns, and how new ids are read."""
        values = ", ".join([f"it.{name}" for name in columns])
        self.draft_rows: Callable[[Sequence[Any]], list[tuple[Any, ...]]] = compiled(
            ["drafts"], [f"return [(n, {values}) for n, it in enumerate(drafts)]"]
        )
        """Converts drafts to the rows of the parameter `drafts`."""
        draft = rows("drafts", **_types(table, columns))
        self.statement: WriteWithChanges
        """Stores `drafts` with the time `now`. Returns the ids, ascending in the order of the drafts."""
        self.without_requests: WriteWithChanges
        """Same as `statement`, for drafts without request ids: it has no parameter `requests`."""
        self.statement, self.without_requests = [
            insert_with_changes(
                table,
                kind,
                [*columns, "create_time", "update_time"],
                select(*[draft.c[name] for name in columns], _now, _now).order_by(draft.c.position),
                has_requests=has_requests,
                new_ids=new_ids,
            )
            for has_requests in (True, False)
        ]
        self.single_values: Callable[[Any], dict[str, Any]] = compiled(
            ["it"], [f"return {{{', '.join([f'{name!r}: it.{name}' for name in columns])}}}"]
        )
        """Converts a draft to the parameters of `single`."""
        own = [parameter(name, table.c[name].type) for name in columns]
        self.single: WriteWithChanges = insert_with_changes(
            table,
            kind,
            [*columns, "create_time", "update_time"],
            select(*own, _now, _now),
            has_requests=False,
            is_single=True,
        )
        """Stores one draft without a request id, in less time than `without_requests`."""


class ResourceSql(Generic[R]):
    """The statements of one resource, and the conversion of its rows. The primary key serves all
    statements."""

    def __init__(
        self,
        model: type[R],
        table: Table,
        deleted_table: Table,
        kind: ResourceKind,
        *,
        post_id: ColumnElement[int],
    ) -> None:
        """Takes the dataclass, the table, the table of deleted resources, and the column with the id of the
        post."""
        self.names: tuple[str, ...] = tuple(column.name for column in table.columns)
        """The names of the columns, in the order of rows."""
        self.from_row: Callable[[Sequence[Any]], R] = row_reader(model, self.names)
        """Returns the resource of a row with all columns."""
        fields: ResourceFields = ResourceFields(model)
        assert self.names[:2] == ("id", "body"), "pages need them first"
        stored: list[str] = [name for name in self.names if name not in DELETION_FIELDS]
        assert {*stored, *DELETION_FIELDS} == set(fields.names), "each column has a field, and each field one"
        self._row: Callable[[R], tuple[Any, ...]] = attrgetter(*stored)
        set_on_create = {*fields.content, *fields.derived}
        self.content: tuple[str, ...] = tuple(name for name in self.names if name in set_on_create)
        """The columns of a draft, in the order of the table."""
        values = ", ".join([f"{name}=it.{name}" for name in self.content])
        self.inserted: Callable[[Sequence[Sequence[Any]], Sequence[Any], int], list[R]] = compiled(
            ["rows", "drafts", "now"],
            [
                f"return [model(id=row[0], {values}, create_time=now, update_time=now, version=1)",
                "        for row, it in zip(rows, drafts, strict=True)]",
            ],
            model=model,
        )
        """Returns the resources that an insert has stored, from the rows that it returned."""

        live = select(*table.columns).where(*is_live(table, post_id))
        by_id = live.where(one_of(table.c.id, "ids"))
        self.by_id: Statement = Statement(by_id)
        """Resources with these ids, in any order."""
        self.by_single_id: Statement = Statement(live.where(table.c.id == parameter("id", BigInteger)))
        """The resource with the id `id`: half of the time of `by_id`, which reads a JSON array."""
        # The condition of the index, without which neither engine uses it.
        with_external_id = live.where(table.c.external_id != literal_column("''"))
        self.by_external_id: Statement = Statement(
            with_external_id.where(one_of(table.c.external_id, "ids", type_=Text))
        )
        """Resources with these external ids, in any order. Served by the unique index on external ids."""
        self.by_single_external_id: Statement = Statement(
            with_external_id.where(table.c.external_id == parameter("id", Text))
        )
        """The resource with the external id `id`."""
        self.locked_by_id: Statement = Statement(by_id.order_by(table.c.id).with_for_update())
        """Same as `by_id`, locked until the end of the transaction. On SQLite the writer has locked the whole
        database. Rows are locked in the order of ids, so two writers do not wait for each other."""

        self.new_ids: NewIds = NewIds(table)
        """How an insert of several rows on SQLite reads their ids."""
        self.insert: InsertDrafts = InsertDrafts(table, kind, self.content, self.new_ids)
        """Stores all fields of drafts."""
        required = [name for name in self.content if name in fields.required]
        self.insert_required: InsertDrafts = InsertDrafts(table, kind, required, self.new_ids)
        """Stores drafts of which no optional field is set: a third of the work for each draft is saved."""

        changed = rows("updates", **_types(table, stored), is_last=Integer, before=Text)
        write = (
            update(table)
            .values({name: changed.c[name] for name in (*fields.mutable, "update_time", "version")})
            .where(table.c.id == changed.c.id, changed.c.is_last == 1)
        )
        by_ids = one_of(table.c.id, "ids")
        self.revisions: RevisionSql = RevisionSql(table, kind)
        self.update: WriteWithChanges = update_with_changes(kind, write, changed)
        self.update_with_history: WriteWithChanges = update_with_changes(
            kind, write, changed, before=self.revisions.insert_stored(by_ids)
        )
        """Writes `updates` (see `to_row`, with `is_last` and `before`). The last update of each resource
        is stored. `before` goes to the change; see `Change.before`. With history, the stored versions of the
        resources `ids` become former versions."""

        self.delete: WriteWithChanges = delete_with_changes(
            kind, by_ids, delete(table).where(by_ids), is_logged=is_not_tombstone(table)
        )
        """Deletes resources that no other row refers to. Tombstones are deleted without changes."""
        self.list: ListSql = ListSql(table, kind, post_id=post_id)
        self.deleted: DeletedSql[R] = DeletedSql(model, table, deleted_table, kind)

    def to_row(self, resource: R, *more: Any) -> tuple[Any, ...]:
        """Returns the values of the columns of a resource that is not deleted, followed by more values."""
        return (*self._row(resource), *more)


def _types(table: Table, names: Sequence[str]) -> dict[str, Any]:
    return {name: type(table.c[name].type) for name in names}
