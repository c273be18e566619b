"""The format of `storeapi export`: a JSON object in each line, a post or a comment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, Literal

from storeapi.cli import output
from storeapi.cli.failures import CommandFailed
from storeapi.cli.progress import Report
from storeapi.model import Comment, Post

Kind = Literal["post", "comment"]

LINES_BETWEEN_REPORTS: Final = 1000
"""While a file is checked."""

SET_BY_THE_SERVICE: Final = frozenset({"create_time", "update_time", "etag"})
"""Fields that an import reads over: what it adds gets its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A post or comment of a file."""

    number: int
    """Where it is in the file, from 1."""
    kind: Kind
    """What it is."""
    id: int
    """Its id in the file."""
    post_id: int
    """The id that the post has in the file; of a post, its own."""
    body: str
    """The text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a file holds."""

    posts: int
    """How many posts."""
    comments: int
    """How many comments."""


def line_of(item: Post | Comment, *, for_terminal: bool = False) -> bytes:
    """A post or comment as a line of a file, or of one that a terminal shows."""
    kind = "comment" if isinstance(item, Comment) else "post"
    return output.as_line({"kind": kind, **output.record(item)}, for_terminal=for_terminal)


def read(file: IO[bytes], kind: Kind | None = None) -> Iterator[Line]:
    """Reads the lines of a file from its start, of one kind or of both; empty ones are left out."""
    file.seek(0)
    for number, text in enumerate(file, start=1):
        if text.strip():
            line = _line(text, number)
            if kind is None or line.kind == kind:
                yield line


def check(file: IO[bytes], report: Report) -> Contents:
    """Reads the whole file, so that one that is damaged is refused before any of it is stored.

    Args:
        file: What to read, from its start.
        report: Is told how far it is.

    Raises:
        CommandFailed: A line is none, says something twice, or is a comment whose post is not in the file.
    """
    posts: set[int] = set()
    comments: set[int] = set()
    wanted: dict[int, int] = {}
    size = os.fstat(file.fileno()).st_size
    report("checking the file", 0, 0.0)
    for line in read(file):
        if line.number % LINES_BETWEEN_REPORTS == 0:
            report("checking the file", line.number, file.tell() / size)
        known = posts if line.kind == "post" else comments
        if line.id in known:
            raise _bad(line.number, f"{line.kind} {line.id} is there twice")
        known.add(line.id)
        if line.kind == "comment":
            wanted.setdefault(line.post_id, line.number)
    for post_id, number in wanted.items():
        if post_id not in posts:
            raise _bad(number, f"post {post_id} of this comment is not in the file")
    return Contents(posts=len(posts), comments=len(comments))


def _line(text: bytes, number: int) -> Line:
    try:
        fields = json.loads(text)
    # Arrays in arrays in arrays, without end.
    except (ValueError, RecursionError):
        raise _bad(number, "this is no JSON in UTF-8") from None
    if not isinstance(fields, dict):
        raise _bad(number, "this is no JSON object")
    kind = fields.pop("kind", None)
    if kind not in ("post", "comment"):
        raise _bad(number, 'kind must be "post" or "comment"')
    id = _id(fields, "id", number)
    post_id = _id(fields, "post_id", number) if kind == "comment" else id
    body = _body(fields, number)
    if unknown := sorted(fields.keys() - SET_BY_THE_SERVICE):
        raise _bad(number, f"a {kind} has no field {unknown[0]!r}")
    return Line(number=number, kind=kind, id=id, post_id=post_id, body=body)


def _id(fields: dict[str, Any], name: str, number: int) -> int:
    id = fields.pop(name, None)
    if not isinstance(id, int) or isinstance(id, bool) or id < 1:
        raise _bad(number, f"{name} must be a positive integer")
    return id


def _body(fields: dict[str, Any], number: int) -> str:
    # How long it may be is a setting of the service, which has the last word on the rest too.
    body = fields.pop("body", None)
    if not isinstance(body, str) or not body:
        raise _bad(number, "body must be a text that is not empty")
    if "\0" in body or any("\ud800" <= character <= "\udfff" for character in body):
        raise _bad(number, "body holds a character that no text may hold")
    return body


def _bad(number: int, why: str) -> CommandFailed:
    return CommandFailed(f"line {number}: {why}")
