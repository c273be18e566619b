"""Puts the records of a file into the order of an import, on disk, and adapts them to the service."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import Any, Final

from storeapi.formats.records import KINDS, MAX_EXAMPLES, Record, RecordKind, Report
from storeapi.formats.texts import (
    MAX_BODY_BYTES,
    MAX_DEPTH,
    MAX_IDENTIFIER_BYTES,
    external_id,
    is_address,
    one_line,
    shortened,
    without_invalid_characters,
)

DELETED_BODY: Final = "deleted"
"""The body of a deleted comment that has replies."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_UNKNOWN_TIME: Final = 1 << 62
"""Records without a time come last: they get the time of the import."""

_TABLE: Final = """
CREATE TABLE records (
    seq INTEGER PRIMARY KEY, kind TEXT, id TEXT, place TEXT, body TEXT, author TEXT, labels TEXT,
    created INTEGER, updated INTEGER, post_id TEXT, reply_to_id TEXT, is_deleted INTEGER,
    needs_comments INTEGER, is_repeated INTEGER, UNIQUE (kind, id));
"""
_INSERT: Final = """
INSERT INTO records (
    kind, id, place, body, author, labels, created, updated, post_id, reply_to_id, is_deleted, needs_comments,
    is_repeated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_REPEATED: Final = (
    "UPDATE records SET created = min(created, ?) WHERE kind = 'post' AND id = ? AND is_repeated"
)
_INDEXES: Final = """
CREATE INDEX by_parent ON records (reply_to_id) WHERE reply_to_id <> '';
CREATE INDEX by_post ON records (post_id) WHERE kind = 'comment';
"""
_HAS_POST: Final = "EXISTS (SELECT 1 FROM records p WHERE p.kind = 'post' AND p.id = records.post_id)"
_PARENT: Final = "SELECT 1 FROM records p WHERE p.kind = 'comment' AND p.id = records.reply_to_id"
_HAS_REPLY: Final = (
    "EXISTS (SELECT 1 FROM records r WHERE r.reply_to_id = records.id AND r.reply_to_id <> '')"
)
_HAS_COMMENT: Final = "EXISTS (SELECT 1 FROM records c WHERE c.kind = 'comment' AND c.post_id = records.id)"

# A reply is not before the comment that it replies to: its rank is the later of both times. A reply below the
# maximum depth replies to the last comment above it that can have replies.
_PLACES: Final = f"""
CREATE TABLE places (seq INTEGER PRIMARY KEY, rank INTEGER, depth INTEGER, parent TEXT, moved INTEGER);
WITH RECURSIVE placed (seq, id, rank, depth, parent, moved) AS (
    SELECT seq, id, created, 0, '', 0 FROM records WHERE kind = 'comment' AND reply_to_id = ''
    UNION ALL
    SELECT r.seq, r.id, max(p.rank, r.created), min(p.depth + 1, {MAX_DEPTH}),
        CASE WHEN p.depth < {MAX_DEPTH} THEN p.id ELSE p.parent END, p.depth >= {MAX_DEPTH}
    FROM placed p JOIN records r ON r.reply_to_id = p.id AND r.reply_to_id <> '')
