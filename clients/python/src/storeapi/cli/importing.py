"""`storeapi import`."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, cast

import click
from click.core import ParameterSource

from storeapi import ConflictPolicy, ImportProgress, Record, RecordFailure
from storeapi.cli import lines, output, progress
from storeapi.cli.failures import CommandFailed, ExitCode
from storeapi.cli.files import replace_text
from storeapi.cli.help import examples
from storeapi.cli.settings import Settings

SHOWN_FAILURES: Final = 10
"""Maximum number of refused records that are printed."""

COUNTS: Final = ("created", "overwritten", "unchanged", "skipped", "failed")

JSONL: Final = "jsonl"
"""The format of `storeapi export`."""


@click.command(
    "import",
    epilog=examples(
        "storeapi import all.jsonl",
        "zcat all.jsonl.gz | storeapi import --on-conflict skip",
        "storeapi import --resume import.state all.jsonl",
        "storeapi import --format wordpress export.xml",
    ),
)
@click.argument(
    "file", default="-", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@click.option(
    "--on-conflict",
    type=click.Choice(["fail", "skip", "overwrite"]),
    default="fail",
    show_default=True,
    help="If an id or external_id is stored with other values: stop, skip the line, or replace what is"
    " stored.",
)
@click.option("--validate-only", is_flag=True, help="Check the lines and store nothing.")
@click.option(
    "--resume",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="STATE",
    help="File that says how far the import is. It is created, and removed at the end; if it exists, the"
    " import continues.",
)
@click.option(
    "--ignore-unknown-fields",
    is_flag=True,
    help="Import without the fields that this version of the command does not know.",
)
@click.option(
    "--format",
    "format_name",
    default=JSONL,
    metavar="NAME",
    help="disqus, isso, remark42, wordpress, or that of an installed package: a file of another system. "
    "Default: jsonl, a file of storeapi export.",
)
@click.option(
    "--prefix",
    metavar="TEXT",
    help="With --format: the beginning of external ids, different for each site. Default: the format.",
)
@click.pass_obj
def import_(
    settings: Settings,
    file: Path,
    on_conflict: str,
    validate_only: bool,
    resume: Path | None,
    ignore_unknown_fields: bool,
    format_name: str,
    prefix: str | None,
) -> None:
    """Store the records of an export, with their ids, times and etags.

    It needs the permission admin. FILE is read once ("-" is stdin, the default), and is stored in batches. A
    post must come before its comments, and a comment before the replies to it. A line without an id is found
    by its external_id; it gets an id if it is new. A line without an etag and create_time is created now.

    An import can be repeated, for example after an interruption: a line that is stored already is not stored
    again. With --resume it also continues where it was interrupted. A line that the service refuses ends the
    import with --on-conflict fail; otherwise the others are imported, and the exit code is not 0.

    With --format, FILE is of another system. It is read completely before anything is stored. Everything gets
    an external id, by which it is found when the import is repeated, and a new id. A report is printed.
    """
    if format_name != JSONL:
        _check_options({"on_conflict", "resume", "ignore_unknown_fields"}, f"--format {format_name}")
        # Imported here: it takes longer to import than the rest of the command.
        from storeapi.cli.foreign import import_file

        import_file(
            settings,
            file,
            format_name,
            prefix=format_name if prefix is None else prefix,
            validate_only=validate_only,
        )
        return
    _check_options({"prefix"}, "--format jsonl")
    skipped = _saved(resume)
    total = 0 if str(file) == "-" else file.stat().st_size
    failures: list[RecordFailure] = []
    done = ImportProgress()
    with _opened(file) as source, progress.shown(prints=settings.json) as report:
        records = read_records(source, ignore_unknown_fields=ignore_unknown_fields)
        report("importing", 0, None)
        try:
            with (
                settings.connect() as client,
                client.transfer.import_records(
                    islice(records, skipped, None),
                    on_conflict=cast("ConflictPolicy", on_conflict),
                    validate_only=validate_only,
                ) as steps,
            ):
                for done in steps:
                    failures += done.failures[: SHOWN_FAILURES - len(failures)]
                    if done.failed and on_conflict == "fail":
                        break
                    if resume is not None:
                        replace_text(resume, json.dumps({"records": skipped + done.records}))
                    report("importing", skipped + done.records, _part(source, total))
        except KeyboardInterrupt:
            again = "run it again" + ("" if resume else "; nothing is stored twice")
            message = f"interrupted after {skipped + done.records} records; to continue, {again}"
            raise CommandFailed(message, exit_code=ExitCode.INTERRUPTED) from None
    for failure in failures:
        click.echo(f"{_place(failure)}: {failure.reason}: {failure.field} {failure.description}", err=True)
    if settings.json:
        output.print_json({name: getattr(done, name) for name in COUNTS})
        sys.stdout.flush()
    counted = ", ".join([f"{getattr(done, name)} {name}" for name in COUNTS if getattr(done, name)])
    summary = f"{'checked' if validate_only else 'imported'} {done.records} records: {counted or 'none'}"
    if done.failed:
        is_conflict = any(it.reason in ("CONFLICT", "EXTERNAL_ID_TAKEN") for it in failures)
        raise CommandFailed(summary, exit_code=ExitCode.CONFLICT if is_conflict else ExitCode.FAILED)
    if resume is not None:
        with suppress(FileNotFoundError):
            resume.unlink()
    click.echo(summary, err=True)


def read_records(source: IO[bytes], *, ignore_unknown_fields: bool) -> Iterator[Record]:
    """The records of a file of `storeapi export`."""
    return lines.read(source, ignore_unknown_fields=ignore_unknown_fields)


def _check_options(names: Collection[str], other: str) -> None:
    """Refuses options that have no meaning with another one."""
    ctx = click.get_current_context()
    for name in names:
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} cannot be used with {other}", ctx)


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    with file.open("rb") as source:
        yield source


def _saved(resume: Path | None) -> int:
    """The number of records that are stored according to the state of an interrupted import."""
    if resume is None or not resume.exists():
        return 0
    try:
        saved: Any = json.loads(resume.read_text())["records"]
    except (ValueError, TypeError, KeyError):
        saved = None
    if not isinstance(saved, int) or saved < 0:
        raise CommandFailed(f"{resume} is not the state of an import")
    return saved


def _part(source: IO[bytes], total: int) -> float | None:
    """The part of the file that was read; None if its size is not known."""
    return min(source.tell() / total, 1.0) if total else None


def _place(failure: RecordFailure) -> str:
    record = failure.record
    return f"line {record.number}" if isinstance(record, lines.Line) else f"record {failure.index + 1}"
