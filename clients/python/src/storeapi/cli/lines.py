"""The format of `storeapi export`: one JSON object per line, each a record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from typing import IO, Any, Final

from storeapi import Record
from storeapi._resources import RESOURCE_TYPES, TIMES
from storeapi.cli import output
from storeapi.cli.failures import CommandFailed

_STATES: Final = ("live", "deleted", "revision")

_OF_RECORD: Final[Mapping[str, type]] = {
    "state": str,
    "post_external_id": str,
    "reply_to_external_id": str,
    "ancestor_ids": tuple,
    "deleted_with": int,
}
"""The fields of a line that are not fields of the resource; those with an empty value are left out."""


@dataclass(frozen=True, kw_only=True)
class Line(Record):
    """A record of a file."""

    number: int
    """The number of the line, from 1."""


def line_of(record: Record) -> bytes:
    """A record as a line of a file."""
    values: dict[str, Any] = {"kind": kind_of(record), **output.record(record.resource)}
    for name in _OF_RECORD:
        value = getattr(record, name)
        if value and value != "live":
            values[name] = value
    return output.as_line(values)


def kind_of(record: Record) -> str:
    """The name of the resource type of a record."""
    return type(record.resource).__name__.lower()


def read(file: IO[bytes], *, ignore_unknown_fields: bool = False) -> Iterator[Line]:
    """Reads the records of a file; empty lines are skipped.

    Args:
        file: The file.
        ignore_unknown_fields: Read records without the fields that this version does not know.

    Raises:
        CommandFailed: A line is invalid.
    """
    for number, text in enumerate(file, start=1):
        if text.strip():
            yield _line(text, number, ignore_unknown_fields=ignore_unknown_fields)


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
    if values.get("state") is not None and values["state"] not in _STATES:
        raise _invalid(number, f"state must be {', '.join(map(json.dumps, _STATES))}")
    types = {it.name: _type_of(it.name, it.type) for it in fields(resource_type.model)}
    unknown = sorted(values.keys() - {*types, *_OF_RECORD})
    if unknown and not ignore_unknown_fields:
        raise _invalid(
            number,
            f"unknown field {unknown[0]!r} of a {kind}; use a version of storeapi that knows it, or "
            "--ignore-unknown-fields to import without it",
        )
    # A record without an id is found by its external id.
    resource: dict[str, Any] = {"id": 0, "body": "", **({"post_id": 0} if kind == "comment" else {})}
    more: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or name in unknown:
            continue
        if name in _OF_RECORD:
            more[name] = _value(name, _OF_RECORD[name], value, number)
        else:
            resource[name] = _value(name, types[name], value, number)
    return Line(resource=resource_type.model(**resource), number=number, **more)


def _type_of(name: str, type: Any) -> Any:
    return datetime if name in TIMES else dict if name == "labels" else type


def _value(name: str, kind: Any, value: Any, number: int) -> Any:
    """A value as the model has it. The service checks its limits."""
    if kind is int:
        if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
            raise _invalid(number, f"{name} must be an integer")
    elif kind is dict:
        if not isinstance(value, dict):
            raise _invalid(number, f"{name} must be an object")
        for key, label in value.items():
            _value(f"a key of {name}", str, key, number)
            _value(f"{name}.{key}", str, label, number)
    elif kind is tuple:
        if not isinstance(value, list):
            raise _invalid(number, f"{name} must be an array")
        return tuple(_value(f"an element of {name}", int, it, number) for it in value)
    elif not isinstance(value, str):
        raise _invalid(number, f"{name} must be a text")
    elif any("\ud800" <= character <= "\udfff" for character in value):
        raise _invalid(number, f"{name} contains an invalid character")
    elif kind is datetime:
        return _time(name, value, number)
    return value


def _time(name: str, value: str, number: int) -> datetime:
    try:
        # Python 3.10 does not know Z.
        time = datetime.fromisoformat(value.removesuffix("Z") + "+00:00" * value.endswith("Z"))
    except ValueError:
        time = None
    if time is None or time.utcoffset() is None:
        raise _invalid(number, f"{name} must be a time such as 2026-11-22T12:00:00.000000Z")
    return time.astimezone(timezone.utc)


def _invalid(number: int, reason: str) -> CommandFailed:
    return CommandFailed(f"line {number}: {reason}")
