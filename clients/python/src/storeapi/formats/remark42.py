"""remark42: a backup, which is one line of metadata and a line of JSON for each comment, usually in gzip."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from storeapi.formats.records import Record, Report, parse_time
from storeapi.formats.source import Source

MAX_LINE_BYTES: Final = 1 << 20
"""Size of the line of a comment. A longer one is left out."""

_VERSION: Final = re.compile(rb'\s*\{\s*"version"\s*:\s*(\d+)')


def read(source: Source, report: Report) -> Iterator[Record]:
    """Reads the comments, and a post for each page that has comments."""
    with source.open() as file:
        number = 0
        for number, line in _lines(file.readline):
            place = f"line {number}"
            if number == 1:
                _check_version(source, line)
            elif len(line) > MAX_LINE_BYTES:
                report.count("read", "comment")
                report.leave_out("comment", f"a line of more than {MAX_LINE_BYTES:,} bytes", place)
            elif line.strip():
                yield from _records(_comment(line), place, report)
        if not number:
            raise source.error("", "the file is empty; expected a backup of remark42")


def _lines(readline: Any) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers; of a line that is too long, only the beginning."""
    number = 0
    while line := readline(MAX_LINE_BYTES + 1):
        number += 1
        rest = line
        while rest and not rest.endswith(b"\n") and len(rest) > MAX_LINE_BYTES:
            rest = readline(MAX_LINE_BYTES + 1)
        yield number, line


def _check_version(source: Source, line: bytes) -> None:
    version = _VERSION.match(line.removeprefix(b"\xef\xbb\xbf"))
    if version is None:
        raise source.error("line 1", 'expected the line {"version": 1, ...} of a backup of remark42')
    if int(version[1]) not in (0, 1):
        raise source.error("line 1", f"version {int(version[1])} of backups is not supported; expected 1")


def _comment(line: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(line.decode(errors="replace"))
    # RecursionError: deeply nested arrays.
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _records(comment: Mapping[str, Any] | None, place: str, report: Report) -> Iterator[Record]:
    if comment is None:
        report.count("read", "comment")
        report.leave_out("comment", "a line that is not a JSON object", place)
        return
    url = _text(comment, "locator", "url")
    time = parse_time(_text(comment, "time"))
    if url:
        yield Record(
            kind="post",
            id=url,
            place=place,
            title=_text(comment, "title"),
            url=url,
            create_time=time,
            needs_comments=True,
            is_repeated=True,
        )
    is_deleted = comment.get("delete") is True
    if not is_deleted:
        if _text(comment, "user", "ip"):
            report.change("comment", "IP address left out", place)
        if comment.get("votes") or comment.get("score"):
            report.change("comment", "votes left out", place)
    yield Record(
        kind="comment",
        id=_text(comment, "id"),
        place=place,
        body=_text(comment, "text"),
        author=_text(comment, "user", "name"),
        create_time=time,
        update_time=parse_time(_text(comment, "edit", "time")),
        labels={"status": "approved", "pinned": "true" if comment.get("pin") is True else ""},
        post_id=url,
        reply_to_id=_text(comment, "pid"),
        is_deleted=is_deleted,
    )


def _text(value: Any, *path: str) -> str:
    """The text at a path; empty if there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""
