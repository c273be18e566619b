"""Statements of the indexes for full-text search."""

# ruff: noqa: S608  # only names of ours are inserted into statements

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Table,
    Text,
    bindparam,
    delete,
    func,
    literal,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.sql.elements import TextClause

from store_service.database.deletions import body_bytes, is_not_tombstone
from store_service.database.search_tables import comment_search_table, post_search_table
from store_service.database.search_tables import search_index_table as index
from store_service.database.statements import Statement, one_of, parameter
from store_service.database.tables import comment_table, post_table
from store_service.model import ResourceKind

PLANNER = Statement(
    select(literal(1, Integer)),
    on_postgresql=select(
        *[
            func.set_config(name, value, literal_column("true"))
            for name, value in {
                "enable_bitmapscan": "on",
                "enable_seqscan": "off",
                # The start of a worker takes longer than a window.
                "max_parallel_workers_per_gather": "0",
                # So that the part of a bitmap that fits into memory is exact.
                "work_mem": "16MB",
            }.items()
        ]
    ),
)
"""Has to run before `SearchSql.find`, in the same transaction. A GIN index is only read with a bitmap.

Index scans stay enabled, or `SearchSql.last_id` would read all rows."""


class SearchSql:
    """The statements of the index of one type of resource."""

    def __init__(self, kind: ResourceKind, resources: Table, entries: Table) -> None:
        """Takes the kind, the table of the resources, and the table of the index."""
        name = entries.name
        self.kind = kind
        self.find: Statement = Statement(
            _text(
                f"SELECT rowid FROM {name} WHERE {name} MATCH :match AND rowid >= :first AND rowid < :before"
                " ORDER BY rowid DESC LIMIT :limit",
                match=Text,
                first=BigInteger,
                before=BigInteger,
                limit=Integer,
            ),
            on_postgresql=_text(
                f"SELECT id FROM {name} WHERE tokens @@ CAST(:match AS tsquery) LIMIT :limit",
                match=Text,
                limit=Integer,
            ),
        )
        """The ids of rows that match. On SQLite the last `limit` in a range, in descending order. On
        PostgreSQL up to `limit` in any order. Served by the index."""
        self.last_id: Statement = Statement(
            select(func.max(resources.c.id)).where(resources.c.id < parameter("before", BigInteger))
        )
        """The last id of a resource before an id. Served by the primary key."""

        post_id = resources.c.post_id if kind is ResourceKind.COMMENT else literal_column("0", BigInteger)
        reply_to_id = (
            resources.c.reply_to_id if kind is ResourceKind.COMMENT else literal_column("0", BigInteger)
        )
        columns = (
            resources.c.id,
            resources.c.body,
            resources.c.author,
            resources.c.labels,
            post_id,
            reply_to_id,
        )
        not_tombstone = is_not_tombstone(resources)
        live = [] if not_tombstone is None else [not_tombstone]
        self.by_ids: Statement = Statement(select(*columns).where(one_of(resources.c.id, "ids"), *live))
        """What the index has of these resources: id, body, author, labels, post_id and reply_to_id."""
        self.range: Statement = Statement(
            select(*columns).where(
                resources.c.id > parameter("after", BigInteger),
                resources.c.id <= parameter("until", BigInteger),
                *live,
            )
        )
        """Same as `by_ids`, for a range of ids."""
        on_sqlite, on_postgresql = [
            select(resources.c.id, body_bytes(resources, it))
            .where(resources.c.id > parameter("after", BigInteger))
            .order_by(resources.c.id)
            .limit(parameter("limit", Integer))
            for it in ("sqlite", "postgresql")
        ]
        self.sizes: Statement = Statement(on_sqlite, on_postgresql=on_postgresql)
        """Id and bytes of the next `limit` resources after an id. Served by the primary key."""

        self.put: Statement = Statement(
            # In ascending order, because FTS5 writes to its table whenever an id is less than the last one.
            _text(
                f"INSERT OR REPLACE INTO {name} (rowid, tokens) SELECT json_extract(value, '$[0]'),"
                " json_extract(value, '$[1]') FROM json_each(:entries)",
                entries=Text,
            ),
            on_postgresql=_text(
                f"INSERT INTO {name} (id, tokens) SELECT CAST(value ->> 0 AS bigint),"
                " CAST(value ->> 1 AS tsvector)"
                " FROM json_array_elements(CAST(:entries AS json)) AS it (value)"
                " ON CONFLICT (id) DO UPDATE SET tokens = excluded.tokens",
                entries=Text,
            ),
        )
        """Adds or replaces rows, which must be in the order of ids."""
        key = literal_column("rowid", BigInteger)
        self.remove: Statement = Statement(
            delete(entries).where(one_of(key, "ids")),
            on_postgresql=delete(entries).where(one_of(entries.c.id, "ids")),
        )
        """Removes rows with these ids."""
        self.ids_in_range: Statement = Statement(
            _ids(entries, key), on_postgresql=_ids(entries, entries.c.id)
        )
        """The ids of the first `limit` rows after an id, and up to another one."""
        self.merge: Statement = Statement(
            _text(f"INSERT INTO {name} ({name}, rank) VALUES ('merge', :pages)", pages=Integer),
            on_postgresql=select(literal(1, Integer)),
        )
        """Merges some pages of the index on SQLite. A negative number begins to merge all parts of it."""


def _ids(entries: Table, key: ColumnElement[int]) -> Select[Any]:
    return (
        select(key)
        .select_from(entries)
        .where(key > parameter("after", BigInteger), key <= parameter("until", BigInteger))
        .order_by(key)
        .limit(parameter("limit", Integer))
    )


def _text(sql: str, **types: Any) -> TextClause:
    return text(sql).bindparams(*[bindparam(name, type_=it, required=True) for name, it in types.items()])


SEARCH: Mapping[ResourceKind, SearchSql] = {
    ResourceKind.POST: SearchSql(ResourceKind.POST, post_table, post_search_table),
    ResourceKind.COMMENT: SearchSql(ResourceKind.COMMENT, comment_table, comment_search_table),
}

_STATE = ("tokenizer", "store_id", "xid", "seq", "commit_time", "building_kind", "building_id")

STATE = Statement(select(*[index.c[it] for it in _STATE]))
"""The state of the indexes; no row if they are empty."""

LOCKED_STATE = Statement(select(*[index.c[it] for it in _STATE]).with_for_update())
"""Same as STATE, locked until the end of the transaction."""

ADD_STATE = Statement(
    _text(
        f"INSERT INTO search_index (id, {', '.join(_STATE)})"
        f" VALUES (1, {', '.join([f':{it}' for it in _STATE])})"
        " ON CONFLICT (id) DO NOTHING RETURNING id",
        **{it: index.c[it].type for it in _STATE},
    )
)
"""Adds the state of indexes that are empty. Returns no row if another process has added it."""

SET_STATE = Statement(update(index).values({it: parameter(it, index.c[it].type) for it in _STATE}))
"""Sets the state."""

TOTAL_CHANGES = Statement(select(func.total_changes()), on_postgresql=select(literal(0, Integer)))
"""The number of rows that this connection has changed on SQLite."""

REMOVE_STATE = Statement(delete(index))
"""Removes the state."""
