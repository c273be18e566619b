"""Statements that find and remove what an author wrote in the change feed and in stored responses."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Text,
    cast,
    func,
    literal_column,
    null,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB

from store_service.database.change_writes import ERASED
from store_service.database.statements import Statement, one_of, parameter, rows
from store_service.database.tables import change_table as change
from store_service.database.tables import request_table as request
from store_service.model import CONTENT_TEXTS

_author, _limit = parameter("author", Text), parameter("limit", Integer)
_no_text: ColumnElement[str] = literal_column("''", Text)

_position = tuple_(change.c.xid, change.c.seq)


def _at(name: str) -> Any:
    return tuple_(parameter(f"{name}_xid", BigInteger), parameter(f"{name}_seq", BigInteger))


_before_seq, _from_seq = parameter("before_seq", BigInteger), parameter("from_seq", BigInteger)
_sizes = select(change.c.xid, change.c.seq, change.c.size).limit(_limit)
SIZES_BEFORE = Statement(
    _sizes.where(change.c.seq < _before_seq).order_by(change.c.seq.desc()),
    on_postgresql=_sizes.where(_position < _at("before")).order_by(change.c.xid.desc(), change.c.seq.desc()),
)
"""Position and size of the `limit` changes before a position, the last ones first. Served by the primary key,
on PostgreSQL by changes_xid_seq_idx."""


def _extracted(dialect: str, column: ColumnElement[Any], name: str) -> ColumnElement[Any]:
    """Returns the text of a JSON object with a name; NULL if it has none."""
    if dialect == "sqlite":
        return func.json_extract(column, literal_column(f"'$.{name}'"), type_=Text)
    text: ColumnElement[Any] = cast(column, JSON)[literal_column(f"'{name}'", Text)].astext
    return text


def _found_changes(dialect: str) -> Select[Any]:
    author, body = (
        _extracted(dialect, change.c.payload, "author"),
        _extracted(dialect, change.c.payload, "body"),
    )
    before = _extracted(dialect, change.c.before, "author")
    erased = _extracted(dialect, change.c.payload, ERASED)
    return select(
        change.c.seq,
        change.c.kind,
        change.c.resource_id,
        cast(body.is_not(None), Integer),
        cast(erased.is_not(None), Integer),
        cast(
            func.coalesce(author, _no_text).in_([_author]) | func.coalesce(before, _no_text).in_([_author]),
            Integer,
        ),
        func.coalesce(
            cast(_extracted(dialect, change.c.payload, "version"), BigInteger), literal_column("0")
        ),
    )


FIND_CHANGES = Statement(
    _found_changes("sqlite")
    .where(change.c.seq >= _from_seq, change.c.seq < _before_seq)
    .order_by(change.c.seq.desc()),
    on_postgresql=_found_changes("postgresql")
    .where(_position >= _at("from"), _position < _at("before"))
    .order_by(change.c.xid.desc(), change.c.seq.desc()),
)
"""The changes before a position, down to and including another one, the last ones first: number, kind and id,
whether it has content, whether an erasure has added it, whether the author is the one of the resource or the
one before the change, and the version. Served like SIZES_BEFORE."""

OLDEST_CHANGE = Statement(select(func.coalesce(func.min(change.c.seq), literal_column("0"))))
"""The lowest `seq`. Served by the primary key."""


def _clear_changes(dialect: str) -> Any:
    if dialect == "sqlite":
        paths: list[ColumnElement[str]] = [literal_column(f"'$.{it}'", Text) for it in CONTENT_TEXTS]
        payload: Any = func.json_remove(change.c.payload, *paths, type_=Text)
    else:
        payload = cast(change.c.payload, JSONB)
        for name in CONTENT_TEXTS:
            payload = payload.op("-")(literal_column(f"'{name}'", Text))
        payload = cast(payload, Text)
    # The path of a comment, which has only ASCII characters, is the only other text.
    path = func.coalesce(func.length(_extracted(dialect, change.c.payload, "path")), literal_column("0"))
    return (
        update(change).values(payload=payload, size=path, before=null()).where(one_of(change.c.seq, "seqs"))
    )


CLEAR_CHANGES = Statement(_clear_changes("sqlite"), on_postgresql=_clear_changes("postgresql"))
"""Removes the content of changes. Served by the primary key."""

# Stored responses

RESPONSE_SIZES = Statement(
    select(request.c.id, request.c.size)
    .where(request.c.id > parameter("after", Text))
    .order_by(request.c.id)
    .limit(_limit)
)
"""The next `limit` requests after an id, and the sizes of their responses. Served by the primary key."""

_changed = rows("changed", id=Text, size=Integer, answer=Text)
SET_RESPONSES = Statement(
    update(request)
    .values(answer=_changed.c.answer, size=_changed.c.size)
    .where(request.c.id == _changed.c.id)
)
"""Replaces stored responses. Served by the primary key."""
