"""The formats of other systems that `storeapi import --format` reads.

A format is a function `read(source, report)` that takes a `Source` and a `Report`, yields a `Record` for each
post and comment in any order, and reports what it leaves out. `Spool` does the rest, the same for every
format: duplicates, order, missing parents, deleted comments and the limits of the service.

A package adds a format with an entry point of the group `storeapi.formats`, whose name is the name of the
format:

    [project.entry-points."storeapi.formats"]
    example = "example_comments:read"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final, TypeAlias, cast

from storeapi.formats.records import KINDS, FormatError, Record, RecordKind, Report, parse_time
from storeapi.formats.source import Source
from storeapi.formats.spool import ImportedRecord, Spool

Reader: TypeAlias = Callable[[Source, Report], Iterator[Record]]

BUILT_IN: Final = ("disqus", "isso", "remark42", "wordpress")
"""Each is the function `read` of the module with this name."""

GROUP: Final = "storeapi.formats"
"""The group of entry points of other packages."""


def names() -> list[str]:
    """The names of all formats."""
    return sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=GROUP))})


def reader(name: str) -> Reader:
    """The function that reads a format.

    Raises:
        LookupError: No format has this name.
    """
    if name in BUILT_IN:
        return cast(Reader, import_module(f"storeapi.formats.{name}").read)
    for entry in entry_points(group=GROUP, name=name):
        return cast(Reader, entry.load())
    raise LookupError(f"no format has the name {name!r}; the formats are {', '.join(names())}")


__all__ = [
    "BUILT_IN",
    "KINDS",
    "FormatError",
    "ImportedRecord",
    "Reader",
    "Record",
    "RecordKind",
    "Report",
    "Source",
    "Spool",
    "names",
    "parse_time",
    "reader",
]
