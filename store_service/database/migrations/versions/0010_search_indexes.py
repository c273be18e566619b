"""Adds the empty indexes for full-text search. The service fills them in steps."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Creates empty tables."""
    for table in ("post_search", "comment_search"):
        if op.get_bind().dialect.name == "sqlite":
            op.execute(
                f"CREATE VIRTUAL TABLE {table} USING fts5 (tokens, tokenize = 'ascii', columnsize = 0)"
            )
            continue
        op.create_table(
            table,
            sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("tokens", TSVECTOR, nullable=False),
        )
        op.execute(
            f"CREATE INDEX {table}_tokens_idx ON {table} USING gin (tokens)"
            " WITH (gin_pending_list_limit = 256)"
        )
    op.create_table(
        "search_index",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tokenizer", sa.Text, nullable=False),
        sa.Column("store_id", sa.Text, nullable=False),
        sa.Column("xid", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("commit_time", sa.BigInteger, nullable=False),
        sa.Column("building_kind", sa.SmallInteger, nullable=False),
        sa.Column("building_id", sa.BigInteger, nullable=False),
    )
