"""Statements that read and trim the change feed."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Text,
    cast,
    column,
    delete,
    func,
    literal,
    null,
    select,
    table,
    text,
    true,
    tuple_,
    update,
)

from store_service.database.statements import Statement, database_time, one_of, parameter
from store_service.database.tables import change_table as change
from store_service.database.tables import feed_table as feed
from store_service.model import Action, Change, Comment, Position, Post, ResourceKind
from store_service.records import RecordReader

_sequences = table("sqlite_sequence", column("name", Text), column("seq", BigInteger))
sqlite_last_seq = select(func.coalesce(func.max(_sequences.c.seq), 0)).where(_sequences.c.name == change.name)
"""The highest `seq` that SQLite has ever given, also if its row is deleted."""


def _number(xid: ColumnElement[Any]) -> ColumnElement[int]:
    """Returns a 64-bit transaction id of PostgreSQL as a number."""
    return cast(cast(xid, Text), BigInteger)


_snapshot = func.pg_current_snapshot()
horizon = _number(func.pg_snapshot_xmin(_snapshot))
"""All transactions with smaller numbers have ended, and PostgreSQL gives no such number again."""

_position = tuple_(change.c.xid, change.c.seq)


def _position_parameter(name: str) -> Any:
    return tuple_(parameter(f"{name}_xid", BigInteger), parameter(f"{name}_seq", BigInteger))


def _in_order(statement: Select[Any]) -> tuple[Select[Any], Select[Any]]:
    """Returns `statement` for the rows after `after` in the order of commits, for SQLite and PostgreSQL."""
    return (
        statement.where(change.c.seq > parameter("after_seq", BigInteger)).order_by(change.c.seq),
        statement.where(_position > _position_parameter("after"), change.c.xid < horizon).order_by(
            change.c.xid, change.c.seq
        ),
    )


_state = (feed.c.store_id, feed.c.trimmed_xid, feed.c.trimmed_seq)
_trimmed_time = func.coalesce(
    select(change.c.commit_time).where(change.c.seq == feed.c.trimmed_seq).scalar_subquery(), 0
)
_last_time = select(change.c.commit_time).where(change.c.seq == sqlite_last_seq.scalar_subquery())
_last_change = (
    select(change.c.xid, change.c.seq, change.c.commit_time)
    .where(change.c.xid < horizon)
    .order_by(change.c.xid.desc(), change.c.seq.desc())
    .limit(1)
    .subquery("last_change")
)


def feed_with(*more: ColumnElement[Any]) -> Statement:
    """Returns FEED with more columns."""
    return Statement(
        select(
            *_state,
            _trimmed_time,
            sqlite_last_seq.scalar_subquery(),
            sqlite_last_seq.scalar_subquery(),
            func.coalesce(_last_time.scalar_subquery(), 0),
            *more,
        ),
        # The position of the last change, not the horizon: after a crash PostgreSQL reuses numbers of
        # transactions that were rolled back and never written to disk.
        on_postgresql=select(
            *_state,
            _trimmed_time,
            func.coalesce(_last_change.c.xid, feed.c.trimmed_xid),
            func.coalesce(_last_change.c.seq, feed.c.trimmed_seq),
            func.coalesce(_last_change.c.commit_time, 0),
            *more,
        ).select_from(feed.outerjoin(_last_change, true())),
    )


FEED = feed_with()
"""The id of the store, the position up to which changes are trimmed, and the position of the last change;
both positions with the time of the change. Served on PostgreSQL by changes_xid_seq_idx."""

_time_at = select(change.c.commit_time).where(change.c.seq == parameter("seq", BigInteger))
time_at: ColumnElement[int] = func.coalesce(_time_at.scalar_subquery(), 0)
"""The time of the change `seq`; 0 if it does not exist."""

FEED_AT = feed_with(time_at)
"""Same as FEED, with `time_at`. Also served by the primary key."""

CHANGE_AT = Statement(
    select(change.c.xid, change.c.commit_time).where(change.c.seq == parameter("seq", BigInteger))
)
"""The transaction and the time of the change `seq`. Served by the primary key."""

NEWEST = Statement(
    select(change.c.xid, change.c.seq, change.c.commit_time).order_by(change.c.seq.desc()).limit(1),
    on_postgresql=select(change.c.xid, change.c.seq, change.c.commit_time)
    .order_by(change.c.xid.desc(), change.c.seq.desc())
    .limit(1),
)
"""The position of the newest committed change. On PostgreSQL it can be after the end of the feed, which waits
for older transactions. An empty table has no such row. Served like SIZES."""

IS_STANDBY = Statement(
    select(literal(0, Integer)), on_postgresql=select(cast(func.pg_is_in_recovery(), Integer))
)
"""1 if the server replays the changes of another one."""

LOCKED_FEED = Statement(select(*_state).with_for_update(skip_locked=True))
"""Same as FEED, without times and the last change. No row while another process trims the feed."""

_sizes = select(change.c.xid, change.c.seq, change.c.size, change.c.commit_time).limit(
    parameter("limit", Integer)
)
SIZES = Statement(_in_order(_sizes)[0], on_postgresql=_in_order(_sizes)[1])
"""Position, size and time of the next `limit` changes after `after`. Served by the primary key, on PostgreSQL
by changes_xid_seq_idx."""

_keys = select(
    change.c.xid,
    change.c.seq,
    change.c.size,
    change.c.commit_time,
    change.c.kind,
    change.c.resource_id,
).limit(parameter("limit", Integer))
KEYS = Statement(_in_order(_keys)[0], on_postgresql=_in_order(_keys)[1])
"""Same as SIZES, with kind and id of the resource of each change."""

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
    change.c.before,
)
CHANGES = Statement(
    _in_order(select(*_columns))[0].where(change.c.seq <= parameter("until_seq", BigInteger)),
    on_postgresql=_in_order(select(*_columns))[1].where(_position <= _position_parameter("until")),
)
"""The changes after `after` up to and including `until`. Served like SIZES."""

DELETE_CHANGES = Statement(
    delete(change).where(change.c.seq < parameter("until_seq", BigInteger)),
    on_postgresql=delete(change).where(_position < _position_parameter("until")),
)
"""Deletes all changes before the one at `until`. Served like SIZES."""

COMMIT_TIMES = Statement(select(change.c.commit_time).where(one_of(change.c.seq, "seqs")))
"""The times of those of these changes that exist. Served by the primary key."""

SET_TRIMMED = Statement(
    update(feed).values(
        trimmed_xid=parameter("until_xid", BigInteger), trimmed_seq=parameter("until_seq", BigInteger)
    )
)
"""Stores the position up to which changes are trimmed."""

LAST_SEQ = Statement(
    select(sqlite_last_seq.scalar_subquery()), on_postgresql=select(func.coalesce(func.max(change.c.seq), 0))
)
"""The highest `seq` ever given; on PostgreSQL that of the changes that exist. Served by the primary key."""

CLOCK = Statement(
    select(parameter("now", BigInteger), feed.c.clock), on_postgresql=select(database_time(), feed.c.clock)
)
"""The time with which rows are stamped (`now`, or the time of PostgreSQL), and the stored clock state."""

NEWEST_TIME = Statement(
    select(func.coalesce(_last_time.scalar_subquery(), 0)),
    on_postgresql=select(
        func.coalesce(
            select(change.c.commit_time).order_by(change.c.seq.desc()).limit(1).scalar_subquery(), 0
        )
    ),
)
"""The time of the last change; 0 if there is none. Served by the primary key."""

SAVE_CLOCK = Statement(update(feed).values(clock=parameter("clock", Text)))
"""Saves the state of the clock."""

LAST_XID = Statement(
    select(change.c.xid).where(change.c.seq == sqlite_last_seq.scalar_subquery()),
    on_postgresql=select(change.c.xid).order_by(change.c.seq.desc()).limit(1),
)
"""The number of the transaction that wrote the last change. Served by the primary key."""

HAS_OWN_PAST = Statement(
    select(literal(1, Integer)),
    on_postgresql=select(
        cast(func.coalesce(func.max(change.c.xid), 0) < _number(func.pg_snapshot_xmax(_snapshot)), Integer)
    ),
)
"""1, or 0 if there are changes of transactions that this PostgreSQL server has not begun yet, which means
that they were copied from another server. Served by changes_xid_seq_idx."""

SYSTEM_ID = Statement(
    select(feed.c.system_id, literal(0, Integer)),
    on_postgresql=select(
        feed.c.system_id, cast(func.has_function_privilege("pg_control_system()", "EXECUTE"), Integer)
    ),
)
"""The stored system identifier, and whether that of the server can be read."""

_server_system_id = select(cast(column("system_identifier"), Text)).select_from(func.pg_control_system())
IS_SAME_SYSTEM = Statement(
    select(literal(1, Integer)),
    on_postgresql=select(cast(feed.c.system_id == _server_system_id.scalar_subquery(), Integer)),
)
"""1, or 0 if another server has written the changes."""

SET_SYSTEM_ID = Statement(
    update(feed).values(system_id=null()),
    on_postgresql=update(feed).values(system_id=_server_system_id.scalar_subquery()),
)
"""Stores the system identifier of the server."""

BEGIN_ANEW = (
    # TRUNCATE takes the same time for any number of rows. On PostgreSQL statements have a timeout.
    Statement(delete(change), on_postgresql=text("TRUNCATE changes")),
    Statement(update(feed).values(store_id=parameter("store_id", Text), trimmed_xid=0, trimmed_seq=0)),
)
"""Deletes all changes, and makes all earlier resume tokens invalid, because they name another store."""


_READERS: dict[int, RecordReader[Post] | RecordReader[Comment]] = {
    ResourceKind.POST: RecordReader(Post),
    ResourceKind.COMMENT: RecordReader(Comment),
}
_ACTIONS = {int(it): it for it in Action}
_KINDS = {int(it): it for it in ResourceKind}


def changes_in(rows: Sequence[Sequence[Any]]) -> tuple[Change, ...]:
    """Decodes rows of CHANGES."""
    # Decoding one document takes a third of the time of decoding one for each row.
    records = json.loads(f"[{','.join([row[4] for row in rows])}]")
    return tuple([_change_in(row, record) for row, record in zip(rows, records, strict=True)])


def _change_in(row: Sequence[Any], record: dict[str, Any]) -> Change:
    action, kind, id, post_id, _, commit_time, request_id, _, _, before = row
    record["id"] = id
    is_erased = "body" not in record
    if kind == ResourceKind.COMMENT:
        record["post_id"] = post_id
    return Change(
        action=_ACTIONS[action],
        kind=_KINDS[kind],
        post_id=post_id,
        resource=_READERS[kind].read(record),
        commit_time=commit_time,
        request_id=request_id or "",
        before=None if before is None else json.loads(before),
        is_erased=is_erased,
    )


def position_from_row(row: Sequence[Any]) -> Position:
    """Returns the position of the change in a row of CHANGES."""
    return Position(xid=row[7], seq=row[8], time=row[5])
