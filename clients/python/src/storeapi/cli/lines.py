"""The format of `storeapi export`: one JSON object per line, each a post or a comment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import IO, Any, Final

from storeapi._resources import COMMENTS, POSTS, RESOURCE_TYPES, ResourceType
from storeapi.cli import output
from storeapi.cli.failures import CommandFailed
from storeapi.cli.progress import Report
from storeapi.model import CommentDraft, PostDraft, Resource

PLACEHOLDER: Final = "deleted"
"""The body of an imported resource whose body in the file is empty: a comment that becomes a tombstone at the
end of the import, or a post whose author was erased."""

LINES_BETWEEN_REPORTS: Final = 1000
"""While a file is checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A post or comment of a file."""

    number: int
    """The line number, from 1."""
    kind: str
    """The name of the resource type."""
    id: int
    """The id in the file."""
    draft: PostDraft | CommentDraft
    """The resource to create; `post_id` and `reply_to_id` are ids in the file."""
    is_tombstone: bool = False
    """Whether it is the tombstone of a deleted comment; `body` is PLACEHOLDER then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """The number of resources in a file."""

    posts: int
    comments: int
    orphans: int
    """The number of comments that reply to a comment that is not in the file."""


def line_of(resource: Resource, *, for_terminal: bool = False) -> bytes:
    """A post or comment as a line of a file, or as a line that a terminal shows."""
    kind = type(resource).__name__.lower()
    return output.as_line({"kind": kind, **output.record(resource)}, for_terminal=for_terminal)


def read(file: IO[bytes], kind: str | None = None, *, ignore_unknown_fields: bool = True) -> Iterator[Line]:
    """Reads the lines of a file from its start, of one kind or of all; empty lines are skipped."""
    file.seek(0)
    for number, text in enumerate(file, start=1):
        if text.strip():
            line = _line(text, number, ignore_unknown_fields=ignore_unknown_fields)
            if kind is None or line.kind == kind:
                yield line


def check(file: IO[bytes], report: Report, *, ignore_unknown_fields: bool = False) -> Contents:
    """Reads the whole file, so that an invalid one fails before anything is stored.

    Args:
        file: The file, which is read from its start.
        report: Called with the progress.
        ignore_unknown_fields: Accept fields that this version does not know.

    Raises:
        CommandFailed: A line is invalid, an id or external id is duplicate, the post of a comment is not in
            the file, or a comment does not come before the replies to it or is on another post.
    """
    known: dict[str, set[int]] = {kind: set() for kind in RESOURCE_TYPES}
    external_ids: dict[str, set[str]] = {kind: set() for kind in RESOURCE_TYPES}
    first_comments: dict[int, int] = {}
    posts: dict[int, int] = {}
    first_replies: dict[int, int] = {}
    orphans = 0
    size = os.fstat(file.fileno()).st_size
    report("checking the file", 0, 0.0)
    for line in read(file, ignore_unknown_fields=ignore_unknown_fields):
        if line.number % LINES_BETWEEN_REPORTS == 0:
            report("checking the file", line.number, file.tell() / size)
        if line.id in known[line.kind]:
            raise _invalid(line.number, f"duplicate {line.kind} {line.id}")
        known[line.kind].add(line.id)
        if line.draft.external_id in external_ids[line.kind]:
            raise _invalid(line.number, f"duplicate external_id {line.draft.external_id!r} of a {line.kind}")
        if line.draft.external_id:
            external_ids[line.kind].add(line.draft.external_id)
        if isinstance(line.draft, CommentDraft):
            post_id, reply_to_id = line.draft.post_id, line.draft.reply_to_id
            first_comments.setdefault(post_id, line.number)
            if reply_to_id and reply_to_id not in posts:
                first_replies.setdefault(reply_to_id, line.number)
                orphans += 1
            elif reply_to_id and posts[reply_to_id] != post_id:
                raise _invalid(line.number, f"comment {reply_to_id}, which it replies to, is on another post")
            if line.id in first_replies:
                raise _invalid(
                    first_replies[line.id], f"comment {line.id} must come before the replies to it"
                )
            posts[line.id] = post_id
    for post_id, number in first_comments.items():
        if post_id not in known["post"]:
            raise _invalid(number, f"post {post_id} of this comment is not in the file")
    return Contents(posts=len(known["post"]), comments=len(known["comment"]), orphans=orphans)


def _line(text: bytes, number: int, *, ignore_unknown_fields: bool) -> Line:
    try:
        values = json.loads(text)
    # RecursionError: deeply nested arrays.
    except (ValueError, RecursionError):
        raise _invalid(number, "not valid JSON in UTF-8") from None
    if not isinstance(values, dict):
        raise _invalid(number, "not a JSON object")
    kind = values.pop("kind", None)
    resource_type = RESOURCE_TYPES.get(kind) if isinstance(kind, str) else None
    if resource_type is None:
        raise _invalid(number, f"kind must be {' or '.join(map(json.dumps, RESOURCE_TYPES))}")
    id = _value("id", int, values.pop("id", None), number)
    is_tombstone = False
    if values.get("delete_time") is not None:
        is_tombstone = resource_type is COMMENTS and values.get("body") == ""
        if not is_tombstone:
            raise _invalid(number, f"the {kind} is deleted; without delete_time it is imported as it was")
        values["body"] = PLACEHOLDER
    elif resource_type is POSTS and values.get("body") == "" and values.get("etag"):
        # Only an erasure empties a stored post. A line without an etag was not exported.
        values["body"] = PLACEHOLDER
    draft = {
        name: _field(resource_type, name, values.pop(name, None), number)
        for name in resource_type.draft_fields
        if name in values or name in resource_type.required
    }
    # Fields that only the service sets are ignored: new resources get new values.
    unknown = sorted(values.keys() - {it.name for it in fields(resource_type.model)})
    if unknown and not ignore_unknown_fields:
        raise _invalid(
            number,
            f"unknown field {unknown[0]!r} of a {kind}; use a version of storeapi that knows it, or "
            "--ignore-unknown-fields to import without it",
        )
    return Line(
        number=number,
        kind=resource_type.name,
        id=id,
        draft=resource_type.draft(**draft),
        is_tombstone=is_tombstone,
    )


def _field(resource_type: ResourceType[Any], name: str, value: object, number: int) -> Any:
    """The value of a field of a draft; only required ones must not be empty."""
    if name in resource_type.required:
        if value == "":
            raise _invalid(number, f"{name} must not be empty")
    elif resource_type.draft_fields[name] is int and value == 0 and value is not False:
        return value
    return _value(name, resource_type.draft_fields[name], value, number)


def _value(name: str, kind: object, value: object, number: int) -> Any:
    """A positive integer, labels or a text. The service checks the length of texts."""
    if kind is int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _invalid(number, f"{name} must be a positive integer")
    elif kind == Mapping[str, str]:
        if not isinstance(value, dict):
            raise _invalid(number, f"{name} must be an object")
        for key, label in value.items():
            _value(f"a key of {name}", str, key, number)
            _value(f"{name}.{key}", str, label, number)
    elif not isinstance(value, str):
        raise _invalid(number, f"{name} must be a text")
    elif "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise _invalid(number, f"{name} contains an invalid character")
    return value


def _invalid(number: int, reason: str) -> CommandFailed:
    return CommandFailed(f"line {number}: {reason}")
