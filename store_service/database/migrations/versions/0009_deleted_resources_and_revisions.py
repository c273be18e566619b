"""Adds the tables of deleted resources, of former versions, and of unfinished deletions and restorations."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from store_service.database.own_objects import LABEL_TRIGGERS

revision = "0009"
down_revision = "0008"

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Creates empty tables, and adds columns without values. Rewrites no rows; reads the comments once."""
    dialect = op.get_bind().dialect.name
    for table in ("comments", "post_deletions"):
        for column in _deletion_columns():
            op.add_column(table, column)
    op.execute("CREATE INDEX comments_tombstones_idx ON comments (post_id, id) WHERE delete_time IS NOT NULL")
    op.create_table("deleted_posts", *_resource_columns(), *_deletion_columns())
    op.create_table(
        "deleted_comments",
        *_resource_columns(is_comment=True),
        *_deletion_columns(),
        sa.Column("deleted_with", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    )
    for table in ("deleted_posts", "deleted_comments"):
        op.execute(f"CREATE INDEX {table}_author_id_idx ON {table} (author, id) WHERE author <> ''")
        op.execute(f"CREATE INDEX {table}_create_time_idx ON {table} (coalesce(create_time, 0), id)")
        op.execute(
            f"CREATE INDEX {table}_purge_time_idx ON {table} (purge_time, id) WHERE purge_time IS NOT NULL"
        )
        op.execute(
            f"CREATE INDEX {table}_external_id_id_idx ON {table} (external_id, id) WHERE external_id <> ''"
        )
    on_comments = "ON deleted_comments"
    op.execute(f"CREATE INDEX deleted_comments_post_id_id_idx {on_comments} (post_id, id)")
    op.execute(
        "CREATE INDEX deleted_comments_reply_to_id_id_idx"
        f" {on_comments} (reply_to_id, id) WHERE reply_to_id > 0"
    )
    op.execute(
        "CREATE INDEX deleted_comments_post_id_create_time_idx"
        f" {on_comments} (post_id, coalesce(create_time, 0), id)"
    )
    key = (
        "((path || lpad(to_hex(id), 16, '0')) COLLATE \"C\")"
        if dialect == "postgresql"
        else "(path || printf('%016x', id))"
    )
    op.execute(f"CREATE INDEX deleted_comments_thread_idx {on_comments} (post_id, {key})")
    op.execute(f"CREATE INDEX deleted_comments_deleted_with_idx {on_comments} (post_id, deleted_with, {key})")
    for name, statement in LABEL_TRIGGERS[dialect].items():
        if name.startswith("deleted_"):
            op.execute(statement)
    op.create_table(
        "revisions",
        sa.Column("kind", sa.SmallInteger, primary_key=True),
        sa.Column("resource_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("update_time", sa.BigInteger),
        _text("author"),
        _text("labels"),
    )
    op.execute(
        "CREATE INDEX revisions_author_idx ON revisions (author, kind, resource_id, version)"
        " WHERE author <> ''"
    )
    op.create_table(
        "thread_deletions",
        sa.Column("comment_id", Id, primary_key=True, autoincrement=False),
        sa.Column("post_id", sa.BigInteger, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        _text("removed_key"),
        sa.Column("request_id", sa.Text),
        *_deletion_columns(),
    )
    op.create_index("thread_deletions_post_id_idx", "thread_deletions", ["post_id"])
    op.create_table(
        "restorations",
        sa.Column("post_id", Id, primary_key=True, autoincrement=False),
        sa.Column("deleted_with", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("restored", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("request_id", sa.Text),
    )


def _resource_columns(*, is_comment: bool = False) -> Iterator["sa.Column[Any]"]:
    yield sa.Column("id", Id, primary_key=True, autoincrement=False)
    yield sa.Column("body", sa.Text, nullable=False)
    if is_comment:
        yield sa.Column("post_id", sa.BigInteger, nullable=False)
    yield sa.Column("create_time", sa.BigInteger)
    yield sa.Column("update_time", sa.BigInteger)
    yield sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1"))
    for name in ("author", "labels", "external_id"):
        yield _text(name)
    if is_comment:
        yield sa.Column("reply_to_id", sa.BigInteger, nullable=False, server_default=sa.text("0"))
        yield _text("path")


def _deletion_columns() -> Iterator["sa.Column[int]"]:
    yield sa.Column("delete_time", sa.BigInteger)
    yield sa.Column("purge_time", sa.BigInteger)


def _text(name: str) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, nullable=False, server_default="")
