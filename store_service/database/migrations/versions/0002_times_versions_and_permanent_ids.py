"""Adds times and versions, and makes all rows valid: UTF-8 bodies, positive ids that are never given twice,
and no comments without a post.

All rows are kept. NULL bodies become empty strings. Other invalid data is kept in a separate table and
logged: comments without a post in `orphaned_comments`, bodies that are not UTF-8 in `undecodable_bodies`, ids
that were too small or too large in `renumbered_resources`, and columns that storeapi did not create in
`posts_extra_columns` and `comments_extra_columns`. All other ids are unchanged.
"""

# ruff: noqa: S608  # only our own names are inserted into statements

from typing import Any

import sqlalchemy as sa
import structlog
from alembic import context, op

revision = "0002"
down_revision = "0001"

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

LARGEST_ID = 2**62
"""Rows with larger ids get new ids. New ids follow the largest one, and end at 2**63 - 1."""

STEP_ROWS = 100_000
"""Rows between two progress reports."""

KINDS = {"posts": "post", "comments": "comment"}
"""The tables of a legacy database, and the value of `kind` in the tables that this revision fills."""

log = structlog.get_logger("store_service.database")

# One lookup by key for each row. NOT IN would first build a table of all ids on disk.
ORPHANED = "NOT EXISTS (SELECT 1 FROM posts WHERE posts.id = comments.post_id)"


def upgrade() -> None:
    """Makes the rows of the old tables valid, and then changes or replaces the tables."""
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    _create_tables_for_old_data()
    extra = [table for table in KINDS if _move_extra_columns(table, on_sqlite)]
    if on_sqlite:
        # PostgreSQL accepts only UTF-8.
        _convert_bodies()
    else:
        # Foreign keys would prevent changes of ids.
        for key in sa.inspect(op.get_bind()).get_foreign_keys("comments"):
            op.execute(f'ALTER TABLE comments DROP CONSTRAINT "{key["name"]}"')
    last = {table: _last_id(table) for table in KINDS}
    _report("moving comments without a post")
    _move_orphans()
    if not on_sqlite:
        # New ids may need 64-bit columns.
        _report("changing columns")
        _alter()
    _report("replacing ids")
    for table in KINDS:
        last[table] += _renumber(table, last[table], has_extra_columns=table in extra)
    if on_sqlite:
        _copy(last)
    else:
        _restart(last)
    _report("creating the index of comments")
    op.create_index("comments_post_id_id_idx", "comments", ["post_id", "id"])
    _log_counts()


def _report(doing: str, done: int = 0, total: int = 0) -> None:
    """Reports the current step, and the rows done and in total, if they are known."""
    report = context.config.attributes.get("report")
    if report is not None:
        report(doing, done, total)


def _move_extra_columns(table: str, on_sqlite: bool) -> bool:
    """Moves columns that storeapi did not create to a separate table, with the id of the row. Returns whether
    it moved any. If they stayed, a NOT NULL column would refuse writes of the service."""
    names = [
        it["name"]
        for it in sa.inspect(op.get_bind()).get_columns(table)
        if it["name"] not in ("id", "body", *(["post_id"] if table == "comments" else []))
    ]
    if not names:
        return False
    quote = op.get_bind().dialect.identifier_preparer.quote
    quoted = [quote(name) for name in names]
    target = f"{table}_extra_columns"
    _report(f"moving columns to {target}")
    op.get_bind().exec_driver_sql(f"CREATE TABLE {target} AS SELECT id, {', '.join(quoted)} FROM {table}")
    op.create_index(f"{target}_id_idx", target, ["id"], unique=True)
    if on_sqlite:
        return True  # The new table is created without these columns.
    op.get_bind().exec_driver_sql(f"ALTER TABLE {target} ALTER id TYPE BIGINT")
    drops = ", ".join(f"DROP {name}" for name in quoted)
    op.get_bind().exec_driver_sql(f"ALTER TABLE {table} {drops}")
    return True


