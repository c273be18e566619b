"""Every statement about the change feed, and writes that leave their changes in it.

A write and the rows that tell of it are one transaction. On PostgreSQL they are also one statement, which
saves a trip; SQLite has no statement that writes to two tables, and there a trip costs nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from sqlalchemy import (
    BigInteger,
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
    column,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    table,
    text,
    true,
    tuple_,
    update,
)

from store_service.database.statements import Statement, database_time, one_of, parameter, rows, stamp
from store_service.database.tables import change_table as change
from store_service.database.tables import comment_table, post_table
from store_service.database.tables import feed_table as feed
from store_service.model import Action, Change, Comment, Position, Post, ResourceKind
from store_service.records import RecordReader

_TABLES = {ResourceKind.POST: post_table, ResourceKind.COMMENT: comment_table}

ORDER_LOCK = 7_305_872_391_648_021_043
"""The advisory lock of PostgreSQL that keeps the numbers of transactions in the order in which they change
things (docs/decisions/0011): held until the end by each that writes, together by those that only add."""


@dataclass(frozen=True, kw_only=True)
class WriteWithChanges:
    """A write that leaves its changes in the feed. Besides its own parameters it takes `now`, microseconds,
    and `requests`, rows of a key and the request id that belongs to it; on SQLite also `xid`, the number of
    the transaction, which is None for its first write."""

    steps: tuple[Statement, Statement]
    """For SQLite; the ids that the first returns are the parameter `written` of the second."""
    in_one: Statement
    """For PostgreSQL."""


def insert_with_changes(
    resources: Table, kind: ResourceKind, columns: Sequence[str], values: Select[Any]
) -> WriteWithChanges:
    """An insert, which returns the ids in ascending order; the key of a request is the place of the id
    among them, from 0. On PostgreSQL it takes the order lock by itself, together with others that add."""
    stored = select(resources).where(one_of(resources.c.id, "written")).subquery("written")
    held = select(func.pg_advisory_xact_lock_shared(literal(ORDER_LOCK, BigInteger))).cte("held")
    locked_values = values.where(select(func.count()).select_from(held).scalar_subquery() == 1)
    written = insert(resources).from_select(columns, locked_values).returning(*resources.c).cte("written")
    return WriteWithChanges(
        steps=(
            Statement(insert(resources).from_select(columns, values).returning(resources.c.id)),
            Statement(_log("sqlite", Action.CREATE, kind, stored, key=_position_expression(stored.c.id))),
        ),
        in_one=Statement(
            select(written.c.id)
            .order_by(written.c.id)
            .add_cte(
                _log("postgresql", Action.CREATE, kind, written, key=_position_expression(written.c.id)).cte(
                    "logged"
                )
            )
        ),
    )


def update_with_changes(kind: ResourceKind, write: Update, updates: FromClause) -> WriteWithChanges:
    """An update whose changes are the rows `updates`, which are all columns of the resources as they
    became, one after the other; the key of a request is the position of its row."""
    return WriteWithChanges(
        steps=(
            Statement(write),
            Statement(_log("sqlite", Action.UPDATE, kind, updates, key=updates.c.position)),
        ),
        in_one=Statement(
            _log("postgresql", Action.UPDATE, kind, updates, key=updates.c.position).add_cte(
                write.cte("written")
            )
        ),
    )


def delete_with_changes(
    resources: Table, kind: ResourceKind, condition: ColumnElement[bool], *, key: str
) -> WriteWithChanges:
    """A deletion of the rows that meet a condition; the key of a request is the column `key` of its rows."""
    doomed = _doomed(resources, condition)
    written = delete(resources).where(condition).returning(*resources.c).cte("written")
    return WriteWithChanges(
        steps=(
            Statement(_log("sqlite", Action.DELETE, kind, doomed, key=doomed.c[key])),
            Statement(delete(resources).where(condition)),
        ),
        in_one=Statement(_log("postgresql", Action.DELETE, kind, written, key=written.c[key])),
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
    """The same changes, but the rows stay: for each, `columns` of `marks` get its id and its request id."""
    doomed = _doomed(resources, condition)
    requests = _requests()
    mark = insert(marks).from_select(
        columns,
        select(doomed.c.id, requests.c.request_id).select_from(
            doomed.outerjoin(requests, requests.c.key == doomed.c[key])
        ),
    )
    return WriteWithChanges(
        steps=(
            Statement(_log("sqlite", Action.DELETE, kind, doomed, key=doomed.c[key])),
            Statement(mark),
        ),
        in_one=Statement(
            _log("postgresql", Action.DELETE, kind, doomed, key=doomed.c[key]).add_cte(mark.cte("marked"))
        ),
    )


def _doomed(resources: Table, condition: ColumnElement[bool]) -> Subquery:
    return select(resources).where(condition).subquery("doomed")


def _requests() -> Subquery:
    return rows("requests", key=BigInteger, request_id=Text)


def _position_expression(id: ColumnElement[int]) -> ColumnElement[int]:
    return func.row_number().over(order_by=id) - 1


_sequences = table("sqlite_sequence", column("name", Text), column("seq", BigInteger))
_last_seq = select(func.coalesce(func.max(_sequences.c.seq), 0)).where(_sequences.c.name == change.name)
"""SQLite's highest `seq` ever given, also when its row is gone."""


