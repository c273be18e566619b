"""What the target of a copy has, and the state of an unfinished copy."""

import json
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy
from sqlalchemy import select, text

from store_service.database import schema
from store_service.database.engines import read_only_engine
from store_service.database.former_stores import FormerStore, from_text
from store_service.database.tables import feed_table
from store_service.database.write_mode import recorded_tables
from store_service.errors import OperatorError, SchemaMismatch

UNFINISHED = "unfinished copy"
"""The revision of a database to which a store is being copied."""

_ERASED = '"erased"'
"""Part of the payload of a change of an erasure."""


class TargetNotEmpty(OperatorError):
    """The database has rows that this copy has not written."""


@dataclass(kw_only=True)
class CopyState:
    """What an unfinished copy has done."""

    copy_id: str
    store_id: str
    """The id of the store that is copied. It changes if its change feed is restarted."""
    position: str = ""
    """See `Snapshot.written`."""
    after: dict[str, list[Any]] = field(default_factory=dict)
    """The key of the last copied row, by table."""
    copied: list[str] = field(default_factory=list)
    """The tables that are copied up to their last row."""
    objects: list[str] = field(default_factory=list)
    """Statements that create the indexes and constraints again, which rows are copied without."""
    has_objects: bool = False
    must_rewrite: bool = False
    """Whether the SQLite file may have parts of erased texts in its free space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetContents:
    """What a database has before a copy."""

    revision: str
    is_empty: bool
    state: CopyState | None
    """The state of an unfinished copy; None if there is none."""
    former_stores: list[FormerStore]

    def check(self, copy_id: str) -> None:
        """Checks that a copy can begin, or continue if it has this id.

        Raises:
            TargetNotEmpty: It cannot.
        """
        if self.state is not None and self.state.copy_id != copy_id:
            raise TargetNotEmpty(
                "TARGET has an unfinished copy that cannot be continued, because it belongs to another store"
                " or was undone; use an empty database"
            )
        if self.state is None and not self.is_empty:
            raise TargetNotEmpty("TARGET is not empty; use an empty database")

    def is_copy(self, copy_id: str) -> bool:
        """Whether the copy with this id is finished."""
        return bool(copy_id) and any(it.copy_id == copy_id for it in self.former_stores[:1])


def look(database_url: str, *, connect_timeout_seconds: float) -> TargetContents:
    """Returns what a database has. Changes nothing.

    Raises:
        SchemaMismatch: It has an older or newer schema.
        OperatorError: It is not a database of the service.
        ServiceError: It cannot be opened.
    """
    revision = schema.find(
        database_url, connect_timeout_seconds=connect_timeout_seconds, upgrades=True, serves=()
    )
    if revision == schema.EMPTY:
        return TargetContents(revision=revision, is_empty=True, state=None, former_stores=[])
    if revision not in (schema.HEAD, UNFINISHED):
        raise SchemaMismatch(expected=schema.HEAD, actual=revision)
    engine = read_only_engine(database_url, connect_timeout_seconds=connect_timeout_seconds)
    try:
        with engine.connect() as connection:
            state = _read_state(connection) if revision == UNFINISHED else None
            former = from_text(connection.scalar(select(feed_table.c.former_stores)))
            is_empty = not any(connection.execute(select(it).limit(1)).first() for it in recorded_tables())
    finally:
        engine.dispose()
    return TargetContents(revision=revision, is_empty=is_empty, state=state, former_stores=former)


def _read_state(connection: sqlalchemy.Connection) -> CopyState:
    return CopyState(**json.loads(connection.execute(text("SELECT state FROM copy_target")).scalar_one()))
