"""Shows what the upgrade of a legacy database would change. Changes nothing."""

# ruff: noqa: S608  # only our own names and numbers are inserted into statements

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy

from store_service.database import legacy_preflight
from store_service.database.engines import read_only_engine

SECONDS_FOR_ONE = 3.0
"""Approximate duration of an upgrade per second of the preview, which reads the same rows."""

LARGEST_ID = 2**62
"""Rows with larger ids get new ids; see revision 0002."""

_ORPHANED = "NOT EXISTS (SELECT 1 FROM posts WHERE posts.id = comments.post_id)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The rows of a legacy database, and how an upgrade would change them."""

    posts: int
    comments: int
    orphans: int
    """Comments without a post, which move to `orphaned_comments`."""
    undecodable: int
    """Bodies that are not UTF-8. Their bytes are kept in `undecodable_bodies`."""
    renumbered: int
    """Ids that are replaced. They are kept in `renumbered_resources`."""
    extra_columns: dict[str, list[str]]
    """Columns that are moved to another table, by table."""
    seconds: float
    """Rough estimate of the duration of the upgrade."""

    def lines(self) -> Iterator[str]:
        """Yields the preview as text, without counts that are 0."""
        yield f"{self.posts:,} posts, {self.comments:,} comments, in about {max(1, round(self.seconds)):,} s"
        for count, what in (
            (self.orphans, "comments without a post move to the table orphaned_comments"),
            (
                self.undecodable,
                "bodies that are not UTF-8 become text, their bytes stay in undecodable_bodies",
            ),
            (self.renumbered, "ids are replaced, old and new are kept in renumbered_resources"),
        ):
            if count:
                yield f"{count:,} {what}"
        for table, names in self.extra_columns.items():
            yield f"columns {', '.join(names)} of {table} move to {table}_extra_columns"


def preview(database_url: str, *, connect_timeout_seconds: float) -> Preview:
    """Counts the rows that an upgrade would change.

    Args:
        database_url: A legacy database that can be upgraded.
        connect_timeout_seconds: Maximum time to open a connection to PostgreSQL.
    """
    engine = read_only_engine(database_url, connect_timeout_seconds=connect_timeout_seconds)
    try:
        with engine.connect() as connection:
            began = time.monotonic()
            posts, comments, orphans, renumbered = connection.exec_driver_sql(_COUNTS).one()
            undecodable = _undecodable(connection) if connection.dialect.name == "sqlite" else 0
            return Preview(
                posts=posts,
                comments=comments,
                orphans=orphans,
                undecodable=undecodable,
                renumbered=renumbered,
                extra_columns=legacy_preflight.extra_columns(connection),
                seconds=(time.monotonic() - began) * SECONDS_FOR_ONE,
            )
    finally:
        engine.dispose()


_COUNTS = (
    "SELECT (SELECT count(*) FROM posts), (SELECT count(*) FROM comments),"
    f" (SELECT count(*) FROM comments WHERE {_ORPHANED}),"
    f" (SELECT count(*) FROM posts WHERE id NOT BETWEEN 1 AND {LARGEST_ID})"
    f" + (SELECT count(*) FROM comments WHERE id NOT BETWEEN 1 AND {LARGEST_ID} AND NOT {_ORPHANED})"
)


def _undecodable(connection: sqlalchemy.Connection) -> int:
    """Counts the bodies that are not UTF-8. Only on SQLite, because PostgreSQL accepts only UTF-8."""
    raw: Any = connection.connection.driver_connection
    raw.text_factory = bytes
    try:
        return sum(
            not legacy_preflight.is_text(body)
            for table in legacy_preflight.COLUMNS_BEFORE
            for (body,) in raw.execute(
                f"SELECT CAST(body AS TEXT) FROM {table} WHERE typeof(body) IN ('text', 'blob')"
            )
        )
    finally:
        raw.text_factory = str
