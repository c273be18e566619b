"""Writes that add their changes to the change feed.

A write and its changes are one transaction. On PostgreSQL they are also one statement, which saves a round
trip. SQLite has no statement that writes to two tables, and needs no round trip.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    FromClause,
    Insert,
    Integer,
    LargeBinary,
    Select,
    Subquery,
    Table,
    Text,
    Update,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
)

from store_service.database.changes import sqlite_last_seq
from store_service.database.statements import Statement, one_of, parameter, rows, stamp
from store_service.database.tables import change_table as change
from store_service.database.tables import comment_table, post_table
from store_service.model import Action, ResourceKind

_TABLES = {ResourceKind.POST: post_table, ResourceKind.COMMENT: comment_table}

ORDER_LOCK = 7_305_872_391_648_021_043
"""The advisory lock of PostgreSQL that keeps transaction numbers in the order of commits
(docs/decisions/0011). Each transaction that writes holds it until it ends; insert-only ones share it."""


@dataclass(frozen=True, kw_only=True)
class WriteWithChanges:
    """A write that adds its changes to the change feed.

    Besides its own parameters it takes `now` (microseconds) and `requests` (rows of a key and a request id).
    On SQLite it also takes `xid`, the number of the transaction, which is None for the first write of a
    transaction.
    """

    steps: tuple[Statement, Statement]
    """The two statements for SQLite. The ids that the first returns are the parameter `written` of the
    second."""
    in_one: Statement
    """The statement for PostgreSQL."""


def insert_with_changes(
    resources: Table, kind: ResourceKind, columns: Sequence[str], values: Select[Any]
) -> WriteWithChanges:
    """Returns an insert that returns the new ids in ascending order.

    The key of a request is the index of the id, from 0. On PostgreSQL the statement takes the order lock
    itself, shared with other inserts. Payloads have only the given columns, because the others have their
    defaults.
    """
    names = {*columns, "version"}
    # SQLite would copy the other columns too, for the numbers of the rows.
    to_read = [it for it in resources.c if it.name == "id" or it.name in names]
    stored = select(*to_read).where(one_of(resources.c.id, "written")).subquery("written")
    held = select(func.pg_advisory_xact_lock_shared(literal(ORDER_LOCK, BigInteger))).cte("held")
    locked_values = values.where(select(func.count()).select_from(held).scalar_subquery() == 1)
    written = insert(resources).from_select(columns, locked_values).returning(*resources.c).cte("written")
    return WriteWithChanges(
        steps=(
            Statement(insert(resources).from_select(columns, values).returning(resources.c.id)),
            Statement(
                _insert_changes(
                    "sqlite", Action.CREATE, kind, stored, key=_index_by_id(stored.c.id), names=names
                )
            ),
        ),
        in_one=Statement(
            select(written.c.id)
            .order_by(written.c.id)
            .add_cte(
                _insert_changes(
                    "postgresql", Action.CREATE, kind, written, key=_index_by_id(written.c.id), names=names
                ).cte("logged")
            )
        ),
    )


def update_with_changes(kind: ResourceKind, write: Update, updates: FromClause) -> WriteWithChanges:
    """Returns an update. Its changes are the rows of `updates`, in order: all columns of each resource after
    the change, and `before`. The key of a request is the position of its row."""
    return WriteWithChanges(
        steps=(
            Statement(write),
            Statement(_insert_changes("sqlite", Action.UPDATE, kind, updates, key=updates.c.position)),
        ),
        in_one=Statement(
            _insert_changes("postgresql", Action.UPDATE, kind, updates, key=updates.c.position).add_cte(
                write.cte("written")
            )
        ),
    )


def delete_with_changes(
    resources: Table, kind: ResourceKind, condition: ColumnElement[bool], *, key: str
) -> WriteWithChanges:
    """Returns a deletion of the rows that meet a condition. The key of a request is the column `key` of the
    row."""
    deleted = _deleted_rows(resources, condition)
    written = delete(resources).where(condition).returning(*resources.c).cte("written")
    return WriteWithChanges(
        steps=(
            Statement(_insert_changes("sqlite", Action.DELETE, kind, deleted, key=deleted.c[key])),
            Statement(delete(resources).where(condition)),
        ),
        in_one=Statement(_insert_changes("postgresql", Action.DELETE, kind, written, key=written.c[key])),
    )


def mark_with_changes(
    resources: Table,
    kind: ResourceKind,
    condition: ColumnElement[bool],
    *,
    key: str,
    marks: Table,
    columns: Sequence[str],
) -> WriteWithChanges:
    """Returns a write with the changes of a deletion that keeps the rows. For each row it inserts the id and
    the request id as `columns` of `marks`."""
    deleted = _deleted_rows(resources, condition)
    requests = _requests()
    mark = insert(marks).from_select(
        columns,
        select(deleted.c.id, requests.c.request_id).select_from(
            deleted.outerjoin(requests, requests.c.key == deleted.c[key])
        ),
    )
    return WriteWithChanges(
        steps=(
            Statement(_insert_changes("sqlite", Action.DELETE, kind, deleted, key=deleted.c[key])),
            Statement(mark),
        ),
        in_one=Statement(
            _insert_changes("postgresql", Action.DELETE, kind, deleted, key=deleted.c[key]).add_cte(
                mark.cte("marked")
            )
        ),
    )


def _deleted_rows(resources: Table, condition: ColumnElement[bool]) -> Subquery:
    return select(resources).where(condition).subquery("deleted")


def _requests() -> Subquery:
    return rows("requests", key=BigInteger, request_id=Text)


def _index_by_id(id: ColumnElement[int]) -> ColumnElement[int]:
    return func.row_number().over(order_by=id) - 1


def _insert_changes(
    dialect: str,
    action: Action,
    kind: ResourceKind,
    resources: FromClause,
    *,
    key: ColumnElement[int],
    names: Collection[str] | None = None,
) -> Insert:
    """Returns an insert of one change for each row of `resources`.

    The payload has the columns `names`, or all.
    """
    columns = [it for it in _TABLES[kind].columns if names is None or it.name in names]
    keyed = select(*resources.c, key.label("key")).subquery("keyed")
    requests = _requests()
    now = parameter("now", BigInteger)
    is_sqlite = dialect == "sqlite"
    values = {
        "xid": func.coalesce(parameter("xid", BigInteger), sqlite_last_seq.scalar_subquery() + 1),
        "action": literal(int(action)),
        "kind": literal(int(kind)),
        "resource_id": keyed.c.id,
        "post_id": keyed.c.id if kind is ResourceKind.POST else keyed.c.post_id,
        "payload": _payload(dialect, columns, keyed),
        "size": _size(dialect, columns, keyed),
        "commit_time": now if is_sqlite else stamp(now),
        "request_id": requests.c.request_id,
    }
    if action is Action.UPDATE:
        values["before"] = keyed.c.before
    if not is_sqlite:
        # The default of the column is the number of the transaction.
        del values["xid"]
    source = (
        select(*values.values())
        .select_from(keyed.outerjoin(requests, requests.c.key == keyed.c.key))
        .order_by(keyed.c.key, keyed.c.id)
    )
    return insert(change).from_select(list(values), source)


def _payload(dialect: str, columns: Sequence[Column[Any]], resources: FromClause) -> ColumnElement[str]:
    """Returns the payload: a JSON object of the columns except the ids, which are columns of `changes`."""
    names = [it.name for it in columns if it.name not in ("id", "post_id")]
    pairs = [it for name in names for it in (literal_column(f"'{name}'"), resources.c[name])]
    if dialect == "sqlite":
        return func.json_object(*pairs, type_=Text)
    return cast(func.json_build_object(*pairs), Text)


def _size(dialect: str, columns: Sequence[Column[Any]], resources: FromClause) -> ColumnElement[int]:
    """Returns the total bytes of the texts of a resource."""
    texts = [resources.c[it.name] for it in columns if isinstance(it.type, Text)]
    if dialect == "sqlite":
        sizes = [func.length(cast(text, LargeBinary), type_=Integer) for text in texts]
    else:
        sizes = [func.octet_length(text, type_=Integer) for text in texts]
    return reduce(add, sizes)
