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
    UpdateBase,
    cast,
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
from store_service.model import CONTENT_TEXTS, DELETION_FIELDS, Action, ResourceKind

_DIALECTS = ("sqlite", "postgresql")
_TABLES = {ResourceKind.POST: post_table, ResourceKind.COMMENT: comment_table}
ORDER_LOCK = 7_305_872_391_648_021_043
"""The advisory lock of PostgreSQL that keeps transaction numbers in the order of commits
(docs/decisions/0011). Each transaction that writes holds it until it ends; insert-only ones share it."""


ERASED = "erased"
"""The key in the payload that only changes of an erasure have."""


@dataclass(frozen=True, kw_only=True)
class WriteWithChanges:
    """A write that adds its changes to the change feed.

    Besides its own parameters it takes `now` (microseconds) and `requests` (rows of a key and a request id;
    not if it is an insert without request ids). On SQLite it also takes `xid`, the number of the transaction,
    which is None for the first write of a transaction.
    """

    steps: tuple[Statement, ...]
    """The statements for SQLite. The ids that the first returns are the parameter `written` of the others,
    and the last of them is the parameter `written_id`."""
    in_one: Statement
    """The statement for PostgreSQL. The last column of its rows is the number of the transaction."""
    new_ids: "NewIds | None" = None
    """Only for inserts of several rows: reads the ids on SQLite, where the first step returns none."""


class NewIds:
    """Reads the ids that an insert has given to rows, as one value.

    A statement that returns a row for each id takes longer: after each row, the event loop can hold the
    interpreter lock for a whole switch interval (docs/decisions/0055).
    """

    def __init__(self, table: Table) -> None:
        """Takes the table, whose new ids are always greater than all others."""
        self.last: Statement = Statement(select(func.coalesce(func.max(table.c.id), 0)))
        """The greatest id before the insert."""
        new = select(table.c.id).where(table.c.id > parameter("last_id", BigInteger)).order_by(table.c.id)
        self.above: Statement = Statement(select(func.json_group_array(new.subquery("new").c.id, type_=Text)))
        """The ids above `last_id` as a JSON array, in ascending order."""


def insert_with_changes(
    resources: Table,
    kind: ResourceKind,
    columns: Sequence[str],
    values: Select[Any],
    *,
    has_requests: bool,
    is_single: bool = False,
    new_ids: NewIds | None = None,
) -> WriteWithChanges:
    """Returns an insert whose rows begin with the new ids, in ascending order.

    The key of a request is the index of the id, from 0. If `has_requests` is false, the statement has no
    parameter `requests`. If `is_single` is true, `values` is a single row. `new_ids` is only for several
    rows whose ids the database assigns. On PostgreSQL the statement takes
    the order lock itself, shared with other inserts. Payloads have only the given columns, because the others
    have their defaults.
    """
    names = [it.name for it in resources.c if it.name in {*columns, "version"}]
    # Both engines would copy the other columns too, for the numbers of the rows.
    to_read = [it for it in resources.c if it.name == "id" or it.name in names]

    def changes(dialect: str, rows: FromClause) -> Insert:
        key = _index_by_id(rows.c.id) if has_requests else None
        return _insert_changes(dialect, Action.CREATE, kind, rows, key=key, names=names)

    is_written = (
        resources.c.id == parameter("written_id", BigInteger)
        if is_single
        else one_of(resources.c.id, "written")
    )
    stored = select(*to_read).where(is_written).subquery("written")
    held = select(func.pg_advisory_xact_lock_shared(literal(ORDER_LOCK, BigInteger))).cte("held")
    locked_values = values.where(select(func.count()).select_from(held).scalar_subquery() == 1)
    written = insert(resources).from_select(columns, locked_values).returning(*to_read).cte("written")
    # Not pg_current_xact_id(), which could number the transaction before it holds the order lock.
    number = cast(cast(func.pg_current_xact_id_if_assigned(), Text), BigInteger)
    on_sqlite = insert(resources).from_select(columns, values)
    return WriteWithChanges(
        steps=(
            Statement(on_sqlite.returning(resources.c.id) if new_ids is None else on_sqlite),
            Statement(changes("sqlite", stored)),
        ),
        new_ids=new_ids,
        in_one=Statement(
            select(written.c.id, select(number).scalar_subquery())
            .order_by(written.c.id)
            .add_cte(changes("postgresql", written).cte("logged"))
        ),
    )


def update_with_changes(
    kind: ResourceKind, write: Update, updates: FromClause, *, before: Insert | None = None
) -> WriteWithChanges:
    """Returns an update. Its changes are the rows of `updates`, in order: all columns of each resource after
    the change, and `before`. The key of a request is the position of its row.

    Args:
        kind: The kind of the resources.
        write: The update.
        updates: The rows.
        before: An insert that reads the resources before the update.
    """
    on_sqlite, on_postgresql = [
        _insert_changes(it, Action.UPDATE, kind, updates, key=updates.c.position) for it in _DIALECTS
    ]
    on_postgresql = on_postgresql.add_cte(write.cte("written"))
    if before is not None:
        on_postgresql = on_postgresql.add_cte(before.cte("kept"))
    steps = [] if before is None else [Statement(before)]
    return WriteWithChanges(
        steps=(*steps, Statement(write), Statement(on_sqlite)), in_one=_numbered(on_postgresql)
    )