INSERT INTO places SELECT seq, rank, depth, parent, moved FROM placed;
"""
_UNPLACED: Final = "kind = 'comment' AND seq NOT IN (SELECT seq FROM places)"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedRecord:
    """A post or comment as it is imported."""

    kind: RecordKind
    """The resource type."""
    external_id: str
    """PREFIX:ID."""
    place: str
    """Where it is in the file."""
    body: str
    """The text."""
    author: str
    """The author; empty if it has none."""
    labels: Mapping[str, str]
    """The labels."""
    create_time: datetime | None
    """When it was created, in UTC; None: at the time of the import."""
    update_time: datetime | None
    """When it was last changed, in UTC; None if it was not changed."""
    post_external_id: str = ""
    """Of comments: the external id of the post."""
    reply_to_external_id: str = ""
    """Of comments: the external id of the comment that it replies to; empty at the top level."""


class Spool:
    """Takes the records of a file in any order, and returns those to import: posts first, each comment after
    its post and after the comment that it replies to, otherwise in the order of their times.

    The records are in a temporary SQLite database, which SQLite deletes when it is closed: memory does not
    grow with the file. The folder is the one for temporary files (`SQLITE_TMPDIR`, `TMPDIR`, or `/var/tmp`).
    """

    def __init__(self, *, source: str, prefix: str, report: Report) -> None:
        """Creates an empty spool.

        Args:
            source: The name of the format, for the label `source`.
            prefix: The beginning of external ids.
            report: Counts the records that are left out or changed.
        """
        self._source = source
        self._prefix = prefix
        self._report = report
        self._database = database = sqlite3.connect("", isolation_level=None)
        database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA temp_store = FILE;"
            f"PRAGMA cache_size = -8192; {_TABLE} BEGIN;"
        )

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, records: Iterable[Record]) -> None:
        """Stores all records of a file, and leaves out those that cannot be imported.

        Raises:
            sqlite3.OperationalError: The folder for temporary files is full.
        """
        for record in records:
            self._add(record)
        self._database.executescript(_INDEXES)
        self._leave_out("comment", f"NOT {_HAS_POST}", "its post is not imported")
        # A deleted comment can be the only reply to another deleted comment.
        while self._leave_out("comment", f"is_deleted AND NOT {_HAS_REPLY}", "deleted, without replies"):
            pass
        self._leave_out("post", f"needs_comments AND NOT {_HAS_COMMENT}", "without comments")
        for kind in KINDS:
            self._change(
                kind,
                f"kind = '{kind}' AND created = {_UNKNOWN_TIME}",
                "without a valid time, so it gets the time of the import",
            )
        self._to_top_level(
            f"reply_to_id <> '' AND NOT EXISTS ({_PARENT})",
            "at the top level, because the comment it replies to is not imported",
        )
        self._to_top_level(
            f"reply_to_id <> '' AND NOT EXISTS ({_PARENT} AND p.post_id = records.post_id)",
            "at the top level, because the comment it replies to is on another post",
        )
        self._database.executescript(_PLACES)
        self._change(
            "comment", _UNPLACED, "at the top level, because it is a reply to itself or to its replies"
        )
        self._database.executescript(
            f"INSERT INTO places SELECT seq, created, 0, '', 0 FROM records WHERE {_UNPLACED};"
            "CREATE INDEX by_rank ON places (rank, depth, seq);"
        )
        self._change(
            "comment",
            "seq IN (SELECT seq FROM places WHERE moved)",
            f"deeper than {MAX_DEPTH} replies, so it replies to a comment higher up",
        )

    def counts(self) -> dict[RecordKind, int]:
        """The number of records to import, by kind."""
        rows = self._database.execute("SELECT kind, count(*) FROM records GROUP BY kind")
        return {**dict.fromkeys(KINDS, 0), **dict(rows)}

    def records(self, kind: RecordKind) -> Iterator[ImportedRecord]:
        """The records of a kind to import, in their order."""
        columns = "kind, id, place, body, author, labels, created, updated, post_id"
        posts = f"SELECT {columns}, '' FROM records WHERE kind = 'post' ORDER BY created, seq"
        comments = (
            f"SELECT {columns}, p.parent FROM places p JOIN records r ON r.seq = p.seq"
            " ORDER BY p.rank, p.depth, p.seq"
        )
        for row in self._database.execute(posts if kind == "post" else comments):
            yield self._imported(*row)

    def _imported(
        self,
        kind: RecordKind,
        id: str,
        place: str,
        body: str,
        author: str,
        labels: str,
        created: int,
        updated: int | None,
        post_id: str,
        parent: str,
    ) -> ImportedRecord:
        return ImportedRecord(
            kind=kind,
            external_id=external_id(self._prefix, id),
            place=place,
            body=body,
            author=author,
            labels=json.loads(labels),
            create_time=None if created == _UNKNOWN_TIME else _EPOCH + timedelta(microseconds=created),
            update_time=None if updated is None else _EPOCH + timedelta(microseconds=updated),
            post_external_id=external_id(self._prefix, post_id) if post_id else "",
            reply_to_external_id=external_id(self._prefix, parent) if parent else "",
        )

    def _add(self, record: Record) -> None:
        kind, place = record.kind, without_invalid_characters(record.place)
        id = without_invalid_characters(record.id)
        post_id = without_invalid_characters(record.post_id) if kind == "comment" else ""
        reply_to_id = without_invalid_characters(record.reply_to_id) if kind == "comment" else ""
        created = _UNKNOWN_TIME if record.create_time is None else _microseconds(record.create_time)
        if record.is_repeated and self._database.execute(_REPEATED, (created, id)).rowcount:
            return
        self._report.count("read", kind)
        if not id:
            self._report.leave_out(kind, "without an id", place)
            return
        updated = None
        if record.update_time is not None and created != _UNKNOWN_TIME:
            updated = max(_microseconds(record.update_time), created)
        if record.is_deleted:
            body, author = DELETED_BODY, ""
        else:
            body, author = self._body(record), self._author(record)
        if not body.strip():
            self._report.leave_out(kind, "without text", place)
            return
        values = (
            kind,
            id,
            place,
            body,
            author,
            json.dumps(self._labels(record)),
            created,
            updated,
            post_id,
            reply_to_id,
            record.is_deleted,
            record.needs_comments,
            record.is_repeated,
        )
        try:
            self._database.execute(_INSERT, values)
        except sqlite3.IntegrityError:
            self._report.leave_out(kind, "an earlier one has the same id", place)

    def _body(self, record: Record) -> str:
        body = record.body
        if record.kind == "post" and not body.strip():
            parts = [it.strip() for it in (record.title, record.url) if it.strip()]
            body = "\n".join(parts) or external_id(self._prefix, record.id)
        body = self._shortened("text", without_invalid_characters(body), MAX_BODY_BYTES, record)
        if "\ufffd" in body:
            self._report.change(record.kind, "U+FFFD in the place of invalid characters", record.place)
        return body

    def _author(self, record: Record) -> str:
        author = one_line(record.author)
        if is_address(author):
            self._report.change(record.kind, "author left out: an e-mail address or IP address", record.place)
            return ""
        return self._shortened("author", author, MAX_IDENTIFIER_BYTES, record)

    def _labels(self, record: Record) -> dict[str, str]:
        labels = {"source": self._source}
        if record.is_deleted:
            labels["status"] = "deleted"
            return labels
        title = one_line(record.title)
        if title:
            labels["title"] = self._shortened("title", title, MAX_IDENTIFIER_BYTES, record)
        for key, value in {"url": record.url, **record.labels}.items():
            text = one_line(value)
            # A part of an identifier identifies something else.
            if len(text.encode()) > MAX_IDENTIFIER_BYTES:
                self._report.change(
                    record.kind,
                    f"label {key} left out: more than {MAX_IDENTIFIER_BYTES} bytes",
                    record.place,
                )
            elif text:
                labels[key] = text
        return labels

    def _shortened(self, name: str, text: str, max_bytes: int, record: Record) -> str:
        short = shortened(text, max_bytes)
        if len(short) < len(text):
            self._report.change(record.kind, f"{name} cut after {max_bytes:,} bytes", record.place)
        return short

    def _leave_out(self, kind: RecordKind, condition: str, reason: str) -> int:
        condition = f"kind = '{kind}' AND {condition}"
        count, places = self._matches(condition)
        if count:
            self._report.leave_out(kind, reason, "", count)
            for place in places:
                self._report.leave_out(kind, reason, place, 0)
            self._database.execute(f"DELETE FROM records WHERE {condition}")
        return count

    def _to_top_level(self, condition: str, description: str) -> None:
        self._change("comment", condition, description)
        self._database.execute(f"UPDATE records SET reply_to_id = '' WHERE {condition}")

    def _change(self, kind: RecordKind, condition: str, description: str) -> None:
        count, places = self._matches(condition)
        if count:
            self._report.change(kind, description, "", count)
            for place in places:
                self._report.change(kind, description, place, 0)

    def _matches(self, condition: str) -> tuple[int, list[str]]:
        """The number of records that meet a condition, and the first places."""
        number: tuple[Any] = self._database.execute(
            f"SELECT count(*) FROM records WHERE {condition}"
        ).fetchone()
        places = self._database.execute(
            f"SELECT place FROM records WHERE {condition} ORDER BY seq LIMIT {MAX_EXAMPLES}"
        )
        return number[0], [place for (place,) in places]


def _microseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)