def _create_tables_for_old_data() -> None:
    op.create_table(
        "orphaned_comments",
        sa.Column("id", Id, primary_key=True, autoincrement=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("post_id", sa.BigInteger),
    )
    op.create_table(
        "undecodable_bodies",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "renumbered_resources",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("old_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("new_id", sa.BigInteger, nullable=False),
    )


def _convert_bodies() -> None:
    """Replaces bytes that are not UTF-8 by U+FFFD, and keeps the original bytes of the body.

    Uses the driver directly, because errors of SQLAlchemy would contain bodies.
    """
    raw: Any = op.get_bind().connection.driver_connection
    # Read as the service reads: if the file stores text in UTF-16, SQLite converts it.
    raw.text_factory = bytes
    try:
        for table, kind in KINDS.items():
            ((total,),) = raw.execute(f"SELECT count(*) FROM {table}")
            rows = raw.execute(
                f"SELECT id, CAST(body AS TEXT) FROM {table} WHERE typeof(body) IN ('text', 'blob')"
            )
            bad = []
            for number, (id, body) in enumerate(rows):
                if not number % STEP_ROWS:
                    _report(f"checking bodies of {table}", number, total)
                if not _is_text(body):
                    bad.append(id)
            for id in bad:
                raw.execute(
                    "INSERT INTO undecodable_bodies (kind, id, body)"
                    f" SELECT ?, id, CAST(body AS BLOB) FROM {table} WHERE id = ?",
                    (kind, id),
                )
                ((body,),) = raw.execute(f"SELECT CAST(body AS TEXT) FROM {table} WHERE id = ?", (id,))
                text = body.decode(errors="replace")
                raw.execute(f"UPDATE {table} SET body = ? WHERE id = ?", (text, id))
    finally:
        raw.text_factory = str


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _last_id(table: str) -> int:
    """Returns the largest id that a table has ever given and that stays valid; 0 if there is none.

    This includes ids that only comments without a post refer to, and ids up to the value of the sequence of
    PostgreSQL.
    """
    given = f"SELECT id FROM {table}"
    if table == "posts":
        given += " UNION ALL SELECT post_id FROM comments"
    if op.get_bind().dialect.name != "sqlite":
        sequence = op.get_bind().scalar(sa.text(f"SELECT pg_get_serial_sequence('{table}', 'id')"))
        if sequence is not None:
            given += f" UNION ALL SELECT last_value FROM {sequence} WHERE is_called"
    # SQLite accepts text as post_id, and sorts it after all numbers.
    largest = op.get_bind().scalar(
        sa.text(f"SELECT max(id) FROM ({given}) AS given WHERE id BETWEEN 0 AND {LARGEST_ID}")
    )
    return int(largest or 0)


def _move_orphans() -> None:
    op.execute(
        "INSERT INTO orphaned_comments (id, body, post_id)"
        f" SELECT id, coalesce(CAST(body AS TEXT), ''), post_id FROM comments WHERE {ORPHANED}"
    )
    op.execute("DELETE FROM comments WHERE id IN (SELECT id FROM orphaned_comments)")


def _renumber(table: str, last: int, *, has_extra_columns: bool) -> int:
    """Gives rows with invalid ids new ids after `last`. Returns the number of these rows."""
    kind = KINDS[table]
    op.execute(
        "INSERT INTO renumbered_resources (kind, old_id, new_id)"
        f" SELECT '{kind}', id, {last} + row_number() OVER (ORDER BY id) FROM {table}"
        f" WHERE id NOT BETWEEN 1 AND {LARGEST_ID}"
    )
    columns = [(table, "id"), ("undecodable_bodies", "id")]
    if has_extra_columns:
        columns.append((f"{table}_extra_columns", "id"))
    if table == "posts":
        columns.append(("comments", "post_id"))
    for where, column in columns:
        of_kind = f" AND kind = '{kind}'" if where == "undecodable_bodies" else ""
        # Ids of comments without a post have no new id, and stay.
        op.execute(
            f"UPDATE {where} SET {column} = coalesce((SELECT new_id FROM renumbered_resources"
            f" WHERE kind = '{kind}' AND old_id = {where}.{column}), {column})"
            f" WHERE {column} NOT BETWEEN 1 AND {LARGEST_ID}{of_kind}"
        )
    counted = f"SELECT count(*) FROM renumbered_resources WHERE kind = '{kind}'"
    return int(op.get_bind().scalar(sa.text(counted)) or 0)


def _alter() -> None:
    """Changes the tables in place, on PostgreSQL."""
    for table in KINDS:
        op.execute(f"UPDATE {table} SET body = '' WHERE body IS NULL")
        op.execute(
            f"ALTER TABLE {table}"
            # An identity may have been added by hand. A new one is added at the end.
            " ALTER id DROP IDENTITY IF EXISTS,"
            " ALTER id DROP DEFAULT,"
            " ALTER id TYPE BIGINT,"
            " ALTER body TYPE TEXT,"
            " ALTER body SET NOT NULL,"
            " ADD create_time BIGINT,"
            " ADD update_time BIGINT,"
            " ADD version BIGINT DEFAULT 1 NOT NULL"
        )
    op.execute("ALTER TABLE comments ALTER post_id TYPE BIGINT, ALTER post_id SET NOT NULL")


def _restart(last: dict[str, int]) -> None:
    """Restarts the identities after the last ids, and adds the foreign key again, on PostgreSQL."""
    for table in KINDS:
        old = op.get_bind().scalar(sa.text(f"SELECT pg_get_serial_sequence('{table}', 'id')"))
        if old is not None:
            op.execute(f"DROP SEQUENCE {old}")
        op.execute(f"ALTER TABLE {table} ALTER id ADD GENERATED BY DEFAULT AS IDENTITY")
        op.execute(f"ALTER TABLE {table} ALTER id RESTART WITH {last[table] + 1}")
    op.create_foreign_key("comments_post_id_fkey", "comments", "posts", ["post_id"], ["id"])


def _copy(last: dict[str, int]) -> None:
    """Copies the rows to new tables, because SQLite cannot change constraints of a column in place."""
    op.create_table(
        "new_posts",
        sa.Column("id", Id, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger),
        sa.Column("update_time", sa.BigInteger),
        sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "new_comments",
        sa.Column("id", Id, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("post_id", Id, sa.ForeignKey("posts.id", name="comments_post_id_fkey"), nullable=False),
        sa.Column("create_time", sa.BigInteger),
        sa.Column("update_time", sa.BigInteger),
        sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        sqlite_autoincrement=True,
    )

    _copy_rows("posts", "id", "coalesce(CAST(body AS TEXT), '')")
    _copy_rows("comments", "id", "coalesce(CAST(body AS TEXT), '')", "post_id")
    op.execute("DELETE FROM sqlite_sequence WHERE name IN ('new_posts', 'new_comments')")
    for table in KINDS:
        op.execute(f"INSERT INTO sqlite_sequence (name, seq) VALUES ('new_{table}', {last[table]})")

    _report("removing the old tables")
    indexes = _indexes()
    op.drop_table("comments")
    op.drop_table("posts")
    # Without this SQLite checks all views and triggers when a table is renamed, and fails at those that use
    # `posts`, which does not exist at this moment.
    op.execute("PRAGMA legacy_alter_table = ON")
    op.rename_table("new_posts", "posts")
    op.rename_table("new_comments", "comments")
    op.execute("PRAGMA legacy_alter_table = OFF")
    for name, statement in indexes:
        try:
            # Unchanged, because SQLAlchemy would read a colon as a parameter.
            op.get_bind().exec_driver_sql(statement)
        except sa.exc.DBAPIError:
            log.warning("index could not be recreated and was removed", index=name)


def _copy_rows(table: str, *values: str) -> None:
    """Copies the rows in the order of their ids, STEP_ROWS at a time, and reports the progress."""
    columns = ", ".join(("id", "body", "post_id")[: len(values)])
    total = op.get_bind().scalar(sa.text(f"SELECT count(*) FROM {table}"))
    last = done = 0
    while done < total:
        _report(f"copying {table}", done, total)
        # All ids are at least 1.
        op.execute(
            f"INSERT INTO new_{table} ({columns}) SELECT {', '.join(values)} FROM {table}"
            f" WHERE id > {last} ORDER BY id LIMIT {STEP_ROWS}"
        )
        last = op.get_bind().scalar(sa.text(f"SELECT max(id) FROM new_{table}"))
        done += STEP_ROWS


def _indexes() -> list[tuple[str, str]]:
    """Returns names and SQL of additional indexes, which are dropped with the old tables."""
    rows = op.get_bind().execute(
        sa.text(
            "SELECT name, sql FROM sqlite_master"
            " WHERE type = 'index' AND sql IS NOT NULL AND lower(tbl_name) IN ('posts', 'comments')"
        )
    )
    return [(name, statement) for name, statement in rows]


def _log_counts() -> None:
    tables = sa.inspect(op.get_bind()).get_table_names()
    for table, event in (
        ("orphaned_comments", "comments without a post moved to the table orphaned_comments"),
        (
            "undecodable_bodies",
            "bodies that were not UTF-8 were converted; their bytes are in the table undecodable_bodies",
        ),
        (
            "renumbered_resources",
            "ids below 1 or above 2**62 were replaced; old and new are in the table renumbered_resources",
        ),
        ("posts_extra_columns", "columns of posts that are not the service's moved to posts_extra_columns"),
        (
            "comments_extra_columns",
            "columns of comments that are not the service's moved to comments_extra_columns",
        ),
    ):
        if table not in tables:
            continue
        count = op.get_bind().scalar(sa.text(f"SELECT count(*) FROM {table}"))
        if count:
            log.warning(event, count=count)