def delete_with_changes(
    kind: ResourceKind,
    condition: ColumnElement[bool],
    write: UpdateBase,
    *,
    is_logged: ColumnElement[bool] | None = None,
) -> WriteWithChanges:
    """Returns a write that deletes the rows that meet a condition.

    The key of a request is the id of the row. The write also takes `delete_time` and `purge_time`, for the
    changes.

    Args:
        kind: The kind of the rows.
        condition: Selects the rows.
        write: Deletes these rows, or hides them or their content from callers.
        is_logged: The condition for those of the rows that are in the changes; None: all.
    """
    table = _TABLES[kind]
    times = [parameter(name, BigInteger).label(name) for name in DELETION_FIELDS]
    rows_to_log = select(*_columns(kind), *times).where(condition)
    if is_logged is not None:
        rows_to_log = rows_to_log.where(is_logged)
    deleted = rows_to_log.subquery("deleted")
    names = [it.name for it in table.c if it.name not in DELETION_FIELDS]
    names += DELETION_FIELDS
    on_sqlite, on_postgresql = [
        _insert_changes(it, Action.DELETE, kind, deleted, key=deleted.c.id, names=names) for it in _DIALECTS
    ]
    return WriteWithChanges(
        steps=(Statement(on_sqlite), Statement(write)),
        in_one=_numbered(on_postgresql.add_cte(write.cte("written"))),
    )


def contentless_changes(
    action: Action, kind: ResourceKind, resources: FromClause, write: UpdateBase | None = None
) -> WriteWithChanges:
    """Returns changes of erased resources, and the write that erases their content, if there is one.

    The key of a request is the id of the row.

    Args:
        action: The action of the changes.
        kind: The kind of the resources.
        resources: Columns of the resources, whose content is left out; for an update also `before`.
        write: The write.
    """
    erased = select(*resources.c, literal_column("1").label(ERASED)).subquery("erased")
    names = [it.name for it in erased.c if it.name not in (*CONTENT_TEXTS, "before")]
    on_sqlite, on_postgresql = [
        _insert_changes(it, action, kind, erased, key=erased.c.id, names=names) for it in _DIALECTS
    ]
    if write is None:
        return WriteWithChanges(steps=(Statement(on_sqlite),), in_one=_numbered(on_postgresql))
    return WriteWithChanges(
        steps=(Statement(on_sqlite), Statement(write)),
        in_one=_numbered(on_postgresql.add_cte(write.cte("written"))),
    )


def undelete_changes(kind: ResourceKind, condition: ColumnElement[bool]) -> WriteWithChanges:
    """Returns the changes of rows that have been restored. The key of a request is the id of the row."""
    restored = select(*_columns(kind)).where(condition).subquery("restored")
    on_sqlite, on_postgresql = [
        _insert_changes(it, Action.UNDELETE, kind, restored, key=restored.c.id) for it in _DIALECTS
    ]
    return WriteWithChanges(steps=(Statement(on_sqlite),), in_one=_numbered(on_postgresql))


def _numbered(changes: Insert) -> Statement:
    """Returns an insert of changes that returns the number of the transaction, once for each change."""
    return Statement(changes.returning(change.c.xid))


def _columns(kind: ResourceKind) -> list[Column[Any]]:
    """Returns the columns of resources that are not deleted."""
    return [it for it in _TABLES[kind].columns if it.name not in DELETION_FIELDS]


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
    key: ColumnElement[int] | None,
    names: Collection[str] | None = None,
) -> Insert:
    """Returns an insert of one change for each row of `resources`, without request ids if `key` is None.

    The payload has the columns `names`, or all columns of resources that are not deleted.
    """
    if names is None:
        names = [it.name for it in _columns(kind)]
    keyed = resources if key is None else select(*resources.c, key.label("key")).subquery("keyed")
    now = parameter("now", BigInteger)
    is_sqlite = dialect == "sqlite"
    values = {
        "xid": func.coalesce(parameter("xid", BigInteger), sqlite_last_seq.scalar_subquery() + 1),
        "action": literal(int(action)),
        "kind": literal(int(kind)),
        "resource_id": keyed.c.id,
        "post_id": keyed.c.id if kind is ResourceKind.POST else keyed.c.post_id,
        "payload": _payload(dialect, names, keyed),
        "size": _size(dialect, [keyed.c[it] for it in names if isinstance(keyed.c[it].type, Text)]),
        "commit_time": now if is_sqlite else stamp(now),
    }
    if action is Action.UPDATE:
        values["before"] = keyed.c.before
    if not is_sqlite:
        # The default of the column is the number of the transaction.
        del values["xid"]
    if key is None:
        source = select(*values.values()).select_from(keyed).order_by(keyed.c.id)
    else:
        requests = _requests()
        values["request_id"] = requests.c.request_id
        source = (
            select(*values.values())
            .select_from(keyed.outerjoin(requests, requests.c.key == keyed.c.key))
            .order_by(keyed.c.key, keyed.c.id)
        )
    return insert(change).from_select(list(values), source)


def _payload(dialect: str, names: Collection[str], resources: FromClause) -> ColumnElement[str]:
    """Returns the payload: a JSON object of the columns except the ids, which are columns of `changes`."""
    stored = [it for it in names if it not in ("id", "post_id")]
    pairs = [it for name in stored for it in (literal_column(f"'{name}'"), resources.c[name])]
    if dialect == "sqlite":
        return func.json_object(*pairs, type_=Text)
    return cast(func.json_build_object(*pairs), Text)


def _size(dialect: str, texts: Sequence[ColumnElement[str]]) -> ColumnElement[int]:
    """Returns the total bytes of texts."""
    if dialect == "sqlite":
        sizes = [func.length(cast(text, LargeBinary), type_=Integer) for text in texts]
    else:
        sizes = [func.octet_length(text, type_=Integer) for text in texts]
    return reduce(add, sizes, literal_column("0", Integer))
