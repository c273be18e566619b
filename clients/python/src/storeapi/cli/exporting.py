"""`storeapi export`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import IO

import click

from storeapi import ExportTotals, StoreClient
from storeapi.cli import progress
from storeapi.cli.failures import CommandFailed, ExitCode
from storeapi.cli.files import whole_file
from storeapi.cli.help import examples
from storeapi.cli.partial_export import PartialExport
from storeapi.cli.progress import Report
from storeapi.cli.settings import Settings


@click.command(
    "export", epilog=examples("storeapi export all.jsonl", "storeapi export | gzip > all.jsonl.gz")
)
@click.argument("file", default="-", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--resume",
    is_flag=True,
    help="Keep the records in FILE.partial until the export is complete, and continue from there after an"
    " interruption.",
)
@click.pass_obj
def export(settings: Settings, file: Path, resume: bool) -> None:
    """Write everything that is stored as JSON lines.

    Posts, comments and tombstones, deleted posts and comments that can be restored, and former versions, with
    ids, times and etags: `storeapi import` stores them again. It needs the permission admin. Other callers
    may write meanwhile: the records are those of one point in time, at the end of the export. Until then they
    are in a temporary file.

    FILE is created, or replaced, only when the export is complete; "-" is stdout, the default.
    """
    if str(file) == "-":
        if resume:
            raise click.UsageError("--resume needs a FILE", click.get_current_context())
        with tempfile.TemporaryFile() as temporary:
            counted = _write(settings, PartialExport(temporary), sys.stdout.buffer)
        sys.stdout.flush()
    elif resume:
        counted = _resume(settings, file)
    else:
        folder = file.parent if file.is_file() or not file.exists() else None
        with whole_file(file) as target, tempfile.TemporaryFile(dir=folder) as temporary:
            counted = _write(settings, PartialExport(temporary), target)
    click.echo(_summary(*counted), err=True)


def _resume(settings: Settings, file: Path) -> tuple[int, ExportTotals]:
    """Begins or continues an export that can be continued."""
    part, state = file.with_name(f"{file.name}.partial"), file.with_name(f"{file.name}.partial.state")
    is_begun = part.exists() and state.exists()
    with part.open("r+b" if is_begun else "w+b") as partial_file:
        partial = PartialExport(partial_file, state)
        if is_begun:
            partial.resume()
        try:
            with whole_file(file) as target:
                counted = _write(settings, partial, target)
        except BaseException as error:
            partial.save()
            if isinstance(error, KeyboardInterrupt):
                message = f"interrupted; to continue: storeapi export --resume {file}"
                raise CommandFailed(message, exit_code=ExitCode.INTERRUPTED) from None
            raise
    for path in (part, state):
        path.unlink()
    return counted


def _write(settings: Settings, partial: PartialExport, target: IO[bytes]) -> tuple[int, ExportTotals]:
    with settings.connect() as client, progress.shown(prints=target is sys.stdout.buffer) as report:
        totals = receive(client, partial, report)
        report("writing", partial.records, None)
        return partial.write_to(target), totals


def receive(client: StoreClient, partial: PartialExport, report: Report) -> ExportTotals:
    """Adds all batches of an export, and returns the number of its records."""
    total = 0
    report("exporting", partial.records, None)
    with client.transfer.export(cursor=partial.cursor) as batches:
        for batch in batches:
            partial.add(batch)
            total = batch.estimated_records or total
            report("exporting", partial.records, min(partial.records / total, 1.0) if total else None)
            if batch.totals is not None:
                return batch.totals
    raise AssertionError("an export that is not closed ends with totals")


def _summary(count: int, totals: ExportTotals) -> str:
    text = f"exported {totals.posts} posts and {totals.comments} comments"
    more = [
        f"{number} {name}"
        for number, name in (
            (totals.deleted_posts, "deleted posts"),
            (totals.deleted_comments, "deleted comments"),
            (totals.revisions, "former versions"),
        )
        if number
    ]
    text += f", {', '.join(more)}" if more else ""
    # Retention removes deleted resources without changes.
    return text if count == totals.all else f"{text}; {count} records, some of which were purged meanwhile"
