"""Adds the change feed, and the stored responses of requests with a request_id."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Creates the tables. On PostgreSQL a trigger sends a notification for each insert into `changes`."""
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    # 64 bits, never reused, in the order in which transactions begin to write.
    xid = sa.text("CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT)") if on_postgresql else None
    op.create_table(
        "changes",
        sa.Column("seq", Id, sa.Identity(), primary_key=True),
        sa.Column("xid", sa.BigInteger, nullable=False, server_default=xid),
        sa.Column("action", sa.SmallInteger, nullable=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("resource_id", sa.BigInteger, nullable=False),
        sa.Column("post_id", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("create_time", sa.BigInteger),
        sa.Column("update_time", sa.BigInteger),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("commit_time", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.Text),
        sqlite_autoincrement=True,
    )
    feed = op.create_table(
        "feed",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("store_id", sa.Text, nullable=False),
        sa.Column("trimmed_xid", sa.BigInteger, nullable=False),
        sa.Column("trimmed_seq", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(feed, [{"id": 1, "store_id": uuid.uuid4().hex, "trimmed_xid": 0, "trimmed_seq": 0}])
    op.create_table(
        "requests",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("requests_create_time_idx", "requests", ["create_time"])
    if on_postgresql:
        op.create_index("changes_xid_seq_idx", "changes", ["xid", "seq"])
        op.execute(
            "CREATE FUNCTION store_changes_notify() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_notify('store_changes', ''); RETURN NULL; END $$"
        )
        op.execute(
            "CREATE TRIGGER changes_notify AFTER INSERT ON changes"
            " FOR EACH STATEMENT EXECUTE FUNCTION store_changes_notify()"
        )