def _log(
    dialect: str, action: Action, kind: ResourceKind, resources: FromClause, *, key: ColumnElement[int]
) -> Insert:
    """Writes a change for each of some resources."""
    keyed = select(*resources.c, key.label("key")).subquery("keyed")
    requests = _requests()
    now = parameter("now", BigInteger)
    is_sqlite = dialect == "sqlite"
    values = {
        "xid": func.coalesce(parameter("xid", BigInteger), _last_seq.scalar_subquery() + 1),
        "action": literal(int(action)),
        "kind": literal(int(kind)),
        "resource_id": keyed.c.id,
        "post_id": keyed.c.id if kind is ResourceKind.POST else keyed.c.post_id,
        "payload": _payload(dialect, kind, keyed),
        "size": _size(dialect, kind, keyed),
        "commit_time": now if is_sqlite else stamp(now),
        "request_id": requests.c.request_id,
    }
    if not is_sqlite:
        # The default is the transaction's own number.
        del values["xid"]
    source = (
        select(*values.values())
        .select_from(keyed.outerjoin(requests, requests.c.key == keyed.c.key))
        .order_by(keyed.c.key, keyed.c.id)
    )
    return insert(change).from_select(list(values), source)


def _payload(dialect: str, kind: ResourceKind, resources: FromClause) -> ColumnElement[str]:
    """What `changes_in` reads: a JSON object of all columns but the ids, which `changes` has itself."""
    names = [it.name for it in _TABLES[kind].columns if it.name not in ("id", "post_id")]
    pairs = [it for name in names for it in (literal_column(f"'{name}'"), resources.c[name])]
    if dialect == "sqlite":
        return func.json_object(*pairs, type_=Text)
    return cast(func.json_build_object(*pairs), Text)


def _size(dialect: str, kind: ResourceKind, resources: FromClause) -> ColumnElement[int]:
    """Bytes of the texts of a resource."""
    texts = [resources.c[it.name] for it in _TABLES[kind].columns if isinstance(it.type, Text)]
    if dialect == "sqlite":
        sizes = [func.length(cast(text, LargeBinary), type_=Integer) for text in texts]
    else:
        sizes = [func.octet_length(text, type_=Integer) for text in texts]
    return reduce(add, sizes)


def _number(xid: ColumnElement[Any]) -> ColumnElement[int]:
    """A transaction id of PostgreSQL, 64 bits, as a number."""
    return cast(cast(xid, Text), BigInteger)


