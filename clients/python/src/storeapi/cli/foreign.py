"""`storeapi import --format`: files of other systems."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import Any, Final

import click

from storeapi import Comment, ImportProgress, Post, StoreClient
from storeapi import Record as TransferRecord
from storeapi.cli import output, progress
from storeapi.cli.failures import CommandFailed, ExitCode
from storeapi.cli.settings import Settings
from storeapi.cli.text import one_line
from storeapi.formats import (
    KINDS,
    FormatError,
    ImportedRecord,
    Reader,
    Record,
    RecordKind,
    Report,
    Source,
    Spool,
    reader,
)
from storeapi.formats.records import Entry

_NUMBERS: Final = ("read", "created", "already there", "left out")
_MAX_PREFIX_BYTES: Final = 64
"""The rest of the 256 bytes of an external id is for a hash."""
_RECORDS_BETWEEN_REPORTS: Final = 100
_REFUSED: Final = "refused by the service"


def import_file(settings: Settings, file: Path, name: str, *, prefix: str, validate_only: bool) -> None:
    """Imports a file of a format, and prints the report.

    Raises:
        CommandFailed: The file is not valid, or the service has refused records.
        BadParameter: No format has this name, or the prefix is not valid.
    """
    if not 0 < len(prefix.encode()) <= _MAX_PREFIX_BYTES or prefix != one_line(prefix):
        message = f"must be one line of 1 to {_MAX_PREFIX_BYTES} bytes"
        raise click.BadParameter(message, click.get_current_context(), param_hint="--prefix")
    report = Report()
    try:
        read = reader(name)
    except LookupError as error:
        raise click.BadParameter(str(error), click.get_current_context(), param_hint="--format") from None
    try:
        with progress.shown(prints=False) as shown, Spool(source=name, prefix=prefix, report=report) as spool:
            _read(file, read, spool, report, shown)
            with settings.connect() as client:
                _import(client, spool, report, shown, validate_only=validate_only)
    except FormatError as error:
        raise CommandFailed(str(error)) from None
    except KeyboardInterrupt:
        message = "interrupted; to continue, run the same command again"
        raise CommandFailed(message, exit_code=ExitCode.INTERRUPTED) from None
    except sqlite3.OperationalError as error:
        raise CommandFailed(f"the folder for temporary files: {error}") from None
    _print(report, as_json=settings.json)
    if validate_only and not settings.json:
        click.echo("\nNothing was stored (--validate-only).")
    if refused := sum(it.count for (_, why), it in report.left_out.items() if why.startswith(_REFUSED)):
        raise CommandFailed(f"the service has refused {refused:,} records; the others are imported")


@contextmanager
def _named(file: Path) -> Iterator[Path]:
    """A path of the file; stdin is copied, because databases need a file."""
    if str(file) != "-":
        yield file
        return
    with tempfile.NamedTemporaryFile(prefix="stdin-") as copy:
        copyfileobj(sys.stdin.buffer, copy, 1 << 20)
        copy.flush()
        yield Path(copy.name)


def _read(file: Path, read: Reader, spool: Spool, report: Report, shown: progress.Report) -> None:
    # A format that does not read the file itself, such as a database, reports no fraction.
    fraction: list[float | None] = [None]

    def records(path: Path) -> Iterator[Record]:
        source = Source(path, lambda part: fraction.__setitem__(0, part))
        for number, record in enumerate(read(source, report)):
            if number % _RECORDS_BETWEEN_REPORTS == 0:
                shown("reading the file", number, fraction[0])
            yield record

    with _named(file) as path:
        spool.add(records(path))


def _import(
    client: StoreClient, spool: Spool, report: Report, shown: progress.Report, *, validate_only: bool
) -> None:
    total = sum(spool.counts().values())
    done = 0
    shown("importing", done, 0.0)
    for kind in KINDS:
        state = ImportProgress()
        # A second run finds what is stored, also if it was updated since.
        for state in client.transfer.import_records(
            map(_record, spool.records(kind)), on_conflict="skip", validate_only=validate_only
        ):
            _report_refused(state, kind, report)
            shown("importing", done + state.records, (done + state.records) / total)
        done += state.records
        report.count("created", kind, state.created)
        report.count("already there", kind, state.unchanged + state.skipped)
        described = sum(
            it.count for (of, why), it in report.left_out.items() if of == kind and why.startswith(_REFUSED)
        )
        # The service describes a limited number of refused records.
        if rest := state.failed - described:
            report.leave_out(kind, _REFUSED, "", rest)


def _record(record: ImportedRecord) -> TransferRecord:
    values: dict[str, Any] = {
        "id": 0,
        "body": record.body,
        "author": record.author,
        "labels": record.labels,
        "external_id": record.external_id,
        "create_time": record.create_time,
        "update_time": record.update_time,
    }
    return TransferRecord(
        resource=Post(**values) if record.kind == "post" else Comment(**values, post_id=0),
        post_external_id=record.post_external_id,
        reply_to_external_id=record.reply_to_external_id,
    )


def _report_refused(state: ImportProgress, kind: RecordKind, report: Report) -> None:
    for it in state.failures:
        place = f"{it.record.resource.external_id}: {it.field} {it.description}"
        report.leave_out(kind, f"{_REFUSED}: {it.reason}", place)


def _print(report: Report, *, as_json: bool) -> None:
    """Prints numbers, and the reasons with the first places."""
    for kind in KINDS:
        left = sum(entry.count for (of, _), entry in report.left_out.items() if of == kind)
        report.count("left out", kind, left)
    if as_json:
        output.print_json(report.as_json())
        return
    click.echo(f"{'':<14}{'posts':>12}{'comments':>12}")
    for name in _NUMBERS:
        numbers = report.counts.get(name, {})
        click.echo(f"{name:<14}" + "".join(f"{numbers.get(kind, 0):>12,}" for kind in KINDS))
    _print_entries("Left out:", report.left_out)
    _print_entries("Imported with changes:", report.changed)


def _print_entries(title: str, entries: Mapping[tuple[RecordKind, str], Entry]) -> None:
    if not entries:
        return
    click.echo(f"\n{title}")
    for (kind, text), entry in entries.items():
        names = f"{kind}s" if entry.count != 1 else kind
        more = ", ..." if entry.count > len(entry.examples) else ""
        places = one_line(", ".join(entry.examples) + more)
        click.echo(f"{entry.count:>8,} {names}: {text} ({places})")
