"""Isso: its SQLite database (`dbpath` in its configuration)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from storeapi.formats.records import Record, Report
from storeapi.formats.source import Source
from storeapi.formats.texts import MAX_BODY_BYTES

_STATUS: Final[Mapping[int, str]] = {1: "approved", 2: "pending", 4: "deleted"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)

_EXPECTED: Final = {
    "threads": {"id", "uri", "title"},
    "comments": {"tid", "id", "parent", "created", "modified", "mode", "text", "author"},
}
_LEFT_OUT: Final = (
    ("email", "e-mail address left out"),
    ("remote_addr", "IP address left out"),
    ("website", "web site of the author left out"),
    ("likes", "votes left out"),
    ("dislikes", "votes left out"),
)
_READ: Final = frozenset(_EXPECTED["comments"] - {"text"} | {name for name, _ in _LEFT_OUT})
"""Other columns can be large, such as the voters."""
# No more than a body can have. In a text, SQLite would end at NUL.
_BODY: Final = f"substr(CAST(text AS BLOB), 1, {MAX_BODY_BYTES + 4}) AS body"

_THREADS: Final = """
SELECT id, uri, title, created
FROM threads LEFT JOIN (SELECT tid, min(created) AS created FROM comments GROUP BY tid) ON tid = id
ORDER BY id
"""


def read(source: Source, report: Report) -> Iterator[Record]:
    """Reads threads with comments as posts, and comments. The database can be in use."""
    uri = f"{source.path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as database:
            database.row_factory = sqlite3.Row
            database.text_factory = lambda value: value.decode(errors="replace")
            # The file may be from somebody else: its views and triggers must not call functions.
            database.execute("PRAGMA trusted_schema = OFF")
            columns = {name: _columns(database, name) for name in _EXPECTED}
            for name, expected in _EXPECTED.items():
                if missing := ", ".join(sorted(expected - columns[name])):
                    raise source.error("", f"not a database of Isso: the table {name} has no {missing}")
            # One transaction: the database can change while it is read.
            database.execute("BEGIN")
            for row in database.execute(_THREADS):
                yield _post(row)
            names = columns["comments"] & _READ
            for row in database.execute(f"SELECT {', '.join(names)}, {_BODY} FROM comments ORDER BY id"):
                yield _comment(row, names, report)
    except sqlite3.Error as error:
        raise source.error("", f"cannot be read as the SQLite database of Isso: {error}") from None


def _columns(database: sqlite3.Connection, table: str) -> set[str]:
    kinds = dict(database.execute("SELECT name, type FROM sqlite_master"))
    if kinds.get(table) != "table":
        return set()
    return {row["name"] for row in database.execute(f"PRAGMA table_info({table})")}


def _post(row: sqlite3.Row) -> Record:
    return Record(
        kind="post",
        id=_text(row["id"]),
        place=f"thread {row['id']}",
        title=_text(row["title"]),
        url=_text(row["uri"]),
        create_time=_time(row["created"]),
        needs_comments=True,
    )


def _comment(row: sqlite3.Row, columns: set[str], report: Report) -> Record:
    place = f"comment {row['id']}"
    is_deleted = row["mode"] == 4
    if not is_deleted:
        for description in dict.fromkeys(text for name, text in _LEFT_OUT if name in columns and row[name]):
            report.change("comment", description, place)
    parent = _text(row["parent"])
    return Record(
        kind="comment",
        id=_text(row["id"]),
        place=place,
        body=_text(row["body"]),
        author=_text(row["author"]),
        create_time=_time(row["created"]),
        update_time=_time(row["modified"]),
        labels={"status": _STATUS.get(row["mode"], _text(row["mode"]))},
        post_id=_text(row["tid"]),
        reply_to_id="" if parent == "0" else parent,
        is_deleted=is_deleted,
    )


def _text(value: Any) -> str:
    """The value of a column, which can have any type in SQLite."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)


def _time(value: Any) -> datetime | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        return None
    try:
        return _EPOCH + timedelta(seconds=value)
    except (OverflowError, ValueError):
        return None