_snapshot = func.pg_current_snapshot()
_horizon = _number(func.pg_snapshot_xmin(_snapshot))
"""Every transaction below it has ended, and PostgreSQL will give no other such a number."""

_place = tuple_(change.c.xid, change.c.seq)


def _parameters(name: str) -> Any:
    return tuple_(parameter(f"{name}_xid", BigInteger), parameter(f"{name}_seq", BigInteger))


def _in_order(statement: Select[Any]) -> tuple[Select[Any], Select[Any]]:
    """The rows behind `after` in the order of commits, on SQLite and on PostgreSQL."""
    return (
        statement.where(change.c.seq > parameter("after_seq", BigInteger)).order_by(change.c.seq),
        statement.where(_place > _parameters("after"), change.c.xid < _horizon).order_by(
            change.c.xid, change.c.seq
        ),
    )


_state = (feed.c.store_id, feed.c.trimmed_xid, feed.c.trimmed_seq)
_trimmed_time = func.coalesce(
    select(change.c.commit_time).where(change.c.seq == feed.c.trimmed_seq).scalar_subquery(), 0
)
_last_time = select(change.c.commit_time).where(change.c.seq == _last_seq.scalar_subquery())
_last_change = (
    select(change.c.xid, change.c.seq, change.c.commit_time)
    .where(change.c.xid < _horizon)
    .order_by(change.c.xid.desc(), change.c.seq.desc())
    .limit(1)
    .subquery("last_change")
)


def _feed(*more: ColumnElement[Any]) -> Statement:
    return Statement(
        select(
            *_state,
            _trimmed_time,
            _last_seq.scalar_subquery(),
            _last_seq.scalar_subquery(),
            func.coalesce(_last_time.scalar_subquery(), 0),
            *more,
        ),
        # Where the last change stands, and not the horizon: after a crash PostgreSQL gives numbers again that
        # were never written down, of transactions that were undone.
        on_postgresql=select(
            *_state,
            _trimmed_time,
            func.coalesce(_last_change.c.xid, feed.c.trimmed_xid),
            func.coalesce(_last_change.c.seq, feed.c.trimmed_seq),
            func.coalesce(_last_change.c.commit_time, 0),
            *more,
        ).select_from(feed.outerjoin(_last_change, true())),
    )


FEED = _feed()
"""Which store this is, up to where changes are told no more, and where the feed ends now; both places with
the time of the change there. Served on PostgreSQL by changes_xid_seq_idx."""

_time_at = select(change.c.commit_time).where(change.c.seq == parameter("seq", BigInteger))
FEED_AT = _feed(func.coalesce(_time_at.scalar_subquery(), 0))
"""The same, and when the change `seq` was made, or 0 if it is not there. Served also by the primary key."""

LOCKED_FEED = Statement(select(*_state).with_for_update(skip_locked=True))
"""The same without times and the end; no row while another process is deleting changes."""

_sizes = select(change.c.xid, change.c.seq, change.c.size, change.c.commit_time).limit(
    parameter("limit", Integer)
)
SIZES = Statement(_in_order(_sizes)[0], on_postgresql=_in_order(_sizes)[1])
"""Place, size and time of the next `limit` changes behind `after`. Served by the primary key, on PostgreSQL
by changes_xid_seq_idx."""

_columns = (
    change.c.action,
    change.c.kind,
    change.c.resource_id,
    change.c.post_id,
    change.c.payload,
    change.c.commit_time,
    change.c.request_id,
    change.c.xid,
    change.c.seq,
)
CHANGES = Statement(
    _in_order(select(*_columns))[0].where(change.c.seq <= parameter("until_seq", BigInteger)),
    on_postgresql=_in_order(select(*_columns))[1].where(_place <= _parameters("until")),
)
"""The changes behind `after` up to `until`. Served as SIZES is."""

