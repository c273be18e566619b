"""Reads files of other systems as `storeapi import --format` does, without a service."""

from collections.abc import Iterable
from pathlib import Path

from storeapi.formats import KINDS, ImportedRecord, Record, Report, Source, Spool, reader


def read_file(name: str, path: Path) -> tuple[list[ImportedRecord], Report]:
    """The records to import from a file, and the report."""
    report = Report()
    return spooled(reader(name)(Source(path), report), name, report), report


def spooled(records: Iterable[Record], name: str, report: Report) -> list[ImportedRecord]:
    """The records to import, in their order."""
    with Spool(source=name, prefix=name, report=report) as spool:
        spool.add(records)
        imported = [it for kind in KINDS for it in spool.records(kind)]
        assert spool.counts() == {kind: sum(it.kind == kind for it in imported) for kind in KINDS}
    return imported


def left_out(report: Report) -> dict[str, list[str]]:
    """The places of what is not imported, by kind and reason."""
    return {f"{kind}: {reason}": entry.examples for (kind, reason), entry in report.left_out.items()}


def changed(report: Report) -> dict[str, list[str]]:
    """The places of what is changed, by kind and description."""
    return {f"{kind}: {text}": entry.examples for (kind, text), entry in report.changed.items()}
