"""The tables of the indexes for full-text search, which `store_service.database` adds to `metadata`."""

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, SmallInteger, Table, Text
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.compiler import DDLCompiler

from store_service.database.tables import Id, metadata


def _search_table(name: str) -> Table:
    """Returns an index for full-text search (docs/decisions/0049): on SQLite a virtual table of FTS5, whose
    rowid is the id, and on PostgreSQL a table."""
    return Table(
        name,
        metadata,
        Column("id", Id, primary_key=True, autoincrement=False),
        Column("tokens", Text().with_variant(TSVECTOR, "postgresql"), nullable=False),
        Index(
            f"{name}_tokens_idx",
            "tokens",
            postgresql_using="gin",
            postgresql_with={"gin_pending_list_limit": GIN_PENDING_KILOBYTES},
        ).ddl_if(dialect="postgresql"),
        info={"fts5": True},
    )


FTS5 = "tokens, tokenize = 'ascii', columnsize = 0"
"""The arguments of the virtual tables. Texts are tokens with spaces between them, at which `ascii` splits.
The size of columns serves only the ranking of FTS5."""

GIN_PENDING_KILOBYTES = 256
"""Maximum size of the part of an index on PostgreSQL that each search reads completely."""


@compiles(CreateTable, "sqlite")
def _create_table_on_sqlite(element: CreateTable, compiler: DDLCompiler, **kw: Any) -> str:
    table = element.element
    if table.info.get("fts5"):
        return f"CREATE VIRTUAL TABLE {table.name} USING fts5 ({FTS5})"
    created: str = compiler.visit_create_table(element, **kw)  # type: ignore[no-untyped-call]
    return created


post_search_table = _search_table("post_search")
comment_search_table = _search_table("comment_search")

# One row: the state of the indexes for full-text search. No row: they are empty.
search_index_table = Table(
    "search_index",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    # With another tokenizer, or changes of another store, the indexes are built again.
    Column("tokenizer", Text, nullable=False),
    Column("store_id", Text, nullable=False),
    # The position in the change feed up to which changes are in the indexes.
    Column("xid", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("commit_time", BigInteger, nullable=False),
    # The kind of the resources that are being added, and the last id that was; 0: the indexes are complete.
    Column("building_kind", SmallInteger, nullable=False),
    Column("building_id", BigInteger, nullable=False),
)