DELETE_CHANGES = Statement(
    delete(change).where(change.c.seq < parameter("until_seq", BigInteger)),
    on_postgresql=delete(change).where(_place < _parameters("until")),
)
"""Deletes every change before the one at `until`. Served as SIZES is."""

COMMIT_TIMES = Statement(select(change.c.commit_time).where(one_of(change.c.seq, "seqs")))
"""When these changes were made, as far as they are there. Served by the primary key."""

SET_TRIMMED = Statement(
    update(feed).values(
        trimmed_xid=parameter("until_xid", BigInteger), trimmed_seq=parameter("until_seq", BigInteger)
    )
)
"""Remembers up to where changes are told no more."""

LAST_SEQ = Statement(
    select(_last_seq.scalar_subquery()), on_postgresql=select(func.coalesce(func.max(change.c.seq), 0))
)
"""About the highest `seq` that was given. Served by the primary key."""

CLOCK = Statement(
    select(parameter("now", BigInteger), feed.c.clock), on_postgresql=select(database_time(), feed.c.clock)
)
"""The time by which rows are stamped, `now` or that of the database, and what was known of it before."""

NEWEST_TIME = Statement(
    select(func.coalesce(_last_time.scalar_subquery(), 0)),
    on_postgresql=select(
        func.coalesce(
            select(change.c.commit_time).order_by(change.c.seq.desc()).limit(1).scalar_subquery(), 0
        )
    ),
)
"""When the last change was made; 0 if there is none. Served by the primary key."""

SAVE_CLOCK = Statement(update(feed).values(clock=parameter("clock", Text)))
"""Saves the state of the clock."""

LAST_XID = Statement(
    select(change.c.xid).where(change.c.seq == _last_seq.scalar_subquery()),
    on_postgresql=select(change.c.xid).order_by(change.c.seq.desc()).limit(1),
)
"""The number of the transaction that wrote the last change. Served by the primary key."""

HAS_OWN_PAST = Statement(
    select(literal(1, Integer)),
    on_postgresql=select(
        cast(func.coalesce(func.max(change.c.xid), 0) < _number(func.pg_snapshot_xmax(_snapshot)), Integer)
    ),
)
"""1, or 0 when changes were made by transactions that this PostgreSQL has yet to begin: they were copied
from another one. Served by changes_xid_seq_idx."""

BEGIN_ANEW = (
    # However many there are, this takes no longer on PostgreSQL, where a statement has limited time.
    Statement(delete(change), on_postgresql=text("TRUNCATE changes")),
    Statement(update(feed).values(store_id=parameter("store_id", Text), trimmed_xid=0, trimmed_seq=0)),
)
"""Forgets every change, and makes every token that was ever given foreign."""


_READERS: dict[int, RecordReader[Post] | RecordReader[Comment]] = {
    ResourceKind.POST: RecordReader(Post),
    ResourceKind.COMMENT: RecordReader(Comment),
}
_ACTIONS = {int(it): it for it in Action}
_KINDS = {int(it): it for it in ResourceKind}


def changes_in(rows: Sequence[Sequence[Any]]) -> tuple[Change, ...]:
    """The changes in rows of CHANGES."""
    # One document for all is decoded in a third of the time that one for each takes.
    records = json.loads(f"[{','.join([row[4] for row in rows])}]")
    return tuple([_change_in(row, record) for row, record in zip(rows, records, strict=True)])


def _change_in(row: Sequence[Any], record: dict[str, Any]) -> Change:
    action, kind, id, post_id, _, commit_time, request_id, *_ = row
    record["id"] = id
    if kind == ResourceKind.COMMENT:
        record["post_id"] = post_id
    return Change(
        action=_ACTIONS[action],
        kind=_KINDS[kind],
        post_id=post_id,
        resource=_READERS[kind].read(record),
        commit_time=commit_time,
        request_id=request_id or "",
    )


def position_from_row(row: Sequence[Any]) -> Position:
    """Where the change in such a row stands."""
    return Position(xid=row[7], seq=row[8], time=row[5])
